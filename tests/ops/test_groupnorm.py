import pytest
import torch
from torch import nn
from yardstick import assert_as_exact

from dream4d.ops.groupnorm import group_norm, reference

SHAPES = {
    "one place": (1, 8, 1, 1, 4), "odd": (2, 96, 5, 7, 32), "wide": (1, 320, 13, 31, 32), "long": (2, 32, 300, 257, 8),
}


def outputs(function, tensors, groups, dtype, silu):
    """What the function gives and the gradient to x; x keeps its memory format. There may be a shift."""
    x, weight, bias, grad, *shift = (
        value.detach().clone(memory_format=torch.preserve_format).to(dtype) for value in tensors
    )
    out = function(x.requires_grad_(), groups, weight, bias, 1e-5, shift=shift[0] if shift else None, silu=silu)
    return out.detach(), *torch.autograd.grad(out, x, grad)


@pytest.mark.parametrize("shift", [None, (8,), (2, 8)])
def test_it_is_what_torch_does_one_after_the_other(shift):
    norm, x = nn.GroupNorm(4, 8), torch.randn(2, 8, 3, 5)
    nn.init.normal_(norm.weight)
    if shift is not None:
        shift = torch.randn(shift)
    expected = norm(x if shift is None else x + shift.expand(2, 8)[:, :, None, None])
    arguments = x, 4, norm.weight, norm.bias, norm.eps
    torch.testing.assert_close(group_norm(*arguments, shift=shift), expected)
    torch.testing.assert_close(group_norm(*arguments, shift=shift, silu=True), nn.functional.silu(expected))


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="10 channels in 4 groups"):
        group_norm(torch.randn(1, 10, 2), 4, torch.ones(10), torch.zeros(10))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("mean", "shifts", "silu"), [(0.0, None, True), (100.0, 1, True), (1.0, 2, False)])
def test_gpu_kernels_are_as_exact_as_eager(shape, dtype, last, mean, shifts, silu):
    *sizes, groups = shape
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(sizes, generator=generator).cuda() for _ in range(2))
    weight, bias = (torch.randn(sizes[1], generator=generator).cuda() for _ in range(2))
    shift = [torch.randn(sizes[:2], generator=generator).cuda()] if shifts == 2 else [bias] if shifts else []
    layout = torch.channels_last if last else torch.contiguous_format
    # in the dtype's numbers, so that all three see the same
    tensors = [
        (value.to(memory_format=layout) if value.ndim == 4 else value).to(dtype).float()
        for value in (2 * x + mean, weight, bias, grad, *shift)
    ]
    kernel = outputs(group_norm, tensors, groups, dtype, silu)
    eager, exact = (outputs(reference.group_norm, tensors, groups, kind, silu) for kind in (dtype, torch.float64))
    assert kernel[0].is_contiguous(memory_format=layout)
    for values in zip(kernel, eager, exact, strict=True):
        assert_as_exact(*values)


@pytest.mark.gpu
def test_a_gradient_that_comes_another_way_is_added():
    from dream4d.ops.groupnorm import gpu

    x, grad, other = (torch.randn(2, 64, 9, 11, device="cuda") for _ in range(3))
    weight, bias = torch.randn(2, 64, device="cuda")
    _, statistics = gpu.forward(x, 32, weight, bias, 1e-5)
    alone = gpu.gradient(grad, x, statistics, weight, bias)
    torch.testing.assert_close(gpu.gradient(grad, x, statistics, weight, bias, add=other), alone + other)


@pytest.mark.gpu
def test_gpu_kernels_leave_no_number_unwritten_and_take_nothing():
    poison = torch.full((2**20,), float("nan"), device="cuda")  # what torch hands out next
    del poison
    x = torch.randn(3, 64, 9, 11, device="cuda").half()
    assert group_norm(x, 32, torch.ones(64).cuda().half(), torch.zeros(64).cuda().half()).isfinite().all()
    empty = x[:0].requires_grad_()
    out = group_norm(empty, 32, torch.ones(64).cuda().half(), torch.zeros(64).cuda().half())
    assert torch.autograd.grad(out.sum(), empty)[0].shape == empty.shape
