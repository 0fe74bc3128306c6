"""EMR: elect one unified task vector, mask it for each expert, rescale it for each expert.

Huang et al. 2024, "EMR-Merging: Tuning-Free High-Performance Model Merging" (NeurIPS 2024, arXiv:2405.17461).
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch

from evomerge.codecs.codec import Codec, Coded, Constants, Read, mask_bytes, pack, unpack


class Emr(Codec):
    """The unified vector has the sign of Σ τ_t and the largest magnitude among the experts with this sign.

    Expert t is decoded as base + rescale_t·(mask_t∘unified): mask_t is where its sign is the elected one, and
    rescale_t = Σ|τ_t| / Σ|mask_t∘unified| over all tensors: the paper's rescaler, not that of the released code.
    """

    about: ClassVar[str] = "EMR: the elected task vector, a bit per element and expert, and a rescaler per expert"
    elementwise: ClassVar[bool] = True

    def constants(self, experts: Sequence[str], vectors: Iterable[torch.Tensor]) -> Constants:
        """Return the rescaler of each expert; 0 for one whose mask is empty."""
        total = torch.zeros(len(experts), dtype=torch.float64)
        masked = torch.zeros(len(experts), dtype=torch.float64)
        for rows in vectors:
            unified = elect(rows)
            for k, vector in enumerate(rows):
                total[k] += vector.abs().sum()
                masked[k] += (unified * _agrees(vector, unified)).abs().sum()
        return {"rescale": torch.where(masked > 0, total / masked, 0).tolist()}  # eq. 13 (arXiv 2405.17461)

    def encode(self, base: torch.Tensor, vectors: torch.Tensor, constants: Constants) -> Coded:
        """Return `unified` and a `mask` for each expert."""
        unified = elect(vectors)
        masks = {f"mask.{k}": pack(_agrees(vector, unified)) for k, vector in enumerate(vectors)}
        return Coded({"unified": unified, **masks}, mask_bytes(vectors, base))

    def decode(self, part: Read, expert: int, constants: Constants) -> torch.Tensor:
        """Return the unified vector rescaled where the expert's bit is set, 0 elsewhere."""
        unified = part("unified")
        scaled = unified.double() * constants["rescale"][expert]
        return torch.where(unpack(part(f"mask.{expert}"), unified.shape), scaled, 0)


def elect(vectors: torch.Tensor) -> torch.Tensor:
    """Return the unified vector of task vectors `(experts, *shape)`; 0 where they sum to 0."""
    sign = vectors.sum(0).sign()
    return (vectors * sign).clamp(min=0).amax(0) * sign  # section 3.2 (arXiv 2405.17461)


def _agrees(vector: torch.Tensor, unified: torch.Tensor) -> torch.Tensor:
    return vector * unified.sign() > 0  # eq. 8 (arXiv 2405.17461)
