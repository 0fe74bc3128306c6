"""A callable task with faults for chosen candidates, as planned in the file `faults.json` beside the base model."""

import json
import os
import signal
import threading
import time

import numpy as np


class UnpicklableError(Exception):
    """Cannot be pickled or printed."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def __str__(self):
        raise RuntimeError


def score(model, split, examples):
    """Return the first bias of the head plus each example's index, unless a fault is planned for the candidate."""
    folder = model.folder.parent
    name = repr(float(model.module.classifier.bias[0]))
    fault = json.loads((folder / "faults.json").read_text()).get(name, "none")
    if fault.endswith(" once"):
        flag = folder / f"{name}.flag"
        if flag.exists():
            fault = "none"
        else:
            flag.touch()
    match fault.removesuffix(" once"):
        case "none":
            return np.float32(name) + np.asarray(examples)
        case "raise":
            message = "first line\nthe answer is at <object at 0x7f00deadbeef>"
            raise ValueError(message)
        case "unpicklable":
            raise UnpicklableError
        case "exit":
            raise SystemExit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "nan":
            return [0.0, np.nan, *[0.0] * (len(examples) - 2)]
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        case "hang":
            time.sleep(1e6)
        case "hang in a lock":
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
    time.sleep(60)  # a signal may take a moment
    raise AssertionError(fault)
