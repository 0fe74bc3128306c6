"""Strict YAML: duplicate keys are errors, `1e-4` is a number, `no` is a word, and no tag runs code.

The data is what JSON can hold: keys are words, and there are no dates, sets, merge keys or includes. An alias, `*name`, is a
copy of what its anchor, `&name`, marks.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import EvomergeError

_LARGEST = 4_000_000  # characters; a recipe with 100,000 numbers has half as many
_COPIED = 100_000  # values that the aliases of a text may stand for together
_TAG = "tag:yaml.org,2002:"


class YamlError(EvomergeError, ValueError):
    """A YAML text is not valid, or is ambiguous."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2, no duplicate keys, and bounded aliases."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._copied = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node; that of an alias is a copy, so that no two places share data."""
        alias = self.peek_event() if self.check_event(yaml.AliasEvent) else None  # type: ignore[no-untyped-call]  # the library has no types here
        node = super().compose_node(parent, index)
        if alias is None or node is None:
            return node
        where = f"line {alias.start_mark.line + 1}: `*{alias.anchor}`"
        if node.end_mark is None:  # PyYAML sets it when the node is complete
            raise YamlError(f"{where} stands inside of what it names; write the value out")
        # Aliases of aliases can expand a short text to more than any memory holds.
        self._copied += _size(node)
        if self._copied > _COPIED:
            raise YamlError(f"{where}: aliases stand for more than {_COPIED} values; write the value out")
        return _copy(node)


def _size(node: yaml.Node) -> int:
    """Return the number of nodes of a tree."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    inner = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
    return 1 + sum(map(_size, inner))


def _copy(node: yaml.Node) -> yaml.Node:
    value = node.value
    if isinstance(node, yaml.MappingNode):
        value = [(_copy(key), _copy(item)) for key, item in value]
    elif isinstance(node, yaml.SequenceNode):
        value = [_copy(item) for item in value]
    return type(node)(node.tag, value, node.start_mark, node.end_mark)


_RESOLVERS = (
    (f"{_TAG}null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    (f"{_TAG}bool", r"(?:true|false|True|False)$", list("tfTF")),
    (f"{_TAG}int", r"[-+]?[0-9]+$", list("-+0123456789")),
    (
        f"{_TAG}float",
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$",
        list("-+.0123456789"),
    ),
)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def _mapping(loader: _Loader, node: yaml.Node) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise YamlError(f"line {node.start_mark.line + 1}: expected a mapping")
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        where = f"line {key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlError(f"{where}: expected a word as the key, got a list or a mapping")
        key = str(key_node.value)
        if key in data:
            raise YamlError(f"{where}: key `{key}` is written twice; keep one")
        data[key] = loader.construct_object(value_node, deep=True)
    return data


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # PyYAML reads 010 as octal; YAML 1.2 as ten


_CONSTRUCTORS = yaml.SafeLoader.yaml_constructors
_Loader.yaml_constructors = {
    None: _CONSTRUCTORS[None],  # an error that names the tag
    **{tag: _CONSTRUCTORS[tag] for tag in (f"{_TAG}{kind}" for kind in ("seq", "null", "bool", "float", "str"))},
}
_Loader.add_constructor(f"{_TAG}map", _mapping)
_Loader.add_constructor(f"{_TAG}int", _integer)


def parse(text: str, where: str) -> Any:
    """Return the data of one YAML document. Messages begin with `where`, a file's name. Raises `YamlError`."""
    return _load(text, where, lambda: yaml.load(text, Loader=_Loader))  # noqa: S506  # a subclass of SafeLoader


def parse_all(text: str, where: str) -> list[Any]:
    """Return the data of all YAML documents of a text, which `---` separates; see `parse`."""
    data: list[Any] = _load(text, where, lambda: list(yaml.load_all(text, Loader=_Loader)))
    return data


def _load(text: str, where: str, load: Callable[[], Any]) -> Any:
    if len(text) > _LARGEST:
        raise YamlError(f"{where}: {len(text)} characters; expected at most {_LARGEST}")
    try:
        return load()
    except YamlError as error:
        raise YamlError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, LookupError) as error:  # also `!!int word`, and a number of 5,000 digits
        raise YamlError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise YamlError(f"{where}: nested too deep for a recipe, a space or a study") from None


def read(path: Path) -> Any:
    """Return the data in the YAML file at `path`. Raises `YamlError`, also if it cannot be read."""
    return parse(_content(path), str(path))


def read_all(path: Path) -> list[Any]:
    """Return the data of all documents in the YAML file at `path`. Raises `YamlError`, also if it cannot be read."""
    return parse_all(_content(path), str(path))


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise YamlError(f"{path}: not a text file (byte {error.start} is not UTF-8); expected YAML") from None
    except OSError as error:
        raise YamlError(f"{path}: cannot be read ({error.strerror}); expected a YAML file") from None


def text(data: Any) -> str:
    """Return `data` as readable YAML that `parse` reads back to equal data."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110))


class _Dumper(yaml.SafeDumper):
    """Quotes words that `parse` or YAML 1.1 would read as something else, and writes flat lists on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _float(dumper: _Dumper, value: float) -> yaml.ScalarNode:
    word = repr(value).replace("inf", ".inf").replace("nan", ".nan")
    return dumper.represent_scalar(f"{_TAG}float", word)


def _str(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    # PyYAML removes Unicode line breaks unless they are escaped, which needs double quotes
    return dumper.represent_scalar(f"{_TAG}str", value, style='"' if re.search("[\x85\u2028\u2029]", value) else None)


def _list(dumper: _Dumper, value: Sequence[Any]) -> yaml.SequenceNode:
    flat = all(isinstance(item, int | float | str) for item in value)
    return dumper.represent_sequence(f"{_TAG}seq", value, flow_style=flat)


for _tag, _pattern, _first in _RESOLVERS:
    _Dumper.add_implicit_resolver(_tag, re.compile(_pattern), _first)
_Dumper.add_representer(float, _float)
_Dumper.add_representer(str, _str)
_Dumper.add_representer(list, _list)
_Dumper.add_representer(tuple, _list)
