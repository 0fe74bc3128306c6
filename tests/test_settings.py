"""A study file is checked completely before any work, and every error says what to type."""

import importlib
from pathlib import Path

import pytest

from evomerge import placement
from evomerge.digests import code_digests, data_digest
from evomerge.errors import EvomergeError, PoolError, StudyError
from evomerge.evaluate import Setup
from evomerge.parts import identity, open_parts
from evomerge.settings import StudySettings

GOOD = {"pool": {"base": "base", "experts": {"a": "a"}}, "space": "task_arithmetic"}


def parse(**changes):
    return StudySettings.parse(GOOD | changes, "study.yaml", Path("/models"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation": 3}, "study.yaml: unknown key `evaluation`; did you mean `evaluations`?"),
        ({"pool": {"bose": "x"}}, "study.yaml: unknown key `pool.bose`; did you mean `base`?"),
        ({"report": {"frnt": 3}}, "study.yaml: unknown key `report.frnt`; did you mean `front`?"),
        ({"pool": {}}, "expected either `zoo: NAME`, or `base: FOLDER` and"),
        ({"pool": {"zoo": "text", "base": "b"}}, "expected either `zoo: NAME`, or `base: FOLDER` and"),
        ({"workers": 0}, "`workers`: input should be greater than or equal to 1, got 0"),
        ({"evaluations": "many"}, "`evaluations`"),
        ({"device": "gpu"}, "`device`: expected auto, cpu, cuda, cuda:1 or mps, got 'gpu'"),
        ({"gpus": 2}, "`gpus`: input should be less than or equal to 1, got 2"),
        ({"precision": "int4"}, "`precision`: input should be 'float32', 'bfloat16', 'float16' or 'auto', got 'int4'"),
        ({"space": "ties_per_blok"}, "did you mean `ties_per_block`?"),
        ({"name": "a/b"}, "`name`"),
    ],
)
def test_a_wrong_entry_is_named_with_what_to_type(change, message):
    with pytest.raises(EvomergeError) as error:
        parse(**change)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"min": 4, "max": 2}, "`workers`: expected `max` of at least `min`, 4; got 2"),
        ({"min": 0}, "`workers.min`: input should be greater than or equal to 1, got 0"),
        ({"min": 2, "maximum": 4}, "unknown key `workers.maximum`; did you mean `max`?"),
        ({"queue": "q", "lese": 4}, "unknown key `workers.lese`; did you mean `lease`?"),
        ({"max": 4, "gpus": 2}, "`workers.gpus`: input should be less than or equal to 1, got 2"),
        ({"max": 4, "labels": {"zone": "in(a"}}, "`workers.labels.zone`"),
        ({"max": 4, "memory_gb": 0}, "`workers.memory_gb`: input should be greater than 0, got 0"),
    ],
)
def test_a_wrong_entry_of_workers_is_named(workers, message):
    with pytest.raises(StudyError) as error:
        parse(workers=workers)
    assert message in str(error.value)


def test_workers_of_a_cluster_survive_json_and_count_as_their_least():
    settings = parse(workers={"min": 2, "max": 16, "cpus": 0.5, "labels": {"zone": "in(a, b)"}})
    assert StudySettings.model_validate(settings.model_dump(mode="json")) == settings
    assert (settings.processes, settings.workers.most, parse(workers={"min": 3}).workers.most) == (2, 16, 3)


def test_relative_paths_start_at_the_study_file(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.yaml").write_text(
        "pool: {base: ../base, experts: {a: ../a}}\nspace: task_arithmetic\ntasks: {t: {kind: x, input: text}}\n"
    )
    settings = StudySettings.read(tmp_path / "s" / "study.yaml")
    assert settings.pool.base == str(tmp_path / "base")
    assert settings.pool.experts == {"a": str(tmp_path / "a")}
    assert settings.folder == str(tmp_path / "s")
    assert settings.tasks["t"]["input"] == "text"


def test_settings_survive_json_unchanged():
    settings = parse(driver={"kind": "cma"}, seed=3)
    assert StudySettings.model_validate(settings.model_dump(mode="json")) == settings


def test_a_study_without_tasks_is_refused():
    with pytest.raises(StudyError, match="has no `tasks`"):
        open_parts(parse())


def test_a_pool_that_is_not_there_is_refused_before_any_work():
    task = {"kind": "callable", "function": "math:sin", "search": 1, "report": 1}
    with pytest.raises((PoolError, EvomergeError), match="/models/base: no such folder"):
        open_parts(parse(tasks={"t": task}))


def test_budget_and_workers_are_no_part_of_a_studys_identity(small_digits):
    def make(**changes):
        data = {"pool": small_digits.pool, "tasks": small_digits.tasks, "space": "task_arithmetic"}
        settings = StudySettings.parse(data | changes, "test", Path.cwd())
        return identity(settings, open_parts(settings))

    assert make(evaluations=25, workers=3, deadline=1.0) == make()
    assert make(seed=1) != make()
    assert make(tasks=dict(reversed(small_digits.tasks.items()))) != make()


def test_a_device_joins_the_identity_by_kind_and_name_and_the_cpu_does_not(small_digits, monkeypatch):
    def make(**changes):
        data = {"pool": small_digits.pool, "tasks": small_digits.tasks, "space": "task_arithmetic"}
        settings = StudySettings.parse(data | changes, "test", Path.cwd())
        return identity(settings, open_parts(settings))

    cpu = make()
    assert "device" not in cpu
    assert "gpus" not in cpu
    assert make(device="auto") == cpu
    monkeypatch.setattr(placement, "available", lambda: {"cuda:0": "NVIDIA H100", "cuda:1": "NVIDIA H100", "cpu": ""})
    assert make() == cpu
    assert make(device="auto") == make(device="cuda:1", gpus=0.5) == {**cpu, "device": "cuda NVIDIA H100"}


def test_automatic_settings_are_those_of_the_machine_or_of_the_study_that_was_started(monkeypatch):
    settings = parse(device="auto", precision="auto")
    monkeypatch.setattr(placement, "available", lambda: {"cuda:0": "NVIDIA H100", "cpu": ""})
    monkeypatch.setattr(placement, "fastest", lambda device: "bfloat16")
    settled = settings.settled()
    assert (settled.device, settled.precision) == ("cuda", "bfloat16")
    started = parse(device="cpu", precision="float16")
    settled = settings.settled(started)
    assert (settled.device, settled.precision) == ("cpu", "float16")
    assert parse(device="cuda:1").settled(started).device == "cuda:1"


def test_a_space_over_tensors_has_a_gene_for_each_merged_tensor_of_the_pool(small_digits):
    weight = {"float": [0, 1], "per": ["tensor"]}
    space = {"recipe": {"merge": {"method": "linear", "inputs": "experts", "parameters": {"weight": weight}}}}
    data = {"pool": small_digits.pool, "tasks": small_digits.tasks, "space": space, "driver": {"kind": "random"}}
    parts = open_parts(StudySettings.parse(data, "test", Path.cwd()))
    assert [gene.name for gene in parts.space.genes] == [f"weight[{name}]" for name in parts.pool.merged]


def test_the_file_of_a_module_is_part_of_the_identity(tmp_path):
    file = tmp_path / "net.py"
    setup = Setup("base", {}, {}, module=f"{file}:make")
    file.write_text("def make(folder): ...")
    before = code_digests(setup)
    assert list(before["code_digests"]) == ["module"]
    file.write_text("def make(folder): return None")
    assert code_digests(setup) != before
    assert code_digests(Setup("base", {}, {})) == {}


def test_files_that_a_function_imports_from_the_studys_folder_are_part_of_the_identity(tmp_path, monkeypatch):
    (tmp_path / "scoring_a.py").write_text("import json\nfrom scoring_b import two\ndef score(*_): return two()\n")
    (tmp_path / "scoring_b.py").write_text("import scoring_c\ndef two(): return 2\n")
    (tmp_path / "scoring_c.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("scoring_a")
    setup = Setup("base", {}, {"t": {"kind": "callable", "function": "scoring_a:score"}}, folder=str(tmp_path))
    before = code_digests(setup)["code_digests"]
    assert [name.partition(" imports ")[2] for name in before] == ["", "scoring_b.py", "scoring_c.py"]
    (tmp_path / "scoring_c.py").write_text("# changed")
    after = code_digests(setup)["code_digests"]
    assert [name for name in before if before[name] != after[name]] == ["scoring_a:score imports scoring_c.py"]


def test_the_files_of_a_tasks_functions_are_part_of_the_identity():
    task = {"kind": "callable", "function": "string:capwords", "gradient": "textwrap:dedent"}
    assert list(code_digests(Setup("base", {}, {"t": task}))["code_digests"]) == ["string:capwords", "textwrap:dedent"]
    del task["gradient"]
    assert list(code_digests(Setup("base", {}, {"t": task}))["code_digests"]) == ["string:capwords"]


def test_a_function_that_is_built_into_python_has_no_digest():
    task = {"kind": "callable", "function": "sys:getsizeof", "search": 1, "report": 1}
    assert code_digests(Setup("base", {}, {"t": task})) == {}


def test_the_folders_of_images_are_part_of_the_identity_as_their_contents_are(tmp_path):
    file = tmp_path / "all" / "cat" / "1.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"pixels")
    (tmp_path / "all" / "notes.txt").write_bytes(b"text")
    settings = parse().model_copy(update={"folder": str(tmp_path)})
    first = data_digest({"examples": "all"}, settings.folder)
    (tmp_path / "all" / "notes.txt").rename(tmp_path / "all" / "other.txt")
    assert data_digest({"examples": "all"}, settings.folder) == first
    file.parent.rename(tmp_path / "all" / "dog")  # the class of its images
    second = data_digest({"examples": "all"}, settings.folder)
    assert list(second) == ["examples"]
    assert second != first
    (tmp_path / "all" / "dog" / "1.png").write_bytes(b"other pixels")
    assert data_digest({"examples": "all"}, settings.folder) != second


def test_a_study_without_defaults_is_written_and_identified_as_before(small_digits):
    data = {"pool": small_digits.pool, "tasks": small_digits.tasks, "space": "task_arithmetic"}
    settings = StudySettings.parse(data, "study.yaml", Path())
    assert "defaults" not in settings.model_dump(mode="json")
    given = settings.model_copy(update={"defaults": {"max_length": 77}})
    assert StudySettings.model_validate(given.model_dump(mode="json")).defaults == {"max_length": 77}
    parts = open_parts(given)
    tasks = {name: {"max_length": 77, **entry} for name, entry in small_digits.tasks.items()}
    assert parts.setup.tasks == tasks
    written = settings.model_copy(update={"tasks": tasks})
    assert identity(given, parts) == identity(written, open_parts(written))
