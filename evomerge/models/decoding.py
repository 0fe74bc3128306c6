"""Greedy decoding of a batch, which goes on without the rows that need no more.

transformers runs all rows of a batch until the last one has ended. On a CPU a step takes longer the more rows it has, so the pass is
begun anew with the others each time that half of the rows have ended: the keys and values of what they have read are kept.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from evomerge.models.pretrained import keeps_all

Done = Callable[[int, list[int]], bool]
"""Of a row and its next tokens so far: whether it needs no more."""

_FROM_THE_START = (  # settings that count tokens from where a pass begins
    "min_new_tokens",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "encoder_repetition_penalty",
    "encoder_no_repeat_ngram_size",
    "guidance_scale",
)

_FACTORS = ("encoder_repetition_penalty", "guidance_scale")
"""Those that do nothing where they are 1."""


def write_greedily(
    module: Any,
    ids: Tensor,
    mask: Tensor,
    new_tokens: int,
    *,
    ends: Collection[int],
    padding: int,
    done: Done | None = None,
    cache: Any = None,
) -> Tensor:
    """Return the next tokens of each row of `ids`, `(rows, new)` with at most `new_tokens`, with `padding` after one of the `ends`.

    `ids` and `mask` are `(rows, tokens)`, padded on the left. A row that is `done` is padded, too; the tokens end with the last row that
    needs some. `cache` has the keys and values of all tokens but the last, or of fewer, and is changed. Rows are dropped where there is
    a cache of nothing else, on a CPU.
    """
    drops = keeps_all(cache) and ids.device.type == "cpu" and not _counts_from_the_start(module)
    first, rows, longest = ids.shape[1], [*range(len(ids))], 0
    written = torch.full((len(ids), new_tokens), padding, device=ids.device)
    while rows and longest < new_tokens:
        ended: set[int] = set()  # places in `rows`

        def stop(tokens: Tensor, scores: Any, rows: list[int] = rows, ended: set[int] = ended, **_: Any) -> Tensor:
            for place, new in enumerate(tokens[:, first:].tolist()):
                if place not in ended and (new[-1] in ends or (done is not None and done(rows[place], new))):
                    ended.add(place)
            enough = drops and 2 * len(ended) >= len(rows)
            return torch.tensor([enough or place in ended for place in range(len(rows))], device=tokens.device)

        tokens: Tensor = module.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            num_beams=1,
            max_new_tokens=new_tokens - longest,
            eos_token_id=list(ends) or None,
            pad_token_id=padding,
            stopping_criteria=[stop] if drops or done is not None else None,
            **({} if cache is None else {"past_key_values": cache}),
        )
        longest = tokens.shape[1] - first
        written[rows, :longest] = tokens[:, first:]
        if not drops:
            break
        kept = [place for place in range(len(rows)) if place not in ended]
        rows = [rows[place] for place in kept]
        ids, mask = tokens[kept], torch.nn.functional.pad(mask, (0, tokens.shape[1] - mask.shape[1]), value=1)[kept]
        cache.batch_select_indices(torch.tensor(kept, dtype=torch.long))
    return written[:, :longest]


def _counts_from_the_start(module: Any) -> bool:
    """Return whether the model's generation settings have a rule that a second pass would apply anew."""
    settings = module.generation_config
    values = {name: getattr(settings, name, None) for name in _FROM_THE_START}
    return any(value and not (value == 1 and name in _FACTORS) for name, value in values.items())
