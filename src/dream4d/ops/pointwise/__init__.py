"""What frozen networks do to each number alone, in one pass over memory; without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..paths import has_triton
from . import reference

__all__ = ["add_bias", "geglu"]


def geglu(x: Tensor) -> Tensor:
    """a * gelu(b) of x = [a, b], [.., 2 d] -> [.., d] (Shazeer 2020), with the exact Gaussian."""
    if _on_gpu(x) and x.is_contiguous():
        from . import gpu

        return gpu.geglu(x)
    return reference.geglu(x)


def add_bias(x: Tensor, bias: Tensor, other: Tensor | None = None) -> Tensor:
    """x + bias [c] (+ other, of x's shape) for x [b, c, ..]. Takes x's memory for the result where it can.

    On NVIDIA GPUs a kernel for channels_last and what is dense with channels innermost, rounding once.
    """
    if _on_gpu(x) and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        from . import gpu

        return gpu.add_bias(x, bias, other)
    return reference.add_bias(x, bias, other)


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16, torch.float32) and has_triton()
