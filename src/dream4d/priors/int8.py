"""Weights in eight bits, half the size of fp16: how the package ships its UNets.

A file of safetensors, ``diffusion_pytorch_model.int8.safetensors``, of the names that the model itself has. A matrix or
a kernel is int8, and beside it stands ``<name>:scale``, fp32: by row (output channel), what 1 is worth. Small tensors
are fp16. A UNet's prediction changes by one percent of its length (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dream4d.files import atomic

SCALE = ":scale"
SMALLEST = 4096
"""Numbers below which a tensor stays fp16."""


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.numel() < SMALLEST or not tensor.is_floating_point():
            packed[name] = tensor.half() if tensor.is_floating_point() else tensor
            continue
        rows = tensor.detach().float().flatten(1)
        scale = rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        packed[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(tensor.shape)
        packed[name + SCALE] = scale
    return {name: tensor.contiguous().cpu() for name, tensor in packed.items()}


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `pack` was given, rounded, in fp32; as it is where nothing was packed."""
    scales = {name.removesuffix(SCALE): scale for name, scale in tensors.items() if name.endswith(SCALE)}
    return {
        name: tensor.float() * scales[name].reshape(-1, *[1] * (tensor.ndim - 1)) if name in scales else tensor
        for name, tensor in tensors.items() if not name.endswith(SCALE)
    }  # fmt: skip


def save(model: Any, folder: Path) -> None:
    """A diffusers model's ``config.json`` and weights."""
    from safetensors.torch import save_file

    model.save_config(folder)
    with atomic(folder / "diffusion_pytorch_model.int8.safetensors") as file:
        save_file(pack(model.state_dict()), file, metadata={"format": "pt"})
