"""Every command in the README runs, in its order, in an empty folder."""

import re
import subprocess
import sys
from pathlib import Path

import documents
import pytest
from commands import evomerge

from evomerge import strict_yaml, tasks

README = Path(__file__).parent.parent / "README.md"


def test_every_command_in_the_readme_runs(few_digits, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    found = documents.blocks(README.read_text(encoding="utf-8"), "bash", "python")
    documents.run([(language, code) for language, code in found if "make demo" not in code])  # a fresh clone runs those
    assert (folder / "merged" / "picked" / "model.safetensors").exists()
    assert (folder / "runs" / "digits" / "report.html").exists()
    assert (folder / "merged" / "python" / "config.json").exists()


def test_the_command_is_installed():
    command = Path(sys.executable).parent / "evomerge"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("evomerge ")


def test_the_tasks_in_the_readme_are_valid(tmp_path):
    blocks = [text for text in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL) if text[:6] == "tasks:"]
    assert blocks
    for block in blocks:
        for name, settings in strict_yaml.parse(block, "README")["tasks"].items():
            schema, _ = tasks.KINDS[settings["kind"]]
            assert schema.model_validate(settings).kind == settings["kind"], name


def test_the_recipes_in_the_readme_are_valid_where_they_stand(small_digits, tmp_path):
    recipes = [
        text for text in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL) if text.startswith("merge:")
    ]
    assert recipes
    pool = [f"--base={small_digits.pool['base']}"]
    pool += [f"--expert={name}={folder}" for name, folder in small_digits.pool["experts"].items()]
    for text in recipes:
        (tmp_path / "recipe.yaml").write_text(text)
        evomerge("merge", tmp_path / "recipe.yaml", *pool, "-o", tmp_path / "out", "--dry-run")


def test_clean_leaves_the_studies():
    makefile = (README.parent / "Makefile").read_text()
    assert "runs" not in makefile[makefile.index("\nclean:") :]


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http|#)([^)]+)\)", README.read_text(encoding="utf-8")))
def test_every_file_that_the_readme_links_to_is_there(link):
    path, _, anchor = link.partition("#")
    assert (README.parent / path).exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", (README.parent / path).read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
