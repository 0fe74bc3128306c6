"""A plug-in of each kind: a driver, a task, a merge method and the stage that the method names."""

from typing import Literal

import numpy as np
from pydantic import BaseModel
from scipy.stats import qmc

from evomerge.merging import Method, Stage
from evomerge.search import Generational
from evomerge.tasks import Scores, Task, TaskSettings
from evomerge.trial import Metric


class HaltonSettings(BaseModel):
    kind: Literal["halton"]
    batch: int = 4


class Halton:
    """A breeder that draws Halton's sequence."""

    def __init__(self, space, seed, settings):
        self._points = qmc.Halton(len(space.genes), rng=seed)
        self.draw = lambda: space.from_unit(self._points.random(settings.batch))

    def learn(self, genomes, means, evaluations):
        pass


def make_halton(space, metrics, seed, settings, sizes):
    return Generational(space, metrics, Halton(space, seed, settings))


HALTON = (HaltonSettings, make_halton)


class ConstantSettings(TaskSettings):
    kind: Literal["constant"]
    value: float


class Constant(Task):
    """A task on which every model scores the same."""

    def __init__(self, name, settings, folder):
        super().__init__(name, settings, metrics=[Metric("value")], sizes={"search": 3, "report": 2})
        self._value = settings.value

    def score(self, model, split, examples=None):
        count = len(self.indices(split, examples))
        return Scores({"value": np.full(count, self._value, np.float32)})


CONSTANT = (ConstantSettings, Constant)

HALVE = Stage("post", "halve the merged task vector", lambda piece, delta, bound, words: delta * 0.5)
HALVED = Method("halved", "half of the weighted sum", ("weight", "halve"))
