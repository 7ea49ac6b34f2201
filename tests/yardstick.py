"""How exact a kernel must be: as exact as eager torch at the same dtype, by a small factor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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


def assert_kernels_are_as_exact_as_eager(run: Callable[[Any, torch.dtype], Sequence[Tensor]], kernels: Any, twin: Any):
    """All that `run(path, dtype)` gives, for the float32 `kernels` and for the `twin` in both precisions."""
    paths = ((kernels, torch.float32), (twin, torch.float32), (twin, torch.float64))
    for kernel, eager, exact in zip(*(run(*path) for path in paths), strict=True):
        assert_as_exact(kernel, eager, exact)
        assert_same_direction(kernel, exact)


def assert_same_direction(kernel: Tensor, exact: Tensor) -> None:
    """Cosine near 1 and no signed bias, to 1e-5."""
    kernel = kernel.double()
    assert torch.dot(kernel.flatten(), exact.flatten()) >= (1 - 1e-5) * kernel.norm() * exact.norm()
    assert (kernel - exact).sum().abs() <= 1e-5 * exact.abs().sum()
