"""Group normalisation and the SiLU that follows it, as one step for autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from ..paths import has_triton
from . import reference

__all__ = ["group_norm_silu"]


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """silu(z), z = weight * (x - mean) / sqrt(variance + eps) + bias (Wu and He 2018; Elfwing et al. 2018).

    x: [b, c, ..] in any memory format, which the result has, too. weight, bias: [c]. Mean and variance are those of the
    c / groups channels of a group at all places of an item. On NVIDIA GPUs fp16, bf16 and fp32 with frozen parameters
    take one kernel for both; statistics are fp32, and only x is kept for the gradient.

    Raises ValueError where groups do not divide the channels.
    """
    if x.shape[1] % groups:
        raise ValueError(f"{x.shape[1]} channels in {groups} groups: expected a multiple")
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    trained = torch.is_grad_enabled() and (weight.requires_grad or bias.requires_grad)
    if x.is_cuda and x.dtype in dtypes and not trained and has_triton():
        from . import gpu

        return gpu.group_norm_silu(x, groups, weight, bias, eps)
    return reference.group_norm_silu(x, groups, weight, bias, eps)
