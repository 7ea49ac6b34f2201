"""Which implementation of an op takes some tensors."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor


def path_of(*tensors: Tensor) -> Literal["cpu", "gpu", "reference"]:
    """Numba kernels on CPUs and Triton kernels on NVIDIA GPUs, both for float32; else the torch twin."""
    if any(tensor.dtype != torch.float32 for tensor in tensors):
        return "reference"
    if tensors[0].device.type == "cpu":
        return "cpu"
    return "gpu" if tensors[0].is_cuda and _has_triton() else "reference"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
