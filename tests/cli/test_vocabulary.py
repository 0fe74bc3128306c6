"""Commands on models with tokens of their own: what a dry run says, and that every export has the tokens."""

import json

import pytest
from commands import evomerge
from vocabularies import TEXTS, write_base, write_expert

from evomerge import strict_yaml
from evomerge.models.pretrained import load_model, load_tokenizer

TIES = {"merge": {"method": "ties", "inputs": "experts"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    write_base(folder / "base")
    write_expert(folder / "a", folder / "base", 1, "<end>", "<x>", eos_token="<end>")
    write_expert(folder / "b", folder / "base", 2, "<x>", "<y>")
    (folder / "bare.yaml").write_text(json.dumps(TIES))
    pool = {"base": "base", "experts": {"a": "a", "b": "b"}}
    (folder / "recipe.yaml").write_text(json.dumps({"pool": {**pool, "tokenizer": {"pad_to": 8}}, "recipe": TIES}))
    for split, texts in (("search", TEXTS[:2]), ("report", TEXTS[2:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": f"{text} <y>"}) + "\n" for text in texts))
    task = {"kind": "language_modelling", "search": "search.jsonl", "report": "report.jsonl"}
    study = {"pool": {**pool, "tokenizer": "union"}, "space": "task_arithmetic", "tasks": {"texts": task}}
    study |= {
        "driver": {"kind": "random"},
        "evaluations": 3,
        "report": {"resamples": 100, "scales": [0.5], "mixtures": 0},
    }
    (folder / "study.yaml").write_text(json.dumps(study))
    return folder


def words(done):
    return " ".join((done.stdout + done.stderr).split())


def test_dry_run_says_which_tokens_are_shared_and_whose_the_others_are(folder):
    models = ("--base", "base", "--expert", "a=a", "--expert", "b=b")
    refused = evomerge("merge", "bare.yaml", *models, "-o", "out", "--dry-run", cwd=folder, code=2)
    assert "type `tokenizer: union` under `pool`, or `--tokenizer union`" in " ".join(refused.stderr.split())
    said = words(evomerge("merge", "bare.yaml", *models, "--tokenizer", "union", "-o", "out", "--dry-run", cwd=folder))
    shared = len(load_tokenizer(folder / "base"))
    assert f"{shared} tokens of all models, 1 of a (`<end>`), 1 of a and b (`<x>`), 1 of b (`<y>`)" in said
    assert f"{shared + 3} rows, 0 without a token" in said
    assert "special tokens differ: eos `</s>` (base, b), `<end>` (a). A merge has those of base" in said
    base = words(evomerge("merge", "bare.yaml", *models, "--tokenizer", "base", "-o", "out", "--dry-run", cwd=folder))
    assert "without 2 of a (`<end>`, `<x>`), without 2 of b (`<x>`, `<y>`)" in base
    wrong = evomerge("merge", "bare.yaml", *models, "--tokenizer", "c", "-o", "out", "--dry-run", cwd=folder, code=2)
    lora = evomerge("merge", "recipe.yaml", "--as-adapter", "-o", "out", cwd=folder, code=2)
    assert "rows of tokens chosen by `tokenizer`, and an adapter those of its base" in " ".join(lora.stderr.split())
    assert "`source` is `c`; known: a, b, base, union" in " ".join(wrong.stderr.split())


def test_recipe_of_a_file_names_the_choice_and_its_mistakes(folder, tmp_path):
    evomerge("merge", "recipe.yaml", "-o", tmp_path / "out", cwd=folder)
    assert load_model(tmp_path / "out", "AutoModelForCausalLM").config.vocab_size % 8 == 0
    evomerge("merge", tmp_path / "out" / "recipe.yaml", "-o", tmp_path / "again", cwd=folder)
    for entry in (tmp_path / "out").iterdir():
        assert entry.read_bytes() == (tmp_path / "again" / entry.name).read_bytes()
    data = json.loads((folder / "recipe.yaml").read_text())
    for choice, message in (
        ({"sources": "union"}, "unknown key `sources`; did you mean `source`?"),
        ({"missing": "none"}, "`missing`: input should be 'base', 'mean' or 'zero'"),
    ):
        data["pool"] |= {"tokenizer": choice}
        (folder / "wrong.yaml").write_text(json.dumps(data))
        done = evomerge("merge", "wrong.yaml", "-o", tmp_path / "none", cwd=folder, code=2)
        assert message in " ".join(done.stderr.split())


def test_a_study_searches_the_union_and_its_pick_has_the_tokens(folder, tmp_path):
    said = words(evomerge("run", "study.yaml", "-o", tmp_path / "run", "--dry-run", cwd=folder))
    assert "vocabulary: the tokens of base, then those that only others have" in said
    evomerge("run", "study.yaml", "-o", tmp_path / "run", cwd=folder)
    assert json.loads((tmp_path / "run" / "study.json").read_text())["identity"]["tokenizer"]["source"] == "union"
    evomerge("pick", tmp_path / "run", "--candidate", "0", "-o", tmp_path / "picked", cwd=folder)
    tokenizer, model = load_tokenizer(tmp_path / "picked"), load_model(tmp_path / "picked", "AutoModelForCausalLM")
    assert {"<end>", "<x>", "<y>"} <= tokenizer.get_vocab().keys()
    assert len(tokenizer) == model.config.vocab_size == len(model.get_input_embeddings().weight)
    settings = json.loads((tmp_path / "run" / "study.json").read_text())
    changed = json.loads((folder / "study.yaml").read_text())
    changed["pool"]["tokenizer"] = {"missing": "zero"}
    (folder / "changed.yaml").write_text(json.dumps(changed))
    done = evomerge("run", "changed.yaml", "-o", tmp_path / "run", cwd=folder, code=2)
    assert "tokenizer" in done.stderr
    assert settings["settings"]["pool"]["tokenizer"]["missing"] == "base"


def test_check_says_that_a_union_would_merge_them_and_judges_them_under_it(folder):
    refused = evomerge("check", "base", "a", "b", cwd=folder, code=2)
    assert words(refused).count("`--tokenizer union`: rows are then matched by token. With it, they can be merged") == 2
    done = evomerge("check", "base", "a", "b", "--tokenizer", "union", cwd=folder)
    assert "--expert b=b --tokenizer union -o merged" in words(done)
    assert "experts: {a: a, b: b}, tokenizer: union}" in words(done)
    data = json.loads(evomerge("check", "base", "a", "b", "--tokenizer", "union", "--json", cwd=folder).stdout)
    assert data["mergeable"]
    assert all(norm > 0 for norm in data["task_vectors"]["norms"])
    wrong = evomerge("check", "base", "a", "--tokenizer", "c", cwd=folder, code=2)
    assert "`source` is `c`; known: a, base, union" in words(wrong)


def test_scores_are_those_of_the_union_and_of_its_export(folder, tmp_path):
    models = ("--base", "base", "--expert", "a=a", "--expert", "b=b", "--tokenizer", "union")
    scores = evomerge("score", "bare.yaml", *models, "--tasks", "study.yaml", "--json", cwd=folder)
    evomerge("merge", "bare.yaml", *models, "-o", tmp_path / "out", cwd=folder)
    again = evomerge("score", tmp_path / "out", "--tasks", "study.yaml", "--json", cwd=folder)
    one, other = (json.loads(done.stdout)["models"][0]["mean"] for done in (scores, again))
    assert one == pytest.approx(other, rel=1e-4)


def test_an_artefact_of_a_union_gives_each_expert_with_all_tokens(folder, tmp_path):
    models = ("--base", "base", "--expert", "a=a", "--expert", "b=b", "--tokenizer", "union")
    evomerge("compress", "--codec", "tall", *models, "-o", tmp_path / "packed", cwd=folder)
    evomerge("decompress", tmp_path / "packed", "a", "-o", tmp_path / "a", cwd=folder)
    assert {"<end>", "<x>", "<y>"} <= load_tokenizer(tmp_path / "a").get_vocab().keys()
    rows = len(load_model(tmp_path / "a", "AutoModelForCausalLM").get_input_embeddings().weight)
    assert rows == len(load_tokenizer(tmp_path / "a"))


@pytest.mark.parametrize(
    ("choice", "written"),
    [
        ("union", {"tokenizer_source": "union"}),
        ("a", {"tokenizer_source": "A"}),
        ({"pad_to": 8}, {"tokenizer": {"source": "union", "pad_to_multiple_of": 8}}),
    ],
)
def test_mergekit_gets_the_choice_of_tokens_and_it_comes_back(choice, written, folder, tmp_path):
    pool = {"base": str(folder / "base"), "experts": {name: str(folder / name) for name in "ab"}, "tokenizer": choice}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"pool": pool, "recipe": TIES}))
    evomerge("export", tmp_path / "recipe.yaml", "--mergekit", "-o", tmp_path / "mergekit.yaml")
    document = strict_yaml.read(tmp_path / "mergekit.yaml")
    wanted = {key: str(folder / "a") if value == "A" else value for key, value in written.items()}
    assert {key: document[key] for key in wanted} == wanted
    evomerge("import", tmp_path / "mergekit.yaml", "-o", tmp_path / "back.yaml")
    back = strict_yaml.read(tmp_path / "back.yaml")["pool"]["tokenizer"]
    assert back == ({"source": "union", **choice} if isinstance(choice, dict) else {"source": choice})


def test_a_choice_of_tokens_that_mergekit_lacks_is_refused(folder, tmp_path):
    pool = {"base": str(folder / "base"), "experts": {"a": str(folder / "a")}, "tokenizer": {"missing": "zero"}}
    recipe = {"merge": {"method": "linear", "inputs": "experts"}}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"pool": pool, "recipe": recipe}))
    done = evomerge("export", tmp_path / "recipe.yaml", "--mergekit", code=2)
    assert "mergekit cannot express `pool.tokenizer.missing`: 'zero'" in words(done)
