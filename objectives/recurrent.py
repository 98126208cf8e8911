"""Recurrent text classifiers in plain PyTorch: an LSTM or a GRU over word embeddings.

They show that a model need not come from transformers: `--model lstm` or `--model gru`. There are
no attention and no blocks in them; what is large is the embedding table and, in training, the gates
of every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import SequenceClassifierOutput

from autotune.core.context import ModelFacts
from autotune.knobs.dense import product_dtype
from autotune.knobs.stages import LoadPlan


@dataclass(slots=True, kw_only=True)
class RecurrentConfig:
    """Shape of a recurrent classifier, with the names that transformers uses.

    Attributes:
        model_type: `"lstm"` or `"gru"`.
        vocab_size: Of the tokenizer.
        embedding_size: Width of the embeddings.
        hidden_size: Width of the hidden state.
        num_hidden_layers: Layers on top of each other.
        num_labels: Classes.
        pad_token_id: Token to fill up with.
        id2label: Names of the classes.
        label2id: Numbers of the classes.
        use_cache: Always false; models of transformers have it.
    """

    model_type: str
    vocab_size: int
    embedding_size: int = 256
    hidden_size: int = 512
    num_hidden_layers: int = 2
    num_labels: int = 2
    pad_token_id: int = 0
    id2label: dict[int, str] = field(default_factory=dict)
    label2id: dict[str, int] = field(default_factory=dict)
    use_cache: bool = False

    def get_text_config(self) -> RecurrentConfig:
        """Return itself: there is nothing but text."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)


class RecurrentClassifier(nn.Module):
    """Embeddings, recurrent layers, the mean over tokens, and a linear layer to the classes.

    Args:
        config: Its shape.
    """

    cell: ClassVar[type[nn.LSTM] | type[nn.GRU]]

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(
            config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id
        )
        widths = [config.embedding_size] + [config.hidden_size] * (config.num_hidden_layers - 1)
        self.layers = nn.ModuleList(
            self.cell(width, config.hidden_size, batch_first=True) for width in widths
        )
        self.head = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Classify texts.

        Padding stands on the right, so no state of a token depends on it; the mask keeps it out of
        the mean.

        Args:
            input_ids: Tokens `(texts, tokens)`.
            attention_mask: 1 where a token is not padding `(texts, tokens)`; None if none is.
            labels: Classes `(texts,)`, for a loss.

        Returns:
            Logits `(texts, classes)` and, with labels, the mean cross-entropy.
        """
        states = self.embedding(input_ids)
        for layer in self.layers:
            states = _run(layer, states)
        logits = self.head(_mean(states, attention_mask))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class LSTMClassifier(RecurrentClassifier):
    """A classifier with long short-term memory.

    References:
        Hochreiter and Schmidhuber 1997, Long short-term memory; Gers et al. 2000 (forget gates).
    """

    cell = nn.LSTM


class GRUClassifier(RecurrentClassifier):
    """A classifier with gated recurrent units.

    References:
        Cho et al. 2014, arXiv:1406.1078.
    """

    cell = nn.GRU


RECURRENT: dict[str, type[RecurrentClassifier]] = {"lstm": LSTMClassifier, "gru": GRUClassifier}
"""Recurrent classifiers by the name that `--model` takes."""

NAMES = {"lstm": "LSTM 2x512", "gru": "GRU 2x512"}
"""How screens call them."""


def recurrent_config(name: str, vocab: int, pad: int, classes: Sequence[str]) -> RecurrentConfig:
    """Return the shape of a classifier of 2 layers and width 512.

    Args:
        name: One of `RECURRENT`.
        vocab: Size of its tokenizer's vocabulary.
        pad: Token to fill up with.
        classes: Names of the classes, in order.
    """
    return RecurrentConfig(
        model_type=name,
        vocab_size=vocab,
        num_labels=len(classes),
        pad_token_id=pad,
        id2label=dict(enumerate(classes)),
        label2id={label: number for number, label in enumerate(classes)},
    )


def build_recurrent(config: RecurrentConfig, plan: LoadPlan, seed: int) -> RecurrentClassifier:
    """Build a classifier on the CPU, in training mode.

    Random weights are drawn in fp32 and then rounded, so that all dtypes start from the same model.

    Args:
        config: What to build.
        plan: Dtype of the weights; with `shapes_only`, the model is on the device `meta`. There
            is no attention.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    with torch.device("meta" if plan.shapes_only else "cpu"):
        model = RECURRENT[config.model_type](config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, plan.dtype))
    return model.train()


def describe_recurrent(config: RecurrentConfig) -> ModelFacts:
    """Read a classifier's shape, and count its parameters without making them."""
    with torch.device("meta"):
        model = RECURRENT[config.model_type](config)
    return ModelFacts(
        name=NAMES[config.model_type],
        family=config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _mean(states: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over the tokens that are none of padding, `(texts, width)`."""
    if mask is None:
        return states.mean(1)
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)


def _run(layer: nn.Module, states: Tensor) -> Tensor:
    """Run one recurrent layer.

    On a CPU without instructions for bf16, an LSTM in bf16 runs thirty times slower than in fp32.
    There the layer computes in fp32, and once more in backward, so that only its input is kept.
    """
    weight = next(layer.parameters())
    if product_dtype(weight) is weight.dtype:
        out: Tensor = layer(states)[0]
        return out
    if not torch.is_grad_enabled():
        return _widened(layer, states)
    kept: Tensor = checkpoint(
        _widened, layer, states, use_reentrant=False, preserve_rng_state=False
    )
    return kept


def _widened(layer: nn.Module, states: Tensor) -> Tensor:
    wide = {name: parameter.float() for name, parameter in layer.named_parameters()}
    out: Tensor = torch.func.functional_call(layer, wide, (states.float(),))[0]
    return out.to(states.dtype)
