"""Down the ladder: one technique after another, and what each rung costs and saves.

Two parts:

- measured: the default task, trained for real on this device, from the fp32 AdamW baseline down;
  printed are peak, saving, score, and the leanest configuration within 0 %, 1 % and 5 % of the
  baseline's score (0 % means within one standard error of it);
- rehearsed: a Llama of the shape of 3.2 billion parameters, batches of 4 x 2048 tokens, from the
  same baseline, with CUDA semantics; memory only. The published ladder of torchtune for this model
  goes from 60.0 to 4.6 GiB, 13 times.

    python -m tests.benchmarks.ladder --json results/reference/ladder.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.core.companions import first_reason
from autotune.core.config import Config
from autotune.core.context import Device
from autotune.core.domains import Value
from autotune.core.outcome import Completed, outcome_from_json
from autotune.core.units import GIB, gib
from autotune.core.workload import Workload, WorkloadFacts
from autotune.knobs import BUILTIN
from autotune.memory.algebra import Algebra
from autotune.memory.rehearsal_worker import RehearsalWorker
from autotune.plan import context_of
from autotune.runners.devices import library_versions, pick_device
from autotune.runners.local import LocalRunner
from autotune.trial.spec import TrialSpec

MEASURED: tuple[dict[str, Value], ...] = (
    {},
    {"accumulation": 4},
    {"accumulation": 4, "checkpointing": "every_other"},
    {"accumulation": 4, "checkpointing": "every_other", "optimizer.bits": 8},
    {"accumulation": 4, "checkpointing": "every_other", "optimizer.bits": 8, "lora.rank": 32},
    {"accumulation": 4, "checkpointing": "every_other", "optimizer.bits": 8, "lora.rank": 32,
     "precision": "bf16"},
    {"accumulation": 4, "checkpointing": "every_other", "optimizer.bits": 8, "lora.rank": 32,
     "precision": "bf16", "optimizer": "lion"},
    {"accumulation": 4, "checkpointing": "every_other", "optimizer.bits": 8, "lora.rank": 32,
     "precision": "bf16", "optimizer": "lion", "prune.ffn": 0.25},
    {"accumulation": 8, "checkpointing": "every_other", "optimizer.bits": 8, "lora.rank": 32,
     "precision": "bf16", "optimizer": "lion", "prune.ffn": 0.25, "weight_bits": 8},
    {"accumulation": 8, "checkpointing": "every_other", "optimizer.bits": 8, "lora.rank": 32,
     "precision": "bf16", "optimizer": "lion", "prune.ffn": 0.5, "weight_bits": 8},
    {"accumulation": 8, "checkpointing": "every_other", "optimizer.bits": 8, "lora.rank": 32,
     "precision": "bf16", "optimizer": "lion", "prune.ffn": 0.25, "weight_bits": 4},
)  # fmt: skip

REHEARSED: tuple[dict[str, Value], ...] = (
    {},
    {"checkpointing": "full"},
    {"checkpointing": "full", "accumulation": 4},
    {"checkpointing": "full", "accumulation": 4, "loss_chunks": 16},
    {"checkpointing": "full", "accumulation": 4, "loss_chunks": 16, "optimizer.bits": 8},
    {"checkpointing": "full", "accumulation": 4, "loss_chunks": 16, "optimizer.bits": 8,
     "precision": "bf16"},
    {"checkpointing": "full", "accumulation": 4, "loss_chunks": 16, "precision": "bf16",
     "lora.rank": 16},
    {"checkpointing": "full", "accumulation": 4, "loss_chunks": 16, "precision": "bf16",
     "lora.rank": 16, "weight_bits": 8},
    {"checkpointing": "full", "accumulation": 4, "loss_chunks": 16, "precision": "bf16",
     "lora.rank": 16, "weight_bits": 4, "optimizer.bits": 8},
)  # fmt: skip

LLAMA_3B: dict[str, Any] = {
    "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192, "vocab_size": 128256,
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "bos_token_id": None,
    "eos_token_id": 0,
}  # fmt: skip
CARD = Device(kind="cuda", name="80 GiB card", total_bytes=80 * GIB, bf16=True, capability=(9, 0))

WITHIN = (0.0, 0.01, 0.05)


def make_spec(
    facts: WorkloadFacts, device: Device, folder: Path, number: int, config: Mapping[str, Value]
) -> TrialSpec:
    """Return a trial with all the memory and all the threads there are."""
    return TrialSpec(
        number=number,
        config=dict(config),
        facts=facts,
        device=device,
        threads=device.cores,
        limit_bytes=device.total_bytes,
        limit_seconds=1200,
        cache=str(folder / "cache"),
        log=str(folder / str(number) / "log.txt"),
    )


def measured(folder: Path, device: Device) -> dict[str, Any]:
    """Train every rung of the ladder."""
    runner = LocalRunner(slots=1, preload=("peft",) if device.kind == "cpu" else ())
    try:
        facts = runner.describe(Workload(objective="text_classification"), folder / "cache")
        rows = []
        print(f"{facts.model.name}, {facts.data}")
        print(f"{'peak GiB':>9}{'less':>8}{facts.metric.name:>16}{'s/step':>9}  configuration")
        for number, config in enumerate(MEASURED):
            rows.append(_train(runner, make_spec(facts, device, folder, number, config)))
            _show(rows[-1], rows[0])
    finally:
        runner.close()
    return {"model": facts.model.name, "data": facts.data, "rows": rows, "best": best(rows)}


def _train(runner: LocalRunner, spec: TrialSpec) -> dict[str, Any]:
    runner.submit(spec)
    while (event := runner.next()) is not None:
        if event.kind == "outcome":
            outcome = outcome_from_json(event.data)
            if not isinstance(outcome, Completed):
                raise SystemExit(f"{spec.config}: {outcome.summary}; see {spec.log}")
            score = outcome.scores[spec.facts.metric.name]
            return {
                "config": dict(spec.config),
                "label": Config(spec.config, BUILTIN).describe(BUILTIN),
                "peak_bytes": outcome.measurement.peak_bytes,
                "footprint_bytes": outcome.measurement.footprint_bytes,
                "score": score.value,
                "stderr": score.stderr,
                "step_seconds": outcome.measurement.step_seconds,
            }
    raise SystemExit("a trial ended without an outcome")


def _show(row: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    less = first["peak_bytes"] / row["peak_bytes"]
    score = f"{row['score']:.3f} ±{row['stderr']:.3f}" if "score" in row else ""
    seconds = f"{row['step_seconds']:.3f}" if "step_seconds" in row else ""
    print(
        f"{gib(row['peak_bytes'], 3):>9}{less:>7.1f}x{score:>16}{seconds:>9}  {row['label']}",
        flush=True,
    )


def best(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the leanest row within each share of the first row's score."""
    first, found = rows[0], {}
    for share in WITHIN:
        slack = share * first["score"] if share else first["stderr"]
        near = [row for row in rows if row["score"] >= first["score"] - slack]
        leanest = min(near, key=lambda row: row["peak_bytes"])
        less = first["peak_bytes"] / leanest["peak_bytes"]
        print(f"within {share:.0%}: {less:.1f}x less, {leanest['score']:.3f}, {leanest['label']}")
        found[f"{share:.0%}"] = {"less": less, "label": leanest["label"]}
    return found


def rehearsed(folder: Path) -> dict[str, Any]:
    """Rehearse every rung for the large model."""
    from transformers import AutoConfig

    from tests.tiny_folders import byte_tokenizer

    model = folder / "llama-3b"
    AutoConfig.for_model("llama", **LLAMA_3B).save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    workload = Workload(
        objective="causal_lm", model=str(model), steps=4, global_batch=4, sequence_length=2048,
        eval_examples=1,
    )  # fmt: skip
    runner = LocalRunner(slots=1)
    facts = runner.describe(workload, folder / "cache")
    runner.close()
    # Nothing is trained here, so that adapters on random weights teach nothing does not matter.
    facts = replace(facts, model=replace(facts.model, pretrained=True))
    context = replace(context_of(facts, CARD), libraries=frozenset({"peft"}))
    rows: list[dict[str, Any]] = []
    print(f"\nLlama of {facts.model.parameters:,} parameters, rehearsed")
    with RehearsalWorker() as worker:
        algebra = Algebra(worker)
        for number, config in enumerate(REHEARSED):
            if reason := first_reason(config, BUILTIN, context):
                raise SystemExit(f"{config}: {reason}")
            spec = replace(make_spec(facts, CARD, folder, number, config), probe=True)
            found = algebra.rehearse(spec)
            rows.append({
                "config": config,
                "label": Config(config, BUILTIN).describe(BUILTIN),
                "peak_bytes": found.peak_bytes,
                "anatomy": dict(found.anatomy),
                "cpu_seconds": found.seconds,
                "note": " ".join(filter(None, (found.note, found.derived))),
            })  # fmt: skip
            _show(rows[-1], rows[0])
    less = rows[0]["peak_bytes"] / rows[-1]["peak_bytes"]
    print(f"{less:.1f}x less; torchtune publishes 60.0 -> 4.6 GiB, 13.0x")
    return {"parameters": facts.model.parameters, "rows": rows, "less": less}


def main() -> None:
    """Do the parts that were asked for, print them, and write the numbers if a file was named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", default=["measured", "rehearsed"])
    parser.add_argument("--device", help="cpu or cuda; by default the first accelerator, or cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    document: dict[str, Any] = {
        "benchmark": "ladder", "device": device.to_json(), "versions": library_versions(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        if "measured" in arguments.parts:
            document["measured"] = measured(Path(name), device)
        if "rehearsed" in arguments.parts:
            document["rehearsed"] = rehearsed(Path(name))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
