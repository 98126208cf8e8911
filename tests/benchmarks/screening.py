"""How many trials run out of memory beside a screen, and what it refuses that would have fitted.

Simulated studies: the real proposer, the real screen with the simulated allocator, and devices that
hold something else than is assumed of them: another context, a share more than is counted, noise, a
loading that takes more than a step. Each is searched twice, once with nothing refused.

    python -m tests.benchmarks.screening --json results/reference/screening.json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from autotune.core.config import Config
from autotune.core.context import Context, ModelFacts
from autotune.core.outcome import (
    Completed,
    Measurement,
    OutOfMemory,
    Peak,
    PeakKind,
    Phase,
    Refused,
    Score,
)
from autotune.core.record import Origin, TrialRecord
from autotune.core.space import Space, load_space
from autotune.core.units import GIB, MIB
from autotune.core.workload import Metric, Workload, WorkloadFacts
from autotune.knobs import BUILTIN
from autotune.memory.outside import CONTEXT_BYTES
from autotune.memory.predict import counted
from autotune.memory.rehearsal import Rehearsal
from autotune.memory.structure import structure_of
from autotune.runners.device_table import find_device
from autotune.search.optuna import OptunaProposer
from autotune.search.screen import Screen
from autotune.trial.spec import TrialSpec

FIRST = 5
"""Trials in which the screen may still learn; what runs out of memory later counts."""

GOAL = 0.02
BATCH, TOKENS = 16, 512
LOSS = Metric(name="loss", maximize=False)
MODEL = ModelFacts(
    name="GPT-2 small", family="gpt2", layers=12, heads=12, kv_heads=12, hidden=768, ffn=3072,
    vocab=50257, parameters=124_000_000, pretrained=True, tied=True,
)  # fmt: skip
FACTS = WorkloadFacts(
    workload=Workload(
        objective="causal_lm", steps=20, global_batch=BATCH, sequence_length=TOKENS,
        eval_examples=8, learning_rate=1e-4,
    ),
    model=MODEL,
    data="simulated",
    data_fingerprint="0",
    metrics=(LOSS,),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class World:
    """What a device really holds, against what is counted.

    Attributes:
        context: Of a process, in bytes.
        factor: Of what is counted.
        noise: Relative standard deviation of a measurement.
        loading: Peak of loading, as a multiple of the weights in fp32.
    """

    context: int = CONTEXT_BYTES
    factor: float = 1.0
    noise: float = 0.002
    loading: float = 1.0


WORLDS: Mapping[str, World] = {
    "as assumed": World(),
    "small context": World(context=300 * MIB),
    "large context": World(context=800 * MIB, noise=0.005),
    "5 % more than counted": World(factor=1.05, noise=0.01),
    "noise of 3 %": World(factor=1.02, noise=0.03),
    "loading takes more": World(loading=4.0, noise=0.005),
}
SHARES = (0.1, 0.25, 0.5)
"""Budgets, as the share of the space that fits."""


class Formula:
    """Rehearses by formulas, with a stream of events for the simulated allocator."""

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
        config = Config(spec.config).complete(BUILTIN)
        layers, hidden, vocab = MODEL.layers, MODEL.hidden, MODEL.vocab
        kept = 1 - 0.6 * float(config["prune.ffn"]) - 0.3 * float(config["prune.heads"])
        each = 2 if config["precision"] == "bf16" else 4
        parameters = int(MODEL.parameters * kept)
        rank = int(config["lora.rank"])
        trained = layers * 8 * rank * hidden if rank else parameters
        states = {"adamw": 8, "lion": 4, "adafactor": 0.1, "sgd": 0}[str(config["optimizer"])]
        states = states * int(config["optimizer.bits"]) / 32
        rows = BATCH // int(config["accumulation"]) * TOKENS
        shown = {"none": 1.0, "every_other": 0.55, "full": 0.12}[str(config["checkpointing"])]
        acts = int(rows * hidden * (10 + 24 * kept) * each / 2 * shown)
        logits = rows * vocab * 8 // int(config["loss_chunks"])
        weights = parameters * int(config["weight_bits"]) * each // 64
        sizes = [("weights", weights), ("optimizer", int(trained * states))]
        events = [(number + 1, size) for number, (_, size) in enumerate(sizes) if size]
        layer = [(100 + n, acts + n * 4096) for n in range(layers)]
        grads = [(200 + n, trained * 4 // layers) for n in range(layers)]
        events += [*layer, (300, logits), (300, -logits)]
        for (a, act), (g, grad) in zip(reversed(layer), grads, strict=True):
            events += [(400 + a, act // 2), (g, grad), (400 + a, -act // 2), (a, -act)]
        live = peak = 0
        for _, size in events:
            live += size
            peak = max(peak, live)
        return Rehearsal(
            peak_bytes=peak, phase="steady", within="backward", operator="aten.mm.default",
            anatomy={"weights": weights}, peaks={"steady": peak}, parameters=parameters,
            trained_parameters=trained, events=tuple(events),
        )  # fmt: skip

    def close(self) -> None:
        """Nothing to end."""


def spec_of(config: Config, number: int, limit: int) -> TrialSpec:
    """Return a trial on a device that is not here."""
    return TrialSpec(
        number=number, config=dict(config), facts=FACTS, device=find_device("A100-80GB"),
        threads=1, limit_bytes=limit, limit_seconds=60.0, cache="", log="",
    )  # fmt: skip


def needs(config: Config, world: World, limit: int, rng: random.Random) -> tuple[int, int]:
    """Return what a step and what loading take on the device, context included."""
    count = counted(spec_of(config, 0, limit), Formula(), limited=True)
    error = rng.gauss(0, world.noise)
    step = world.context + int(count.bytes * (world.factor + error))
    return step, world.context + int(world.loading * count.rehearsal.parameters * 4)


def loss_of(config: Config, rng: random.Random) -> float:
    """Return a loss that techniques cost something of."""
    values = config.complete(BUILTIN)
    loss = 3.0 + 0.8 * float(values["prune.ffn"]) ** 2 + 0.6 * float(values["prune.heads"]) ** 2
    loss += {16: 0.0, 8: 0.02, 4: 0.1}[int(values["weight_bits"])]
    loss += 0.05 if values["lora.rank"] else 0.0
    loss += {"adamw": 0.0, "lion": 0.01, "adafactor": 0.03, "sgd": 0.2}[str(values["optimizer"])]
    return loss + rng.gauss(0, 0.01)


def outcome_of(
    config: Config, world: World, limit: int, rng: random.Random
) -> Completed | OutOfMemory:
    """End a trial as the device would."""
    step, load = needs(config, world, limit, rng)
    if max(step, load) > limit:
        phase = Phase.LOAD if load > limit else Phase.STEADY
        needed = round(rng.uniform(limit, max(step, load)))
        return OutOfMemory(seconds=1.0, phase=phase, needed_bytes=needed)
    peaks = tuple(
        Peak(phase=phase, kind=kind, bytes=size - taken)
        for phase, size in ((Phase.LOAD, load), (Phase.STEADY, step))
        for kind, taken in ((PeakKind.RESERVED, world.context), (PeakKind.DEVICE, 0))
    )
    scores = {LOSS.name: Score(value=loss_of(config, rng), n=100)}
    parameters = Formula().rehearse(spec_of(config, 0, limit)).parameters
    measurement = Measurement(peaks=peaks, parameters=parameters)
    return Completed(seconds=10.0, measurement=measurement, scores=scores)


@dataclass(kw_only=True)
class Study:
    """What came of a search.

    Attributes:
        trials: That ran after the first ones.
        failed: Those of them that ran out of memory.
        refused: Proposals that were refused.
        wrong: Those of them that would have fitted.
        structures: Those of all proposals (`memory/structure.py`), of which each is rehearsed anew
            and further ones could be derived.
    """

    trials: int = 0
    failed: int = 0
    refused: int = 0
    wrong: int = 0
    structures: set[str] = field(default_factory=set)


def simulate(space: Space, context: Context, world: World, limit: int, *, seed: int, most: int,
             screened: bool) -> Study:  # fmt: skip
    """Search as the driver does: ask, look, refuse or run, tell."""
    rng = random.Random(seed)
    proposer = OptunaProposer(space, context, LOSS, seed=seed, limit_bytes=limit)
    screen = Screen(Formula(), limit, MODEL.parameters)
    found, ran = Study(), 0
    opening = (space.baseline(), space.smallest(context))
    for number in range(20 * most):
        config = opening[number] if number < len(opening) else proposer.ask(number)
        if config is None or ran == most:
            break
        origin = Origin.SAMPLER if number >= len(opening) else tuple(Origin)[number]
        record = TrialRecord(number=number, config=config, origin=origin, limit_bytes=limit)
        spec = spec_of(config, number, limit)
        structure = structure_of(spec)
        found.structures.add(structure.key if structure else "")
        look = screen.look(spec)
        record = replace(record, rehearsed_bytes=look.rehearsed_bytes)
        refusal = screen.refusal(look) if screened else None
        proposer.tell(record)
        outcome = outcome_of(config, world, limit, rng)
        fits = isinstance(outcome, Completed)
        ended = replace(record, outcome=refusal or outcome)
        if isinstance(ended.outcome, Refused):
            found.refused += 1
            found.wrong += fits
        else:
            ran += 1
            found.trials += ran > FIRST
            found.failed += ran > FIRST and not fits
        screen.learn(ended)
        proposer.tell(ended)
    return found


def limits(space: Space, context: Context, world: World, sample: int = 200) -> Iterator[int]:
    """Yield budgets that the shares of the space fit."""
    rng = random.Random(0)
    sizes: list[int] = []
    while len(sizes) < sample:
        drawn = {name: rng.choice(domain.grid()) for name, domain in space.domains.items()}
        config = Config(drawn, BUILTIN)
        if space.legal(config, context):
            sizes.append(max(needs(config, replace(world, noise=0.0), 2**50, rng)))
    sizes.sort()
    yield from (sizes[int(share * sample)] for share in SHARES)


def simulated(seeds: int, most: int) -> list[dict[str, Any]]:
    """Run every simulated study, with a screen and without; print a row for each world and budget.

    Args:
        seeds: Searches for each.
        most: Trials of a search.
    """
    space = load_space("default", BUILTIN)
    context = Context(
        device=find_device("A100-80GB"), model=MODEL, global_batch=BATCH,
        libraries=frozenset({"peft"}), features=frozenset({"documents"}),
    )  # fmt: skip
    print(f"{'device':<24}{'fits':>6}{'budget':>11}{'out of memory':>15}{'unscreened':>12}"
          f"{'refused':>9}{'wrongly':>9}")  # fmt: skip
    rows = []
    for name, world in WORLDS.items():
        for share, limit in zip(SHARES, limits(space, context, world), strict=True):
            runs = {
                screened: [
                    simulate(space, context, world, limit, seed=seed, most=most, screened=screened)
                    for seed in range(seeds)
                ]
                for screened in (True, False)
            }
            row = {"device": name, "fits": share, "limit_gib": limit / GIB, **summary(runs)}
            rows.append(row)
            print(f"{name:<24}{share:>6.0%}{limit / GIB:>7.2f} GiB{row['out_of_memory']:>15.1%}"
                  f"{row['unscreened']:>12.1%}{row['refused']:>9}{row['wrongly']:>9}",
                  flush=True)  # fmt: skip
    return rows


def summary(runs: Mapping[bool, Sequence[Study]]) -> dict[str, Any]:
    """Return the shares of trials that ran out of memory, and what was refused."""
    shares = {
        screened: sum(s.failed for s in found) / max(1, sum(s.trials for s in found))
        for screened, found in runs.items()
    }
    return {
        "out_of_memory": shares[True],
        "unscreened": shares[False],
        "trials": sum(study.trials for study in runs[True]),
        "failed": sum(study.failed for study in runs[True]),
        "refused": sum(study.refused for study in runs[True]),
        "wrongly": sum(study.wrong for study in runs[True]),
        "structures": sum(len(study.structures) for study in runs[True]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print tables, and write a document if a file for it is named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--json", type=Path, default=None)
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    rows = simulated(asked.seeds, asked.trials)
    failed, trials = sum(r["failed"] for r in rows), sum(r["trials"] for r in rows)
    print(f"\n{failed} of {trials} trials after the first {FIRST} ran out of memory: "
          f"{failed / trials:.2%}, {mean(r['unscreened'] for r in rows):.0%} without a screen "
          f"({time.monotonic() - began:.0f} s)")  # fmt: skip
    asked_for = sum(r["trials"] + r["refused"] for r in rows) + FIRST * asked.seeds * len(rows)
    structures = sum(r["structures"] for r in rows)
    print(f"{asked_for} proposals were of {structures} structures")
    document = {
        "goal": GOAL,
        "out_of_memory": failed / trials,
        "proposals": asked_for,
        "structures": structures,
        "simulated": rows,
    }
    if asked.json is not None:
        asked.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
