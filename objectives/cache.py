"""Prepared data: arrays on disk, made once in a run and memory-mapped by all of its trials.

A folder is written beside its place and renamed into it, so that a trial sees all of it or nothing.
Pages of a memory map belong to the file and not to the process, so data costs a trial no memory
that the budget would count.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int32]

_FACTS = "facts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What an objective made of model and data.

    Attributes:
        arrays: Token ids, labels and the like, by name.
        facts: What else the objective needs to know again, as a JSON object.
    """

    arrays: Mapping[str, Array]
    facts: Mapping[str, Any]

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
        arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
        return cls(arrays=arrays, facts=facts)
