"""What models that read one sequence and write another share: their loss, and scores of tokens.

The target stands on the right side only: the decoder sees it shifted by one, with the model's start
token in front, and padding does not count. Tokens count as in the whole batch, so micro-batches
average to its mean however padding falls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig

from autotune.core.errors import ModelError
from autotune.core.outcome import Score
from autotune.core.workload import Metric
from autotune.knobs.chunked_loss import IGNORED, chunked_cross_entropy
from autotune.knobs.stages import EvalPlan, StepPlan
from autotune.trial.objective import Batch

from .logits import inner, output_layer
from .sources import ModelSource

TOKEN_ACCURACY = Metric(name="token_accuracy", maximize=True)
EXACT_MATCH = Metric(name="exact_match", maximize=True)
PERPLEXITY = Metric(name="perplexity", maximize=False)

PLAIN_OUTPUT = frozenset(
    {
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "longt5", "m2m_100"),
        *("marian", "mbart", "mt5", "mvp", "pegasus", "pegasus_x", "plbart", "t5", "umt5"),
        "whisper",
    }
)
"""Families whose logits are a matrix product, and at most `final_logits_bias` added to it."""

_NOT_FOR_MODELS = ("labels", "labels_each")
_OWN_START = frozenset({"mbart", "plbart"})  # they move the last token, a language, to the front
_TOKENS_AT_ONCE = 256
_MOST_NATS = 100.0


class _ReachedOutput(Exception):
    """Ends a forward pass before the output layer, whose input it carries."""

    def __init__(self, states: Tensor) -> None:
        super().__init__("the forward pass reached the output layer")
        self.states = states


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSums:
    """Sums over the target tokens of each sequence, all `(sequences,)`.

    Attributes:
        losses: Cross-entropy in nats.
        hits: Tokens that are the best guess after those before them.
        tokens: Tokens that count.
    """

    losses: NDArray[np.float64]
    hits: NDArray[np.float64]
    tokens: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Sequence[TokenSums]) -> TokenSums:
        """Return the sums of several batches, one after the other."""
        return cls(
            losses=np.concatenate([part.losses for part in parts]),
            hits=np.concatenate([part.hits for part in parts]),
            tokens=np.concatenate([part.tokens for part in parts]),
        )

    def scores(self) -> dict[str, Score]:
        """Return token accuracy, exact match and perplexity.

        A target is matched exactly if every token of it is the best guess after those before it.
        That is when greedy decoding writes it, so nothing has to be decoded to know.
        """
        count, tokens = len(self.tokens), int(self.tokens.sum())
        matched = float((self.hits == self.tokens).mean())
        mean, spread = ratio(self.losses, self.tokens)
        perplexity = math.exp(min(mean, _MOST_NATS))
        accuracy, accuracy_spread = ratio(self.hits, self.tokens)
        return {
            TOKEN_ACCURACY.name: Score(value=accuracy, stderr=accuracy_spread, n=tokens),
            EXACT_MATCH.name: Score(
                value=matched, stderr=math.sqrt(matched * (1 - matched) / count), n=count
            ),
            PERPLEXITY.name: Score(
                value=perplexity,
                stderr=None if spread is None else perplexity * spread,
                n=tokens,
            ),
        }


def ratio(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> tuple[float, float | None]:
    """Return the sum of parts over the sum of wholes, and its standard error.

    Sequences, and not their tokens, are taken as independent. The error is that of the ratio
    estimator, by the delta method; None for a single sequence.

    References:
        Cochran 1977, Sampling Techniques, chapter 6.
    """
    count, total = len(wholes), float(wholes.sum())
    value = float(parts.sum()) / total
    if count < 2:
        return value, None
    squares = float(((parts - value * wholes) ** 2).sum())
    return value, math.sqrt(squares * count / (count - 1)) / total


def output_vocabulary(config: PreTrainedConfig) -> int:
    """Return the outputs per target token; 0 where the loss cannot be computed in pieces."""
    text = config.get_text_config()
    own = getattr(text, "decoder_vocab_size", None)
    return int(own or text.vocab_size) if text.model_type in PLAIN_OUTPUT else 0


def check_start(config: PreTrainedConfig, source: ModelSource) -> None:
    """See that the model is an encoder-decoder that knows what its decoder starts with.

    Raises:
        ModelError: If it is not.
    """
    family = config.get_text_config().model_type
    if not config.is_encoder_decoder:
        raise ModelError(
            f"{source.name} is of the family '{family}', which does not read one sequence and "
            "write another",
            where=source.folder,
            help="give an encoder-decoder such as T5, BART or Marian with --model",
        )
    start = getattr(config, "decoder_start_token_id", None)
    if start is None and family not in _OWN_START:
        raise ModelError(
            f"{source.name} does not say which token its decoder starts with",
            where=source.folder,
            help='add "decoder_start_token_id" to its config.json',
        )


def shifted(labels: Tensor, start: int, pad: int) -> Tensor:
    """Return the decoder's input for labels: one token later, `start` in front.

    Args:
        labels: `(batch, tokens)`, with `IGNORED` for padding.
        start: Token that the decoder starts with.
        pad: Token in the place of padding.
    """
    moved = labels.roll(1, 1)
    moved[:, 0] = start
    return moved.masked_fill(moved == IGNORED, pad)


def labels_each(labels: Tensor) -> Tensor:
    """Return, for each sequence of a whole batch, the mean number of its labels that count.

    Args:
        labels: `(batch, tokens)`, with `IGNORED` for those that do not.
    """
    return (labels != IGNORED).sum(1).float().mean().expand(len(labels)).contiguous()


def decoder_loss(model: nn.Module, batch: Batch, plan: StepPlan) -> Tensor:
    """Return the mean cross-entropy over the target tokens of a batch, computed in fp32.

    In a micro-batch, tokens count as in the whole batch, so that micro-batches average to its mean.

    Args:
        model: An encoder-decoder.
        batch: What it takes, with `labels` and `labels_each`.
        plan: With `loss_chunks` above 1, logits of all tokens never exist at once.

    Raises:
        ModelError: If the loss is to be computed in pieces, and the model does more to its logits.
    """
    labels, inputs = batch["labels"], _inputs(model, batch)
    share = (labels != IGNORED).sum() / batch["labels_each"].sum()
    if plan.loss_chunks == 1:
        logits = model(**inputs).logits
        mean = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        return mean * share
    head = output_layer(model)
    if not _plain(model) or type(head) is not nn.Linear:
        raise ModelError(
            f"{type(model).__name__} does more to its logits than a matrix product, "
            "so its loss cannot be computed in pieces",
            help="set loss_chunks to 1",
        )
    states = _output_states(model, head, inputs)
    bias = _output_bias(model, head)
    return chunked_cross_entropy(states, head.weight, labels, plan.loss_chunks, bias) * share


def token_sums(model: nn.Module, batch: Batch, plan: EvalPlan) -> TokenSums:
    """Score the target tokens of a batch, each after those before it.

    Logits of few tokens exist at once where the model's output layer can be asked alone.

    Args:
        model: An encoder-decoder, on the device of the batch, in evaluation mode.
        batch: What it takes, with `labels`.
        plan: Pieces, at least.
    """
    labels, inputs = batch["labels"], _inputs(model, batch)
    right = labels.flatten()
    if _plain(model):
        head = output_layer(model)
        bias = getattr(inner(model), "final_logits_bias", 0.0)
        states = _output_states(model, head, inputs).flatten(0, 1)
        few = min(_TOKENS_AT_ONCE, math.ceil(len(right) / plan.loss_chunks))
        pieces = [
            _scored(head(some).float() + bias, wanted)
            for some, wanted in zip(states.split(few), right.split(few), strict=True)
        ]
    else:
        pieces = [_scored(model(**inputs).logits.float().flatten(0, 1), right)]
    losses, hits = (torch.cat(tensors).view_as(labels) for tensors in zip(*pieces, strict=True))
    sums = (part.double().sum(1).cpu().numpy() for part in (losses, hits, labels != IGNORED))
    return TokenSums(**dict(zip(("losses", "hits", "tokens"), sums, strict=True)))


def _scored(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    losses = cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
    return losses, logits.argmax(-1) == labels


def _inputs(model: nn.Module, batch: Batch) -> Mapping[str, Any]:
    """Return the arguments of the forward pass; the decoder's input is made of the labels."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in _NOT_FOR_MODELS}
    if "decoder_input_ids" not in inputs:
        labels, config = batch["labels"], _config(model)
        shift = getattr(inner(model), "prepare_decoder_input_ids_from_labels", None)
        inputs["decoder_input_ids"] = (
            shift(labels=labels)
            if shift is not None
            else shifted(labels, config.decoder_start_token_id, config.pad_token_id)
        )
    return inputs


def _config(model: nn.Module) -> Any:
    return inner(model).config


def _plain(model: nn.Module) -> bool:
    return _config(model).get_text_config().model_type in PLAIN_OUTPUT


def _output_states(model: nn.Module, head: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return what the output layer gets, `(batch, tokens, width)`.

    Families differ in what they do to the decoder's output before that layer: some of T5 scale it.
    So the model's own forward pass is run, and ends where that layer begins.
    """

    def end(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise _ReachedOutput(args[0])

    hook = head.register_forward_pre_hook(end)
    try:
        model(**inputs)
    except _ReachedOutput as reached:
        return reached.states
    finally:
        hook.remove()
    raise ModelError(
        f"{type(model).__name__} makes its logits without its output layer",
        help="set loss_chunks to 1",
    )


def _output_bias(model: nn.Module, head: nn.Linear) -> Tensor | None:
    """Return what is added to the product, `(vocab,)`; BART's kin keep it apart from the layer."""
    apart = getattr(inner(model), "final_logits_bias", None)
    if apart is None:
        return head.bias
    bias: Tensor = apart.flatten()
    return bias if head.bias is None else bias + head.bias
