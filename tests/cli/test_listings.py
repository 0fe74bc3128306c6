"""The listings: kinds of tasks with all their keys."""

import re
from inspect import getdoc

import pytest
from commands import evomerge

from evomerge import strict_yaml, tasks


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_every_kind_of_task_is_printed_with_all_keys_defaults_and_an_example_that_is_valid(kind):
    said = evomerge("tasks", kind).stdout
    schema, _ = tasks.KINDS[kind]
    for key, field in schema.model_fields.items():
        assert field.description or key == "kind"
        [line] = [line for line in said.splitlines() if line.startswith(f" {key} ")]
        assert field.is_required() == (line.split()[1] == "required")
        assert " ".join((field.description or "").split()) in line
    [example] = re.findall(r"^Example: `(.*)`$", getdoc(schema), re.MULTILINE)
    assert example in said
    [settings] = strict_yaml.parse(example, "example").values()
    assert schema.model_validate(settings).kind == kind


def test_kinds_of_tasks_are_listed_and_a_wrong_one_is_refused():
    said = evomerge("tasks").stdout
    assert all(f" {kind} " in said for kind in tasks.KINDS)
    assert "did you mean `generation`?" in evomerge("tasks", "generations", code=2).stderr
    assert "function(model, split, examples)" in evomerge("tasks", "callable").stdout
