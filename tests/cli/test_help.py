"""Help: every command in its group, in the order of use."""

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from evomerge.cli.app import app

ORDER = {
    "Search": ["demo", "run", "resume", "control", "worker", "show", "pick", "compare", "bench", "trust", "repair"],
    "Look in": ["status", "view", "doctor"],
    "Models": [
        "check",
        "merge",
        "statistics",
        "score",
        "extract-lora",
        "compress",
        "decompress",
        "import",
        "export",
        "push",
    ],
    "Lists": ["spaces", "tasks", "zoo", "cache"],
}


def test_every_command_is_in_its_group_in_the_order_of_use():
    groups: dict[str, list[str]] = {}
    for name, command in get_command(app).commands.items():
        groups.setdefault(command.rich_help_panel, []).append(name)
    assert groups == ORDER
    assert list(groups) == list(ORDER)


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    commands = getattr(command, "commands", None)
    if commands is None:
        yield name, command
    for word, one in (commands or {}).items():
        yield from leaves(one, f"{name} {word}")


COMMANDS = dict(leaves(get_command(app), "evomerge"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_text_ends_with_an_example_that_can_be_typed(name):
    command = COMMANDS[name]
    how, _, example = command.epilog.partition(": ")
    assert how == "Example"
    assert example.startswith(name)
    parser = command.make_parser(command.context_class(command, info_name=name))
    given, rest, _ = parser.parse_args(shlex.split(example.removeprefix(name)))  # raises for unknown options
    assert not rest
    required = {entry.name for entry in command.params if entry.required}
    assert required <= {key for key, value in given.items() if value not in (None, ())}


def test_commands_that_show_progress_can_be_quiet():
    quiet = {name for name, one in COMMANDS.items() if any("--quiet" in entry.opts for entry in one.params)}
    assert {"evomerge demo", "evomerge run", "evomerge resume", "evomerge merge", "evomerge zoo build"} <= quiet
