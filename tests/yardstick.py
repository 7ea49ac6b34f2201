"""How exact a kernel must be: as exact as eager torch at the same dtype, by a small factor."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_as_exact(kernel: Tensor, eager: Tensor, exact: Tensor, *, factor: float = 4.0) -> None:
    """error(kernel) <= factor * error(eager) + a few roundings of the largest entry; errors are maxima."""
    assert kernel.shape == eager.shape == exact.shape
    assert kernel.isfinite().all()
    if not exact.numel():
        return
    roundings = 8 * torch.finfo(kernel.dtype).eps * exact.abs().max()
    error, allowed = ((value.double() - exact).abs().max() for value in (kernel, eager))
    assert error <= factor * allowed + roundings, f"{error:.2e} > {factor} * {allowed:.2e} + {roundings:.2e}"


def assert_same_direction(kernel: Tensor, exact: Tensor) -> None:
    """Cosine near 1 and no signed bias, to 1e-5."""
    kernel = kernel.double()
    assert torch.dot(kernel.flatten(), exact.flatten()) >= (1 - 1e-5) * kernel.norm() * exact.norm()
    assert (kernel - exact).sum().abs() <= 1e-5 * exact.abs().sum()
