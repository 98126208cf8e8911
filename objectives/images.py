"""The user's own images: a folder with a subfolder for each class, or arrays in one file.

Images are brought to the size that the model takes and kept as bytes. Pillow reads image files; it
is an optional library, and arrays do without it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from autotune.core.errors import DataError, MissingLibrary

from .columns import held_out
from .files import VALIDATION_NAMES
from .limits import held_apart

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
PILLOW_INSTALL = "pip install 'autotune-memory[images]'"

_USUAL_SIDE = 32
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Images with a class each: files that are read when they are needed, or an array.

    Attributes:
        labels: Name of the class of each image.
        paths: Files, one for each image; empty for an array.
        array: Images `(images, height, width, channels)` in bytes; empty for files.
    """

    labels: Sequence[str]
    paths: Sequence[Path] = ()
    array: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 0, 0, 0), np.uint8))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        """Pixels of the longer side of an array's images; the usual ones for files."""
        return _USUAL_SIDE if self.paths else max(self.array.shape[1:3])

    @property
    def channels(self) -> int:
        """Channels of an array's images; three for files."""
        return 3 if self.paths else self.array.shape[3]

    def pick(self, places: Sequence[int]) -> Pictures:
        """Return the images at these places, in their order."""
        return Pictures(
            labels=[self.labels[place] for place in places],
            paths=[self.paths[place] for place in places] if self.paths else (),
            array=self.array if self.paths else self.array[list(places)],
        )

    def pixels(self, side: int, channels: int) -> NDArray[np.uint8]:
        """Return all images in one size, `(images, channels, side, side)`.

        Args:
            side: Pixels in each direction; images that are not square are squeezed.
            channels: 1 for grey, 3 for colour.

        Raises:
            DataError: If a file is no image.
            MissingLibrary: If there are files, and Pillow is not installed.
        """
        made = np.empty((len(self), channels, side, side), np.uint8)
        images = map(_read, self.paths) if self.paths else iter(self.array)
        for place, image in enumerate(images):
            made[place] = _fitted(image, side, channels)
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSplits:
    """Images to train on and to evaluate on, and where they come from."""

    train: Pictures
    held: Pictures
    where: str


def read_pictures(data: str) -> PictureSplits:
    """Find images and their classes.

    Args:
        data: A folder of class folders, of `train` and `validation` folders of such, or an `.npz`
            file with the arrays `images` and `labels`.

    Raises:
        DataError: If it is missing, empty, or of another shape.
    """
    path = Path(data).expanduser()
    if path.is_file():
        return _split(_from_arrays(path), None, str(path))
    if not path.is_dir():
        raise DataError(
            f"there is no file or folder '{data}'",
            where=str(path.absolute()),
            help="--data takes a folder with a subfolder of images for each class, or an .npz file",
        )
    parts = {folder.name.lower(): folder for folder in _folders(path)}
    validation = next((parts[name] for name in VALIDATION_NAMES if name in parts), None)
    if "train" in parts and set(parts) <= {"train", *VALIDATION_NAMES}:
        held = _from_folder(validation) if validation else None
        return _split(_from_folder(parts["train"]), held, str(path))
    return _split(_from_folder(path), None, str(path))


def class_names(splits: PictureSplits) -> list[str]:
    """Return the names of all classes in a fixed order: numbers by value, others by alphabet.

    Raises:
        DataError: If there is one class only, or one that is only evaluated on.
    """
    names = set(splits.train.labels)
    unseen = sorted(set(splits.held.labels) - names)
    if unseen:
        raise DataError(
            f"the class '{unseen[0]}' has images to evaluate on, but none to train on",
            where=splits.where,
            help="bring more images of it, or leave it out",
        )
    if len(names) < 2:
        raise DataError(
            f"every image is of the class '{min(names)}', so there is nothing to learn",
            where=splits.where,
            help="put the images of each class into a folder of its own",
        )
    numeric = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name) if numeric else 0, name))


def _split(train: Pictures, held: Pictures | None, where: str) -> PictureSplits:
    if held is None:
        training, places = held_apart(len(train), "images", where)
        return PictureSplits(train=train.pick(training), held=train.pick(places), where=where)
    later, first = held_out(len(held))
    return PictureSplits(train=train, held=held.pick(first + later), where=where)


def _folders(folder: Path) -> list[Path]:
    visible = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return [path for path in visible if path.is_dir()]


def _from_folder(folder: Path) -> Pictures:
    found = [
        (path, kind.name)
        for kind in _folders(folder)
        for path in sorted(kind.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        loose = any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())
        raise DataError(
            "the images are not in subfolders, so their classes are unknown"
            if loose
            else f"the folder has no subfolders with images ({', '.join(SUFFIXES)})",
            where=str(folder),
            help="put the images of each class into a folder that is called like the class",
        )
    paths, labels = zip(*found, strict=True)
    return Pictures(paths=paths, labels=labels)


def _from_arrays(path: Path) -> Pictures:
    """Read an `.npz` file."""
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"'{path.suffix or path.name}' is not a type of image data that can be read",
            where=str(path),
            help="--data takes a folder with a subfolder of images for each class, or an .npz file",
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"it cannot be read as .npz: {error}", where=str(path)) from error
    missing = [name for name in ("images", "labels") if name not in arrays]
    if missing:
        raise DataError(
            f"there is no array '{missing[0]}', only {', '.join(arrays) or 'nothing'}",
            where=str(path),
            help="write it with numpy.savez(FILE, images=…, labels=…)",
        )
    return Pictures(
        array=_checked_images(arrays, path), labels=[str(label) for label in arrays["labels"]]
    )


def _checked_images(arrays: Mapping[str, NDArray[Any]], path: Path) -> NDArray[np.uint8]:
    """Return images as `(images, height, width, channels)` in bytes."""
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise DataError(
            f"the array 'images' has shape {arrays['images'].shape}",
            where=str(path),
            help="it must be (images, height, width), or (images, height, width, 1 or 3)",
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iuUb":
        raise DataError(
            f"the array 'labels' has shape {labels.shape} and dtype {labels.dtype}, "
            f"but there are {len(images)} images",
            where=str(path),
            help="it must hold one whole number or word for each image",
        )
    if images.dtype == np.uint8:
        return images
    low, high = float(images.min()), float(images.max())
    if images.dtype.kind != "f" or not (low >= 0.0 and high <= 1.0):
        raise DataError(
            f"the array 'images' has dtype {images.dtype} and values from {low:g} to {high:g}",
            where=str(path),
            help="it must hold bytes (uint8), or fractions from 0.0 to 1.0",
        )
    rounded: NDArray[np.uint8] = np.round(255 * images).astype(np.uint8)
    return rounded


def _read(path: Path) -> NDArray[np.uint8]:
    """Read an image file as `(height, width, 3)`."""
    try:
        pillow = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise MissingLibrary(
            "reading image files needs Pillow, which is not installed",
            where=str(path),
            help=f"{PILLOW_INSTALL}  or give arrays in an .npz file",
        ) from error
    try:
        with pillow.open(path) as image:
            pixels: NDArray[np.uint8] = np.asarray(image.convert("RGB"), np.uint8)
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise DataError(f"this is no image that can be read: {error}", where=str(path)) from error
    return pixels


def _fitted(image: NDArray[np.uint8], side: int, channels: int) -> NDArray[np.uint8]:
    """Return an image `(height, width, channels)` as `(channels, side, side)`."""
    values = image.astype(np.float32)
    if channels == 1 and values.shape[2] == 3:
        values = (values @ _LUMINANCE)[..., None]
    if channels == 3 and values.shape[2] == 1:
        values = values.repeat(3, axis=2)
    if values.shape[:2] != (side, side):
        planes = torch.from_numpy(values).permute(2, 0, 1)[None]
        planes = interpolate(planes, (side, side), mode="bilinear", antialias=True)
        values = planes[0].permute(1, 2, 0).numpy()
    fitted: NDArray[np.uint8] = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return fitted.transpose(2, 0, 1)
