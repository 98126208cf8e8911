"""Speech recognition: hear a recording, write what is said.

By default a small Whisper learns to write down numbers that are dialled on a telephone, in seconds
and with nothing to download. Your own Whisper and data: `--model`, and `--data` for a table with
WAV files and their transcripts, or a folder that holds it; `--text-column` names the transcript.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForSpeechSeq2Seq, PreTrainedConfig

from autotune.core.outcome import Score
from autotune.core.workload import WorkloadFacts
from autotune.knobs.chunked_loss import IGNORED
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from autotune.trial.objective import Batch

from .audio import Recordings, split_recordings
from .cache import Array, Prepared
from .encoder_decoder import (
    EXACT_MATCH,
    TOKEN_ACCURACY,
    TokenSums,
    decoder_loss,
    labels_each,
    output_vocabulary,
    token_sums,
)
from .files import read_data
from .hearing import heard
from .limits import check_fixed_length, refuse_teacher
from .listeners import MOST_TOKENS, Listener, listener_in, made_up_listener, small_whisper
from .logits import inner
from .models import build_model, describe_model
from .rows import Rows, usual_length
from .sources import ModelSource, find_model
from .task import Task, check_counts, check_tokens, filled, shuffled_places, suggested_steps
from .tones import SAMPLE_RATE, dialled_numbers
from .transcripts import ERROR_RATE, edit_distance, error_rate, greedy, until

FEATURES = ("fixed_length", "memory_map")
"""What of a data plan is carried out here, and that recordings have one size."""

_KIND = AutoModelForSpeechSeq2Seq
_DIALLED, _HELD_DIALLED = 2000, 256
_DECODED = 64
"""Recordings, at most, whose transcripts the model writes on its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Corpus:
    """Recordings to train and evaluate on, and how screens call them."""

    train: Recordings
    held: Recordings
    name: str
    where: str


class SpeechRecognition(Task):
    """Cross-entropy over transcripts; token accuracy, exact match and error rate."""

    def look(self) -> tuple[Prepared, WorkloadFacts]:
        """Find recordings and model, and turn sounds into features; see `Task.look`."""
        refuse_teacher(self.workload)
        corpus = self.corpus()
        listener = self._listener(corpus)
        source, facts = listener.source, listener.facts
        config = self._config(source, facts)
        positions = int(config.max_source_positions)
        check_fixed_length(self.workload, positions, "positions of a recording", source)
        workload = filled(
            self.workload,
            self._defaults(source, len(corpus.train), positions),
            most_eval=len(corpus.held),
        )
        check_counts(
            workload,
            train=len(corpus.train),
            evaluate=len(corpus.held),
            unit="recordings",
            where=corpus.where,
        )
        evaluated = workload.eval_examples
        ends = listener.held.ends[:evaluated]
        arrays: dict[str, Array] = {
            "train_ids": listener.train.ids,
            "train_ends": listener.train.ends,
            "eval_ids": listener.held.ids[: int(ends[-1])],
            "eval_ends": ends,
        }
        check_tokens((arrays["train_ids"], arrays["eval_ids"]), config.vocab_size, source)
        held = corpus.held.pick(range(evaluated))
        arrays["train_sounds"] = heard(corpus.train, listener.ear, positions)
        arrays["eval_sounds"] = heard(held, listener.ear, positions)
        prepared = Prepared(
            arrays=arrays, facts={**facts, "target_length": self._target_length(listener, config)}
        )
        model, note = describe_model(_KIND, source, config, vocab=output_vocabulary(config))
        return prepared, WorkloadFacts(
            workload=workload,
            model=model,
            data=f"{corpus.name}: {len(corpus.train):,} recordings to train on, {evaluated:,} to "
            f"evaluate on, sha256 {prepared.digest[:12]}",
            data_fingerprint=prepared.digest,
            metrics=(TOKEN_ACCURACY, EXACT_MATCH, ERROR_RATE),
            note=" ".join(filter(None, (source.note, note))),
            features=FEATURES,
        )

    def train_batches(self, plan: DataPlan, seed: int) -> Iterator[Batch]:
        """Yield batches `input_features`, `decoder_input_ids`, `labels` and `labels_each`."""
        sounds = self.array("train_sounds", mapped=plan.memory_map)
        rows = self._rows("train", mapped=plan.memory_map)
        for places in shuffled_places(len(rows), plan.global_batch, seed):
            yield self._batch(sounds, rows, places)

    def eval_batches(self, plan: EvalPlan, sequence_length: int) -> Sequence[Batch]:
        """Return the held-out recordings in batches of at most `plan.batch`."""
        sounds, rows = self.prepared.arrays["eval_sounds"], self._rows("eval", mapped=True)
        everything = np.arange(len(rows))
        return [
            self._batch(sounds, rows, everything[start : start + plan.batch])
            for start in range(0, len(rows), plan.batch)
        ]

    def build(self, plan: LoadPlan, seed: int) -> nn.Module:
        """Return the model with its output layer."""
        config = self._config(self.source, self.prepared.facts)
        return build_model(_KIND, self.source, config, plan, seed)

    def loss(self, model: nn.Module, batch: Batch, plan: StepPlan) -> Tensor:
        """Return the mean cross-entropy over the transcripts' tokens, computed in fp32."""
        return decoder_loss(model, _heard_by(model, batch), plan)

    def evaluate(
        self, model: nn.Module, batches: Sequence[Batch], plan: EvalPlan
    ) -> Mapping[str, Score]:
        """Return token accuracy, exact match and error rate with their standard errors.

        The error rate is that of a few recordings, whose transcripts are decoded greedily.
        """
        device = next(model.parameters()).device
        sums: list[TokenSums] = []
        distances: list[int] = []
        lengths: list[int] = []
        training = model.training
        model.eval()
        with torch.no_grad():
            for batch in batches:
                moved = {name: tensor.to(device) for name, tensor in batch.items()}
                moved = _heard_by(model, moved)
                sums.append(token_sums(model, moved, plan))
                few = {name: t[: _DECODED - len(distances)] for name, t in moved.items()}
                if len(few["labels"]):
                    for written, wanted in self._written(model, few):
                        distances.append(edit_distance(written, wanted))
                        lengths.append(len(wanted))
        model.train(training)
        scores = TokenSums.joined(sums).scores()
        return {
            TOKEN_ACCURACY.name: scores[TOKEN_ACCURACY.name],
            EXACT_MATCH.name: scores[EXACT_MATCH.name],
            ERROR_RATE.name: error_rate(distances, lengths),
        }

    def _written(self, model: nn.Module, batch: Batch) -> list[tuple[list[int], list[int]]]:
        """Return what the model writes on its own, and what was said, for each recording."""
        facts = self.prepared.facts
        prefix = batch["decoder_input_ids"][:, : len(facts["prefix"])]
        most = facts["target_length"]
        written = greedy(model, batch["input_features"], prefix, most).cpu().numpy()
        wanted = batch["labels"][:, -most:].cpu().numpy()
        return [
            (until(ours, facts["end"]), until(theirs, facts["end"]))
            for ours, theirs in zip(written, wanted, strict=True)
        ]

    def corpus(self) -> _Corpus:
        """Read the data of the workload, or its own, split into parts."""
        data = self.workload.data
        if data is not None:
            splits = read_data(data)
            train, held = split_recordings(splits, self.workload.text_column)
            return _Corpus(train=train, held=held, name=data, where=splits.train.where)
        sounds, numbers = dialled_numbers(_DIALLED)
        everything = Recordings(transcripts=numbers, sounds=sounds, rate=SAMPLE_RATE)
        return _Corpus(
            train=everything.pick(range(_HELD_DIALLED, _DIALLED)),
            held=everything.pick(range(_HELD_DIALLED)),
            name="dialled numbers",
            where="the dialled numbers",
        )

    def _listener(self, corpus: _Corpus) -> Listener:
        asked = self.workload.model
        if asked is None:
            return made_up_listener(corpus.train, corpus.held)
        source = find_model(asked, trust=self.workload.trust_remote_code)
        return listener_in(source, corpus.train, corpus.held)

    def _config(self, source: ModelSource, facts: Mapping[str, Any]) -> PreTrainedConfig:
        """Return the model's configuration."""
        config = source.config() if source.folder else small_whisper(**facts["made"])
        config.apply_spec_augment = False  # its random masks follow no seed
        return config

    def _target_length(self, listener: Listener, config: PreTrainedConfig) -> int:
        """Return the tokens of a transcript that are trained on, its end token included."""
        most = int(config.max_target_positions) - len(listener.facts["prefix"]) + 1
        return usual_length(listener.train.ends, min(most, MOST_TOKENS))

    def _defaults(self, source: ModelSource, train: int, positions: int) -> Mapping[str, float]:
        """Return a training of seconds for the default data, of three passes for other data."""
        own_model = self.workload.model is None
        builtin = own_model and self.workload.data is None
        batch = self.workload.global_batch or (32 if builtin else 8)
        rate = 5e-5 if source.pretrained else 2e-3 if own_model else 5e-4
        return {
            "steps": 200 if builtin else suggested_steps(train, batch),
            "global_batch": batch,
            "sequence_length": positions,
            "eval_examples": 256,
            "learning_rate": rate,
        }

    def _rows(self, part: str, *, mapped: bool) -> Rows:
        return Rows(
            ids=self.array(f"{part}_ids", mapped=mapped),
            ends=self.array(f"{part}_ends", mapped=mapped),
            pad=self.prepared.facts["pad"],
            closing=self.prepared.facts["end"],
        )

    def _batch(self, sounds: Array, rows: Rows, places: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return a batch; what a transcript starts with is given, and does not count."""
        facts = self.prepared.facts
        tokens, counted = rows.padded(places, facts["target_length"])
        prefix = np.tile(np.asarray(facts["prefix"], np.int64), (len(places), 1))
        given = np.full((len(places), prefix.shape[1] - 1), IGNORED, np.int64)
        labels = torch.from_numpy(
            np.concatenate([given, np.where(counted, tokens, IGNORED)], axis=1)
        )
        return {
            "input_features": torch.from_numpy(sounds[places].astype(np.float32)),
            "decoder_input_ids": torch.from_numpy(np.concatenate([prefix, tokens[:, :-1]], axis=1)),
            "labels": labels,
            "labels_each": labels_each(labels),
        }


def _heard_by(model: nn.Module, batch: Batch) -> Batch:
    """Return a batch whose features are in the dtype of the first layer, which takes no other."""
    weight: Tensor = inner(model).get_encoder().conv1.weight  # type: ignore[operator]  # a method
    return {**batch, "input_features": batch["input_features"].to(weight.dtype)}
