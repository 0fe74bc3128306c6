"""Training of the zoo's models, with the same schedule for all and independent of the machine's load.

The same seed, thread count and processor give bitwise equal weights.
"""

import os
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor, nn

from evomerge.placement import PRECISIONS, fastest

T = TypeVar("T")

Report = Callable[[float], None]
"""Called with the fraction of a job that is done, 0 to 1."""


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch's and Python's generators and use one thread; restore all of it afterwards.

    One thread, since the number of threads changes the order of floating-point sums and thereby the last bits.
    """
    threads, state = torch.get_num_threads(), random.getstate()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(state)


def fast_precision() -> torch.dtype:
    """Return bfloat16 if this processor multiplies it faster than fp32, else float32."""
    return PRECISIONS[fastest(torch.device("cpu"))]


def train(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    *,
    examples: int,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    progress: Report = lambda done: None,
) -> None:
    """Train the parameters of `model` that require gradients, in place, with AdamW and a one-cycle schedule.

    `loss(chosen)` returns the mean loss of the examples with the indices `chosen`, `(batch,)`, drawn without replacement, pass
    after pass. `rate` is the peak learning rate. The model stays in evaluation mode: dropout would draw from a global generator.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps)
    order = _shuffled(examples, batch, torch.Generator().manual_seed(seed))
    for step in range(steps):
        optimiser.zero_grad()
        loss(next(order)).backward()  # type: ignore[no-untyped-call]  # the library has no types here
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        progress((step + 1) / steps)


def side_by_side(jobs: Mapping[str, Callable[[Report], T]], progress: Report) -> dict[str, T]:
    """Return the results of the jobs, run in parallel on as many threads as there are processors.

    A job takes a callback for its fraction done, 0 to 1; `progress` is called with the mean of all, from one thread at a time.
    """
    done, lock = dict.fromkeys(jobs, 0.0), Lock()

    def run(name: str) -> T:
        torch.set_num_threads(1)  # a setting of the calling thread

        def report(fraction: float) -> None:
            with lock:
                done[name] = fraction
                progress(sum(done.values()) / len(done))

        return jobs[name](report)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(zip(jobs, pool.map(run, jobs), strict=True))


def _shuffled(examples: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches of exactly `batch`, without end, from consecutive shuffled passes."""
    indices = torch.empty(0, dtype=torch.long)
    while True:
        while len(indices) < batch:
            indices = torch.cat([indices, torch.randperm(examples, generator=generator)])
        yield indices[:batch]
        indices = indices[batch:]
