"""Ranks rehearsed in this process: each holds less than one rank alone, and none is started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import distributed

from autotune.core.config import Config
from autotune.core.domains import Value
from autotune.core.workload import Workload, WorkloadFacts
from autotune.knobs import BUILTIN
from autotune.memory.ranks import rehearse_ranks
from autotune.memory.rehearse import rehearse
from autotune.parallel.layouts import least_bytes
from autotune.parallel.pace import Work
from autotune.runners.devices import cpu_device
from autotune.trial.objective import load_objective
from autotune.trial.spec import TrialSpec

LAYOUTS: dict[str, tuple[Mapping[str, Value], tuple[int, ...]]] = {
    "ddp": ({"layout.ranks": 2}, (0,)),
    "zero1": ({"layout.ranks": 2, "layout.data": "zero1"}, (0,)),
    "zero3": ({"layout.ranks": 2, "layout.data": "zero3", "accumulation": 2}, (0,)),
    "tensor": ({"layout.ranks": 4, "layout.tensor": 2}, (0,)),
    "pipeline": ({"layout.ranks": 2, "layout.pipeline": 2, "accumulation": 4}, (0, 1)),
    "context": ({"layout.ranks": 2, "layout.context": 2}, (0, 1)),
    "server": ({"layout.ranks": 3, "layout.data": "server"}, (0, 2)),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks") / "cache"


@pytest.fixture(scope="module")
def facts(cache: Path) -> WorkloadFacts:
    workload = Workload(
        objective="causal_lm", steps=4, global_batch=8, sequence_length=32, eval_examples=8
    )
    return load_objective("causal_lm")(workload, cache).describe()


def spec(facts: WorkloadFacts, cache: Path, config: Mapping[str, Value]) -> TrialSpec:
    return TrialSpec(
        number=0, config=config, facts=facts, device=cpu_device(), threads=1, limit_bytes=2**34,
        limit_seconds=60.0, cache=str(cache), log="",
    )  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_rank_holds_less_than_one_alone(name: str, facts: WorkloadFacts, cache: Path) -> None:
    config, ranks = LAYOUTS[name]
    alone = rehearse(spec(facts, cache, {}))
    found = rehearse_ranks(spec(facts, cache, config))
    assert tuple(found.by_rank) == ranks
    assert max(found.by_rank.values()) == found.peak_bytes < alone.peak_bytes
    assert found.parameters == alone.parameters
    work = Work(model=facts.model, global_batch=8, tokens=32)
    least = least_bytes(Config(config, BUILTIN), work)
    assert 0.3 * found.peak_bytes < least < found.peak_bytes or name == "server"
    assert not distributed.is_initialized()
