"""The same networks, quicker on CPUs: what torch computes there by slow ways, by oneDNN's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TemporalConv(nn.Conv3d):
    """A convolution along time alone, as one in two dimensions over [t, h * w]: oneDNN has those in fp32 only."""

    def forward(self, x: Tensor) -> Tensor:
        batch, _, frames, height, width = x.shape
        plane = x.reshape(batch, -1, frames, height * width)
        out = F.conv2d(plane, self.weight[..., 0], self.bias, padding=(int(self.padding[0]), 0))
        return out.reshape(batch, -1, frames, height, width)


class Linear(nn.Linear):
    """Without gradients a product of oneDNN: torch's own is MKL's, which is half as fast on AMD."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def quicken(network: nn.Module) -> None:
    """Let the layers of a network on a CPU, in fp32, take the quick ways. Outputs change by roundings."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        elif type(module) is nn.Conv3d and _along_time_alone(module):
            module.__class__ = TemporalConv


def _along_time_alone(conv: nn.Conv3d) -> bool:
    plain = conv.groups == 1 and set(conv.stride) == set(conv.dilation) == {1} and conv.padding_mode == "zeros"
    return plain and conv.kernel_size[1:] == (1, 1) and isinstance(conv.padding, tuple) and conv.padding[1:] == (0, 0)
