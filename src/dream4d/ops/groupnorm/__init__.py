"""Group normalisation of frozen networks, with what stands before and after it, as one step for autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from ..paths import has_triton
from . import reference

__all__ = ["group_norm"]


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, shift: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """z = weight * (y - mean) / sqrt(variance + eps) + bias with y = x + shift (Wu and He 2018), or silu(z).

    x: [b, c, ..] in any memory format, which the result has, too. weight, bias: [c]. shift: [c] or [b, c], such as the
    bias of a convolution that left it to us. Mean and variance are those of the c / groups channels of a group at all
    places of an item. On NVIDIA GPUs fp16, bf16 and fp32 with frozen parameters take kernels whose statistics are fp32;
    only x is kept for the gradient, which goes to x alone.

    Raises ValueError where groups do not divide the channels.
    """
    if x.shape[1] % groups:
        raise ValueError(f"{x.shape[1]} channels in {groups} groups: expected a multiple")
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    others = [weight, bias] if shift is None else [weight, bias, shift]
    trained = torch.is_grad_enabled() and any(other.requires_grad for other in others)
    if x.is_cuda and x.dtype in dtypes and not trained and has_triton():
        from . import gpu

        return gpu.group_norm(x, groups, weight, bias, eps, shift, silu)
    return reference.group_norm(x, groups, weight, bias, eps, shift, silu)
