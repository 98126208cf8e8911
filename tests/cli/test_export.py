"""`autotune export` and `autotune guide` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from autotune.core.context import Device
from autotune.core.domains import Value
from autotune.export.accelerate import export_accelerate
from autotune.export.base import EXPORTERS
from tests.cli.conftest import Command
from tests.cli.recorded import NAME
from tests.exports import subject_of


def test_one_file_goes_to_standard_output(autotune_says: Command, recorded: Path) -> None:
    said = autotune_says("export", f"{NAME}/3", "--to", "json")
    assert (said.status, said.err) == (0, "")
    document = json.loads(said.out)
    assert document["config"] == {"precision": "bf16", "checkpointing": "full"}
    assert document["run"]["facts"]["workload"]["learning_rate"] == 3e-4
    assert document["training"]["micro_batches"] == 1
    assert document["outcome"]["outcome"] == "completed"


def test_files_are_never_wrapped_to_the_screen(
    autotune_says: Command, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    said = autotune_says("export", f"{NAME}/3", "--to", "json")
    assert json.loads(said.out)["trial"] == f"{NAME}/3"


def test_output_is_a_file_or_a_folder(autotune_says: Command, recorded: Path) -> None:
    said = autotune_says("export", f"{NAME}/3", "--to", "json", "--output", "mine.json")
    assert said.status == 0
    assert "Written to mine.json." in said.out
    assert json.loads(Path("mine.json").read_text())["trial"] == f"{NAME}/3"
    Path("folder").mkdir()
    assert autotune_says("export", f"{NAME}/3", "--to", "json", "-o", "folder").status == 0
    assert Path("folder/trial.json").read_text() == Path("mine.json").read_text()
    again = autotune_says("export", f"{NAME}/3", "--to", "json", "--output", "mine.json")
    assert again.status == 1
    assert "ever overwritten" in again.err


def test_notes_are_narration(autotune_says: Command, recorded: Path) -> None:
    said = autotune_says("export", f"{NAME}/2", "--to", "deepspeed")
    assert said.status == 0
    assert json.loads(said.out)["bf16"] == {"enabled": True}
    assert "note DeepSpeed keeps a copy of bf16 weights in fp32" in " ".join(said.err.split())
    document = autotune_says("export", f"{NAME}/2", "--to", "deepspeed", "--json").document
    assert any("fp32" in note for note in document["notes"])
    assert json.loads(document["files"]["ds_config.json"])["gradient_clipping"] == 1.0


def test_what_cannot_be_expressed_is_named(autotune_says: Command, recorded: Path) -> None:
    said = autotune_says("export", f"{NAME}/4", "--to", "deepspeed", "--results", "results")
    assert said.status == 2
    assert "deepspeed cannot express 2 settings" in said.err
    assert "checkpointing full: " in said.err
    assert "lora.rank 16: " in said.err
    assert f"autotune export {NAME}/4 --results results --to json" in " ".join(said.err.split())
    assert said.out == ""
    error = autotune_says("export", f"{NAME}/4", "--to", "deepspeed", "--json").document["error"]
    assert error["error"] == "CannotExport"
    assert len(error["context"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NAME, "--to", "json"), f"which trial of {NAME}?"),
        ((f"{NAME}/3",), "say what to export to"),
        ((f"{NAME}/3", "--to", "json", "--checkpoint", "x"), "say what to export to"),
        ((f"{NAME}/3", "--to", "jsn"), "did you mean 'json'?"),
        ((f"{NAME}/3", "--to", "axolotl"), "the objective text_classification"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...], message: str, autotune_says: Command, recorded: Path
) -> None:
    said = autotune_says("export", *arguments)
    assert said.status == 2
    assert message in said.err


def test_help_names_every_target(autotune_says: Command) -> None:
    words = autotune_says("export", "--help").out.replace(",", " ").replace(".", " ").split()
    assert set(EXPORTERS.names()) <= set(words)


def test_accelerate_reads_its_file(autotune_says: Command, recorded: Path) -> None:
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    said = autotune_says("export", f"{NAME}/2", "--to", "accelerate")
    assert said.status == 2
    assert "set precision to bf16_mixed" in said.err
    text = export_accelerate(subject_of({"precision": "bf16_mixed"})).main
    Path("accelerate.yaml").write_text(text)
    config = config_args.ClusterConfig.from_yaml_file("accelerate.yaml")
    assert config.mixed_precision == "bf16"
    assert config.to_dict()["use_cpu"] is True
    assert YAML(typ="safe").load(text)["num_processes"] == 1


ACCELERATED: tuple[dict[str, Value], ...] = (
    {"precision": "bf16_mixed"},
    {"precision": "fp16_mixed", "compile": "inductor"},
    {"layout.ranks": 2},
    {"layout.ranks": 2, "layout.data": "zero2"},
    {"layout.ranks": 4, "layout.data": "zero3"},
)


@pytest.mark.parametrize("config", ACCELERATED, ids=str)
def test_accelerate_launches_with_its_file(config: dict[str, Value], tmp_path: Path) -> None:
    launch = pytest.importorskip("accelerate.commands.launch")
    card = Device(kind="cuda", name="Card", total_bytes=2**34, bf16=True, capability=(9, 0))
    subject = subject_of(config, device=card)
    (file,) = export_accelerate(subject).write(tmp_path)
    parser = launch.launch_command_parser()
    known = vars(parser.parse_args(["train.py"]))
    text = YAML(typ="safe").load(file)
    nested = {name for value in text.values() if isinstance(value, dict) for name in value}
    assert nested <= set(known)  # it takes any name there, and ignores those it does not know
    typed = parser.parse_args(["--config_file", str(file), "train.py"])
    arguments, _, _ = launch._validate_launch_command(typed)
    data, ranks = subject.value("layout.data"), subject.number("layout.ranks")
    assert arguments.num_processes == ranks
    assert arguments.mixed_precision == str(config.get("precision", "no")).removesuffix("_mixed")
    assert arguments.dynamo_backend.lower() == config.get("compile", "no")
    assert arguments.multi_gpu is (ranks > 1 and data == "ddp")
    assert arguments.use_fsdp is (data in ("zero2", "zero3"))
    if arguments.use_fsdp:
        assert int(arguments.fsdp_version) == 2
        assert arguments.fsdp_reshard_after_forward is (data == "zero3")


def test_guide_lists_and_shows_pages(autotune_says: Command) -> None:
    listed = autotune_says("guide")
    assert listed.status == 0
    topics = [topic["topic"] for topic in autotune_says("guide", "--json").document["topics"]]
    assert {"first-search", "export-and-train", "knobs", "memory", "footguns"} <= set(topics)
    assert all(topic in listed.out for topic in topics)
    for topic in topics:
        said = autotune_says("guide", topic)
        assert (said.status, said.err) == (0, "")
        assert said.out.startswith("# ")
        assert autotune_says("guide", topic, "--json").document["text"] == said.out


def test_guide_knows_what_was_meant(autotune_says: Command) -> None:
    said = autotune_says("guide", "first-serch")
    assert said.status == 2
    assert "did you mean 'first-search'?" in said.err
    assert "autotune guide" in said.err
