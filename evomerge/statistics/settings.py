"""Settings of evidence: what a file says of it, checked."""

from typing import Any

from pydantic import Field, field_validator

from evomerge.recipe.validation import FrozenModel


class EvidenceSettings(FrozenModel):
    """What an expert is good at: search examples of one task."""

    task: str
    """Name of the task."""
    examples: int = Field(default=256, ge=1)
    """Number of its search examples, drawn evenly; by default 256, or all where there are fewer."""
    split: str = Field(default="search", exclude_if=lambda split: split == "search")
    """`search`: reports are of examples that no merge has seen."""

    @field_validator("split")
    @classmethod
    def _is_search(cls, split: Any) -> Any:
        if split != "search":
            raise ValueError(
                f"evidence is of the search split, got {split!r}: reports are of examples that no merge has seen; leave `split` out"
            )
        return split
