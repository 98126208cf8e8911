"""Every command of the guide's page on clusters: ours run, Ray's are understood by Ray."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.__main__ import main
from autotune.cli import make_app
from autotune.cli.guide import pages
from autotune.storage.run import Run
from tests.rays import Nodes, needs_ray

pytestmark = [pytest.mark.training, needs_ray]

TEXT = pages()["cluster"]["text"]
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]
IN_SENTENCES = [shlex.split(text) for text in re.findall(r"`((?:autotune|ray) [^`]+)`", TEXT)]
ELSEWHERE = ("16GB", "--engine")
"""What this machine may not have, and what `test_ray_tune.py` runs."""


def test_our_commands_work(
    ray_nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    monkeypatch.setenv("AUTOTUNE_RESULTS", str(results))
    ours = [words[1:] for words in COMMANDS if words[0] == "autotune"]
    assert len(ours) == 6
    for arguments in ours:
        if any(word in arguments for word in ELSEWHERE):
            make_app().parse_args(arguments, exit_on_error=False, print_error=False)
        else:
            assert main([*arguments, "--quiet"]) == 0, arguments
    runs = [Run.open(name, results=results) for name in ("on-ray", "on-a-cluster")]
    assert [run.spec.runner for run in runs] == ["ray", "ray"]
    assert [len(run.records) for run in runs] == [2, 3]


@pytest.mark.parametrize(
    "words", [w for w in COMMANDS + IN_SENTENCES if w[0] == "ray"], ids=" ".join
)
def test_commands_of_ray_are_understood(words: list[str]) -> None:
    from ray.scripts.scripts import cli

    command: Any = cli
    rest = words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    given = [word.replace("BYTES", "1000000000") for word in rest]
    parsed = command.make_context(words[0], given)
    assert parsed.params


def test_the_cluster_of_the_page_is_one() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    validate_config(prepare_config(yaml.safe_load(text)))


def test_what_the_page_says_was_recorded_is_there() -> None:
    root = Path(__file__).resolve().parents[2]
    for path in re.findall(r"`(results/reference/[\w/.]+)`", TEXT):
        assert (root / path).exists(), path
