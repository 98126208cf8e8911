"""Bytes of plain tensors, of views, and of tensors made of other tensors."""

from __future__ import annotations

import torch
from torch.testing._internal.two_tensor import TwoTensor

from autotune.knobs.bytes import parts, storage_bytes, storages, tensor_bytes


def test_plain_tensors() -> None:
    assert tensor_bytes(torch.zeros(3, 4)) == 48
    assert tensor_bytes(torch.zeros(3, 4, dtype=torch.bfloat16)) == 24


def test_views_share_a_storage_that_counts_once() -> None:
    base = torch.zeros(10, 10)
    assert storages(base[2]) == storages(base)
    assert tensor_bytes(base[2]) == 40
    assert storage_bytes([base, base[2], base.t()]) == 400


def test_wrappers_are_looked_into() -> None:
    inner = TwoTensor(torch.zeros(4), torch.zeros(4))
    nested = TwoTensor(inner, TwoTensor(torch.zeros(4), torch.zeros(4)))
    assert len(list(parts(nested))) == 4
    assert tensor_bytes(nested) == 64
    assert storage_bytes([nested, inner]) == 64
