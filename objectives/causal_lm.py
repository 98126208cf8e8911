"""Causal language modelling: predict the next token.

By default a small Llama learns, byte by byte, the reference text behind Python's `help()`. Your own
model and data: `--model`, `--data`, `--text-column`. Perplexity is searched for; bits per byte is
what may be compared between tokenizers.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from autotune.core.context import ModelFacts
from autotune.core.errors import ModelError
from autotune.core.outcome import Score
from autotune.core.workload import Metric, WorkloadFacts
from autotune.knobs.chunked_loss import IGNORED, chunked_cross_entropy
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from autotune.trial.objective import Batch

from .cache import Prepared, Texts
from .columns import texts
from .corpora import library_topics
from .files import read_data
from .generation import STREAMED, token_scores
from .logits import changes_logits, hidden_states, output_layer
from .models import build_model, check_sequence_length, describe_model, longest_sequence
from .scratch import small_llama
from .sources import ModelSource, find_model
from .streams import (
    BETWEEN,
    DocumentRows,
    FreshTokens,
    Tokens,
    blocks,
    count_blocks,
    encode_documents,
    encode_stream,
    split_documents,
    split_end,
    token_bytes,
)
from .task import Task, check_counts, check_tokens, filled, shuffled_places, suggested_steps
from .teachers import Teacher, check_same_tokens, check_same_vocabulary, find_teacher

PERPLEXITY = Metric(name="perplexity", maximize=False)
TOKEN_ACCURACY = Metric(name="token_accuracy", maximize=True)
BITS_PER_BYTE = Metric(name="bits_per_byte", maximize=False)

_KIND = AutoModelForCausalLM
_LONGEST_DEFAULT = 256
_LONGEST_ENCODED = 2**16
"""Characters of the longest document that is encoded again and again for parts of it."""

_MOST_NATS = 100.0
"""Mean loss beyond which a perplexity is no number worth telling apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Corpus:
    """Documents to train and evaluate on, and how screens call them."""

    train: Sequence[str]
    held: Sequence[str]
    name: str
    where: str


class CausalLM(Task):
    """Cross-entropy over the next token; perplexity, token accuracy and bits per byte."""

    def look(self) -> tuple[Prepared, WorkloadFacts]:
        """Find texts and model, and turn the texts into two streams; see `Task.look`."""
        corpus = self.corpus()
        source, config, tokenizer = self._model()
        teacher = self._find_teacher(config, tokenizer)
        train, ends = encode_documents(corpus.train, tokenizer)
        held = encode_stream(corpus.held, tokenizer)
        sizes = token_bytes(corpus.held, tokenizer)
        length = self.workload.sequence_length or self._default_length(config)
        check_sequence_length(length, source, config)
        if teacher is not None:
            teacher.check_length(length)
        blocks_of = {"train": count_blocks(train, length), "evaluate": count_blocks(held, length)}
        workload = filled(
            self.workload,
            self._defaults(source, blocks_of["train"], length),
            most_eval=blocks_of["evaluate"],
        )
        unit = f"sequences of {length} tokens"
        check_counts(workload, **blocks_of, unit=unit, where=corpus.where)
        text = config.get_text_config()
        model, note = describe_model(_KIND, source, config, vocab=getattr(text, "vocab_size", 0))
        evaluated = slice(0, workload.eval_examples * length + 1)
        arrays = {
            "train": train,
            "train_ends": ends,
            "eval": held[evaluated],
        }
        check_tokens((train, arrays["eval"]), model.vocab, source)
        if sizes is not None:
            arrays["eval_bytes"] = sizes[evaluated]
        # A stream of bytes is its own text, whatever stands between documents.
        raw = corpus.train if tokenizer is not None else [BETWEEN.join(corpus.train)]
        prepared = Prepared(
            arrays=arrays,
            texts={"train": Texts.of(raw)},
            facts={
                "source": asdict(source),
                "bytes": tokenizer is None,
                "teacher": None if teacher is None else teacher.to_json(),
            },
        )
        metrics = (PERPLEXITY, TOKEN_ACCURACY, *((BITS_PER_BYTE,) if sizes is not None else ()))
        return prepared, WorkloadFacts(
            workload=workload,
            model=model,
            data=f"{corpus.name}: {len(train):,} tokens to train on, "
            f"{len(arrays['eval']):,} to evaluate on, sha256 {prepared.digest[:12]}",
            data_fingerprint=prepared.digest,
            metrics=metrics,
            note=" ".join(filter(None, (source.note, note))),
            features=_features(model, corpus.train, tokenizer, teacher),
        )

    def train_batches(self, plan: DataPlan, seed: int) -> Iterator[Batch]:
        """Yield batches of `input_ids` and `labels`, the tokens that follow them.

        Rows of documents are filled up with labels that do not count; then `labels_each` has, for
        each sequence, the mean number of labels that do, over the whole batch.
        """
        stream, length = self._stream(plan), plan.sequence_length
        if not plan.documents:
            count = count_blocks(stream, length)
            for places in shuffled_places(count, plan.global_batch, seed):
                yield _tensors(*blocks(stream, places, length))
            return
        rows = DocumentRows.of(self.array("train_ends", mapped=plan.memory_map), length)
        for places in shuffled_places(len(rows), plan.global_batch, seed):
            inputs, labels = rows.padded(stream, places)
            mean = float((labels != IGNORED).sum() / len(labels))
            each = torch.full((len(labels),), mean)
            yield {**_tensors(inputs, labels), "labels_each": each}

    def eval_batches(self, plan: EvalPlan, sequence_length: int) -> Sequence[Batch]:
        """Return the held-out blocks; `bytes` is what each block's labels stand for."""
        arrays = self.prepared.arrays
        everything = np.arange(count_blocks(arrays["eval"], sequence_length))
        batches = []
        for start in range(0, len(everything), plan.batch):
            places = everything[start : start + plan.batch]
            inputs, labels = blocks(arrays["eval"], places, sequence_length)
            batch = _tensors(inputs, labels)
            if "eval_bytes" in arrays:
                _, sizes = blocks(arrays["eval_bytes"], places, sequence_length)
                batch["bytes"] = torch.from_numpy(sizes.sum(1))
            batches.append(batch)
        return batches

    def build(self, plan: LoadPlan, seed: int) -> nn.Module:
        """Return the model with its language modelling head."""
        source = self.source
        config = source.config() if source.folder else small_llama()
        return build_model(_KIND, source, config, plan, seed)

    def build_teacher(self) -> nn.Module:
        """Return the teacher that the user named, in evaluation mode.

        Raises:
            ModelError: If none was named, or it cannot be loaded.
        """
        return self.teacher.build(_KIND)

    def loss(self, model: nn.Module, batch: Batch, plan: StepPlan) -> Tensor:
        """Return the mean cross-entropy over the tokens of a batch, computed in fp32.

        In a micro-batch of documents, tokens count as in the whole batch, so that micro-batches
        average to its mean.
        """
        labels = batch["labels"].flatten()
        loss = _mean_loss(model, batch["input_ids"], labels, plan)
        if "labels_each" in batch:
            loss = loss * ((labels != IGNORED).sum() / batch["labels_each"].sum())
        return loss

    def evaluate(
        self, model: nn.Module, batches: Sequence[Batch], plan: EvalPlan
    ) -> Mapping[str, Score]:
        """Return perplexity, token accuracy and, where known, bits per byte."""
        device = next(model.parameters()).device
        losses, hits, sizes = [], [], []
        training = model.training
        model.eval()
        with torch.no_grad():
            for batch in batches:
                inputs, labels = batch["input_ids"].to(device), batch["labels"].to(device)
                loss, hit = token_scores(model, inputs, labels, plan)
                losses.append(loss.mean(1).cpu())
                hits.append(hit.float().mean(1).cpu())
                if "bytes" in batch:
                    sizes.append(batch["bytes"].float())
        model.train(training)
        tokens = sum(batch["labels"].numel() for batch in batches)
        return _scores(
            torch.cat(losses).double().numpy(),
            torch.cat(hits).double().numpy(),
            float(torch.cat(sizes).sum()) if sizes else 0.0,
            tokens,
        )

    def corpus(self) -> _Corpus:
        """Read the data of the workload, or its own, split into parts."""
        workload = self.workload
        if workload.data is None:
            train, held = split_end(library_topics())
            name = f"help topics of Python {platform.python_version()}"
            return _Corpus(train=train, held=held, name=name, where="the standard library")
        splits = read_data(workload.data)
        train = texts(splits.train, workload.text_column)
        if splits.validation is None:
            train, held = split_documents(train)
        else:
            held = texts(splits.validation, workload.text_column)
        return _Corpus(train=train, held=held, name=workload.data, where=splits.train.where)

    def _model(self) -> tuple[ModelSource, PreTrainedConfig, PreTrainedTokenizerBase | None]:
        if self.workload.model is None:
            return ModelSource(name="Llama 4x128 over bytes"), small_llama(), None
        source = find_model(self.workload.model, trust=self.workload.trust_remote_code)
        return source, source.config(), source.tokenizer()

    def _find_teacher(
        self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None
    ) -> Teacher | None:
        if self.workload.teacher is None:
            return None
        teacher = find_teacher(self.workload.teacher, _KIND, trust=self.workload.trust_remote_code)
        check_same_tokens(teacher, tokenizer)
        check_same_vocabulary(teacher, config)
        return teacher

    def _stream(self, plan: DataPlan) -> Tokens:
        """Return the stream to train on: prepared, or made of texts when a part is asked for."""
        if not plan.on_the_fly:
            return self.array("train", mapped=plan.memory_map)
        texts = self.prepared.texts["train"]
        if self.prepared.facts["bytes"]:
            return texts.content
        ends = self.array("train_ends", mapped=plan.memory_map)
        return FreshTokens(documents=texts, ends=ends, tokenizer=self.source.tokenizer())

    def _default_length(self, config: PreTrainedConfig) -> int:
        if self.workload.model is None:
            return 128
        return min(longest_sequence(config) or _LONGEST_DEFAULT, _LONGEST_DEFAULT)

    def _defaults(self, source: ModelSource, train: int, length: int) -> Mapping[str, float]:
        """Return a training of seconds for the default model, of three passes for another."""
        rate = 5e-5 if source.pretrained else 2e-3
        if self.workload.model is None:
            return {
                "steps": 64,
                "global_batch": 16,
                "sequence_length": length,
                "eval_examples": 128,
                "learning_rate": rate,
            }
        batch = self.workload.global_batch or 8
        return {
            "steps": suggested_steps(train, batch),
            "global_batch": batch,
            "sequence_length": length,
            "eval_examples": 64,
            "learning_rate": rate,
        }


def _features(
    model: ModelFacts,
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
    teacher: Teacher | None,
) -> tuple[str, ...]:
    """Return what of a data or evaluation plan can be carried out with this model and data."""
    # A block of a long document can only be had by encoding the document whole.
    short = tokenizer is None or max(map(len, documents)) <= _LONGEST_ENCODED
    having = {
        "documents": True,
        "memory_map": True,
        "on_the_fly": short,
        "stream": model.family in STREAMED,
        "teacher": teacher is not None,
    }
    return tuple(name for name, there in having.items() if there)


def _tensors(inputs: np.ndarray, labels: np.ndarray) -> dict[str, Tensor]:
    return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}


def _mean_loss(model: nn.Module, tokens: Tensor, labels: Tensor, plan: StepPlan) -> Tensor:
    """Return the mean cross-entropy over the labels `(batch * tokens,)` that count."""
    if plan.loss_chunks == 1:
        logits = model(input_ids=tokens).logits
        return cross_entropy(logits.float().flatten(0, 1), labels, ignore_index=IGNORED)
    head = output_layer(model)
    if changes_logits(model) or type(head) is not nn.Linear:
        raise ModelError(
            f"{type(model).__name__} does more to its logits than a matrix product, "
            "so its loss cannot be computed in pieces",
            help="set loss_chunks to 1",
        )
    hidden = hidden_states(model, tokens)
    return chunked_cross_entropy(hidden, head.weight, labels, plan.loss_chunks, head.bias)


def _scores(
    losses: np.ndarray, hits: np.ndarray, total_bytes: float, tokens: int
) -> dict[str, Score]:
    """Return the scores of sequences; they, and not their tokens, are taken as independent.

    The standard error of a perplexity `exp(m)` is that of the mean loss `m` times `exp(m)`, by the
    delta method.

    Args:
        losses: Mean loss of each sequence, in nats.
        hits: Share of tokens that were guessed right, of each sequence.
        total_bytes: What all labels stand for; 0 if it is not known.
        tokens: Number of labels.
    """

    def error(values: np.ndarray) -> float | None:
        return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None

    mean, spread = float(losses.mean()), error(losses)
    perplexity = math.exp(min(mean, _MOST_NATS))
    scores = {
        PERPLEXITY.name: Score(
            value=perplexity, stderr=None if spread is None else perplexity * spread, n=tokens
        ),
        TOKEN_ACCURACY.name: Score(value=float(hits.mean()), stderr=error(hits), n=tokens),
    }
    if total_bytes:
        bits = tokens / total_bytes / math.log(2)
        scores[BITS_PER_BYTE.name] = Score(
            value=mean * bits, stderr=None if spread is None else spread * bits, n=tokens
        )
    return scores
