"""Sequence to sequence: read a text, write another one.

By default a small T5 learns to write numbers in digits that it reads in words, in seconds and with
nothing to download. Your own model (T5, BART, Marian, …) and data: `--model`, `--data`,
`--text-column` for what is read, `--label-column` for what is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
)

from autotune.core.outcome import Score
from autotune.core.workload import WorkloadFacts
from autotune.knobs.chunked_loss import IGNORED
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from autotune.trial.objective import Batch

from .cache import Array, Prepared
from .encoder_decoder import (
    EXACT_MATCH,
    PERPLEXITY,
    TOKEN_ACCURACY,
    TokenSums,
    check_start,
    decoder_loss,
    labels_each,
    output_vocabulary,
    token_sums,
)
from .files import read_data
from .limits import refuse_teacher
from .models import build_model, check_sequence_length, describe_model, longest_sequence
from .numbers import numbers_in_words
from .pairs import Pairs, split_pairs
from .rows import Rows, by_length, encode, lengths_of, padding_token, usual_length
from .sources import ModelSource, find_model, quiet
from .task import Task, check_counts, check_tokens, filled, shuffled_places, suggested_steps

FEATURES = ("by_length", "memory_map")
"""What of a data plan is carried out here."""

_KIND = AutoModelForSeq2SeqLM
_LONGEST_DEFAULT = 256
_NUMBERS, _DIGITS, _HELD_NUMBERS = 5000, 4, 500
_VOCABULARY = 4096
_PAD, _END = "<pad>", "</s>"
_T5_LIKE = frozenset({"longt5", "mt5", "t5", "umt5"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Corpus:
    """Pairs to train and evaluate on, and how screens call them."""

    train: Pairs
    held: Pairs
    name: str
    where: str


class Seq2Seq(Task):
    """Cross-entropy over the target's tokens; token accuracy, exact match and perplexity."""

    def look(self) -> tuple[Prepared, WorkloadFacts]:
        """Find pairs and model, and turn both sides into tokens; see `Task.look`."""
        refuse_teacher(self.workload)
        corpus = self.corpus()
        source, config, tokenizer = self._model(corpus.train)
        check_start(config, source)
        most = self._most_tokens(source, config)
        pad = padding_token(tokenizer)
        read, ends = encode(corpus.train.sources, tokenizer, most, pad)
        written, written_ends = _encode_targets(corpus.train.targets, tokenizer, most)
        workload = filled(
            self.workload,
            self._defaults(source, config, len(ends), usual_length(ends, most)),
            most_eval=len(corpus.held),
        )
        check_counts(
            workload,
            train=len(corpus.train),
            evaluate=len(corpus.held),
            unit="pairs",
            where=corpus.where,
        )
        held = corpus.held.pick(range(workload.eval_examples))
        held_read, held_ends = encode(held.sources, tokenizer, most, pad)
        held_written, held_written_ends = _encode_targets(held.targets, tokenizer, most)
        check_tokens((read, held_read), config.get_text_config().vocab_size, source)
        prepared = Prepared(
            arrays={
                "train_ids": read,
                "train_ends": ends,
                "train_target_ids": written,
                "train_target_ends": written_ends,
                "eval_ids": held_read,
                "eval_ends": held_ends,
                "eval_target_ids": held_written,
                "eval_target_ends": held_written_ends,
            },
            facts={
                "source": asdict(source),
                "pad": pad,
                "closing": _closing(read, ends),
                "target_closing": _closing(written, written_ends),
                "target_length": usual_length(written_ends, most),
                "vocab": len(tokenizer),
            },
        )
        config = self._config(source, prepared.facts)
        model, note = describe_model(_KIND, source, config, vocab=output_vocabulary(config))
        vocab = model.vocab or config.get_text_config().vocab_size
        check_tokens((written, held_written), vocab, source)
        return prepared, WorkloadFacts(
            workload=workload,
            model=model,
            data=f"{corpus.name}: {len(ends):,} pairs to train on, {len(held_ends):,} to evaluate "
            f"on, sha256 {prepared.digest[:12]}",
            data_fingerprint=prepared.digest,
            metrics=(TOKEN_ACCURACY, EXACT_MATCH, PERPLEXITY),
            note=" ".join(filter(None, (source.note, note))),
            features=FEATURES,
        )

    def train_batches(self, plan: DataPlan, seed: int) -> Iterator[Batch]:
        """Yield batches `input_ids`, `labels`, `labels_each` and, if needed, `attention_mask`.

        Targets have one length in all batches: that of nearly all of them.
        """
        sources = self._rows("train_", mapped=plan.memory_map)
        targets = self._rows("train_target_", mapped=plan.memory_map)
        lengths = lengths_of(sources.ends)
        # A mask is there for all batches or for none, so that all are alike.
        masked = bool((lengths < plan.sequence_length).any())
        if plan.by_length:
            batches = by_length(lengths, plan, seed)
        else:
            order = shuffled_places(len(lengths), plan.global_batch, seed)
            batches = ((places, plan.sequence_length) for places in order)
        for places, width in batches:
            yield self._batch(sources, targets, places, width, masked=masked)

    def eval_batches(self, plan: EvalPlan, sequence_length: int) -> Sequence[Batch]:
        """Return the held-out pairs in batches of at most `plan.batch`."""
        sources, targets = (self._rows(part, mapped=True) for part in ("eval_", "eval_target_"))
        masked = bool((sources.lengths < sequence_length).any())
        everything = np.arange(len(sources))
        return [
            self._batch(
                sources,
                targets,
                everything[start : start + plan.batch],
                sequence_length,
                masked=masked,
            )
            for start in range(0, len(sources), plan.batch)
        ]

    def build(self, plan: LoadPlan, seed: int) -> nn.Module:
        """Return the model with its output layer."""
        config = self._config(self.source, self.prepared.facts)
        return build_model(_KIND, self.source, config, plan, seed)

    def loss(self, model: nn.Module, batch: Batch, plan: StepPlan) -> Tensor:
        """Return the mean cross-entropy over the targets' tokens, computed in fp32."""
        return decoder_loss(model, batch, plan)

    def evaluate(
        self, model: nn.Module, batches: Sequence[Batch], plan: EvalPlan
    ) -> Mapping[str, Score]:
        """Return token accuracy, exact match and perplexity with their standard errors."""
        device = next(model.parameters()).device
        training = model.training
        model.eval()
        with torch.no_grad():
            sums = [
                token_sums(model, {name: t.to(device) for name, t in batch.items()}, plan)
                for batch in batches
            ]
        model.train(training)
        return TokenSums.joined(sums).scores()

    def corpus(self) -> _Corpus:
        """Read the data of the workload, or its own, split into parts."""
        workload = self.workload
        if workload.data is not None:
            splits = read_data(workload.data)
            train, held = split_pairs(splits, workload.text_column, workload.label_column)
            return _Corpus(train=train, held=held, name=workload.data, where=splits.train.where)
        words, digits = numbers_in_words(_NUMBERS, _DIGITS)
        everything = Pairs(sources=words, targets=digits)
        return _Corpus(
            train=everything.pick(range(_HELD_NUMBERS, _NUMBERS)),
            held=everything.pick(range(_HELD_NUMBERS)),
            name="numbers in words",
            where="the numbers",
        )

    def _model(self, train: Pairs) -> tuple[ModelSource, PreTrainedConfig, PreTrainedTokenizerBase]:
        asked = self.workload.model
        if asked is not None:
            source = find_model(asked, trust=self.workload.trust_remote_code)
            return source, source.config(), source.tokenizer()
        tokenizer = _train_tokenizer([*train.sources, *train.targets])
        return ModelSource(name="T5 2+2x128"), _small_t5(len(tokenizer)), tokenizer

    def _config(self, source: ModelSource, facts: Mapping[str, Any]) -> PreTrainedConfig:
        """Return the model's configuration, with what the tokenizer decides."""
        config = source.config() if source.folder else _small_t5(facts["vocab"])
        text = config.get_text_config()
        if text.pad_token_id is None:
            text.pad_token_id = facts["pad"]
        return config

    def _most_tokens(self, source: ModelSource, config: PreTrainedConfig) -> int:
        """Return how many tokens of a text are prepared, at most."""
        asked = self.workload.sequence_length
        check_sequence_length(asked, source, config)
        return asked or min(longest_sequence(config) or _LONGEST_DEFAULT, _LONGEST_DEFAULT)

    def _defaults(
        self, source: ModelSource, config: PreTrainedConfig, train: int, length: int
    ) -> Mapping[str, float]:
        """Return a training of seconds for the default data, of three passes for other data."""
        if source.pretrained:
            rate = 1e-4 if config.model_type in _T5_LIKE else 5e-5
        else:
            rate = 1e-3 if config.model_type in _T5_LIKE else 5e-4
        builtin = self.workload.model is None and self.workload.data is None
        batch = self.workload.global_batch or (32 if builtin else 16)
        return {
            "steps": 240 if builtin else suggested_steps(train, batch),
            "global_batch": batch,
            "sequence_length": length,
            "eval_examples": 256,
            "learning_rate": rate,
        }

    def _rows(self, part: str, *, mapped: bool) -> Rows:
        facts = self.prepared.facts
        return Rows(
            ids=self.array(f"{part}ids", mapped=mapped),
            ends=self.array(f"{part}ends", mapped=mapped),
            pad=facts["pad"],
            closing=facts["target_closing" if "target" in part else "closing"],
        )

    def _batch(
        self,
        sources: Rows,
        targets: Rows,
        places: NDArray[np.int64],
        width: int,
        *,
        masked: bool,
    ) -> dict[str, Tensor]:
        tokens, mask = sources.padded(places, width)
        written, counted = targets.padded(places, self.prepared.facts["target_length"])
        labels = torch.from_numpy(np.where(counted, written, IGNORED))
        batch = {
            "input_ids": torch.from_numpy(tokens),
            "labels": labels,
            "labels_each": labels_each(labels),
        }
        if masked:
            batch["attention_mask"] = torch.from_numpy(mask)
        return batch


def _encode_targets(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, most: int
) -> tuple[Array, Array]:
    """Turn targets into the `ids` and `ends` of `Rows`; each one ends with an end-of-text token.

    Without one, a model could not say that it is done. Some tokenizers put a language after it.
    """
    end = tokenizer.eos_token_id
    with quiet():
        encoded = tokenizer(text_target=list(texts), truncation=True, max_length=most)["input_ids"]
    rows = [
        [*row[: most - 1], end] if isinstance(end, int) and end not in row[-2:] else row
        for row in encoded
    ]
    return (
        np.concatenate([np.asarray(row, np.int32) for row in rows]),
        np.cumsum([len(row) for row in rows], dtype=np.int32),
    )


def _closing(ids: Array, ends: Array) -> int | None:
    """Return the token that all texts end with, so that shortened ones can, too."""
    last = np.unique(ids[np.asarray(ends) - 1])
    return int(last[0]) if len(last) == 1 else None


def _small_t5(vocab: int) -> T5Config:
    """Return an encoder-decoder of 2 and 2 layers and width 128, without dropout.

    Args:
        vocab: Size of its tokenizer's vocabulary.
    """
    return T5Config(
        vocab_size=vocab,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


def _train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Learn pieces of bytes from texts; digits stay apart, and nothing is unknown.

    References:
        Sennrich et al. 2016, arXiv:1508.07909.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_PAD, _END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", special_tokens=[(_END, tokenizer.token_to_id(_END))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # untyped there
        tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_END
    )
