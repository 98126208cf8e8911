"""Sequence to sequence: numbers in words, pairs of one's own, families, scores and their errors."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from autotune.objectives.encoder_decoder import (
    PLAIN_OUTPUT,
    TokenSums,
    decoder_loss,
    labels_each,
    output_vocabulary,
    ratio,
    shifted,
    token_sums,
)
from autotune.objectives.numbers import in_words, numbers_in_words
from autotune.objectives.seq2seq import Seq2Seq, _encode_targets, _train_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig

from autotune.core.errors import DataError, ModelError
from autotune.core.workload import Workload
from autotune.knobs.chunked_loss import IGNORED
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from autotune.trial.training import PROBE_STEPS
from tests import tiny_folders, tiny_objectives
from tests import tiny_models as tiny

SMALL = {"steps": 3, "global_batch": 8, "sequence_length": 48, "eval_examples": 10}


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def described(folder: Path, **workload: Any) -> Seq2Seq:
    task = Seq2Seq(Workload(objective="seq2seq", **workload), folder)
    task.describe()
    return task


def train(task: Any, steps: int, rate: float) -> list[float]:
    """Train in fp32 and return the losses, with the model under `task.model`."""
    workload = task.workload
    task.model = task.build(LoadPlan(), seed=0)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=rate)
    plan = DataPlan(sequence_length=workload.sequence_length, global_batch=workload.global_batch)
    losses = []
    for batch in itertools.islice(task.train_batches(plan, 0), steps):
        loss = task.loss(task.model, batch, StepPlan())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (17, "seventeen"),
        (80, "eighty"),
        (342, "three hundred and forty two"),
        (1000, "one thousand"),
        (42_007, "forty two thousand and seven"),
        (999_100, "nine hundred and ninety nine thousand one hundred"),
    ],
)
def test_numbers_are_said_as_in_english(number: int, words: str) -> None:
    assert in_words(number) == words


def test_no_two_numbers_have_one_name() -> None:
    assert len({in_words(number) for number in range(20_000)}) == 20_000


def test_numbers_are_distinct_of_all_lengths_and_always_the_same() -> None:
    words, digits = numbers_in_words(600, 4)
    assert (words, digits) == numbers_in_words(600, 4)
    assert len(set(digits)) == 600
    assert [in_words(int(number)) for number in digits] == words
    for part in (digits[:300], digits[300:]):
        assert {len(number) for number in part} == {1, 2, 3, 4}


def test_the_default_trains_and_is_scored(tmp_path: Path) -> None:
    task = described(tmp_path)
    losses = train(task, 3, 1e-3)
    assert losses[2] < losses[0]
    assert task.prepared.facts["target_length"] >= 5  # four digits and an end
    batches = task.eval_batches(EvalPlan(batch=64), task.workload.sequence_length)
    scores = task.evaluate(task.model, batches, EvalPlan(batch=64))
    assert scores["exact_match"].n == 256
    assert scores["token_accuracy"].n == sum(
        int((batch["labels"] != IGNORED).sum()) for batch in batches
    )
    assert scores["perplexity"].value < task.model.config.vocab_size


def test_digits_stand_apart_and_nothing_is_unknown() -> None:
    texts = ["one hundred 100", "one thousand 1000"] * 10
    tokenizer = _train_tokenizer(texts)
    assert tokenizer.get_vocab() == _train_tokenizer(texts).get_vocab()
    ids = tokenizer("1000")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["1", "0", "0", "0", "</s>"]
    strange = "Äpfel ☃ 7"
    assert tokenizer.decode(tokenizer(strange)["input_ids"], skip_special_tokens=True) == strange


def test_targets_end_with_an_end_token_once() -> None:
    bytes_only = tiny_folders.byte_tokenizer()
    ids, ends = _encode_targets(["sea", "soil"], bytes_only, 8)
    assert [ids[end - 1] for end in ends] == [bytes_only.eos_token_id] * 2
    made = _train_tokenizer(["sea", "soil"])
    ids, ends = _encode_targets(["sea"], made, 8)
    assert ids.tolist().count(made.eos_token_id) == 1
    ids, ends = _encode_targets(["plough and hedge"], bytes_only, 4)
    assert ends.tolist() == [4]
    assert ids[-1] == bytes_only.eos_token_id


def test_a_long_target_is_shortened_to_what_nearly_all_have(tmp_path: Path) -> None:
    rows = [{"source": f"number {n}", "target": "sea"} for n in range(60)]
    rows[7]["target"] = "a wave " * 6
    model = tiny_objectives.CASES["seq2seq"].save_model(tmp_path / "model")
    task = described(tmp_path, model=str(model), data=written(tmp_path, rows), **SMALL)
    plan = DataPlan(sequence_length=48, global_batch=51)
    labels = next(task.train_batches(plan, 0))["labels"]
    assert labels.shape[1] == 8
    assert all(row[row != IGNORED][-1] == 0 for row in labels)


def test_what_is_padded_changes_no_loss(tmp_path: Path) -> None:
    data = tiny_objectives.write_pairs(tmp_path / "pairs.jsonl")
    model = tiny_objectives.CASES["seq2seq"].save_model(tmp_path / "model")
    task = described(tmp_path, model=str(model), data=str(data), **{**SMALL, "sequence_length": 64})
    built = task.build(LoadPlan(), seed=0)
    losses = [
        task.loss(built, next(task.train_batches(plan, 0)), StepPlan())
        for plan in (DataPlan(sequence_length=width, global_batch=8) for width in (48, 60))
    ]
    torch.testing.assert_close(*losses)


def test_batches_by_length_start_with_the_widest(tmp_path: Path) -> None:
    data = tiny_objectives.write_pairs(tmp_path / "pairs.jsonl")
    model = tiny_objectives.CASES["seq2seq"].save_model(tmp_path / "model")
    task = described(tmp_path, model=str(model), data=str(data), **SMALL)
    plan = DataPlan(sequence_length=48, global_batch=8, by_length=True)
    batches = list(itertools.islice(task.train_batches(plan, 0), 40))
    widths = [batch["input_ids"].shape[1] for batch in batches]
    assert widths[:PROBE_STEPS] == [max(widths)] * PROBE_STEPS
    assert min(widths) < max(widths)
    assert len({batch["labels"].shape for batch in batches}) == 1
    assert len({frozenset(batch) for batch in batches}) == 1


def test_an_exact_match_is_what_greedy_decoding_writes(tmp_path: Path) -> None:
    rows = [{"source": word, "target": word[:2]} for word in ("sea", "wave", "soil", "tide") * 20]
    model = tiny_objectives.CASES["seq2seq"].save_model(tmp_path / "model")
    sizes = {"steps": 60, "global_batch": 16, "sequence_length": 8, "eval_examples": 12}
    task = described(tmp_path, model=str(model), data=written(tmp_path, rows), **sizes)
    train(task, 40, 3e-3)
    built: Any = task.model.eval()
    batch = task.eval_batches(EvalPlan(batch=12), 8)[0]
    decoded = built.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=batch["labels"].shape[1],
        do_sample=False,
        use_cache=True,
    )[:, 1:]
    matched = []
    for ours, labels in zip(decoded, batch["labels"], strict=True):
        wanted = labels[labels != IGNORED].tolist()
        matched.append(ours.tolist()[: len(wanted)] == wanted)
    score = task.evaluate(built, [batch], EvalPlan())["exact_match"]
    assert score.value == pytest.approx(sum(matched) / len(matched))
    assert score.value > 0


def tiny_family(family: str) -> Any:
    """A random encoder-decoder with an output bias, if it has a place for one."""
    usual: dict[str, Any] = dict(tiny.CONFIGS["t5" if "t5" in family else "bart"])
    usual.update(pad_token_id=0, eos_token_id=2)
    if family == "bigbird_pegasus":
        usual["attention_type"] = "original_full"
    if family == "pegasus_x":
        usual["block_size"] = 4
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **usual)
    model: Any = AutoModelForSeq2SeqLM.from_config(config).eval()
    bias = getattr(model, "final_logits_bias", None)
    if bias is not None:
        bias.copy_(torch.randn(bias.shape))
    return model


def tiny_batch() -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, tiny.VOCAB, (4, 12), generator=chance)
    labels = tokens[:, :6].flip(1).contiguous()
    labels[1, 3:] = IGNORED
    labels[2, 5:] = IGNORED
    return {"input_ids": tokens, "labels": labels, "labels_each": labels_each(labels)}


@pytest.mark.parametrize("family", sorted(PLAIN_OUTPUT - {"whisper"}))
def test_the_loss_of_a_family_is_its_own_also_in_pieces(family: str) -> None:
    model, batch = tiny_family(family), tiny_batch()
    loss = decoder_loss(model, batch, StepPlan())
    own = model(input_ids=batch["input_ids"], labels=batch["labels"])
    torch.testing.assert_close(loss, own.loss, rtol=1e-5, atol=0)
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    chunked = decoder_loss(model, batch, StepPlan(loss_chunks=4))
    torch.testing.assert_close(chunked, loss, rtol=1e-5, atol=0)
    chunked.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert output_vocabulary(model.config) == tiny.VOCAB
    with torch.no_grad():
        sums = token_sums(model, batch, EvalPlan())
    assert sums.tokens.tolist() == [6, 3, 5, 6]
    assert sums.losses.sum() / 20 == pytest.approx(loss.item(), rel=1e-5)


def test_a_family_that_is_not_known_is_not_computed_in_pieces() -> None:
    usual = {**tiny.CONFIGS["bart"], "eos_token_id": 2}
    config = AutoConfig.for_model("led", **usual, attention_window=4)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    assert output_vocabulary(config) == 0
    batch = {**tiny_batch(), "attention_mask": torch.ones(4, 12, dtype=torch.long)}
    with pytest.raises(ModelError, match="does more to its logits than a matrix product"):
        decoder_loss(model, batch, StepPlan(loss_chunks=4))
    with torch.no_grad():
        sums = token_sums(model, batch, EvalPlan())
    loss = decoder_loss(model, batch, StepPlan())
    assert sums.losses.sum() / sums.tokens.sum() == pytest.approx(loss.item(), rel=1e-5)


def test_an_encoder_decoder_of_another_family_is_trained(tmp_path: Path) -> None:
    data = tiny_objectives.write_pairs(tmp_path / "pairs.jsonl")
    model = tiny_objectives.save(tmp_path / "bart", AutoModelForSeq2SeqLM, tiny_objectives.bart())
    task = Seq2Seq(
        Workload(objective="seq2seq", model=str(model), data=str(data), **SMALL), tmp_path
    )
    found = task.describe().model
    assert (found.family, found.layers, found.heads, found.kv_heads) == ("bart", 2, 4, 4)
    assert (found.hidden, found.ffn, found.tied) == (32, 64, True)
    losses = train(task, 8, 3e-3)
    assert losses[-1] < losses[0]
    scores = task.evaluate(task.model, task.eval_batches(EvalPlan(batch=4), 48), EvalPlan(batch=4))
    assert scores["exact_match"].n == 10


def test_labels_are_shifted_with_the_start_in_front() -> None:
    labels = torch.tensor([[5, 6, 2], [7, 2, IGNORED], [2, IGNORED, IGNORED]])
    assert shifted(labels, 1, 0).tolist() == [[1, 5, 6], [1, 7, 2], [1, 2, 0]]
    assert labels_each(labels).tolist() == [2, 2, 2]


def test_scores_of_known_sums() -> None:
    sums = TokenSums(
        losses=np.array([1.0, 4.0]), hits=np.array([2.0, 1.0]), tokens=np.array([2.0, 3.0])
    )
    scores = sums.scores()
    assert scores["token_accuracy"].value == pytest.approx(3 / 5)
    assert scores["token_accuracy"].n == 5
    assert scores["exact_match"].value == 0.5
    assert scores["exact_match"].stderr == pytest.approx(math.sqrt(0.5 * 0.5 / 2))
    assert scores["perplexity"].value == pytest.approx(math.e)
    joined = TokenSums.joined([sums, sums]).scores()
    assert joined["token_accuracy"].value == scores["token_accuracy"].value
    assert joined["exact_match"].n == 4


def test_the_error_of_a_ratio_is_that_of_many_draws() -> None:
    chance = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(400):
        wholes = chance.integers(2, 12, 100).astype(float)
        parts = chance.binomial(wholes.astype(int), 0.3).astype(float)
        value, error = ratio(parts, wholes)
        assert error is not None
        values.append(value)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)
    assert ratio(np.array([1.0]), np.array([2.0])) == (0.5, None)


ROWS = [{"source": f"words {n}", "target": str(n), "other": 1.5} for n in range(40)]


@pytest.mark.parametrize(
    ("change", "options", "message", "help_"),
    [
        ({}, {"text_column": "sorce"}, "no column 'sorce'", "did you mean 'source'"),
        ({}, {"label_column": "nothing"}, "no column 'nothing'", "--label-column: source"),
        ({}, {"label_column": "source"}, "cannot be source and target at once", "--label-column"),
        ({}, {"label_column": "other"}, "has a float in row 1", "--label-column"),
        ({"target": ""}, {}, "has nothing in row 4", "--label-column"),
        ({"source": None}, {}, "has nothing in row 4", "--text-column"),
    ],
)
def test_columns_that_cannot_be_used(
    tmp_path: Path, change: dict[str, Any], options: dict[str, str], message: str, help_: str
) -> None:
    rows = [{**row, **(change if place == 3 else {})} for place, row in enumerate(ROWS)]
    with pytest.raises(DataError, match=message) as caught:
        described(tmp_path, data=written(tmp_path, rows), **options)
    assert help_ in str(caught.value.help)


def test_a_table_without_the_usual_columns_says_what_there_is(tmp_path: Path) -> None:
    rows = [{"english": "one", "german": "eins"}] * 40
    with pytest.raises(DataError, match="which column is the source") as caught:
        described(tmp_path, data=written(tmp_path, rows))
    assert caught.value.help == "choose with --text-column: english, german"
    (tmp_path / "plain.txt").write_text("only text")
    with pytest.raises(DataError, match="plain text has no column for the source"):
        described(tmp_path, data=str(tmp_path / "plain.txt"))


def test_columns_of_any_name_and_a_validation_file(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in (("train", 60), ("validation", 20)):
        rows = [{"english": in_words(n), "number": n} for n in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = Workload(
        objective="seq2seq", data=str(folder), text_column="english", label_column="number"
    )
    facts = Seq2Seq(asked, tmp_path).describe()
    assert "60 pairs to train on, 20 to evaluate on" in facts.data
    assert facts.model.name == "T5 2+2x128"


def test_models_that_do_not_read_and_write(tmp_path: Path) -> None:
    data = str(tiny_objectives.write_pairs(tmp_path / "pairs.jsonl"))
    config = LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=270)
    causal = tiny_objectives.save(tmp_path / "llama", AutoModelForCausalLM, config)
    with pytest.raises(ModelError, match="does not read one sequence and write another"):
        described(tmp_path, model=str(causal), data=data)
    model = tiny_objectives.CASES["seq2seq"].save_model(tmp_path / "t5")
    text = (model / "config.json").read_text()
    changed = {k: v for k, v in json.loads(text).items() if k != "decoder_start_token_id"}
    (model / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ModelError, match="which token its decoder starts with"):
        described(tmp_path, model=str(model), data=data)


def test_too_few_pairs_for_a_batch(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few pairs: 1"):
        described(tmp_path, data=written(tmp_path, ROWS[:1]))
    data = tiny_objectives.write_pairs(tmp_path / "pairs.jsonl", count=12)
    workload = Workload(objective="seq2seq", data=str(data))
    with pytest.raises(DataError, match="10 pairs to train on, but one optimizer step takes 16"):
        Seq2Seq(workload, tmp_path).describe()
    enough = replace(workload, global_batch=4)
    assert Seq2Seq(enough, tmp_path).describe().workload.global_batch == 4
