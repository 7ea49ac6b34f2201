"""Ways to make frozen networks of diffusers quicker on a GPU that change results by roundings only."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch._dynamo
from torch import Tensor, nn

from dream4d.ops.groupnorm import group_norm_silu

BLOCKS = (
    "ResnetBlock2D", "BasicTransformerBlock", "Downsample2D", "Upsample2D", "TemporalConvLayer", "UNetMidBlock2D",
)
"""Classes of diffusers that its UNets and autoencoders repeat. Of one inside another, only the outer is compiled."""


SHAPES = 128
"""Compiled forms of one block, at most; torch falls back to eager beyond."""


def tune(networks: Iterable[nn.Module]) -> None:
    """All of it, once for each network. The first steps take minutes then."""
    for network in {id(network): network for network in networks}.values():
        channels_last(network)
        fuse_norms(network)
        compile_blocks(network)


def channels_last(network: nn.Module) -> None:
    """Convolutions' weights in the memory format that tensor cores read; activations follow them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def compile_blocks(network: nn.Module, *, backend: str = "inductor", mode: str | None = None) -> int:
    """Compile the repeated blocks in place, each kind once for each shape: seconds, where a whole UNet takes minutes.

    Returns how many modules that are.
    """
    # Blocks of a kind share their code, and a UNet has some twenty shapes of a residual block.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    count = 0

    def visit(module: nn.Module) -> None:
        nonlocal count
        for child in module.children():
            if type(child).__name__ in BLOCKS:
                child.compile(backend=backend, mode=mode, dynamic=False)
                count += 1
            else:
                visit(child)

    visit(network)
    return count


class _NormSilu(nn.GroupNorm):
    """GroupNorm and the SiLU that follows it."""

    def forward(self, x: Tensor) -> Tensor:
        return group_norm_silu(x, self.num_groups, self.weight, self.bias, self.eps)


class _SiluOfEmbeddings(nn.Module):
    """What is left for a residual block's activation: time embeddings, [b, c]. Maps went through theirs already."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x) if x.ndim == 2 else x


def fuse_norms(network: nn.Module) -> int:
    """Let every GroupNorm that a SiLU follows do both in one kernel; parameters stay where they are.

    That is so in the residual blocks of diffusers' UNets and autoencoders, and at the end of encoder and decoder.
    Returns how many there are.
    """
    count = 0
    names: tuple[str, ...]
    for module in network.modules():
        kind = type(module).__name__
        if kind == "ResnetBlock2D" and module.time_embedding_norm != "scale_shift":
            names, activation = ("norm1", "norm2"), "nonlinearity"
        elif kind in ("Encoder", "Decoder", "UNet2DConditionModel", "UNet3DConditionModel"):
            names, activation = ("conv_norm_out",), "conv_act"
        else:
            continue
        norms = [getattr(module, name) for name in names]
        if all(type(norm) is nn.GroupNorm for norm in norms) and isinstance(getattr(module, activation), nn.SiLU):
            for norm in norms:
                norm.__class__ = _NormSilu
            setattr(module, activation, _SiluOfEmbeddings())
            count += len(norms)
    return count
