"""Matrices shared by ranks: heads of attention and units of feed-forward layers.

Where they are, is read off the tables that pruning uses (`knobs/architectures.py`): what a rank
has of a block is what pruning all other heads and units would leave, and two sums over the ranks
make up for the rest. torch's distributed tensors do those.

References:
    Shoeybi et al. 2019, arXiv:1909.08053; PyTorch documentation, Tensor Parallelism.
"""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from autotune.knobs.surgery import attention_layers, feed_forward_layers


def share_matrices(model: nn.Module, mesh: DeviceMesh) -> None:
    """Divide the matrices of every block among the ranks of a mesh; changed in place.

    Args:
        model: Of a family in `ATTENTION_HEADS` and `FEED_FORWARD` whose query, key and value are
            matrices of their own.
        mesh: Of one dimension, whose size divides heads, key/value heads and units.

    Raises:
        ModelError: If the family is unknown.
    """
    for heads in attention_layers(model):
        shape = heads.shape
        paths = [path for path in (shape.query, shape.key, shape.value) if path]
        plan: dict[str, ColwiseParallel | RowwiseParallel] = {
            **{path: ColwiseParallel() for path in paths},
            shape.output: RowwiseParallel(),
        }
        parallelize_module(heads.owner, mesh, plan)  # type: ignore[arg-type]  # invariant dict
        heads.recount(heads.groups // mesh.size())
    for _, owner, layer in feed_forward_layers(model):
        plan = {path: ColwiseParallel() for path in layer.inputs}
        plan[layer.output] = RowwiseParallel()
        parallelize_module(owner, mesh, plan)  # type: ignore[arg-type]  # invariant dict
