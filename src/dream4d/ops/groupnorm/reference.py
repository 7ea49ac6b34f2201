"""The readable twin of the kernels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None, silu: bool
) -> Tensor:
    """As `groupnorm.group_norm`."""
    if shift is not None:
        x = x + shift.reshape(-1, x.shape[1], *[1] * (x.ndim - 2))
    normal = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(normal) if silu else normal
