"""Every block in the documentation runs, page by page, each page in a folder of its own."""

import re
import shutil
from pathlib import Path

import documents
import pytest

from evomerge import merging, search, strict_yaml, tasks

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {str(page.relative_to(DOCS)): page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
RUN = {name: found for name, text in PAGES.items() if (found := documents.blocks(text, "bash", "python"))}


@pytest.mark.parametrize("page", RUN)
def test_every_block_of_the_page_runs(page, few_digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page != "index.md":  # which writes the folders that other pages read
        for name, folder in {"base": few_digits.pool["base"], **few_digits.pool["experts"]}.items():
            shutil.copytree(folder, tmp_path / "models" / name)
    documents.run(RUN[page])


def test_few_blocks_do_not_run():
    commands = documents.blocks("\n".join(PAGES.values()), "bash", "python", "sh")
    assert len([code for language, code in commands if language == "sh"]) < len(commands) / 5


@pytest.mark.parametrize("page", PAGES)
def test_the_tasks_of_the_page_are_valid(page):
    for _, text in documents.blocks(PAGES[page], "yaml"):
        for settings in strict_yaml.parse(text, page).get("tasks", {}).values():
            schema, _ = tasks.KINDS[settings["kind"]]
            assert schema.model_validate(settings).kind == settings["kind"]


@pytest.mark.parametrize(("what", "known"), [("methods", merging.METHODS), ("drivers", search.KINDS)])
def test_what_is_said_of_methods_and_drivers_is_of_known_ones(what, known):
    groups = strict_yaml.read(DOCS / "choices.yaml")[what].values()
    names = [name for group in groups for name in group["names"]]
    assert len(names) == len(set(names))
    assert set(names) <= set(known)


def test_every_page_is_in_the_navigation():
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"\S+\.md$", navigation, re.MULTILINE)) - {"measured/index.md"} == set(PAGES)
