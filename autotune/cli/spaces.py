"""`autotune spaces`: list, show, check and copy search spaces; knobs, objectives, schema."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Group, Parameter
from rich.console import RenderableType
from rich.text import Text

from autotune.cli.count import asked_for, count_fitting
from autotune.cli.options import Common, whole_number
from autotune.cli.space_schema import space_schema
from autotune.core.context import Context
from autotune.core.errors import BadValue, StorageError
from autotune.core.knob import Knob
from autotune.core.space import (
    Space,
    find_space_text,
    load_space,
    local_spaces,
    parse_space,
    shipped_spaces,
)
from autotune.core.units import parse_duration
from autotune.estimate import budget_for
from autotune.knobs import BUILTIN
from autotune.knobs import knob as find_knob
from autotune.report.document import SCHEMA
from autotune.report.spaces import (
    grouped,
    knob_document,
    knob_screen,
    knobs_table,
    size_sentence,
    space_screen,
    space_show_document,
)
from autotune.report.text import Column, Listing, make_table
from autotune.runners.device_table import find_device
from autotune.runners.devices import installed_libraries, pick_device
from autotune.trial.objective import OBJECTIVES

app = App(name="spaces", help="List, show, check and copy search spaces and knobs.")

Device = Annotated[
    str | None, Parameter(env_var="AUTOTUNE_DEVICE", metavar="DEVICE", show_default=False)
]
_COMMON = Common()
COUNT = Group("Counting what fits a budget", sort_key=0)

USUAL_BATCH = 32
"""Stands for the global batch that the objective will have, where the space names none."""


@app.command(name="ls", sort_key=0)
def list_spaces(*, common: Common = _COMMON) -> None:
    """List the search spaces that can be named."""
    local = set(local_spaces())
    names = sorted({*shipped_spaces(), *local})
    spaces = {name: load_space(name, BUILTIN) for name in names}
    homes = {name: "./search_spaces" if name in local else "shipped" for name in names}
    document = {
        "schema": SCHEMA,
        "spaces": [
            {"name": n, "summary": s.summary, "knobs": len(s.domains), "size": s.size,
             "from": homes[n]}
            for n, s in spaces.items()
        ],
    }  # fmt: skip
    rows = [
        (name, str(len(space.domains)), _size(space), homes[name], space.summary)
        for name, space in spaces.items()
    ]
    columns = (
        Column("space"),
        Column("knobs", "right"),
        Column("combinations", "right"),
        Column("from"),
        Column("what it is for", folds=True),
    )
    next_lines = [
        ("autotune spaces show NAME", "its knobs, and what is blocked on this machine"),
        ("autotune spaces cp NAME mine.yaml", "a copy to edit"),
    ]
    common.show(document, make_table(columns, rows), Text(), Listing("Next", next_lines))


@app.command(name="show", sort_key=1)
def show(
    name: str,
    /,
    *,
    budget: Annotated[str | None, Parameter(group=COUNT, metavar="SIZE")] = None,
    objective: Annotated[str | None, Parameter(group=COUNT, metavar="NAME")] = None,
    model: Annotated[str | None, Parameter(group=COUNT, metavar="MODEL")] = None,
    data: Annotated[str | None, Parameter(group=COUNT, metavar="DATA")] = None,
    batch: Annotated[int | None, Parameter(group=COUNT, metavar="N")] = None,
    sequence_length: Annotated[int | None, Parameter(group=COUNT, metavar="N")] = None,
    time: Annotated[str, Parameter(group=COUNT, metavar="TIME")] = "2m",
    device: Device = None,
    common: Common = _COMMON,
) -> None:
    """Show a space: its knobs, its size, what is blocked on this machine, and how much of it fits.

    Args:
        name: Name or file of a space.
        budget: Count how many configurations fit: 16GB, or `auto` for what the device has.
        objective: What to train for; by default what the model was made for.
        model: A folder with config.json, or a hub name; by default the objective's own.
        data: A file or folder; by default random data of the right shapes.
        batch: Sequences per optimizer step; by default what the space or the objective says.
        sequence_length: Tokens per sequence; by default what the space or the objective says.
        time: Most time for counting; a space that takes longer is sampled.
        device: cpu, cuda or cuda:1; with a budget also one that is not here, such as A100-80GB.
        common: Options of every command.
    """
    space = load_space(name, BUILTIN)
    lines = [(f"autotune run --budget {budget or '16GB'} --space {name}", "search it")]
    if budget is None:
        if objective or model or data:
            raise BadValue(
                "a model is needed only to count what fits", help="add --budget 16GB, or auto"
            )
        context = _here(device, space)
        document, more = space_show_document(space, context), list[RenderableType]()
    else:
        asked = asked_for(
            space,
            objective=objective,
            model=model,
            data=data,
            batch=0 if batch is None else whole_number("batch", batch, 1),
            sequence_length=0
            if sequence_length is None
            else whole_number("sequence-length", sequence_length, 1),
        )
        place, seconds = find_device(device), parse_duration(time)
        allowed = budget_for(budget, place)
        assert allowed is not None  # there is none only for none
        context, fits, screen = count_fitting(
            space, asked, place, allowed, seconds=seconds, common=common
        )
        document, more = {**space_show_document(space, context), "fits": fits}, [screen]
    common.show(document, space_screen(space, context), *more, Text(), Listing("Next", lines))


@app.command(name="check", sort_key=2)
def check(file: Path, /, *, device: Device = None, common: Common = _COMMON) -> None:
    """Check a space file: knobs, values, rules, settings.

    Args:
        file: The file.
        device: cpu, cuda or cuda:1; by default the first accelerator, or else the CPU.
        common: Options of every command.
    """
    # A path is meant, also where a name would be understood: `check mine` is the file `mine`.
    text, where = find_space_text(str(file) if len(file.parts) > 1 else f"./{file}")
    space = parse_space(text, where, BUILTIN)
    context = _here(device, space)
    sentence = f"{where} is a search space: {size_sentence(space, context)}"
    common.show(space_show_document(space, context), Text(sentence))


@app.command(name="cp", sort_key=3)
def copy(name: str, destination: Path, /, *, common: Common = _COMMON) -> None:
    """Copy a space to a file of your own; nothing is ever overwritten.

    Args:
        name: Name or file of a space.
        destination: The new file, or a folder for it.
        common: Options of every command.
    """
    text, where = find_space_text(name)
    target = destination / Path(where).name if destination.is_dir() else destination
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise StorageError(
            f"'{target}' exists, and nothing is ever overwritten", help="choose another name"
        ) from error
    except OSError as error:
        raise StorageError(
            f"'{target}' cannot be written: {error.strerror or error}",
            help="choose a folder that exists and can be written",
        ) from error
    document = {"schema": SCHEMA, "copied": where, "to": str(target)}
    lines = [
        (f"autotune spaces check {target}", "after editing it"),
        (f"autotune run --budget 16GB --space {target}", "search it"),
    ]
    common.show(document, Text(f"Copied to {target}."), Text(), Listing("Next", lines))


@app.command(name="knobs", sort_key=4)
def knobs(name: str | None = None, /, *, device: Device = None, common: Common = _COMMON) -> None:
    """List all knobs, or say everything about one.

    Args:
        name: One knob.
        device: cpu, cuda or cuda:1; by default the first accelerator, or else the CPU.
        common: Options of every command.
    """
    found: Sequence[Knob] = BUILTIN if name is None else (find_knob(name),)
    document = {"schema": SCHEMA, "knobs": [knob_document(knob) for knob in found]}
    if name is None:
        lines = [("autotune spaces knobs NAME", "one knob, and what is blocked on this machine")]
        common.show(document, knobs_table(found), Text(), Listing("Next", lines))
    else:
        common.show(document, knob_screen(found[0], _here(device)))


@app.command(name="objectives", sort_key=5)
def objectives(*, common: Common = _COMMON) -> None:
    """List what can be trained for."""
    rows = [(name, _first_line(path), path) for name, path in sorted(OBJECTIVES.paths().items())]
    document = {
        "schema": SCHEMA,
        "objectives": [{"name": n, "summary": s, "path": p} for n, s, p in rows],
    }
    table = make_table(
        (Column("objective"), Column("what it is", folds=True)), [row[:2] for row in rows]
    )
    lines = [("autotune run --budget 16GB --objective NAME", "search for it")]
    common.show(document, table, Text(), Listing("Next", lines))


@app.command(name="schema", sort_key=6)
def schema(*, common: Common = _COMMON) -> None:
    """Print the JSON schema of space files, for editors."""
    common.print_document(space_schema(BUILTIN))


def _here(device: str | None, space: Space | None = None) -> Context:
    """Return this machine as knobs see it; of the model nothing is known yet."""
    training = space.training if space else {}
    return Context(
        device=pick_device(device),
        global_batch=training.get("global_batch", USUAL_BATCH),
        libraries=installed_libraries(),
    )


def _size(space: Space) -> str:
    return "without end" if space.size is None else grouped(space.size)


def _first_line(path: str) -> str:
    """Return the first line of a module's docstring without importing the module."""
    try:
        spec = importlib.util.find_spec(path.partition(":")[0])
        source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        documentation = ast.get_docstring(ast.parse(source)) or ""
    except (ImportError, OSError, SyntaxError, ValueError):
        return "cannot be read"
    return documentation.partition("\n")[0]
