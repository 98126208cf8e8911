"""Prepared data: arrays and texts on disk, made once in a run and read by all of its trials.

A folder is written beside its place and renamed into it, so that a trial sees all of it or nothing.
What is loaded is a memory map: its pages belong to the file and not to the process. A trial that
does not ask for maps copies the arrays that it trains on into memory of its own (`Task.array`);
texts are read one at a time and stay in their file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_FACTS = "facts.json"
_TEXTS = "texts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts(Sequence[str]):
    """Texts, one after the other in an array of bytes, read one at a time.

    Attributes:
        content: UTF-8 bytes of all texts `(bytes,)`.
        ends: Where each text ends `(texts,)`.
    """

    content: NDArray[np.uint8]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Put texts into arrays. What is no valid Unicode, such as half a pair, is kept."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        return cls(
            content=np.frombuffer(b"".join(encoded), np.uint8),
            ends=np.cumsum([len(part) for part in encoded], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        at = range(len(self))[place]
        start = int(self.ends[at - 1]) if at else 0
        return self.content[start : int(self.ends[at])].tobytes().decode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What an objective made of model and data.

    Attributes:
        arrays: Token ids, labels and the like, by name.
        facts: What else the objective needs to know again, as a JSON object.
        texts: What some of the arrays were made from, to make it again when it is needed.
    """

    arrays: Mapping[str, Array]
    facts: Mapping[str, Any]
    texts: Mapping[str, Texts] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the arrays with their names and shapes, in hexadecimal."""
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            array = self.arrays[name]
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write to `folder` in one step; what was there is replaced."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            for name, array in self.arrays.items():
                np.save(made / f"{name}.npy", array)
            for name, texts in self.texts.items():
                (made / _TEXTS / name).mkdir(parents=True)
                np.save(made / _TEXTS / name / "content.npy", texts.content)
                np.save(made / _TEXTS / name / "ends.npy", texts.ends)
            (made / _FACTS).write_text(json.dumps(dict(self.facts)), encoding="utf-8")
            if folder.exists():
                old = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
                folder.replace(old)  # open maps stay valid: their files live on until closed
                shutil.rmtree(old)
            made.replace(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> Prepared | None:
        """Map what `save` wrote; None if there is nothing."""
        if not (folder / _FACTS).is_file():
            return None
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        texts = {
            path.name: Texts(content=_mapped(path / "content.npy"), ends=_mapped(path / "ends.npy"))
            for path in sorted((folder / _TEXTS).glob("*"))
        }
        arrays = {path.stem: _mapped(path) for path in folder.glob("*.npy")}
        return cls(arrays=arrays, facts=facts, texts=texts)


def _mapped(path: Path) -> Array:
    array: Array = np.load(path, mmap_mode="r")
    return array
