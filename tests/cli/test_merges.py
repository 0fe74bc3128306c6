"""The command `merge`: what it costs beside the merge itself."""

import subprocess
import sys

import pytest
import yaml
from commands import evomerge
from pools import Models, write_pool

UNUSED = ("transformers", "optuna", "pymoo", "ray", "matplotlib", "pandas", "scipy", "sklearn", "moocore", "cmaes")
CODE = f"""
import atexit, os, sys
from evomerge.cli import main
atexit.register(lambda: print("threads wait:", os.environ.get("OMP_WAIT_POLICY")))
atexit.register(lambda: print("imported:", *(name for name in {UNUSED!r} if name in sys.modules)))
main()
"""


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_merge_of_weights_imports_no_library_of_searches_models_or_figures(tmp_path, method):
    models = Models.random()
    folder = write_pool(tmp_path, models)
    recipe = {"merge": {"method": method, "inputs": [{"expert": name} for name in models.experts]}}
    pool = {"base": str(folder / "base"), "experts": {name: str(folder / name) for name in models.experts}}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"pool": pool, "recipe": recipe}))
    command = [sys.executable, "-c", CODE, "merge", str(file), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "merged checkpoint" in done.stdout
    imported, threads = map(str.strip, done.stdout.splitlines()[-2:])
    assert imported == "imported:"
    assert threads == "threads wait: PASSIVE"  # spinning takes many times the work on a busy machine


def test_two_experts_of_one_name_are_refused(tmp_path):
    folder = write_pool(tmp_path, Models.random())
    (tmp_path / "recipe.yaml").write_text("merge: {method: linear, inputs: experts}")
    named = [f"--expert=a={folder / name}" for name in ("maths", "code")]
    command = ("merge", tmp_path / "recipe.yaml", "--base", folder / "base", *named, "-o", tmp_path / "out")
    assert "2 models are named `a`" in evomerge(*command, code=2).stderr
    assert not (tmp_path / "out").exists()
