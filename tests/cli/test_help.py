"""Help: every command in its group, in the order of use."""

from typer.main import get_command

from evomerge.cli.app import app

ORDER = {
    "Search": ["demo", "run", "resume", "control", "worker", "show", "pick", "compare", "trust", "repair"],
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
