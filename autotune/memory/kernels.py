"""Attention as a CUDA device computes it, for fake tensors.

Which kernel `scaled_dot_product_attention` takes is decided below Python, by looking at the device;
on a machine without CUDA it would be the one that stores every score. So the choice is made here,
by the rules of torch for a device of compute capability 8.0 or more: flash attention for 16-bit
tensors without a mask, the memory-efficient kernel for others, plain products for what neither can.

References:
    Dao et al. 2022, arXiv:2205.14135; Rabe and Staats 2021, arXiv:2112.05682.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

Attention = Callable[..., Any]

FLASH_DTYPES = (torch.float16, torch.bfloat16)
FLASH_WIDTH = 8
MOST_FLASH_WIDTH = 256
BIAS_WIDTH = 16

_aten = torch.ops.aten


def cuda_attention(written_out: Attention) -> Attention:
    """Return a function to stand in for `scaled_dot_product_attention`.

    Args:
        written_out: The function of torch, which computes every score when it is given fakes.
    """

    def attend(  # noqa: PLR0917  as in torch
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002  as in torch
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: FBT001, FBT002  as in torch
    ) -> Any:
        query, key, value, bias = _in_autocast(query, key, value, attn_mask)
        factor = query.size(-1) ** -0.5 if scale is None else scale
        if _takes_flash(query, bias):
            return _flash(query, key, value, dropout_p, is_causal, factor)
        if _takes_efficient(query, key):
            return _efficient(query, key, value, bias, (dropout_p, is_causal, factor))
        return written_out(
            query, key, value, bias, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    return attend


def _in_autocast(*tensors: Tensor | None) -> Any:
    """Cast as autocast would: it acts below this function."""
    kind = next(t for t in tensors if t is not None).device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) if t is not None and t.is_floating_point() else t for t in tensors)


def _takes_flash(query: Tensor, bias: Tensor | None) -> bool:
    return (
        bias is None
        and query.ndim == 4
        and query.dtype in FLASH_DTYPES
        and query.size(-1) <= MOST_FLASH_WIDTH
    )


def _takes_efficient(query: Tensor, key: Tensor) -> bool:
    aligned = 4 if query.dtype is torch.float32 else 8
    return (
        query.ndim == 4
        and query.size(1) == key.size(1)
        and query.size(-1) % aligned == 0
        and query.dtype in (torch.float32, *FLASH_DTYPES)
    )


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    causal: bool,  # noqa: FBT001  passed on in the order of torch
    scale: float,
) -> Tensor:
    width = query.size(-1)
    short = -width % FLASH_WIDTH
    if short:
        query, key, value = (functional.pad(t, (0, short)) for t in (query, key, value))
    out: Tensor = _aten._scaled_dot_product_flash_attention(
        query, key, value, dropout, causal, False, scale=scale
    )[0]
    return out[..., :width] if short else out


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: tuple[float, bool, float],
) -> Tensor:
    dropout, causal, scale = options
    bias = None if mask is None else _as_bias(mask, query, key)
    keeps_sums = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    out: Tensor = _aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, keeps_sums, dropout, causal, scale=scale
    )[0]
    return out


def _as_bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return a mask as numbers that are added to scores, in rows that the kernel can read."""
    if mask.dtype is torch.bool:
        # The fake tensors hold no numbers, so only what is allocated matters here.
        mask = torch.zeros_like(mask, dtype=query.dtype)
    width = mask.size(-1)
    if width % BIAS_WIDTH:
        mask = functional.pad(mask, (0, -width % BIAS_WIDTH))[..., :width]
    return mask.expand(query.size(0), query.size(1), query.size(2), key.size(2))
