"""Layer normalisation of a residual stream, without gradients: the sum and its norm in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ..paths import has_triton
from . import reference

__all__ = ["add_layer_norm"]

LONGEST = 8192
"""Channels of a row that a program holds."""


def add_layer_norm(
    x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """y = x + other, or x, and weight * (y - mean) / sqrt(variance + eps) + bias (Ba et al. 2016).

    x, other: [.., c]. weight, bias: [c]. Mean and variance are those of the c channels of a row, in fp32 on GPUs.
    """
    fits = x.dtype in (torch.float16, torch.bfloat16, torch.float32) and x.shape[-1] <= LONGEST and has_triton()
    if x.is_cuda and fits:
        from . import gpu

        return gpu.add_layer_norm(x, other, weight, bias, eps)
    return reference.add_layer_norm(x, other, weight, bias, eps)
