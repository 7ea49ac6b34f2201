"""LoRA layers to train (Hu et al., 2021), and the file that diffusers writes them to; `lora` reads it again.

They are hooks on the layers of a frozen network and no part of it: its own tensors and their names stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dream4d.files import atomic
from dream4d.priors.lora import FILES

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""Ends of the paths of a UNet's attention projections."""
ATTENTION_OF_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The same of a CLIP text encoder."""

_IN_FILES = {"unet": "unet.", "text_encoder": "text_encoder.text_model."}


class Adapter(nn.Module):
    """B A x beside a linear layer's W x, in the layer's dtype from fp32 parameters: down A [r, in], up B [out, r].

    B is zero at first, so that nothing changes before training. alpha is r: nothing scales the product.
    """

    def __init__(self, layer: nn.Linear, rank: int, generator: torch.Generator):
        super().__init__()
        device = layer.weight.device
        self.down = nn.Parameter((torch.randn(rank, layer.in_features, generator=generator) / rank).to(device))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


def adapt(network: nn.Module, ends: tuple[str, ...], rank: int, generator: torch.Generator) -> dict[str, Adapter]:
    """An adapter on every linear layer whose path ends so, by path; they work from now on, and `network` is frozen.

    Raises ValueError where there is no such layer, and for a rank below one.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1")
    network.requires_grad_(False)
    adapters: dict[str, Adapter] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(tuple(f".{end}" for end in ends)):
            adapters[name] = Adapter(layer, rank, generator)
            layer.register_forward_hook(_beside(adapters[name]))
    if not adapters:
        raise ValueError(f"{type(network).__name__} has no layers called {', '.join(ends)}: a LoRA has no place there")
    return adapters


def write_lora(file: Path, *, unet: Mapping[str, Adapter], text_encoder: Mapping[str, Adapter] | None = None) -> None:
    """Adapters as diffusers' ``pytorch_lora_weights.safetensors``, fp32, with peft's configuration as metadata."""
    tensors: dict[str, Tensor] = {}
    config: dict[str, object] = {}
    for part, adapters in (("unet", unet), ("text_encoder", text_encoder or {})):
        for name, adapter in adapters.items():
            path = _IN_FILES[part] + name.removeprefix("text_model.")  # transformers 5 leaves it out, files have it
            for side, values in (("lora_A", adapter.down), ("lora_B", adapter.up)):
                tensors[f"{path}.{side}.weight"] = values.detach().cpu().contiguous()
        if adapters:
            rank = len(next(iter(adapters.values())).down)
            ends = sorted({end for name in adapters for end in (*ATTENTION, *ATTENTION_OF_TEXT) if name.endswith(end)})
            config |= {f"{part}.r": rank, f"{part}.lora_alpha": rank, f"{part}.target_modules": ends}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(config, sort_keys=True)}
    with atomic(file) as partial:
        save_file(tensors, partial, metadata=metadata)


def lora_file(folder: Path) -> Path | None:
    """The LoRA in a folder, None if it has none."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def _beside(adapter: Adapter) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        result: Tensor = output + adapter(inputs[0])
        return result

    return hook
