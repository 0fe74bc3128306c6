"""YAML as people mean it: duplicate keys are errors, `1e-4` is a number, `no` is a word, and no tag runs code."""

import re
from typing import Any

import yaml

from evomerge.errors import EvomergeError

_LARGEST = 4_000_000  # characters; a recipe with 100,000 numbers is half of it
_ALIASES = 64


class YamlError(EvomergeError, ValueError):
    """A YAML text is not valid, or not unambiguous."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 and no duplicate keys."""


_Loader.yaml_implicit_resolvers = {
    key: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
    for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|false|True|False)$"), list("tfTF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$"),
    list("-+.0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]  # PyYAML's stubs
        if isinstance(key, list | dict) or key in seen:
            line = key_node.start_mark.line + 1
            msg = f"line {line}: key {key!r} is written twice; keep one" if not isinstance(key, list | dict) else (
                f"line {line}: {key!r} is no key; expected a word"
            )
            raise YamlError(msg)
        seen[key] = loader.construct_object(value_node, deep=True)  # type: ignore[no-untyped-call]
    return seen


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, where: str) -> Any:
    """Return the data of one YAML document. `where` (a file's name) begins every error. Raises `YamlError`."""
    if len(text) > _LARGEST:
        msg = f"{where}: {len(text)} characters; expected at most {_LARGEST}"
        raise YamlError(msg)
    if len(re.findall(r"(?:^|[\s\[,])\*\w", text)) > _ALIASES:
        msg = f"{where}: more than {_ALIASES} aliases (`*name`); write the values out"
        raise YamlError(msg)
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        msg = f"{where}: not valid YAML: {' '.join(str(error).split())}"
        raise YamlError(msg) from None
    except YamlError as error:
        msg = f"{where}: {error}"
        raise YamlError(msg) from None


def text(data: Any) -> str:
    """Return `data` as readable YAML that `parse` reads back to equal data."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110))


class _Dumper(yaml.SafeDumper):
    """Writes floats so that YAML 1.2 reads them as floats, and short lists of numbers on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(value))


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.SequenceNode:
    flat = all(isinstance(item, int | float | str) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


_Dumper.add_representer(float, _float)
_Dumper.add_representer(list, _list)
_Dumper.add_representer(tuple, _list)
