"""Images in files become the pixel values that a model takes, by the model's own processor."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from evomerge.errors import ModelError
from evomerge.models import LiveModel
from evomerge.models.pretrained import load_image_processor
from evomerge.tasks.data import shown, task_error

_COLOURS = 3


def are_images(values: Sequence[Any]) -> bool:
    """Return whether the first of `values` is the content of an image file, or an array of bytes `(height, width[, 3])`."""
    return isinstance(values[0], bytes) or (isinstance(values[0], np.ndarray) and values[0].dtype == np.uint8)


def check_images(task: str, column: str, values: Sequence[Any]) -> None:
    """Raise `TaskError` naming the first of `values` that is no image. Only the beginnings of files are read."""
    for index, value in enumerate(values):
        _opened(task, column, index, value)


def pixel_values(task: str, column: str, values: Sequence[Any], model: LiveModel) -> Tensor:
    """Return the images as the model in `model.folder` takes them, fp32 `(examples, channels, height, width)`.

    They are grey where the model has one channel, else in colour, and resized and normalised by the model's processor. Raises
    `TaskError` for an image that cannot be read, and for a model without a processor.
    """
    try:
        processor = load_image_processor(model.folder)
    except ModelError as error:
        msg = (
            f"column `{column}` has images, and {error}; put that file beside the base's weights, or give float arrays (channels, height, "
            "width), which are taken as they are"
        )
        raise task_error(task, msg) from None
    mode = "L" if getattr(getattr(model.module, "config", None), "num_channels", _COLOURS) == 1 else "RGB"
    pixels = []
    for index, value in enumerate(values):
        try:
            array = np.asarray(_opened(task, column, index, value).convert(mode))
        except (OSError, ValueError, SyntaxError) as error:  # a file that ends too early, or has broken parts
            raise task_error(
                task, f"column `{column}`, example {index}: an image that cannot be read ({error})"
            ) from None
        processed = processor([np.atleast_3d(array)], return_tensors="np", input_data_format="channels_last")
        pixels.append(np.asarray(processed["pixel_values"][0], np.float32))
        if pixels[-1].shape != pixels[0].shape:
            msg = (
                f"column `{column}`, example {index}: the model's processor makes an array of shape {list(pixels[-1].shape)} of it, and "
                f"{list(pixels[0].shape)} of the first; expected one shape: set `do_resize` and a `size` in preprocessor_config.json"
            )
            raise task_error(task, msg)
    return torch.from_numpy(np.stack(pixels))


def _opened(task: str, column: str, index: int, value: Any) -> Image.Image:
    try:
        return Image.open(io.BytesIO(value)) if isinstance(value, bytes) else Image.fromarray(value)
    except (UnidentifiedImageError, Image.DecompressionBombError, TypeError, ValueError) as error:
        came = shown(value) if not isinstance(value, np.ndarray) else f"an array of shape {list(value.shape)}"
        msg = f"column `{column}`, example {index}: expected an image, got {came} ({error})"
        raise task_error(task, msg) from None
