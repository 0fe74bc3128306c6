"""Setup: what a worker needs to evaluate candidates, as plain JSON data; and the pool and the model that it names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.vocabulary import TokenizerChoice
from evomerge.models import LiveModel
from evomerge.placement import Precision
from evomerge.statistics import Collected


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that a worker needs, as plain JSON data. The same setup gives the same scores everywhere.

    Relative paths of checkpoint folders (`base`, `experts`) and of `tasks`, settings by name, start at `folder`. `auto`,
    `module`, `like`, `heads`, `tokenizer`, `precision`, `threads`, `device`, `gpus` and `shared_mib` are those of `StudySettings`, none of them `auto`. `members` is the folder for weights of
    candidates, where later ones may be merges of them; None keeps no weights.
    """

    base: str
    experts: Mapping[str, str]
    tasks: Mapping[str, Mapping[str, Any]]
    folder: str = "."
    precision: Precision = "float32"
    threads: int = 1
    auto: str | None = None
    module: str | None = None
    shared_mib: int = 0
    members: str | None = None
    like: str | None = None
    heads: Literal["own"] | None = None
    tokenizer: TokenizerChoice | None = None
    device: str = "cpu"
    gpus: float = 1.0
    shuffled: int | None = None
    """The seed by which the experts are shuffled: see `PoolSettings`."""
    engine: Mapping[str, Any] | None = None
    """`kind: vllm` and options of the engine, as in `EngineSettings`; None for transformers."""
    statistics: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The folder of each statistic that recipes may read, by kind and expert."""


def open_pool(setup: Setup) -> Pool:
    """Return the pool of a setup, with its statistics."""
    folder = Path(setup.folder)
    experts = {name: folder / path for name, path in setup.experts.items()}
    asked: dict[str, Any] = {key: getattr(setup, key) for key in ("like", "heads", "tokenizer", "shuffled")}
    pool = Pool(folder / setup.base, experts, **asked)
    pool.evidence = Collected(setup.statistics)
    return pool


def open_model(setup: Setup, pool: Pool, device: torch.device, *, shared: int = 0) -> LiveModel:
    """Return the module that candidates of `pool` are written into, on `device`; up to `shared` bytes of hidden states are kept."""
    return LiveModel(
        pool.open_base(),
        setup.auto,
        setup.precision,
        device,
        shared=shared,
        module=setup.module,
        tokenizer=pool.tokenizer,
        heads=pool.heads,
    )
