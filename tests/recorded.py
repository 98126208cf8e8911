"""What documents show of recorded runs, computed. `python -m tests.recorded` writes it into them.

A block between `<!-- recorded: NAME -->` and `<!-- end -->` is never typed by hand: it is what the
program prints of a file under `results/reference/`. `tests/unit/test_readme.py` compares.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest import mock

from autotune.__main__ import main
from autotune.core.record import TrialRecord
from autotune.core.units import GIB
from autotune.knobs import BUILTIN
from autotune.report.knobs import knob_guide
from autotune.storage.named_queries import QUERIES, SIGN
from autotune.storage.run import Run
from autotune.storage.views import VIEWS

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "results" / "reference"
RUN = "cpu-default"
BLOCK = re.compile(r"<!-- recorded: (.+?) -->\n(.*?)<!-- end -->", re.DOTALL)


def show_run() -> str:
    """Return the final screen of the recorded default run, 100 columns wide."""
    printed = io.StringIO()
    surroundings = {"COLUMNS": "100", "AUTOTUNE_RESULTS": str(REFERENCE)}
    with mock.patch.dict(os.environ, surroundings), contextlib.redirect_stdout(printed):
        status = main(["show", RUN])
    if status != 0:
        raise SystemExit(f"autotune show {RUN} exited with {status}")
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    text = "\n".join(lines).strip("\n")
    return f"```text\n{text}\n```\n"


def overhead_sentence() -> str:
    """Say what isolation and measurement cost, from the recorded benchmark."""
    document = json.loads((REFERENCE / "overhead.json").read_text())
    ways = document["ways"]
    ours, fresh = ways["autotune"]["added_seconds"], ways["fresh process"]["added_seconds"]
    return (
        f"Isolation and measurement add {ours:.2f} s to a trial; plain Optuna with a fresh process "
        f"per trial adds {fresh:.1f} s, {document['fresh_over_autotune']:.0f} times as much "
        "(`make benchmark`, recorded in `results/reference/overhead.json`).\n"
    )


def compressed_sentence() -> str:
    """Say what the recorded search of the LSTM classifier found, against its baseline."""
    run = Run.open("lstm", results=REFERENCE)
    return f"The same for a recurrent classifier, {searched(run)}: {found(run, compressed(run))}.\n"


def halved_sentence() -> str:
    """Say what the recorded search of the BERT classifier found with half of the parameters."""
    run = Run.open("bert", results=REFERENCE)
    best = compressed(run, parameters=0.5)
    share = best.trial.outcome.measurement.parameters / parameters(run)
    return (
        f"And for a BERT of six layers, {searched(run)}: {found(run, best)}, "
        f"and {share:.0%} of the parameters.\n"
    )


def two_workers_sentence() -> str:
    """Say what half of the BERT's parameters need on each of two workers, against all on one."""
    run = Run.open("bert-2", results=REFERENCE)
    return (
        f"On two workers, each with half of every batch (`--devices 2 --space "
        f"results/reference/{run.name}/space.yaml`): {found(run, compressed(run, parameters=0.5))}."
        " Memory is that of each worker, and both of them together have the two cores that the "
        "baseline has alone.\n"
    )


def throughput_sentence() -> str:
    """Say what a short trial loses to isolation on one machine, on Ray, and with peers."""
    parts = json.loads((REFERENCE / "cluster" / "throughput.json").read_text())["parts"]

    def lost(part: str, kind: str = "") -> float:
        rows = [row for row in parts[part]["rows"] if row["kind"].startswith(kind)]
        return max(row["overhead_seconds_per_trial"] for row in rows)

    tune, fresh = lost("peers", "ray tune"), lost("peers", "fresh")
    return (
        f"An isolated trial loses {lost('local'):.2f} s to its process and its measurement on one "
        f"machine and {lost('ray'):.2f} s on Ray, whatever the number of workers; Ray Tune's own "
        f"trials lose {tune:.1f} s, {tune / lost('ray'):.0f} times as much, fresh processes "
        f"{fresh:.1f} s (`python -m tests.benchmarks.cluster`, recorded in "
        "`results/reference/cluster/throughput.json`).\n"
    )


def ladder_sentence() -> str:
    """Say how far one technique after another goes, from the recorded benchmark."""
    document = json.loads((REFERENCE / "ladder.json").read_text())
    near = document["measured"]["best"]["1%"]
    large = document["rehearsed"]
    first, last = large["rows"][0], large["rows"][-1]
    return (
        f"One technique after another, measured: {near['less']:.1f} times less training memory "
        f"within 1% of the baseline's accuracy ({near['label']}). Rehearsed for a Llama of "
        f"{large['parameters'] / 1e9:.1f} billion parameters: from "
        f"{first['peak_bytes'] / GIB:.0f} GiB to {last['peak_bytes'] / GIB:.1f} "
        f"({last['label']}), memory only (`python -m tests.benchmarks.ladder`, recorded in "
        "`results/reference/ladder.json`).\n"
    )


def rehearsal_table() -> str:
    """Return what rehearsals and the screen are off by, from the recorded benchmarks."""
    document = json.loads((REFERENCE / "rehearsal.json").read_text())
    screening = json.loads((REFERENCE / "screening.json").read_text())
    rows = [row for row in document["rows"] if "errors" in row]
    rule = [abs(row["accelerate"] / row["measured"] - 1) for row in rows]
    held = [abs(row["predicted"] / row["resident"] - 1) for row in document["resident"]]
    trials, refused, wrongly = (
        sum(row[name] for row in screening["simulated"])
        for name in ("trials", "refused", "wrongly")
    )
    lines = [
        "| predicted | measured | of | median error | greatest |",
        "|---|---|---|---|---|",
        f"| rehearsed tensors | the allocator's own record | {len(rows)} trainings | "
        f"{document['summary']['median']:.4%} | {document['summary']['max']:.4%} |",
        f"| `accelerate estimate-memory`, times 4 for Adam | the same | the same | "
        f"{median(rule):.0%} | {max(rule):.0%} |",
        f"| tensors and heap | resident set | {len(held)} larger trainings | {median(held):.2%} | "
        f"{max(held):.2%} |",
    ]
    return (
        "\n".join(lines) + f"\n\nOf {trials} simulated trials after the first five of a study, "
        f"{screening['out_of_memory']:.1%} ran out of memory; of {refused} refusals, {wrongly} "
        "would have fitted. Recorded in `results/reference/rehearsal.json` and `screening.json`, "
        "on a CPU.\n"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """A trial, and what it changed against the baseline.

    Attributes:
        trial: The trial.
        score: Difference of scores.
        peak: Difference of peaks, as a share of the baseline's.
        seconds: That of the time per token.
    """

    trial: TrialRecord
    score: float
    peak: float
    seconds: float


def compressed(run: Run, *, parameters: float = 1.0) -> Compressed:
    """Return the leanest trial within one point of the baseline's score.

    Args:
        run: A recorded run.
        parameters: Most parameters that it may have, as a share of the baseline's.
    """
    name, first = run.metric.name, run.records[0].outcome
    goal, most = first.scores[name].value - 0.01, parameters * first.measurement.parameters
    near = [
        record
        for record in run.records
        if (score := record.score(run.metric)) is not None
        and score.value >= goal
        and record.outcome.measurement.parameters <= most
    ]
    best = min(near, key=lambda r: r.outcome.measurement.peak_bytes)
    new, old = best.outcome.measurement, first.measurement
    return Compressed(
        trial=best,
        score=best.outcome.scores[name].value - first.scores[name].value,
        peak=new.peak_bytes / old.peak_bytes - 1,
        seconds=old.throughput / new.throughput - 1,
    )


def parameters(run: Run) -> int:
    """Return how many parameters the baseline of a run has."""
    return run.records[0].outcome.measurement.parameters


def searched(run: Run) -> str:
    """Return the command that made a run, as code."""
    spec = run.spec
    return (
        f"`autotune run --budget 2GB --model {spec.facts.workload.model} --space {spec.space} "
        f"--trials {len(run)}`"
    )


def found(run: Run, best: Compressed) -> str:
    """Say what a trial reaches, and at which price."""
    name = run.metric.name
    return (
        f"{best.trial.config.describe(BUILTIN)} reaches {name} "
        f"{best.trial.outcome.scores[name].value:.3f} where the baseline has "
        f"{run.records[0].outcome.scores[name].value:.3f} ({best.score:+.3f}), with "
        f"{-best.peak:.0%} less memory and {-best.seconds:.0%} less time for the same texts "
        f"(recorded in `results/reference/{run.name}`)"
    )


GUIDE = ROOT / "autotune" / "guide" / "knobs.md"
MEMORY_GUIDE = ROOT / "autotune" / "guide" / "memory.md"
QUERY_GUIDE = ROOT / "autotune" / "guide" / "queries.md"
METHOD_GUIDE = ROOT / "autotune" / "guide" / "method.md"


def search_verdict() -> str:
    """Return what the recorded benchmark of samplers comes to, and what it was run with."""
    document = json.loads((REFERENCE / "search.json").read_text())
    table = json.loads((REFERENCE / "table.json").read_text())
    seeds = sorted({row["seeds"] for row in document["rows"]})
    lines = "\n".join(document["verdict"])
    return (
        f"Hypervolume inside the budget as a share of the best there is, up to "
        f"{document['trials']} trainings, means of {seeds[-1]} seeds ({seeds[0]} for the slowest "
        f"peers), on a scaling law, on one that violates what `frontier` assumes, and on a table "
        f"of {len(table['rows'])} real trainings (`python -m tests.benchmarks.search`, recorded in "
        f"`results/reference/search.json`):\n\n```text\n{lines}\n```\n"
    )


def knob_guide_page() -> str:
    """Return the guide's page of knobs, from the recorded check of all of them."""
    document = json.loads((REFERENCE / "knobs-cpu.json").read_text())
    return knob_guide(document, BUILTIN)


def queries_with_names() -> str:
    """Return every named query: the question, how to ask it, and its SQL."""
    return "\n".join(
        f"**{query.question[0].upper()}{query.question[1:]}**\n\n"
        f"```bash\nautotune query {SIGN}{query.name}\n```\n\n"
        f"```sql\n{query.sql}\n```\n"
        for query in QUERIES
    )


def views_and_columns() -> str:
    """Return every view with its columns, as tables."""
    parts = []
    for view in VIEWS:
        rows = [f"| `{column.name}` | {column.help} |" for column in view.columns]
        heading = f"### {view.name}\n\n{view.help[0].upper()}{view.help[1:]}.\n"
        parts.append("\n".join([heading, "| column | what it is |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def query_seconds() -> str:
    """Say how long the named queries take, from the recorded benchmark."""
    document = json.loads((REFERENCE / "queries.json").read_text())
    seconds = {name: taken["seconds"] for name, taken in document["queries"].items()}
    slowest = max(seconds, key=lambda name: seconds[name])
    return (
        f"Over {document['trials']:,} trials in SQLite, the front takes "
        f"{1000 * seconds['front']:.0f} ms of a processor and the slowest of these queries, "
        f"`{SIGN}{slowest}`, {1000 * seconds[slowest]:.0f} ms "
        "(`python -m tests.benchmarks.queries`, recorded in `results/reference/queries.json`).\n"
    )


BLOCKS: dict[str, Callable[[], str]] = {
    f"autotune show {RUN}": show_run,
    "overhead": overhead_sentence,
    "compressed": compressed_sentence,
    "halved": halved_sentence,
    "two workers": two_workers_sentence,
    "throughput": throughput_sentence,
    "ladder": ladder_sentence,
    "rehearsal": rehearsal_table,
    "queries": queries_with_names,
    "views": views_and_columns,
    "query seconds": query_seconds,
    "search": search_verdict,
}


def refresh(text: str) -> str:
    """Return a document with every recorded block computed anew."""
    return BLOCK.sub(
        lambda block: f"<!-- recorded: {block[1]} -->\n{BLOCKS[block[1]]()}<!-- end -->", text
    )


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(refresh(readme.read_text()))
    for page in (MEMORY_GUIDE, METHOD_GUIDE, QUERY_GUIDE):
        page.write_text(refresh(page.read_text()))
    GUIDE.parent.mkdir(exist_ok=True)
    GUIDE.write_text(knob_guide_page())
