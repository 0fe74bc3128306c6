"""Stitches of a stack as modules: plain linear layers on the residual stream, in memory and in a file beside the weights.

The `config.json` beside them has a `model_type` that plain transformers refuses: without the maps it would compute another model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from evomerge.checkpoints.folder import read_object
from evomerge.checkpoints.save import STITCHES
from evomerge.checkpoints.stack import Stacked
from evomerge.errors import ModelError

KIND = "evomerge_stitched"
"""The `model_type` of a stitched stack."""
_PLAIN = "stitched_model_type"
_TABLES = ("weight", "bias")


def linear(tables: Mapping[str, Tensor], like: Tensor) -> nn.Linear:
    """Return the linear layer with `weight` and `bias`, in the dtype and on the device of `like`."""
    outputs, inputs = tables["weight"].shape
    layer = nn.Linear(inputs, outputs, device="meta")
    for name in _TABLES:
        layer.register_parameter(name, nn.Parameter(tables[name].to(like), requires_grad=False))
    return layer


def mapped(output: Any, stitch: nn.Module) -> Any:
    """Return a block's output, the hidden states alone or first among others, with these mapped."""
    return (stitch(output[0]), *output[1:]) if isinstance(output, tuple) else stitch(output)


def saved(stack: Stacked, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the configuration of a stack, whose plain one is `config`, and the files with its maps; none where it has no maps.

    Maps are float32, `N.weight` `(out, in)` and `N.bias` `(out,)` before layer N; those after the last layer have the number of layers.
    """
    tables = {f"{number}.{name}": made()[name] for number, made in stack.stitches.items() for name in _TABLES}
    if not tables:
        return dict(config), {}
    return {**config, "model_type": KIND, _PLAIN: config["model_type"]}, {STITCHES: save(tables)}


def plain_config(folder: Path) -> dict[str, Any] | None:
    """Return the plain configuration of the stitched stack in a folder, None for another model."""
    path = folder / "config.json"
    config = read_object(path) if path.is_file() else {}
    if config.get("model_type") != KIND:
        return None
    return {**{key: value for key, value in config.items() if key != _PLAIN}, "model_type": config.get(_PLAIN)}


def attach(blocks: nn.ModuleList, folder: Path, like: Tensor) -> None:
    """Let the blocks of a model map the residual stream by the maps in `folder`: modules `stitch`, and `stitch_after` of the last block.

    Raises `ModelError` for a file with other tables.
    """
    try:
        tables = load_file(folder / STITCHES)
    except (OSError, SafetensorError) as error:
        raise _wrong(folder, len(blocks)) from error
    for number in sorted({name.partition(".")[0] for name in tables}):
        own = {name: tables.get(f"{number}.{name}") for name in _TABLES}
        weight, bias = own.values()
        if not number.isdecimal() or int(number) > len(blocks) or weight is None or bias is None:
            raise _wrong(folder, len(blocks))
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise _wrong(folder, len(blocks))
        stitch = linear({"weight": weight, "bias": bias}, like)
        if int(number) < len(blocks):
            block = blocks[int(number)]
            block.register_module("stitch", stitch)
            block.register_forward_pre_hook(lambda block, args: (block.stitch(args[0]), *args[1:]))
        else:
            blocks[-1].register_module("stitch_after", stitch)
            blocks[-1].register_forward_hook(lambda block, _, output: mapped(output, block.stitch_after))


def _wrong(folder: Path, count: int) -> ModelError:
    return ModelError(
        f"{folder / STITCHES}: expected `N.weight` (out, in) and `N.bias` (out,) for some N from 0 to {count}, the number of layers; export "
        "the stack again"
    )
