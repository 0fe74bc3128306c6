"""Settings of a race."""

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

RACED = ("cma", "nsga2", "nsga3", "tpe", "gp", "qmc", "random")
"""Kinds of drivers that can be raced: they use means only, and only to choose the next candidates."""


class RacingSettings(BaseModel, extra="forbid", frozen=True):
    """`driver:` of a study that races the candidates of another driver."""

    kind: Literal["racing"] = "racing"
    driver: dict[str, Any]
    """The driver that proposes, with its settings."""
    rungs: tuple[float, ...] = Field(default=(0.125, 0.25, 0.5), min_length=1)
    """Shares of each task's search examples at which candidates are compared, increasing."""
    estimator: Literal["regression", "item_response"] = "regression"
    """How means are estimated from scores of some examples. `item_response` needs scores in [0, 1], such as accuracy; it costs
    about a second of CPU per objective and round."""
    confidence: float = Field(default=0.8, gt=0.5, lt=1)
    """1 minus the probability, over all rungs, of stopping a competitive candidate."""
    surrogate: bool = True
    """Estimate means from genes as well, if all are numeric and at most 40. It costs about a second of CPU per round."""
    tolerance: float = Field(default=0.5, ge=0)
    """By how much a competitive candidate exceeds each rival in some objective, in standard errors of the rival's full
    evaluation (standard deviation of its scores over examples / sqrt(examples)). With 0 any improvement counts."""

    @field_validator("driver")
    @classmethod
    def _raced(cls, driver: dict[str, Any]) -> dict[str, Any]:
        if driver.get("kind") not in RACED:
            msg = (
                f"a driver of kind `{driver.get('kind')}` cannot be raced: it uses scores of examples, or exact means, and a "
                f"race gives estimates of means; expected one of {', '.join(RACED)}"
            )
            raise ValueError(msg)
        return driver

    @field_validator("rungs")
    @classmethod
    def _increasing(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if any(not low < high for low, high in zip((0.0, *rungs), (*rungs, 1.0), strict=True)):
            msg = "expected rising shares between 0 and 1, such as [0.125, 0.25, 0.5]"
            raise ValueError(msg)
        return rungs
