"""A part of each sequence on each rank: attention gathers the keys and values of all parts.

Everything but attention treats tokens alike, wherever they stand, so a rank computes it for its own
tokens only. Attention is registered with transformers as a kernel of its own: queries stay where
they are, keys and values come from all ranks, and each rank looks back as far as its part allows.
Backward sums what the ranks' queries say of each key. Positions are counted from where a part
begins.

References:
    Li et al. 2021, arXiv:2105.13120; Dubey et al. 2024, arXiv:2407.21783, section 3.3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from autotune.core.errors import ModelError
from autotune.knobs.blocks import transformers_base
from autotune.trial.objective import Batch

KERNEL = "autotune_shared_sequences"
"""Name of the attention kernel in the configuration of a model."""


class SharedSequences:
    """The sequences of a model, divided among the ranks of a mesh.

    Args:
        model: A language model of transformers whose attention looks back and takes positions,
            maybe with adapters around it; changed in place.
        mesh: Of one dimension; ranks along it have contiguous parts of the same sequences.

    Raises:
        ModelError: If the model is none of transformers.
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh) -> None:
        self._group = mesh.get_group()
        self._rank, self._size = mesh.get_local_rank(), mesh.size()
        self._configs = _configs(model)
        self._kernels = [config._attn_implementation for config in self._configs]
        self._local = False
        AttentionInterface.register(KERNEL, self._attend)
        self._use([KERNEL] * len(self._configs))
        base = transformers_base(model, way_out="set layout.context to 1")
        base.register_forward_pre_hook(self._count_positions, with_kwargs=True)

    def share(self, rows: Batch) -> Batch:
        """Return this rank's part of every sequence, and whatever else is in a batch.

        Args:
            rows: Tensors `(sequences, tokens)` are divided along tokens; others stay.

        Raises:
            ModelError: If their lengths cannot be divided.
        """
        return {name: self._part(tensor) for name, tensor in rows.items()}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have this rank compute whole sequences by itself, with the model's own attention."""
        self._local = True
        self._use(self._kernels)
        try:
            yield
        finally:
            self._use([KERNEL] * len(self._configs))
            self._local = False

    def _part(self, tensor: Tensor) -> Tensor:
        if tensor.ndim != 2:  # one value for each sequence
            return tensor
        if tensor.shape[1] % self._size:
            raise ModelError(
                f"sequences of {tensor.shape[1]} tokens cannot be divided among {self._size} ranks",
                help="set layout.context to 1, or another sequence_length",
            )
        return tensor.chunk(self._size, 1)[self._rank].contiguous()

    def _use(self, kernels: list[str]) -> None:
        for config, kernel in zip(self._configs, kernels, strict=True):
            config._attn_implementation = kernel

    def _count_positions(
        self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._local:
            return None
        tokens = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        assert tokens is not None
        first = self._rank * tokens.shape[1]
        positions = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        return args, {**kwargs, "position_ids": positions[None]}

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attend to all tokens up to one's own; see transformers' `AttentionInterface`.

        Args:
            module: The attention layer.
            query: Of this rank's tokens `(sequences, heads, tokens, size)`.
            key: The same, `(sequences, key/value heads, tokens, size)`.
            value: The same.
            attention_mask: None.
            dropout: Share of the weights that is dropped out; others on each rank.
            scaling: Factor on the products of queries and keys.
            sliding_window: Tokens that attention looks back; no less than there are.
            _: What layers hand to other kernels.

        Returns:
            What the tokens get `(sequences, tokens, heads, size)`, and no weights.
        """
        tokens = query.shape[2]
        seen = (self._rank + 1) * tokens
        narrow = sliding_window is not None and sliding_window < self._size * tokens
        if attention_mask is not None or narrow:
            raise ModelError(
                f"{type(module).__name__} does not look back at all tokens, and attention over "
                "several ranks does",
                help="set layout.context to 1",
            )
        keys = _gather(key, self._group)[:, :, :seen]
        values = _gather(value, self._group)[:, :, :seen]
        if key.shape[1] < query.shape[1]:  # only what was gathered is repeated
            times = query.shape[1] // key.shape[1]
            keys, values = keys.repeat_interleave(times, 1), values.repeat_interleave(times, 1)
        mask = torch.ones(tokens, seen, dtype=torch.bool, device=query.device)
        mask = mask.tril(seen - tokens)
        found = scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
        return found.transpose(1, 2).contiguous(), None


def _gather(part: Tensor, group: distributed.ProcessGroup) -> Tensor:
    found: Tensor = _Gathered.apply(part, group)  # type: ignore[no-untyped-call]  # untyped there
    return found


class _Gathered(torch.autograd.Function):
    """All ranks' parts `(sequences, heads, tokens, size)`, one after the other along tokens.

    torch's own differentiable `all_gather` is wrong on gloo for tensors that are not contiguous:
    its backward receives into memory with the strides of the gradient.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: distributed.ProcessGroup) -> Tensor:
        ctx.group = group
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(parts, part, group=group)
        return torch.cat(parts, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=ctx.group)
        size, rank = distributed.get_world_size(ctx.group), distributed.get_rank(ctx.group)
        return total.chunk(size, 2)[rank].contiguous(), None


def _configs(model: nn.Module) -> list[Any]:
    """Return the configurations that the layers of a model ask for their kernel."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            found[id(config)] = config
    return list(found.values())
