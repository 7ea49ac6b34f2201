"""A perceptron on the hash encoding of points: what every field of a scene is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..hashgrid import GridLayout, encode
from ..mlp import mlp
from ..paths import path_of

__all__ = ["encoded_mlp"]


def encoded_mlp(
    points: Tensor, table: Tensor, layout: GridLayout, weights: Sequence[Tensor], active_levels: int | None = None
) -> Tensor:
    """mlp(encode(points, table, layout, active_levels), weights), [n, outputs]; see `hashgrid.encode` and `mlp.mlp`.

    On NVIDIA GPUs what passes between the two is fp16, and bf16 for gradients.
    """
    if path_of(points, table, *weights) == "gpu":
        from . import gpu

        if gpu.fits(layout, weights):
            return gpu.encoded_mlp(points, table, layout, weights, active_levels)
    return mlp(encode(points, table, layout, active_levels), weights)
