"""Every command in the README runs, in its order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks():
    found = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in found if "make demo" not in block]  # `.ci/run` and a fresh clone run those


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


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README.read_text(encoding="utf-8")))
def test_every_file_that_the_readme_links_to_is_there(link):
    assert (README.parent / link).exists()
