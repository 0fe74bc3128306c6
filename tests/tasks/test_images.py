"""Images in files are scored as the model's own processor makes them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model

from evomerge.errors import TaskError
from evomerge.models import LiveModel
from evomerge.tasks import make

MEAN, DEVIATION = 0.4, 0.25
SETTINGS = {"kind": "classification", "search": "train", "report": "test", "input": "image", "label": "label"}


def processed(folder, channels, **more):
    """Write a tiny vision transformer and its processor, which resizes to 4 x 4."""
    tiny_model(folder, "vit", num_channels=channels, id2label={0: "dog", 1: "cat", 2: "owl"})
    said = {"image_processor_type": "ViTImageProcessor", "size": {"height": 4, "width": 4}, "resample": 2, **more}
    said |= {"image_mean": [MEAN] * channels, "image_std": [DEVIATION] * channels}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return LiveModel(folder)


@pytest.fixture
def photographs(tmp_path):
    """Write a folder of images for each split; return those of the search split, in the order of the task."""
    generator, images = np.random.default_rng(0), []
    for split in ("train", "test"):
        for name, size in (("cat/1", (4, 4)), ("cat/2", (8, 6)), ("dog/1", (5, 9))):
            image = Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8))
            place = tmp_path / split / f"{name}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            image.save(place)
            images += [image] * (split == "train")
    return images


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_images_are_resized_and_normalised_in_grey_and_in_colour(channels, mode, photographs, tmp_path):
    model = processed(tmp_path / "model", channels)
    resized = [np.asarray(image.convert(mode).resize((4, 4), Image.Resampling.BILINEAR)) for image in photographs]
    pixels = (np.stack(resized).reshape(3, 4, 4, channels).transpose(0, 3, 1, 2) / 255 - MEAN) / DEVIATION
    with torch.inference_mode():
        logits = model.module(pixel_values=torch.tensor(pixels, dtype=torch.float32)).logits
    expected = logits.log_softmax(1)[torch.arange(3), torch.tensor([1, 1, 0])]  # cat, cat, dog of `id2label`
    task = make("pets", SETTINGS, tmp_path)
    task.check(model)
    np.testing.assert_allclose(task.score(model, "search").scores["log_likelihood"], expected, rtol=1e-4, atol=1e-5)


def test_arrays_of_bytes_are_images_too(tmp_path):
    model = processed(tmp_path / "model", 1)
    generator = np.random.default_rng(1)
    for split in ("train", "test"):
        x = generator.integers(0, 256, (2, 4, 4), np.uint8)
        np.savez(tmp_path / f"{split}.npz", image=x, label=[0, 2])
        np.savez(tmp_path / f"{split}.float.npz", image=((x / 255 - MEAN) / DEVIATION)[:, None], label=[0, 2])
    files = {"search": "train.npz", "report": "test.npz"}
    ready = {key: file.replace(".npz", ".float.npz") for key, file in files.items()}
    scores = [make("x", {**SETTINGS, **one}, tmp_path).score(model, "search").scores for one in (files, ready)]
    np.testing.assert_allclose(*(one["log_likelihood"] for one in scores), rtol=1e-4, atol=1e-5)


def test_a_model_without_a_processor_says_where_to_put_it(photographs, tmp_path, live):
    with pytest.raises(
        TaskError, match=r"column `image` has images, and no image processor .*preprocessor_config\.json"
    ):
        make("pets", SETTINGS, tmp_path).check(live("vit"))


def test_a_file_that_is_no_image_is_an_error_before_any_work(photographs, tmp_path):
    (tmp_path / "test" / "cat" / "2.png").write_text("not a picture")
    with pytest.raises(TaskError, match=r"column `image`, example 1: expected an image, got b'not a picture'"):
        make("pets", SETTINGS, tmp_path)


def test_an_image_that_ends_too_early_is_an_error_before_any_candidate(photographs, tmp_path):
    file = tmp_path / "test" / "cat" / "2.png"
    file.write_bytes(file.read_bytes()[:80])
    with pytest.raises(TaskError, match="column `image`, example 1: an image that cannot be read"):
        make("pets", SETTINGS, tmp_path).check(processed(tmp_path / "model", 3))


def test_images_that_stay_of_several_sizes_are_an_error(photographs, tmp_path):
    with pytest.raises(
        TaskError, match=r"example 1: .* makes an array of shape \[3, 8, 6\] of it, and \[3, 4, 4\] of the first"
    ):
        make("pets", SETTINGS, tmp_path).check(processed(tmp_path / "model", 3, do_resize=False))
