"""Names of settings that exported files may use, read off the sources of their tools.

`python -m tests.export_fields ARCHIVE…` takes them out of wheels and source archives, as they come
by `pip download --no-deps axolotl`, without importing anything of them, and writes
`export_fields.json` with their versions. Only names are kept; dates are not, as some builds blank
them.

Names of accelerate, transformers and torch are asked of the installed packages.
"""

from __future__ import annotations

import ast
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

FILE = Path(__file__).with_suffix(".json")

MODULES = {
    "axolotl": [f"utils/schemas/{m}" for m in ("config", "model", "peft", "training", "datasets")],
    "llamafactory": [f"hparams/{module}_args" for module in ("model", "data", "finetuning")],
    "deepspeed": [
        "runtime/constants",
        "runtime/lr_schedules",
        "runtime/precision_config",
        "runtime/zero/config",
        "runtime/zero/offload_config",
        "runtime/config",
    ],
    "torchtitan": [
        "config/configs",
        "trainer",
        "components/optimizer/optimizer",
        "components/optimizer/lr_scheduler",
        "distributed/activation_checkpoint",
        "models/llama3/config_registry",
        "models/qwen3/config_registry",
    ],
}
"""Where a tool says what settings it has."""

IN_CODE = ("deepspeed", "torchtitan")
"""Tools whose settings are constants or Python, too, not fields of classes only."""


def fields(tree: ast.AST) -> Iterator[str]:
    """Yield the fields of classes: of dataclasses and of pydantic's models."""
    for node in ast.walk(tree):
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                yield inner.target.id


def words(tree: ast.AST) -> Iterator[str]:
    """Yield names of classes, functions, arguments and keys, and constants that are names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        if isinstance(node, ast.arg):
            yield node.arg
        named = node.keys if isinstance(node, ast.Dict) else ()
        for value in [node.value] if isinstance(node, ast.Assign) else named:
            if isinstance(value, ast.Constant) and str(value.value).isidentifier():
                yield str(value.value)


def read(archive: Path) -> tuple[str, dict[str, object]]:
    """Return the name of a tool, and what its wheel or source archive says."""
    tool, version = archive.name.removesuffix(".tar.gz").split("-")[:2]
    found: set[str] = set()
    for module in MODULES[tool]:
        file = f"{tool}/{module}.py"
        if archive.suffix == ".whl":
            with ZipFile(archive) as wheel:
                source = wheel.read(file)
        else:
            with tarfile.open(archive) as sources:
                member = sources.extractfile(f"{tool}-{version}/{file}")
                assert member is not None
                source = member.read()
        tree = ast.parse(source)
        found |= {*fields(tree), *(words(tree) if tool in IN_CODE else ())}
    return tool, {"version": version, "modules": MODULES[tool], "names": sorted(found)}


def known(tool: str) -> frozenset[str]:
    """Return the names that a tool knows."""
    return frozenset(json.loads(FILE.read_text())[tool]["names"])


if __name__ == "__main__":
    before = json.loads(FILE.read_text()) if FILE.exists() else {}
    after = {**before, **dict(read(Path(archive)) for archive in sys.argv[1:])}
    FILE.write_text(f"{json.dumps(after, indent=1, sort_keys=True)}\n")
