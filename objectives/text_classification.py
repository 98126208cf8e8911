"""Text classification: a text in, one of several classes out.

By default the sentence encoder MiniLM learns to tell packages of the standard library apart by
their documentation, in seconds and with nothing to download. Your own model and data: `--model`,
`--data`, `--text-column`, `--label-column`. `--model lstm` and `--model gru` are recurrent networks
in plain PyTorch, `--model bert` is a transformer of six layers, all trained from scratch.
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

from autotune.core.context import ModelFacts
from autotune.core.outcome import Score
from autotune.core.workload import WorkloadFacts
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from autotune.trial.objective import Batch

from .cache import Array, Prepared, Texts
from .columns import Labelled, classes_of, held_out, split_labelled
from .confusion import METRICS, confusion_scores
from .corpora import library_docstrings
from .files import read_data
from .models import build_model, check_sequence_length, describe_model, longest_sequence
from .recurrent import (
    NAMES,
    RECURRENT,
    RecurrentConfig,
    build_recurrent,
    describe_recurrent,
    recurrent_config,
)
from .rows import (
    FreshRows,
    Rectangles,
    Rows,
    by_length,
    closing_token,
    encode,
    lengths_of,
    padding_token,
    usual_length,
)
from .scratch import BERT, medium_bert, restore_tokenizer, small_bert, train_tokenizer
from .sources import ENCODER_INSTALL, ModelSource, find_model, packaged_encoder
from .task import Task, check_counts, check_tokens, filled, shuffled_places, suggested_steps
from .teachers import Teacher, check_same_classes, check_same_tokens, find_teacher

FEATURES = ("by_length", "on_the_fly", "memory_map")
"""What of a data plan is carried out here, whatever the model."""

_KIND = AutoModelForSequenceClassification
_LONGEST_DEFAULT = 512
_BUILTIN_SHARE = 0.2
_BUILTIN = {"global_batch": 32, "sequence_length": 24, "eval_examples": 256}
_BUILTIN_RECURRENT = {"steps": 60, "sequence_length": 32}
_BUILTIN_BERT = {"steps": 150}
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
        corpus = self.corpus()
        classes = classes_of(corpus.train, corpus.held, where=corpus.where)
        teacher = self._find_teacher(classes)
        source, tokenizer = self._model(corpus.train.texts, teacher)
        facts = self._facts(source, tokenizer, classes, teacher)
        config = self._config(source, facts)
        most = self._most_tokens(source, config)
        train, ends = encode(corpus.train.texts, tokenizer, most, facts["pad"])
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
        if teacher is not None:
            teacher.check_length(workload.sequence_length)
        held = corpus.held.pick(range(workload.eval_examples))
        held_ids, held_ends = encode(held.texts, tokenizer, most, facts["pad"])
        check_tokens((train, held_ids), config.get_text_config().vocab_size, source)
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
            texts={"train": Texts.of(corpus.train.texts)},
            facts={**facts, "most": most},
        )
        model, note = self._described(source, config)
        return prepared, WorkloadFacts(
            workload=workload,
            model=model,
            data=f"{corpus.name}: {len(ends):,} texts to train on, {len(held_ends):,} to evaluate "
            f"on, {len(classes)} classes, sha256 {prepared.digest[:12]}",
            data_fingerprint=prepared.digest,
            metrics=METRICS,
            note=" ".join(filter(None, (source.note, note))),
            features=(*FEATURES, *(("teacher",) if teacher is not None else ())),
        )

    def train_batches(self, plan: DataPlan, seed: int) -> Iterator[Batch]:
        """Yield batches `input_ids`, `labels` and, if any text is shorter, `attention_mask`."""
        lengths = lengths_of(self.array("train_ends", mapped=plan.memory_map))
        labels = self.array("train_labels", mapped=plan.memory_map)
        rows = self._training_rows(plan)
        # A mask is there for all batches or for none, so that all are alike.
        masked = bool((lengths < plan.sequence_length).any())
        if plan.by_length:
            batches = by_length(lengths, plan, seed)
        else:
            order = shuffled_places(len(lengths), plan.global_batch, seed)
            batches = ((places, plan.sequence_length) for places in order)
        for places, width in batches:
            yield _batch(rows, labels, places, width, masked=masked)

    def eval_batches(self, plan: EvalPlan, sequence_length: int) -> Sequence[Batch]:
        """Return the held-out texts in batches of at most `plan.batch`."""
        rows, labels = self._rows("eval", mapped=True), self.prepared.arrays["eval_labels"]
        masked = bool((rows.lengths < sequence_length).any())
        everything = np.arange(len(rows))
        return [
            _batch(
                rows,
                labels,
                everything[start : start + plan.batch],
                sequence_length,
                masked=masked,
            )
            for start in range(0, len(rows), plan.batch)
        ]

    def build(self, plan: LoadPlan, seed: int) -> nn.Module:
        """Return the model with a new classification head."""
        source = self.source
        config = self._config(source, self.prepared.facts)
        if isinstance(config, RecurrentConfig):
            return build_recurrent(config, plan, seed)
        return build_model(_KIND, source, config, plan, seed)

    def build_teacher(self) -> nn.Module:
        """Return the teacher that the user named, in evaluation mode.

        Raises:
            ModelError: If none was named, or it cannot be loaded.
        """
        return self.teacher.build(_KIND)

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
        return confusion_scores(counts)

    def corpus(self) -> _Corpus:
        """Read the data of the workload, or its own, split into parts."""
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

    def _find_teacher(self, classes: Sequence[str]) -> Teacher | None:
        if self.workload.teacher is None:
            return None
        teacher = find_teacher(self.workload.teacher, _KIND, trust=self.workload.trust_remote_code)
        check_same_classes(teacher, classes)
        return teacher

    def _model(
        self, texts: Sequence[str], teacher: Teacher | None
    ) -> tuple[ModelSource, PreTrainedTokenizerBase]:
        """Return where the model comes from, and its tokenizer.

        A recurrent model has none of its own: it takes that of its teacher, or one is made.
        """
        asked, trust = self.workload.model, self.workload.trust_remote_code
        if asked in RECURRENT:
            made = teacher.source.tokenizer() if teacher is not None else train_tokenizer(texts)
            return ModelSource(name=NAMES[asked]), made
        if asked == BERT:
            return ModelSource(name="BERT 6x256"), train_tokenizer(texts)
        source = find_model(asked, trust=trust) if asked else packaged_encoder()
        tokenizer = train_tokenizer(texts) if source is None else source.tokenizer()
        if teacher is not None:
            check_same_tokens(teacher, tokenizer)
        if source is not None:
            return source, tokenizer
        made_up = ModelSource(
            name="BERT 2x128",
            note="The pretrained encoder MiniLM is not installed, so a small BERT of 2 layers and "
            f"width 128 is trained from scratch. To have it: {ENCODER_INSTALL}",
        )
        return made_up, tokenizer

    def _facts(
        self,
        source: ModelSource,
        tokenizer: PreTrainedTokenizerBase,
        classes: Sequence[str],
        teacher: Teacher | None,
    ) -> dict[str, Any]:
        """Return what a trial needs to know again of all but the texts."""
        own = source.folder is None and teacher is None
        return {
            "source": asdict(source),
            "classes": list(classes),
            "pad": padding_token(tokenizer),
            "closing": closing_token(tokenizer),
            "vocab": len(tokenizer),
            "tokenizer": tokenizer.backend_tokenizer.to_str() if own else None,
            "teacher": None if teacher is None else teacher.to_json(),
        }

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer that the texts were prepared with."""
        made = self.prepared.facts["tokenizer"]
        if made is not None:
            return restore_tokenizer(made)
        source = self.source
        return source.tokenizer() if source.folder else self.teacher.source.tokenizer()

    def _config(
        self, source: ModelSource, facts: Mapping[str, Any]
    ) -> PreTrainedConfig | RecurrentConfig:
        """Return the model's configuration, with what the classes and the tokenizer decide."""
        classes = facts["classes"]
        if self.workload.model in RECURRENT:
            return recurrent_config(self.workload.model, facts["vocab"], facts["pad"], classes)
        made_up = medium_bert if self.workload.model == BERT else small_bert
        config = source.config() if source.folder else made_up(facts["vocab"])
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
        text = config.get_text_config()
        if text.pad_token_id is None:
            text.pad_token_id = facts["pad"]
        if self.workload.model in (None, BERT):
            config.update(_NO_DROPOUT)
        return config

    def _most_tokens(self, source: ModelSource, config: PreTrainedConfig | RecurrentConfig) -> int:
        """Return how many tokens of a text are prepared, at most."""
        asked = self.workload.sequence_length
        if isinstance(config, RecurrentConfig):
            return asked or _LONGEST_DEFAULT
        check_sequence_length(asked, source, config)
        return asked or min(longest_sequence(config) or _LONGEST_DEFAULT, _LONGEST_DEFAULT)

    def _described(
        self, source: ModelSource, config: PreTrainedConfig | RecurrentConfig
    ) -> tuple[ModelFacts, str]:
        if isinstance(config, RecurrentConfig):
            return describe_recurrent(config), ""
        return describe_model(_KIND, source, config, vocab=0)

    def _defaults(self, source: ModelSource, train: int, length: int) -> Mapping[str, float]:
        """Return a training of seconds for the default data, of three passes for other data."""
        asked, batch = self.workload.model, self.workload.global_batch or 16
        if asked in RECURRENT:
            rate = 2e-3
        elif asked == BERT:
            rate = 7e-4
        else:
            rate = 5e-5 if asked else 3e-4 if source.pretrained else 1e-3
        given = {"learning_rate": rate}
        if self.workload.data is None and asked is None:
            steps = 16 if source.pretrained else 120
            return {**given, **_BUILTIN, "steps": steps}
        if self.workload.data is None and asked in RECURRENT:
            return {**given, **_BUILTIN, **_BUILTIN_RECURRENT}
        if self.workload.data is None and asked == BERT:
            return {**given, **_BUILTIN, **_BUILTIN_BERT}
        return {
            **given,
            "steps": suggested_steps(train, batch),
            "global_batch": batch,
            "sequence_length": length,
            "eval_examples": 512,
        }

    def _training_rows(self, plan: DataPlan) -> Rectangles:
        if not plan.on_the_fly:
            return self._rows("train", mapped=plan.memory_map)
        facts = self.prepared.facts
        return FreshRows(
            texts=self.prepared.texts["train"],
            tokenizer=self._tokenizer(),
            most=facts["most"],
            pad=facts["pad"],
            closing=facts["closing"],
        )

    def _rows(self, part: str, *, mapped: bool) -> Rows:
        return Rows(
            ids=self.array(f"{part}_ids", mapped=mapped),
            ends=self.array(f"{part}_ends", mapped=mapped),
            pad=self.prepared.facts["pad"],
            closing=self.prepared.facts["closing"],
        )


def _batch(
    rows: Rectangles, labels: Array, places: NDArray[np.int64], length: int, *, masked: bool
) -> dict[str, Tensor]:
    tokens, mask = rows.padded(places, length)
    right = labels[places].astype(np.int64)
    batch = {"input_ids": torch.from_numpy(tokens), "labels": torch.from_numpy(right)}
    if masked:
        batch["attention_mask"] = torch.from_numpy(mask)
    return batch


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits `(texts, classes)` in fp32."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs).logits
    return logits.float()
