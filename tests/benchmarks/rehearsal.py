"""Rehearsed peaks beside measured ones, and what a rehearsal costs.

Five parts, each in one run on one machine:

- exactness: models times configurations, each rehearsed and then trained for real on the CPU in a
  process of its own; the error of every phase's peak against the allocator's own record, beside
  that of `accelerate estimate-memory` where accelerate is installed;
- resident: larger models, what is predicted for the process against what the kernel saw;
- speed: CPU seconds of rehearsals of GPT-2 small, each of another structure, beside torch's own
  `MemTracker` on the same model and steps, and of asking again;
- algebra: the cost of deriving a further scale, and the error against full rehearsals;
- size: a Llama of 70 billion parameters, its seconds and the resident set of the process.

    python -m tests.benchmarks.rehearsal --json results/reference/rehearsal.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.core.config import Config
from autotune.core.domains import Value
from autotune.core.outcome import Completed, Measurement, PeakKind, Phase, outcome_from_json
from autotune.core.space import parse_space
from autotune.core.workload import Workload, WorkloadFacts
from autotune.knobs import BUILTIN
from autotune.knobs.stages import LoadPlan
from autotune.memory.predict import estimated
from autotune.memory.rehearsal import CannotRehearse, Rehearsal
from autotune.memory.rehearsal_worker import RehearsalWorker
from autotune.plan import context_of
from autotune.runners.devices import cpu_device, library_versions
from autotune.runners.local import LocalRunner
from autotune.trial.objective import load_objective
from autotune.trial.spec import TrialSpec

PHASES = (Phase.LOAD, Phase.FIRST, Phase.STEADY, Phase.EVALUATE)
STEPS = 5

_LLAMA = {
    "hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 512, "vocab_size": 8000, "max_position_embeddings": 512,
    "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip
_GPT2 = {
    "n_embd": 192, "n_layer": 3, "n_head": 4, "vocab_size": 8000, "n_positions": 512,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_BERT = {
    "hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 768, "vocab_size": 8000, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("causal_lm", "gpt2", _GPT2),
    "llama": ("causal_lm", "llama", _LLAMA),
    "qwen2": ("causal_lm", "qwen2", {**_LLAMA, "tie_word_embeddings": True}),
    "bert": ("text_classification", "bert", _BERT),
}
"""Name, objective, family, and entries of the configuration."""

CONFIGS: tuple[dict[str, Value], ...] = (
    {},
    {"precision": "bf16"},
    {"attention": "eager"},
    {"checkpointing": "full"},
    {"checkpointing": "every_other", "precision": "bf16"},
    {"accumulation": 4},
    {"loss_chunks": 4},
    {"loss_chunks": 16, "checkpointing": "full"},
    {"optimizer": "adafactor"},
    {"optimizer": "lion", "precision": "bf16"},
    {"optimizer": "sgd"},
    {"optimizer.bits": 8},
    {"optimizer": "lion", "optimizer.bits": 8, "accumulation": 2},
    {"prune.ffn": 0.5},
    {"prune.heads": 0.5, "precision": "bf16"},
    {"prune.ffn": 0.75, "prune.heads": 0.5, "checkpointing": "full", "optimizer": "sgd"},
    {"activation_bits": 8, "optimizer": "muon"},
    {"activation_offload": "disk", "precision": "bf16"},
    {"optimizer.in_backward": "yes", "optimizer": "galore"},
    {"optimizer.kernel": "foreach", "zero_grad": "keep", "accumulation": 2},
    {"checkpointing": "selective", "recompute.norms": "yes", "qat.bits": 4},
    {"precision": "fp16", "freeze.layers": 0.5},
)

SMALL = {"n_embd": 768, "n_layer": 12, "n_head": 12, "bos_token_id": 0, "eos_token_id": 0}
LARGE = {
    **_LLAMA, "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256,
    "max_position_embeddings": 4096,
}  # fmt: skip


def write_model(folder: Path, family: str, entries: Mapping[str, Any]) -> Path:
    """Write a configuration and a tokenizer, and no weights."""
    from transformers import AutoConfig

    from tests.tiny_folders import byte_tokenizer

    AutoConfig.for_model(family, **entries).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def describe(
    runner: LocalRunner, folder: Path, name: str, batch: int, tokens: int
) -> WorkloadFacts:
    """Have the objective of a model look at it."""
    objective, family, entries = MODELS.get(name) or EXTRA[name]
    model = write_model(folder / name, family, entries)
    workload = Workload(
        objective=objective,
        model=str(model),
        steps=STEPS,
        global_batch=batch,
        sequence_length=tokens,
        eval_examples=batch,
    )
    return runner.describe(workload, folder / "cache")


EXTRA: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2-small": ("causal_lm", "gpt2", SMALL),
    "llama-70b": ("causal_lm", "llama", LARGE),
    "gpt2-wide": ("causal_lm", "gpt2", {**_GPT2, "n_embd": 768, "n_layer": 6}),
    "llama-wide": ("causal_lm", "llama", {**_LLAMA, "hidden_size": 768, "intermediate_size": 2048,
                                          "num_hidden_layers": 6}),
    "bert-wide": ("text_classification", "bert", {**_BERT, "hidden_size": 768,
                  "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 6}),
    **{f"gpt2-{layers}": ("causal_lm", "gpt2", {**SMALL, "n_layer": layers})
       for layers in (12, 24, 48)},
}  # fmt: skip

RESIDENT: dict[str, tuple[dict[str, Value], ...]] = {
    "gpt2-wide": ({}, {"checkpointing": "full"}, {"zero_grad": "keep"}, {"optimizer": "lion"}),
    "llama-wide": ({}, {"loss_chunks": 4}, {"accumulation": 2}, {"optimizer": "adafactor"}),
    "bert-wide": ({}, {"precision": "bf16"}, {"attention": "eager"}, {"checkpointing": "full"}),
}
"""Configurations by model; nearly all take more than 500 MB."""


def make_spec(facts: WorkloadFacts, folder: Path, config: Mapping[str, Value]) -> TrialSpec:
    """Return a trial on one thread of the CPU."""
    device = cpu_device()
    return TrialSpec(
        number=0,
        config=dict(config),
        facts=facts,
        device=device,
        threads=1,
        limit_bytes=device.total_bytes,
        limit_seconds=1200,
        cache=str(folder / "cache"),
        log=str(folder / "log.txt"),
    )


def legal(facts: WorkloadFacts) -> Iterator[dict[str, Value]]:
    """Yield the configurations of the table that the knobs allow for a model."""
    lines = "".join(f"  {knob.name}: {list(knob.domain.grid())}\n" for knob in BUILTIN)
    space = parse_space(f"summary: every value\nknobs:\n{lines}", "every value", BUILTIN)
    context = context_of(facts, cpu_device())
    for config in CONFIGS:
        if not space.reasons(Config(config, BUILTIN), context):
            yield config


def measure(runner: LocalRunner, spec: TrialSpec) -> Measurement:
    """Train for real, in a process of its own."""
    runner.submit(spec)
    while (event := runner.next()) is not None:
        if event.kind == "outcome":
            outcome = outcome_from_json(event.data)
            if not isinstance(outcome, Completed):
                raise SystemExit(f"{spec.config} {outcome.summary}; see {spec.log}")
            return outcome.measurement
    raise SystemExit("the trial ended without an outcome")


def errors(rehearsed: Rehearsal, measured: Measurement) -> dict[str, float]:
    """Return the relative error of each phase's peak."""
    return {
        str(phase): rehearsed.peaks[phase] / measured.peak(PeakKind.ALLOCATED, phase) - 1
        for phase in PHASES
        if str(phase) in rehearsed.peaks
    }


def exactness(folder: Path, models: Sequence[str], most: int) -> list[dict[str, Any]]:
    """Rehearse and measure; one row for each combination, printed as it is done."""
    rows: list[dict[str, Any]] = []
    runner = LocalRunner(slots=1)
    print(
        f"{'model':<8}{'configuration':<52}{'rehearsed':>12}{'measured':>12}{'error':>10}"
        f"{'accelerate':>12}"
    )
    with RehearsalWorker() as worker:
        for name in models:
            facts = describe(runner, folder, name, batch=8, tokens=64)
            rule = rule_bytes(folder, facts)
            for config in list(legal(facts))[:most]:
                spec = make_spec(facts, folder, config)
                label = Config(config, BUILTIN).describe(BUILTIN)
                try:
                    rehearsed = worker.rehearse(spec)
                except CannotRehearse as error:
                    print(f"{name:<8}{label:<52}{error.message}", flush=True)
                    rows.append({"model": name, "config": config, "cannot": error.message})
                    continue
                measured = measure(runner, spec)
                found = errors(rehearsed, measured)
                worst = max(found.values(), key=abs)
                peak = max(measured.peak(PeakKind.ALLOCATED, phase) for phase in PHASES)
                print(
                    f"{name:<8}{label:<52}{rehearsed.peak_bytes / 2**20:>9.2f} MiB"
                    f"{peak / 2**20:>8.2f} MiB{worst:>+10.4%}"
                    + ("" if rule is None else f"{rule / peak - 1:>+12.1%}"),
                    flush=True,
                )
                rows.append({
                    "model": name, "config": config, "errors": found, "measured": peak,
                    "rehearsed": rehearsed.peak_bytes, "cpu_seconds": rehearsed.seconds,
                    "accelerate": rule, "parameters": rehearsed.parameters,
                })  # fmt: skip
    runner.close()
    if not any(row.get("accelerate") for row in rows):
        print("accelerate is not installed, so what `accelerate estimate-memory` says is missing")
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return median, 95th percentile and maximum of the absolute errors of all phases."""
    found = sorted(abs(e) for row in rows for e in row.get("errors", {}).values())
    if not found:
        return {}
    return {
        "combinations": sum("errors" in row for row in rows),
        "peaks": len(found),
        "median": statistics.median(found),
        "p95": found[min(len(found) - 1, int(0.95 * len(found)))],
        "max": found[-1],
    }


def resident(folder: Path) -> list[dict[str, Any]]:
    """Hold what is predicted for a process against its resident set, for models of some size."""
    rows: list[dict[str, Any]] = []
    runner = LocalRunner(slots=1)
    print(f"\n{'model':<12}{'configuration':<40}{'predicted':>14}{'resident':>14}{'error':>10}")
    with RehearsalWorker() as worker:
        for name, configs in RESIDENT.items():
            facts = describe(runner, folder, name, batch=4, tokens=64)
            for config in configs:
                spec = replace(make_spec(facts, folder, config), probe=True)
                predicted = estimated(spec, worker).predicted_bytes
                measured = measure(runner, spec)
                peak = max(
                    measured.peak(PeakKind.RESIDENT, phase) for phase in (Phase.FIRST, Phase.STEADY)
                )
                print(
                    f"{name:<12}{Config(config, BUILTIN).describe(BUILTIN):<40}"
                    f"{predicted / 2**20:>10.1f} MiB{peak / 2**20:>10.1f} MiB"
                    f"{predicted / peak - 1:>+10.2%}",
                    flush=True,
                )
                rows.append({
                    "model": name, "config": config, "predicted": predicted, "resident": peak,
                })  # fmt: skip
    runner.close()
    return rows


def rule_bytes(folder: Path, facts: WorkloadFacts) -> int | None:
    """Return what `accelerate estimate-memory` says of training a model with Adam; None without it.

    It looks at the model alone, the one that is trained here, and so says the same of every
    configuration.
    """
    try:
        from accelerate.utils import calculate_maximum_sizes
    except ImportError:
        return None
    import torch

    workload = facts.workload
    objective = load_objective(workload.objective)(workload, folder / "cache")
    with torch.device("meta"):
        model = objective.build(LoadPlan(shapes_only=True), workload.seed)
    assert sum(p.numel() for p in model.parameters()) == facts.model.parameters
    return int(calculate_maximum_sizes(model)[0]) * 4


def in_fresh_process(part: str, repeats: int) -> dict[str, Any]:
    """Run one part in a process that has not gone backward, and return what it printed."""
    command = [sys.executable, "-m", "tests.benchmarks.rehearsal_speed", part]
    command += ["--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Do the parts that were asked for, print them, and write the numbers if a file was named."""
    from tests.benchmarks.rehearsal_speed import PARTS, shown

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", default=["exactness", "resident", *PARTS])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--most", type=int, default=len(CONFIGS), help="configurations per model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    document: dict[str, Any] = {"benchmark": "rehearsal", "versions": library_versions()}
    with tempfile.TemporaryDirectory() as name:
        if "exactness" in arguments.parts:
            rows = exactness(Path(name), arguments.models, arguments.most)
            document |= {"rows": rows, "summary": summary(rows)}
            print({k: f"{v:.4%}" if v < 1 else v for k, v in document["summary"].items()})
        if "resident" in arguments.parts:
            document["resident"] = resident(Path(name))
            found = [abs(r["predicted"] / r["resident"] - 1) for r in document["resident"]]
            print(
                f"resident set: median error {statistics.median(found):.2%}, max {max(found):.2%}"
            )
    for part in filter(arguments.parts.__contains__, PARTS):
        document[part] = in_fresh_process(part, arguments.repeats)
        print(*shown(part, document[part]), sep="\n", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
