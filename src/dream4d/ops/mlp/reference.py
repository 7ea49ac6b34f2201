"""Torch twin of the small perceptrons: any device, any dtype."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def mlp(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """As `mlp.mlp`."""
    x = x.to(weights[0].dtype)
    for weight in weights[:-1]:
        x = F.relu(F.linear(x, weight))
    return F.linear(x, weights[-1])
