"""Image classification: drawn digits, images of one's own, patches, and what can be wrong."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from autotune.objectives.drawn_digits import SIDE, drawn_digits
from autotune.objectives.image_classification import ImageClassification
from autotune.objectives.images import Pictures, PictureSplits, class_names, read_pictures
from transformers import AutoModelForImageClassification, ResNetConfig

from autotune.core.errors import DataError, MissingLibrary, ModelError
from autotune.core.workload import Workload
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from tests import tiny_objectives

TINY = tiny_objectives.CASES["image_classification"]


def described(folder: Path, **workload: Any) -> ImageClassification:
    task = ImageClassification(Workload(objective="image_classification", **workload), folder)
    task.describe()
    return task


def write_pgm(path: Path, values: np.ndarray) -> None:
    """A grey image in a format that is a header and bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values.shape
    path.write_bytes(b"P5 %d %d 255\n" % (width, height) + values.astype(np.uint8).tobytes())


def write_folders(folder: Path, count: int = 20) -> Path:
    """Class folders of images that are 12 pixels high and 20 wide."""
    for place in range(count):
        kind = ("bright", "dark")[place % 2]
        write_pgm(folder / kind / f"{place}.pgm", np.full((12, 20), 200 if place % 2 == 0 else 20))
    return folder


def test_drawn_digits_are_balanced_and_always_the_same() -> None:
    images, labels = drawn_digits(205)
    assert images.shape == (205, SIDE, SIDE)
    assert images.dtype == np.uint8
    assert set(Counter(labels).values()) == {20, 21}
    again, labels_again = drawn_digits(205)
    assert np.array_equal(images, again)
    assert labels == labels_again
    assert len({image.tobytes() for image in images}) == 205


def test_drawn_digits_of_one_kind_look_alike() -> None:
    images, labels = drawn_digits(600)
    kinds = np.array([int(label) for label in labels])
    means = np.stack([images[:300][kinds[:300] == kind].mean(0) for kind in range(10)])
    far = ((images[300:, None].astype(float) - means[None]) ** 2).sum((2, 3))
    assert (far.argmin(1) == kinds[300:]).mean() > 0.5


def test_the_default_trains_and_is_scored(tmp_path: Path) -> None:
    task = described(tmp_path)
    workload = task.workload
    assert workload.sequence_length == 16
    model = task.build(LoadPlan(), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    plan = DataPlan(sequence_length=16, global_batch=workload.global_batch)
    batch = next(task.train_batches(plan, 0))
    losses = []
    for _ in range(3):
        loss = task.loss(model, batch, StepPlan())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    scores = task.evaluate(model, task.eval_batches(EvalPlan(batch=64), 16), EvalPlan())
    assert scores["accuracy"].n == workload.eval_examples == 450


def test_bytes_become_what_the_model_was_made_for(tmp_path: Path) -> None:
    data = tiny_objectives.write_arrays(tmp_path / "images.npz", shape=(16, 16, 3))
    plain = TINY.save_model(tmp_path / "plain")
    said = TINY.save_model(tmp_path / "said")
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 0.125]}
    (said / "preprocessor_config.json").write_text(json.dumps(settings))
    raw = TINY.save_model(tmp_path / "raw")
    (raw / "preprocessor_config.json").write_text('{"do_normalize": false}')
    values = {}
    for name, model in (("plain", plain), ("said", said), ("raw", raw)):
        task = described(tmp_path, model=str(model), data=str(data))
        batch = next(task.train_batches(DataPlan(sequence_length=4, global_batch=8), 0))
        assert batch["pixel_values"].shape == (8, 3, 16, 16)
        values[name] = batch["pixel_values"]
    assert values["raw"].min() >= 0
    assert values["raw"].max() <= 1
    torch.testing.assert_close(values["plain"], 2 * values["raw"] - 1)
    mean, deviation = (torch.tensor(settings[n])[:, None, None] for n in settings)
    torch.testing.assert_close(values["said"], (values["raw"] - mean) / deviation)


def test_heads_are_made_for_the_classes_of_the_data(tmp_path: Path) -> None:
    data = tiny_objectives.write_arrays(tmp_path / "images.npz")
    task = described(tmp_path, model=str(TINY.save_model(tmp_path / "model")), data=str(data))
    model: Any = task.build(LoadPlan(), seed=0)
    assert model.config.id2label == {0: "bright", 1: "dark"}


@pytest.mark.parametrize(
    ("shape", "side", "channels"),
    [((8, 8), 8, 1), ((28, 28), 28, 1), ((30, 20, 3), 32, 3), ((64, 64, 3), 32, 3)],
)
def test_a_model_of_ones_own_making_has_the_size_of_the_images(
    tmp_path: Path, shape: tuple[int, ...], side: int, channels: int
) -> None:
    data = tiny_objectives.write_arrays(tmp_path / "images.npz", shape=shape)
    task = described(tmp_path, data=str(data))
    assert task.workload.sequence_length == 16
    assert task.prepared.arrays["train_pixels"].shape[1:] == (channels, side, side)


def test_images_are_brought_to_one_size_and_colour() -> None:
    grey = Pictures(array=np.full((1, 8, 4, 1), 100, np.uint8), labels=["a"])
    assert (grey.pixels(16, 3) == 100).all()
    assert grey.pixels(16, 3).shape == (1, 3, 16, 16)
    colour = Pictures(array=np.zeros((1, 4, 4, 3), np.uint8), labels=["a"])
    colour.array[..., 1] = 100
    assert (colour.pixels(4, 1) == 59).all()
    assert np.array_equal(colour.pixels(4, 3)[0, 1], np.full((4, 4), 100))
    halves = np.zeros((1, 8, 8, 1), np.uint8)
    halves[:, :, 4:] = 200
    small = Pictures(array=halves, labels=["a"]).pixels(4, 1)[0, 0]
    assert (small[:, 0] < 20).all()
    assert (small[:, 3] > 180).all()


def test_arrays_of_fractions_are_read_like_bytes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    labels = np.arange(40) % 3
    np.savez(tmp_path / "bytes.npz", images=images, labels=labels)
    np.savez(tmp_path / "fractions.npz", images=images / 255, labels=labels)
    read = [read_pictures(str(tmp_path / f"{name}.npz")) for name in ("bytes", "fractions")]
    assert np.array_equal(read[0].train.array, read[1].train.array)
    assert class_names(read[0]) == ["0", "1", "2"]
    assert len(read[0].train) + len(read[0].held) == 40


def test_folders_are_classes(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    splits = read_pictures(str(write_folders(tmp_path)))
    assert class_names(splits) == ["bright", "dark"]
    assert (len(splits.train), len(splits.held)) == (17, 3)
    pixels = splits.train.pixels(8, 1)
    level = {"bright": 200, "dark": 20}
    for image, label in zip(pixels, splits.train.labels, strict=True):
        assert (image == level[label]).all()


def test_folders_for_training_and_validation(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", 20)
    write_folders(tmp_path / "test", 6)
    write_folders(tmp_path / "validation", 8)
    splits = read_pictures(str(tmp_path))
    assert (len(splits.train), len(splits.held)) == (20, 8)
    assert all("validation" in path.parts for path in splits.held.paths)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    write_folders(tmp_path)
    (tmp_path / "dark" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="this is no image that can be read") as caught:
        read_pictures(str(tmp_path)).train.pick(range(17)).pixels(8, 1)
    assert str(caught.value.where).endswith("broken.png")


def test_image_files_need_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "PIL"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError):
        importlib.import_module("PIL.Image")
    with pytest.raises(MissingLibrary, match="needs Pillow") as caught:
        described(tmp_path, data=str(write_folders(tmp_path / "images", 80)))
    assert "pip install 'autotune-memory[images]'" in str(caught.value.help)


GOOD = {"images": np.zeros((6, 8, 8), np.uint8), "labels": np.arange(6) % 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "no array 'labels', only images"),
        ({"images": np.zeros((6, 8), np.uint8)}, r"'images' has shape \(6, 8\)"),
        ({"images": np.zeros((6, 8, 8, 4), np.uint8)}, r"'images' has shape \(6, 8, 8, 4\)"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, r"'images' has shape \(0, 8, 8\)"),
        ({"images": np.full((6, 8, 8), 2.5)}, "float64 and values from 2.5 to 2.5"),
        ({"images": np.full((6, 8, 8), np.nan)}, "float64 and values from nan to nan"),
        ({"images": np.zeros((6, 8, 8), np.int64)}, "int64 and values from 0 to 0"),
        ({"labels": np.arange(5)}, r"'labels' has shape \(5,\).*there are 6 images"),
        ({"labels": np.linspace(0, 1, 6)}, "dtype float64, but there are 6 images"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    np.savez(tmp_path / "images.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_pictures(str(tmp_path / "images.npz"))


def test_places_without_images(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            read_pictures(str(path))
        return caught.value.message

    assert "there is no file or folder" in message(tmp_path / "nowhere")
    assert "has no subfolders with images" in message(tmp_path)
    write_pgm(tmp_path / "one.pgm", np.zeros((4, 4)))
    assert "not in subfolders" in message(tmp_path)
    assert "'.pgm' is not a type of image data" in message(tmp_path / "one.pgm")
    (tmp_path / "broken.npz").write_bytes(b"PK broken")
    assert "cannot be read as .npz" in message(tmp_path / "broken.npz")


def test_classes_that_cannot_be_learnt() -> None:
    def splits(train: list[str], held: list[str]) -> PictureSplits:
        array = np.zeros((9, 4, 4, 1), np.uint8)
        parts = (Pictures(array=array, labels=labels) for labels in (train, held))
        return PictureSplits(**dict(zip(("train", "held"), parts, strict=True)), where="here")

    with pytest.raises(DataError, match="every image is of the class 'a'"):
        class_names(splits(["a", "a"], ["a"]))
    with pytest.raises(DataError, match="class 'c' has images to evaluate on, but none to train"):
        class_names(splits(["a", "b"], ["c"]))
    assert class_names(splits(["10", "9", "1"], ["9"])) == ["1", "9", "10"]


def test_models_that_do_not_read_patches(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    model = tiny_objectives.save(
        tmp_path / "resnet", AutoModelForImageClassification, config, tokenizer=False
    )
    data = tiny_objectives.write_arrays(tmp_path / "images.npz")
    with pytest.raises(ModelError, match="does not read square images of one size"):
        described(tmp_path, model=str(model), data=str(data))


def test_images_cannot_be_cut_shorter(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="reads 16 patches of an image") as caught:
        described(tmp_path, sequence_length=32)
    assert "training.sequence_length" in str(caught.value.help)


def test_too_few_images_for_a_batch(tmp_path: Path) -> None:
    data = tiny_objectives.write_arrays(tmp_path / "images.npz", count=20)
    one = tiny_objectives.write_arrays(tmp_path / "one.npz", count=1)
    with pytest.raises(DataError, match="too few images: 1"):
        described(tmp_path, data=str(one))
    with pytest.raises(DataError, match="17 images to train on, but one optimizer step takes 32"):
        described(tmp_path, data=str(data))
