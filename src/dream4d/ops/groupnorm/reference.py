"""The readable twin of the kernels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `groupnorm.group_norm_silu`."""
    return F.silu(F.group_norm(x, groups, weight, bias, eps))
