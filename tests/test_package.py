"""What is installed is the whole package, also where it is not installed as a link to this folder."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_folder_of_the_package_is_installed():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "evomerge").rglob("*.py")}
    assert set(packages) == {".".join(folder.parts) for folder in folders} | {"evomerge.search_spaces"}
