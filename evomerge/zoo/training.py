"""Trains the zoo's models: one schedule for all, and nothing that depends on the machine's load.

The same seed, thread count and processor give the same weights bit for bit.
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

T = TypeVar("T")

Report = Callable[[float], None]
"""Told the share done, 0 to 1."""


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch's and Python's generators and use one thread; what was set before comes back afterwards.

    One thread, since the number of threads decides the order of floating-point sums and with it the last bits.
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
    """Return bfloat16 where this processor multiplies it faster than fp32, else float32."""
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001  # there is no public question
    return torch.bfloat16 if supported else torch.float32


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

    `loss(chosen)` returns the mean loss of the examples numbered `chosen`, shape `(batch,)`, drawn without
    replacement until all `examples` are used up. `rate` is the peak learning rate. The model stays in evaluation
    mode: without dropout nothing draws from a global generator, and models can be trained side by side.
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
    """Return what each job returns; one thread works on each, as many at a time as there are processors.

    How many that is must not matter to the results, and does not if a job trains its own model with `train`. A job is
    given a function that it tells its share done, 0 to 1; `progress` hears their mean, never twice at a time.
    """
    done, lock = dict.fromkeys(jobs, 0.0), Lock()

    def run(name: str) -> T:
        torch.set_num_threads(1)  # each thread has its own number

        def tell(share: float) -> None:
            with lock:
                done[name] = share
                progress(sum(done.values()) / len(done))

        return jobs[name](tell)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(zip(jobs, pool.map(run, jobs), strict=True))


def _shuffled(examples: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches of exactly `batch` for ever: whole shuffled passes, one after the other."""
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < batch:
            waiting = torch.cat([waiting, torch.randperm(examples, generator=generator)])
        yield waiting[:batch]
        waiting = waiting[batch:]
