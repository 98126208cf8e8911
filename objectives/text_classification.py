"""Text classification: a text in, one of several classes out.

By default the sentence encoder MiniLM learns to tell packages of the standard library apart by
their documentation, in seconds and with nothing to download. Your own model and data: `--model`,
`--data`, `--text-column`, `--label-column`.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from autotune.core.outcome import Score
from autotune.core.workload import Metric, WorkloadFacts
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from autotune.trial.objective import Batch

from .cache import Prepared
from .columns import Labelled, classes_of, held_out, split_labelled
from .corpora import library_docstrings
from .files import read_data
from .models import build_model, check_sequence_length, describe_model, longest_sequence
from .rows import Rows, closing_token, encode, padding_token, usual_length
from .scratch import small_bert, train_tokenizer
from .sources import ENCODER_INSTALL, ModelSource, find_model, packaged_encoder
from .task import Task, check_counts, check_tokens, filled, shuffled_places, suggested_steps

METRICS = (
    Metric(name="accuracy", maximize=True),
    Metric(name="macro_f1", maximize=True),
)

_KIND = AutoModelForSequenceClassification
_LONGEST_DEFAULT = 512
_BUILTIN_SHARE = 0.2
_RESAMPLES = 200
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""A training of seconds needs none; without it, exact knobs give the same loss to rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Corpus:
    """Texts to train and evaluate on, and how screens call them."""

    train: Labelled
    held: Labelled
    name: str
    where: str


class TextClassification(Task):
    """Cross-entropy over classes; accuracy and macro-averaged F1 on held-out texts."""

    def look(self) -> tuple[Prepared, WorkloadFacts]:
        """Find texts, classes and model, and turn the texts into tokens; see `Task.look`."""
        corpus = self._corpus()
        classes = classes_of(corpus.train, corpus.held, where=corpus.where)
        source, config, tokenizer = self._model(corpus.train.texts)
        check_sequence_length(self.workload.sequence_length, source, config)
        most = self.workload.sequence_length
        most = most or min(longest_sequence(config) or _LONGEST_DEFAULT, _LONGEST_DEFAULT)
        pad = padding_token(tokenizer)
        train, ends = encode(corpus.train.texts, tokenizer, most, pad)
        workload = filled(
            self.workload,
            self._defaults(source, len(ends), usual_length(ends, most)),
            most_eval=len(corpus.held),
        )
        check_counts(
            workload,
            train=len(corpus.train),
            evaluate=len(corpus.held),
            unit="texts",
            where=corpus.where,
        )
        held = corpus.held.pick(range(workload.eval_examples))
        held_ids, held_ends = encode(held.texts, tokenizer, most, pad)
        place = {name: number for number, name in enumerate(classes)}
        prepared = Prepared(
            arrays={
                "train_ids": train,
                "train_ends": ends,
                "train_labels": np.array([place[n] for n in corpus.train.labels], np.int32),
                "eval_ids": held_ids,
                "eval_ends": held_ends,
                "eval_labels": np.array([place[n] for n in held.labels], np.int32),
            },
            facts={
                "source": asdict(source),
                "classes": classes,
                "pad": pad,
                "closing": closing_token(tokenizer),
                "vocab": len(tokenizer),
            },
        )
        config = self._adjusted(config, prepared.facts)
        model, note = describe_model(_KIND, source, config, vocab=0)
        check_tokens((train, held_ids), config.get_text_config().vocab_size, source)
        return prepared, WorkloadFacts(
            workload=workload,
            model=model,
            data=f"{corpus.name}: {len(ends):,} texts to train on, {len(held_ends):,} to evaluate "
            f"on, {len(classes)} classes, sha256 {prepared.digest[:12]}",
            data_fingerprint=prepared.digest,
            metrics=METRICS,
            note=" ".join(filter(None, (source.note, note))),
        )

    def train_batches(self, plan: DataPlan, seed: int) -> Iterator[Batch]:
        """Yield batches `input_ids`, `labels` and, if any text is shorter, `attention_mask`."""
        rows, labels = self._rows("train")
        for places in shuffled_places(len(rows), plan.global_batch, seed):
            yield _batch(rows, labels, places, plan.sequence_length)

    def eval_batches(self, plan: EvalPlan, sequence_length: int) -> Sequence[Batch]:
        """Return the held-out texts in batches of at most `plan.batch`."""
        rows, labels = self._rows("eval")
        everything = np.arange(len(rows))
        return [
            _batch(rows, labels, everything[start : start + plan.batch], sequence_length)
            for start in range(0, len(rows), plan.batch)
        ]

    def build(self, plan: LoadPlan, seed: int) -> nn.Module:
        """Return the model with a new classification head."""
        facts, source = self.prepared.facts, self.source
        config = source.config() if source.folder else small_bert(facts["vocab"])
        return build_model(_KIND, source, self._adjusted(config, facts), plan, seed)

    def loss(self, model: nn.Module, batch: Batch, plan: StepPlan) -> Tensor:
        """Return the mean cross-entropy over the texts of a batch, computed in fp32."""
        return cross_entropy(_logits(model, batch), batch["labels"])

    def evaluate(
        self, model: nn.Module, batches: Sequence[Batch], plan: EvalPlan
    ) -> Mapping[str, Score]:
        """Return accuracy and macro-averaged F1 with their standard errors."""
        classes = len(self.prepared.facts["classes"])
        device = next(model.parameters()).device
        counts = np.zeros((classes, classes), np.int64)
        training = model.training
        model.eval()
        with torch.no_grad():
            for batch in batches:
                moved = {name: tensor.to(device) for name, tensor in batch.items()}
                guesses = _logits(model, moved).argmax(-1).cpu().numpy()
                np.add.at(counts, (batch["labels"].numpy(), guesses), 1)
        model.train(training)
        return _scores(counts)

    def _corpus(self) -> _Corpus:
        workload = self.workload
        if workload.data is not None:
            splits = read_data(workload.data)
            train, held = split_labelled(splits, workload.text_column, workload.label_column)
            return _Corpus(train=train, held=held, name=workload.data, where=splits.train.where)
        texts, labels = library_docstrings()
        everything = Labelled(texts=texts, labels=labels)
        places, held_places = held_out(len(everything), _BUILTIN_SHARE)
        return _Corpus(
            train=everything.pick(places),
            held=everything.pick(held_places),
            name=f"docstrings of Python {platform.python_version()}'s standard library",
            where="the standard library",
        )

    def _model(
        self, texts: Sequence[str]
    ) -> tuple[ModelSource, PreTrainedConfig, PreTrainedTokenizerBase]:
        asked, trust = self.workload.model, self.workload.trust_remote_code
        source = find_model(asked, trust=trust) if asked else packaged_encoder()
        if source is not None:
            return source, source.config(), source.tokenizer()
        tokenizer = train_tokenizer(texts)
        made = ModelSource(
            name="BERT 2x128",
            note="The pretrained encoder MiniLM is not installed, so a small BERT of 2 layers and "
            f"width 128 is trained from scratch. To have it: {ENCODER_INSTALL}",
        )
        return made, small_bert(len(tokenizer)), tokenizer

    def _defaults(self, source: ModelSource, train: int, length: int) -> Mapping[str, float]:
        """Return a training of seconds for the default data, of three passes for other data."""
        own_model = self.workload.model is None
        rate = (3e-4 if source.pretrained else 1e-3) if own_model else 5e-5
        if own_model and self.workload.data is None:
            return {
                "steps": 16 if source.pretrained else 120,
                "global_batch": 32,
                "sequence_length": 24,
                "eval_examples": 256,
                "learning_rate": rate,
            }
        batch = self.workload.global_batch or 16
        return {
            "steps": suggested_steps(train, batch),
            "global_batch": batch,
            "sequence_length": length,
            "eval_examples": 512,
            "learning_rate": rate,
        }

    def _adjusted(self, config: PreTrainedConfig, facts: Mapping[str, Any]) -> PreTrainedConfig:
        """Set what the classes and the tokenizer decide."""
        config.id2label = dict(enumerate(facts["classes"]))
        config.label2id = {name: number for number, name in enumerate(facts["classes"])}
        text = config.get_text_config()
        if text.pad_token_id is None:
            text.pad_token_id = facts["pad"]
        if self.workload.model is None:
            config.update(_NO_DROPOUT)
        return config

    def _rows(self, part: str) -> tuple[Rows, NDArray[np.int64]]:
        arrays, facts = self.prepared.arrays, self.prepared.facts
        rows = Rows(
            ids=arrays[f"{part}_ids"],
            ends=arrays[f"{part}_ends"],
            pad=facts["pad"],
            closing=facts["closing"],
        )
        return rows, arrays[f"{part}_labels"].astype(np.int64)


def _batch(
    rows: Rows, labels: NDArray[np.int64], places: NDArray[np.int64], length: int
) -> dict[str, Tensor]:
    tokens, mask = rows.padded(places, length)
    batch = {"input_ids": torch.from_numpy(tokens), "labels": torch.from_numpy(labels[places])}
    if (rows.lengths < length).any():  # of the data set and not of the batch: all are alike
        batch["attention_mask"] = torch.from_numpy(mask)
    return batch


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits `(texts, classes)` in fp32."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs).logits
    return logits.float()


def _scores(counts: NDArray[np.int64]) -> dict[str, Score]:
    """Return the scores of a confusion matrix `(true, guessed)`.

    The standard error of accuracy is the binomial one. That of macro-averaged F1 is by bootstrap:
    resampling texts is drawing a confusion matrix from the multinomial distribution of this one.

    References:
        Efron 1979, Bootstrap methods: another look at the jackknife.
    """
    total = int(counts.sum())
    accuracy = float(np.trace(counts) / total)
    resampled = np.random.default_rng(0).multinomial(
        total, (counts / total).ravel(), size=_RESAMPLES
    )
    spread = float(_macro_f1(resampled.reshape(-1, *counts.shape)).std(ddof=1))
    return {
        "accuracy": Score(
            value=accuracy, stderr=float(np.sqrt(accuracy * (1 - accuracy) / total)), n=total
        ),
        "macro_f1": Score(value=float(_macro_f1(counts[None])[0]), stderr=spread, n=total),
    }


def _macro_f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean F1 over classes that occur, for each matrix `(matrices, true, guessed)`."""
    right = np.diagonal(counts, axis1=1, axis2=2)
    seen = counts.sum(1) + counts.sum(2)
    f1 = 2 * right / np.maximum(seen, 1)
    mean: NDArray[np.float64] = f1.sum(1) / np.maximum((seen > 0).sum(1), 1)
    return mean
