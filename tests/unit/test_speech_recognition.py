"""Speech recognition: dialled numbers, recordings of one's own, transcripts, and errors."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from autotune.objectives.audio import Recordings, read_wav, resampled
from autotune.objectives.hearing import heard, made_up_ear, positions_for
from autotune.objectives.speech_recognition import SpeechRecognition
from autotune.objectives.tones import KEYS, SAMPLE_RATE, SECONDS, _tone, dialled_numbers
from autotune.objectives.transcripts import (
    END,
    edit_distance,
    error_rate,
    greedy,
    letters_of,
    spell_letters,
    starting_tokens,
    until,
)
from tokenizers import processors
from transformers import AutoModelForSeq2SeqLM, WhisperFeatureExtractor

from autotune.core.errors import DataError, ModelError
from autotune.core.workload import Workload
from autotune.knobs.chunked_loss import IGNORED
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from tests import tiny_folders, tiny_objectives

TINY = tiny_objectives.CASES["speech_recognition"]
FREQUENCIES = {"1": (697, 1209), "5": (770, 1336), "9": (852, 1477), "0": (941, 1336)}


def described(folder: Path, **workload: Any) -> SpeechRecognition:
    task = SpeechRecognition(Workload(objective="speech_recognition", **workload), folder)
    task.describe()
    return task


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_objectives.write_recordings(tmp_path_factory.mktemp("speech") / "recordings")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> SpeechRecognition:
    folder = tmp_path_factory.mktemp("task")
    model = TINY.save_model(folder / "model")
    return described(folder, model=str(model), data=str(recordings))


def test_numbers_are_distinct_fit_and_are_always_the_same() -> None:
    sounds, numbers = dialled_numbers(60)
    again, numbers_again = dialled_numbers(60)
    assert numbers == numbers_again
    assert all(np.array_equal(a, b) for a, b in zip(sounds, again, strict=True))
    assert len(set(numbers)) == 60
    assert {len(number) for number in numbers} == {3, 4, 5, 6}
    assert max(map(len, sounds)) <= SECONDS * SAMPLE_RATE
    assert all(sound.dtype == np.float32 and np.abs(sound).max() <= 1 for sound in sounds)
    for sound, number in zip(sounds, numbers, strict=True):
        assert 0.11 * len(number) < len(sound) / SAMPLE_RATE < 0.15 * len(number) + 0.05


@pytest.mark.parametrize("key", FREQUENCIES)
def test_a_key_sounds_its_row_and_its_column(key: str) -> None:
    sound = _tone(key, np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(sound, SAMPLE_RATE))
    row, column = FREQUENCIES[key]
    assert spectrum[:1075].argmax() == pytest.approx(row, rel=0.02)
    assert 1075 + spectrum[1075:].argmax() == pytest.approx(column, rel=0.02)
    assert sum(key in keys for keys in KEYS) == 1


def test_the_default_trains_and_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.objectives.speech_recognition._DIALLED", 400)
    task = described(tmp_path)
    workload = task.workload
    assert workload.sequence_length == 24
    assert task.prepared.facts["target_length"] == 7  # six digits and an end
    model = task.build(LoadPlan(), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=workload.learning_rate)
    plan = DataPlan(sequence_length=24, global_batch=workload.global_batch)
    losses = []
    for batch in itertools.islice(task.train_batches(plan, 0), 3):
        loss = task.loss(model, batch, StepPlan())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    scores = task.evaluate(model, task.eval_batches(EvalPlan(batch=48), 24), EvalPlan())
    assert scores["exact_match"].n == 256
    assert scores["error_rate"].n == 64


def test_features_are_those_of_whisper(recordings: Path) -> None:
    sound, rate = read_wav(recordings / "0.wav")
    some = Recordings(transcripts=["a"], sounds=[sound], rate=rate)
    ear = WhisperFeatureExtractor(feature_size=80)
    expected = ear(
        resampled(sound, rate, 16000), sampling_rate=16000, max_length=3200, return_tensors="np"
    )["input_features"]
    np.testing.assert_allclose(heard(some, ear, 10), expected, atol=2e-3)


def test_a_model_hears_the_longest_recording_whole() -> None:
    ear = made_up_ear(80, 320)
    some = Recordings(
        transcripts=["a", "b"], sounds=[np.ones(n, np.float32) for n in (1000, 8001)], rate=8000
    )
    assert positions_for(some, ear) == 32  # 51 frames of 20 ms, two to a position, in eights
    assert heard(some, ear, 32).shape == (2, 80, 64)
    with pytest.raises(DataError, match=r"is 1.00 s long, but the model hears 0.96 s") as caught:
        heard(some, ear, 24)
    assert caught.value.where == "recording 2"


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_resampling_keeps_a_tone(rate: int) -> None:
    time = np.arange(rate) / rate
    sound = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    made = resampled(sound, rate, 16000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(made, expected, atol=1e-3)
    assert made.dtype == np.float32


def test_wav_files_of_several_channels_are_averaged(tmp_path: Path) -> None:
    one = tiny_objectives.write_wav(tmp_path / "one.wav", 0.1, 500)
    two = tiny_objectives.write_wav(tmp_path / "two.wav", 0.1, 500, channels=2)
    np.testing.assert_array_equal(read_wav(one)[0], read_wav(two)[0])
    assert read_wav(one)[1] == tiny_objectives.RATE
    assert np.abs(read_wav(one)[0]).max() == pytest.approx(0.5, rel=0.01)


def test_wav_files_that_cannot_be_read(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            read_wav(path)
        assert caught.value.where == str(path)
        return caught.value.message

    for width in (1, 4):
        path = tiny_objectives.write_wav(tmp_path / f"{width}.wav", 0.1, 500, width=width)
        assert f"have {8 * width} bits" in message(path)
    (tmp_path / "text.wav").write_text("no sound")
    assert "no WAV file" in message(tmp_path / "text.wav")
    (tmp_path / "empty.wav").write_bytes(b"")
    assert "it ends too early" in message(tmp_path / "empty.wav")
    silent = tiny_objectives.write_wav(tmp_path / "silent.wav", 0.0, 500)
    assert "there is no sound in it" in message(silent)


def test_the_start_is_given_and_the_rest_is_learnt(task: SpeechRecognition) -> None:
    batch = next(task.train_batches(DataPlan(sequence_length=8, global_batch=8), 0))
    assert (batch["decoder_input_ids"][:, 0] == 1).all()
    for given, wanted in zip(batch["decoder_input_ids"], batch["labels"], strict=True):
        count = int((wanted != IGNORED).sum())
        assert wanted[count - 1] == 0
        assert given[1:count].tolist() == wanted[: count - 1].tolist()
    tokenizer = tiny_folders.byte_tokenizer()
    words = {tokenizer.decode(row[row > 0]).split()[0] for row in batch["labels"]}
    assert words <= {"sea", "field", "soil"}


def test_what_names_language_and_task_does_not_count(tmp_path: Path, recordings: Path) -> None:
    model = TINY.save_model(tmp_path / "model", decoder_start_token_id=1)
    tokenizer = tiny_folders.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["!", '"']})
    start, language, end = (tokenizer.convert_tokens_to_ids(t) for t in ("!", '"', "<end>"))
    assert start == 1
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single='! " $A <end>', special_tokens=[("!", start), ('"', language), ("<end>", end)]
    )
    tokenizer.save_pretrained(model)
    assert starting_tokens(tokenizer, start) == [start, language]
    assert starting_tokens(tiny_folders.byte_tokenizer(), 1) == [1]
    task = described(tmp_path, model=str(model), data=str(recordings))
    batch = next(task.train_batches(DataPlan(sequence_length=8, global_batch=8), 0))
    assert (batch["decoder_input_ids"][:, :2] == torch.tensor([start, language])).all()
    assert (batch["labels"][:, 0] == IGNORED).all()
    assert (batch["labels"][:, 1] != IGNORED).all()
    built = task.build(LoadPlan(), seed=0)
    scores = task.evaluate(built, task.eval_batches(EvalPlan(batch=5), 8), EvalPlan(batch=5))
    counted = sum(int((b["labels"] != IGNORED).sum()) for b in task.eval_batches(EvalPlan(), 8))
    assert scores["token_accuracy"].n == counted


def test_greedy_decoding_is_that_without_a_cache(task: SpeechRecognition) -> None:
    built: Any = task.build(LoadPlan(), seed=0).eval()
    batch = task.eval_batches(EvalPlan(batch=4), 8)[0]
    sounds, tokens = batch["input_features"], batch["decoder_input_ids"][:, :1]
    with torch.no_grad():
        found = greedy(built, sounds, tokens, 6)
        for _ in range(6):
            out = built(input_features=sounds, decoder_input_ids=tokens, use_cache=False)
            tokens = torch.cat([tokens, out.logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(found, tokens[:, 1:])


@pytest.mark.parametrize(
    ("written", "wanted", "edits"),
    [
        ("", "", 0),
        ("abc", "abc", 0),
        ("", "abc", 3),
        ("abcd", "", 4),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
    ],
)
def test_edit_distances(written: str, wanted: str, edits: int) -> None:
    assert edit_distance(list(map(ord, written)), list(map(ord, wanted))) == edits


def test_error_rates_are_edits_per_token() -> None:
    score = error_rate([1, 0, 2], [4, 2, 4])
    assert (score.value, score.n) == (pytest.approx(0.3), 3)
    assert score.stderr is not None
    assert score.stderr > 0
    assert error_rate([1], [0]).value == 1.0


def test_transcripts_are_spelled_in_letters() -> None:
    letters = letters_of(["cab", "ab"])
    assert letters == "abc"
    spelled = spell_letters(["cab", "b"], letters)
    assert spelled.ids.tolist() == [5, 3, 4, END, 4, END]
    assert spelled.ends.tolist() == [4, 6]
    assert until(np.array([5, 3, END, 4]), END) == [5, 3]
    assert until(np.array([5, 3]), END) == [5, 3]


def test_recordings_of_ones_own_with_a_model_that_is_made_up(recordings: Path) -> None:
    folder = recordings.parent
    task = described(folder, data=str(recordings / "transcripts.csv"))
    facts = task.describe()
    assert facts.model.name == "Whisper 2+2x96"
    assert facts.workload.sequence_length == 8
    assert "68 recordings to train on, 12 to evaluate on" in facts.data
    letters = set("seafieldsoil 0123456789")
    assert facts.model.vocab == 3 + len(letters)


def test_tables_that_cannot_be_used(tmp_path: Path, recordings: Path) -> None:
    def error(text: str, **options: str) -> DataError:
        shutil.copy(recordings / "0.wav", tmp_path / "0.wav")
        (tmp_path / "transcripts.csv").write_text(text)
        with pytest.raises(DataError) as caught:
            described(tmp_path, data=str(tmp_path / "transcripts.csv"), **options)
        return caught.value

    assert "which column is the recording?" in error("name,text\n0.wav,sea\n").message
    assert "which column is the transcript?" in error("file,words\n0.wav,sea\n").message
    missing = error("file,text\n0.wav,sea\n1.wav,field\n")
    assert missing.message == "there is no file '1.wav', which row 2 has the transcript of"
    assert str(tmp_path) in str(missing.help)
    assert "has nothing in row 1" in error("file,text\n0.wav,\n").message
    assert "no column 'said'" in error("file,text\n0.wav,sea\n", text_column="said").message
    few = error("file,said\n0.wav,sea\n", text_column="said")
    assert few.message.startswith("there are too few recordings: 1")
    more = "file,said\n" + "0.wav,sea\n" * 4
    assert "3 recordings to train on" in error(more, text_column="said").message


def test_models_that_cannot_be_used(tmp_path: Path, recordings: Path) -> None:
    t5 = tiny_objectives.save(tmp_path / "t5", AutoModelForSeq2SeqLM, tiny_objectives.t5())
    with pytest.raises(ModelError, match="family 't5', which is no Whisper"):
        described(tmp_path, model=str(t5), data=str(recordings))
    model = TINY.save_model(tmp_path / "whisper")
    (model / "preprocessor_config.json").write_text(json.dumps({"feature_size": 80}))
    with pytest.raises(ModelError, match=r"takes 8 mel bands, but its .* makes 80"):
        described(tmp_path, model=str(model), data=str(recordings))
    (model / "preprocessor_config.json").write_text(json.dumps({"feature_size": 8}))
    with pytest.raises(ModelError, match="reads 8 positions of a recording, no more and no fewer"):
        described(tmp_path, model=str(model), data=str(recordings), sequence_length=16)
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        described(tmp_path, model=str(model), data=str(recordings))
