"""A key/value cache whose past is packed in a few bits.

Tokens are kept as they come until a block of 32 is full, and are then packed once and for good:
keys along the tokens, since their channels differ in size by far, and values along the channels.
With scale and zero point in fp16, that is `bits + 1` bits per value. Attention gets the past
rebuilt, one layer at a time, and the new tokens exactly. transformers' own quantised layer rounds
its whole past anew each time that it grows; this one only appends.

References:
    Liu et al. 2024, arXiv:2402.02750 (keys along tokens, values along channels).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from autotune.core.errors import ModelError
from autotune.knobs.packed_formats import from_integers, pack, to_integers, unpack

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 32
"""Tokens that are packed together, and at most as many channels."""


def make_cache(model: nn.Module, bits: int) -> Cache:
    """Return an empty cache for a decoder.

    Args:
        model: A transformers language model without an encoder.
        bits: Bits per value; 16 keeps keys and values as they are.

    Returns:
        What the model takes as `past_key_values`; for layers with a sliding window it keeps the
        blocks that the window still touches.

    Raises:
        ModelError: If the model has an encoder, or keeps something other than keys and values.
    """
    config: Any = getattr(model, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} is no decoder of transformers, whose cache could be packed",
            help="set cache_bits to 16",
        )
    plain = DynamicCache(config=config)
    if bits == 16:
        return plain
    layers: list[Any] = []  # of a union of kinds, to which a list of one kind does not belong
    for layer in plain.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise ModelError(
                f"{type(model).__name__} has a cache of {type(layer).__name__}, which keeps "
                "something other than keys and values",
                help="set cache_bits to 16",
            )
        layers.append(PackedLayer(bits, window=getattr(layer, "sliding_window", None)))
    return Cache(layers=layers)


class Blocks(NamedTuple):
    """Packed blocks of tokens, `(batch, heads, blocks, ...)`: codes, scales and zero points."""

    codes: Tensor
    scale: Tensor
    zero: Tensor


class PackedStates:
    """Keys or values of one layer: packed blocks, and behind them the latest tokens.

    Args:
        bits: Width of a code.
        along_tokens: Whether the 32 tokens of a channel share a scale, not channels of a token.
    """

    def __init__(self, bits: int, *, along_tokens: bool) -> None:
        self.bits = bits
        self.along_tokens = along_tokens
        self.blocks: Blocks | None = None
        self.recent: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens that are kept."""
        packed = 0 if self.blocks is None else BLOCK * self.blocks.codes.shape[2]
        return packed + (0 if self.recent is None else self.recent.shape[2])

    def append(self, states: Tensor) -> Tensor:
        """Take in new tokens.

        Args:
            states: `(batch, heads, tokens, size)`.

        Returns:
            What was kept and what is new, in that order and in the dtype of what is new.
        """
        recent = states if self.recent is None else torch.cat((self.recent, states), dim=2)
        everything = recent
        if self.blocks is not None:
            past = self._unpack(self.blocks, states.shape[-1], states.dtype)
            everything = torch.cat((past, recent), dim=2)
        full = recent.shape[2] // BLOCK * BLOCK
        if full:
            new = self._pack(recent[:, :, :full])
            if self.blocks is not None:
                pairs = zip(self.blocks, new, strict=True)
                new = Blocks(*(torch.cat(pair, dim=2) for pair in pairs))
            self.blocks = new
        # A copy: a view would keep all of what it is a part of.
        self.recent = recent[:, :, full:].clone()
        return everything

    def drop(self, spare: int) -> None:
        """Forget whole blocks, the oldest ones, of at most `spare` tokens."""
        gone = max(0, spare) // BLOCK
        if self.blocks is not None and gone:
            self.blocks = Blocks(*(part[:, :, gone:].clone() for part in self.blocks))

    def select(self, rows: Tensor) -> None:
        """Keep the sequences of the batch at `rows`, in that order."""
        if self.recent is not None:
            self.recent = self.recent[rows]
        if self.blocks is not None:
            self.blocks = Blocks(*(part[rows] for part in self.blocks))

    def _pack(self, states: Tensor) -> Blocks:
        blocks = states.unflatten(2, (-1, BLOCK))
        if self.along_tokens:
            blocks = blocks.transpose(-1, -2)
        codes, scale, zero = to_integers(
            blocks.reshape(*blocks.shape[:3], -1, self._group(states.shape[-1])), self.bits
        )
        return Blocks(pack(codes, self.bits).view(*codes.shape[:3], -1), scale, zero)

    def _unpack(self, blocks: Blocks, size: int, dtype: torch.dtype) -> Tensor:
        shape = blocks.codes.shape[:3]
        codes = unpack(blocks.codes.flatten(), self.bits, math.prod(shape) * BLOCK * size)
        codes = codes.view(*shape, -1, self._group(size))
        states = from_integers(codes, blocks.scale, blocks.zero, dtype)
        if self.along_tokens:
            return states.view(*shape, size, BLOCK).transpose(-1, -2).flatten(2, 3)
        return states.view(*shape, BLOCK, size).flatten(2, 3)

    def _group(self, size: int) -> int:
        shared = BLOCK if self.along_tokens else math.gcd(size, BLOCK)
        return shared if shared >= 8 else size


class PackedLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # __init_subclass__, untyped there
    """The cache of one layer.

    Args:
        bits: Width of a code.
        window: How far attention reaches back in tokens, the newest included; None is all the way.
    """

    is_croppable = False
    supports_early_init = False

    def __init__(self, bits: int, window: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped there
        self.bits = bits
        self.window = window
        self.is_sliding = window is not None
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.is_initialized = False
        self.seen = 0
        self.packed_keys = PackedStates(self.bits, along_tokens=True)
        self.packed_values = PackedStates(self.bits, along_tokens=False)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take in new tokens.

        Args:
            key_states: `(batch, heads, tokens, size)`.
            value_states: The same of values, whose size may be another.
            *args: What transformers passes to caches of other kinds.
            **kwargs: The same.

        Returns:
            Keys and values of the past that is kept, and of the new tokens.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.seen += key_states.shape[-2]
        seen = self.packed_keys.append(key_states), self.packed_values.append(value_states)
        if self.window is not None:
            spare = self.packed_keys.tokens - (self.window - 1)
            self.packed_keys.drop(spare)
            self.packed_values.drop(spare)
        return seen

    def get_seq_length(self) -> int:
        """Return how many tokens were taken in."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many tokens attention will see, and how many before them are gone."""
        kept = self.packed_keys.tokens
        return kept + query_length, self.seen - kept

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Have each sequence of the batch continue the one that beam search chose."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence of the batch."""
        if self.packed_keys.recent is not None:
            rows = torch.arange(len(self.packed_keys.recent), device=self.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences of the batch at `indices`, in that order."""
        if self.is_initialized:
            rows = indices.to(self.device)
            self.packed_keys.select(rows)
            self.packed_values.select(rows)
