"""Every command in the README runs, in its order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge import strict_yaml, tasks

README = Path(__file__).parent.parent / "README.md"


def blocks():
    """The shell and Python blocks in their order, as shell; without those of `make`, which a fresh clone runs."""
    found = re.findall(r"```(bash|python)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return [
        code if language == "bash" else f"python - <<'EOP'\n{code}EOP\n"
        for language, code in found
        if "make demo" not in code
    ]


def test_every_command_in_the_readme_runs(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "set -euo pipefail\n" + "\n".join(blocks())
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "merged" / "picked" / "model.safetensors").exists()
    assert (tmp_path / "runs" / "digits" / "report.html").exists()
    assert (tmp_path / "merged" / "python" / "config.json").exists()


def test_the_tasks_in_the_readme_are_valid(tmp_path):
    block = next(
        block for block in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL) if "tasks:" in block
    )
    for name, settings in strict_yaml.parse(block, "README")["tasks"].items():
        schema, _ = tasks.KINDS[settings["kind"]]
        assert schema.model_validate(settings).kind == settings["kind"], name


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README.read_text(encoding="utf-8")))
def test_every_file_that_the_readme_links_to_is_there(link):
    assert (README.parent / link).exists()
