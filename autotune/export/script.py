"""`--to hf`: a standalone training script with the settings of a trial, without autotune.

The script is put together from the pieces of `snippets.py`: only what the trial used is in it. It
sees the same data in the same order, starts from the same weights, draws the same random numbers,
and measures its peak with the same instrument, so that both numbers of the trial come out again.
"""

from __future__ import annotations

import json
import re
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from autotune.core.errors import CannotExport
from autotune.core.registry import Registry
from autotune.core.workload import Workload
from autotune.export import snippets as pieces
from autotune.export.base import Export, Exporter, Subject, check, others, refuse_objective
from autotune.export.numbers import Numbers
from autotune.export.script_knobs import EXPRESSED
from autotune.export.script_model import changes, functions, load
from autotune.export.script_training import imports, optimizer, step, training
from autotune.knobs.architectures import RECURRENT
from autotune.knobs.loss_chunks import CHANGES_LOGITS

HERE = "HERE = Path(__file__).resolve().parent"
WIDTH = 100
MOST_LINES = 150
"""What a person reads in one go; `tests/unit/test_export_script.py` holds scripts to it."""


class Ingredients(Protocol):
    """What an objective gives for a script; see `objectives/exported.py`."""

    weights: str | None
    trust: bool
    pad: int
    classes: tuple[str, ...]
    text: str
    label: str
    data: str | None
    held_share: float
    config: object
    tokenizer: object

    def write(self, folder: Path) -> None:
        """Write configuration, tokenizer, and data that a script cannot read by itself."""


FINDERS: Registry[Callable[[Workload, Path], Ingredients]] = Registry(
    "objective of a script",
    {
        "causal_lm": "autotune.objectives.exported:language",
        "text_classification": "autotune.objectives.exported:classes",
    },
    listing="autotune export --help",
)
"""What finds the ingredients, by objective."""


def export_script(subject: Subject) -> Export:
    """Return the script of a trial, and what it reads.

    Raises:
        CannotExport: If a script of plain libraries cannot express the trial.
        AutotuneError: If model or data cannot be prepared any more.
    """
    target = "a script of plain transformers"
    refuse_objective(subject, target, FINDERS.names())
    family, workload = subject.spec.facts.model.family, subject.workload
    reasons = (
        (family in RECURRENT, "recurrent models are autotune's own"),
        (
            workload.objective == "causal_lm" and family in CHANGES_LOGITS,
            f"models of the family '{family}' change their logits after the output layer",
        ),
        (workload.purpose == "inference", "what was searched is the memory of a trained model"),
    )
    for wrong, reason in reasons:
        if wrong:
            raise CannotExport(
                f"{target} cannot express {subject.name}: {reason}",
                help=others(subject),
            )
    check(subject, target, EXPRESSED)
    with tempfile.TemporaryDirectory(prefix="autotune-export-") as cache:
        found = FINDERS.load(workload.objective)(workload, Path(cache))
    return Export(files=compose(subject, found), beside=found.write)


def compose(subject: Subject, found: Ingredients) -> dict[str, str]:
    """Return the script, and what of it goes into files beside it so that it can be read in one go.

    Args:
        subject: The trial; all of its settings can be expressed.
        found: What it starts from.

    Returns:
        Text by name of the file; `train.py` first.
    """
    numbers = Numbers.of(subject)
    language = subject.workload.objective == "causal_lm"
    update = optimizer(subject, numbers)
    parts = {
        "memory": pieces.MEASURED_ON_CUDA if subject.on_cuda else pieces.MEASURED_ON_CPU,
        "techniques": "\n".join([*functions(subject, found.config), *update.functions]),
        "data": "\n".join(_data(found, language=language)),
    }
    body = [
        load(subject, found, changes(subject, found.config)),
        update.made,
        *step(subject, language=language),
        *training(subject, tokenizer=found.tokenizer is not None),
    ]
    constants = _constants(subject, numbers)
    apart: list[str] = []
    for name in ("", *(part for part, text in parts.items() if text)):
        apart += [name] if name else []
        inside = [parts[part] for part in ("data", "memory", "techniques") if part not in apart]
        beside = {part: parts[part] for part in apart}
        main = _file(_opening(subject), [HERE, constants, *inside, *body], subject, beside)
        if len(main.splitlines()) <= MOST_LINES:
            break
    about = {
        "memory": "How much memory a training takes at most.",
        "techniques": f"What {subject.name} does beyond plain training: {subject.title}.",
        "data": "The texts as tokens, and the order in which they are trained on.",
    }
    others = {
        f"{part}.py": _file(_docstring(about[part]), [HERE, text], None, {})
        for part, text in beside.items()
    }
    return {"train.py": main, **others}


def _file(opening: str, body: list[str], subject: Subject | None, beside: Mapping[str, str]) -> str:
    """Return a file: what it is, its imports, its parts."""
    text = "\n".join(body)
    if not re.search(r"\bHERE\b", text.replace(HERE, "")):
        text = text.replace(HERE, "")
    own = []
    for part, source in sorted(beside.items()):
        defined = re.findall(r"^(?:def|class) (\w+)|^(\w+(?:, \w+)*) = ", source, re.MULTILINE)
        names = {name for a, b in defined for name in (a or b).split(", ")}
        used = sorted(name for name in names if re.search(rf"\b{name}\b", text))
        own += _import_of(part, used) if used else []
    return opening + _tidy("\n".join([imports(text, subject), *own, "", text]))


def _import_of(part: str, names: list[str]) -> list[str]:
    line = f"from {part} import {', '.join(names)}"
    if len(line) <= WIDTH:
        return [line]
    inner = textwrap.wrap(", ".join(names) + ",", WIDTH - 4)
    return [f"from {part} import (", *(f"    {piece}" for piece in inner), ")"]


def _opening(subject: Subject) -> str:
    versions = subject.spec.versions
    needed = ["torch", "transformers", *(["peft"] if subject.value("lora.rank") else [])]
    libraries = ", ".join(f"{name} {versions[name]}" for name in needed if name in versions)
    device = f"{subject.spec.device['kind']}, {subject.spec.device.get('name', '')}".rstrip(", ")
    lines = [
        f"Train {subject.spec.facts.model.name} as in {subject.name}: {subject.title}.",
        "",
        f"Recorded on {device}, with {libraries}: {subject.recorded or 'nothing'}.",
        "",
        "    python train.py            train, evaluate, print score and peak memory",
        "    python train.py FOLDER     save the trained model there, too",
    ]
    wrapped = [piece for line in lines for piece in _wrapped(line)]
    return '"""' + "\n".join(wrapped).replace("\\", "\\\\").replace('"""', "'''") + '\n"""\n\n'


def _constants(subject: Subject, numbers: Numbers) -> str:
    workload = subject.workload
    dtype = {"bf16": "bfloat16"}.get(str(subject.value("precision")), "float32")
    device = "cuda" if subject.on_cuda else "cpu"
    lines = [
        f'DEVICE, DTYPE, SEED = "{device}", torch.{dtype}, {numbers.seed}',
        f"STEPS, BATCH, MICRO_BATCHES = {numbers.steps}, {numbers.batch}, {numbers.accumulation}",
        f"LENGTH, RATE = {numbers.length}, {numbers.rate!r}",
        f"EVAL_LENGTH, EVAL_BATCH, EVAL_EXAMPLES = {workload.sequence_length}, "
        f"{workload.global_batch}, {workload.eval_examples}",
    ]
    if workload.objective == "causal_lm":
        lines.append("FEW = 256  # tokens whose logits exist at once in an evaluation")
    if subject.value("loss_chunks") != 1:
        lines.append(f"LOSS_CHUNKS = {subject.value('loss_chunks')}")
    if not subject.on_cuda:
        lines.append(f"torch.set_num_threads({subject.spec.threads})")
    if subject.value("precision") == "tf32":
        lines.append('torch.set_float32_matmul_precision("high")')
    return "\n".join(lines)


def _data(found: Ingredients, *, language: bool) -> list[str]:
    suffix = Path(found.data or "").suffix.lower()
    opening = _listed("CLASSES", found.classes) if found.classes else []
    if found.tokenizer is not None:
        trust = ", trust_remote_code=True" if found.trust else ""
        opening.append(f'tokenizer = AutoTokenizer.from_pretrained(HERE / "model"{trust})')
    csv = suffix in (".csv", ".tsv")
    delimiter = "\\t" if suffix == ".tsv" else ","
    read = pieces.READ_CSV.format(delimiter=delimiter) if csv else pieces.READ_LINES
    if found.data is None:
        split = pieces.TWO_FILES
    else:
        kept = "sorted(mixed[few:])" if language else "mixed[few:]"
        data = json.dumps(found.data)
        split = pieces.SPLIT_ROWS.format(data=data, share=found.held_share, kept=kept)
    if not language:
        tensors = pieces.CLASS_TENSORS.format(text=found.text, label=found.label, pad=found.pad)
    elif found.tokenizer is None:
        tensors = pieces.BYTES.format(text=found.text)
    else:
        end = getattr(found.tokenizer, "eos_token_id", None)
        whole = f"(*ids, {end})" if isinstance(end, int) else "ids"
        tensors = pieces.TOKENS.format(text=found.text, whole=whole)
    return ["\n".join(opening), read, split, tensors, pieces.ORDER]


def _listed(name: str, values: tuple[str, ...]) -> list[str]:
    """Return a list as lines that are not too long."""
    items = [json.dumps(value, ensure_ascii=False) for value in values]
    whole = f"{name} = [{', '.join(items)}]"
    if len(whole) <= WIDTH:
        return [whole]
    inner = textwrap.wrap(", ".join(items) + ",", WIDTH - 4, break_long_words=False)
    return [f"{name} = [", *(f"    {line}" for line in inner), "]"]


def _wrapped(line: str) -> list[str]:
    return (
        textwrap.wrap(line, WIDTH - 4, subsequent_indent="  ") if len(line) > WIDTH - 4 else [line]
    )


def _docstring(text: str) -> str:
    quoted = f'"""{text}"""'
    return "\n".join(textwrap.wrap(quoted, WIDTH, subsequent_indent="  ")) + "\n\n"


def _tidy(text: str) -> str:
    """Leave two empty lines around every function and class, and one where a part begins."""
    lines = text.splitlines()
    tidy: list[str] = []
    for place, line in enumerate(lines):
        if not line:
            continue
        gap = _gap(lines, place, line)
        tidy += [""] * (gap if tidy else 0)
        tidy.append(line)
    return "\n".join(tidy) + "\n"


def _gap(lines: list[str], place: int, line: str) -> int:
    """Return how many empty lines stand before one."""
    above = next((seen for seen in reversed(lines[:place])), "")
    before = next((seen for seen in reversed(lines[:place]) if seen), "")
    starts = line.startswith(("def ", "class ", "@"))
    if starts and not before.startswith("@"):
        return 2
    margin = not line.startswith((" ", ")", "]"))
    if margin and before.startswith((" ", ")")) and not starts and above == "":
        return 2
    return 1 if above == "" else 0


EXPORTER = Exporter(
    name="hf",
    help="a training script in plain torch, transformers and peft, with what it reads",
    make=export_script,
)
