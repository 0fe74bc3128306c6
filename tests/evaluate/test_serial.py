"""The evaluator in this process conforms, and does not import ray."""

import subprocess
import sys

import pytest

from evomerge.evaluate import Serial, make
from evomerge.testing import EvaluatorSuite


@pytest.fixture(scope="module")
def evaluator(setup):
    with Serial(setup) as evaluator:
        yield evaluator


class TestSerial(EvaluatorSuite):
    pass


def test_one_worker_is_this_process(setup):
    assert isinstance(make(setup, 1), Serial)


def test_ray_is_not_imported():
    code = "import sys, evomerge.evaluate; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
