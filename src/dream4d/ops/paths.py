"""Which implementation of an op takes some tensors."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor


def path_of(*tensors: Tensor, half: Tensor | None = None) -> Literal["cpu", "gpu", "reference"]:
    """Numba kernels on CPUs and Triton kernels on NVIDIA GPUs, both for fp32; else the torch twin. `half` is a tensor
    that may also be fp16 on a GPU."""
    if any(tensor.dtype != torch.float32 for tensor in tensors):
        return "reference"
    on_gpu = tensors[0].is_cuda
    if half is not None and half.dtype not in ((torch.float32, torch.float16) if on_gpu else (torch.float32,)):
        return "reference"
    if tensors[0].device.type == "cpu":
        return "cpu"
    return "gpu" if on_gpu and has_triton() else "reference"


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None
