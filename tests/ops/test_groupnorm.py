import pytest
import torch
from torch import nn
from yardstick import assert_as_exact

from dream4d.ops.groupnorm import group_norm_silu, reference

SHAPES = {
    "one place": (1, 8, 1, 1, 4), "odd": (2, 96, 5, 7, 32), "wide": (1, 320, 13, 31, 32), "long": (2, 32, 300, 257, 8),
}


def outputs(function, tensors, groups, dtype):
    """What the function gives and the gradient to x; x keeps its memory format."""
    x, weight, bias, grad = (value.detach().clone(memory_format=torch.preserve_format).to(dtype) for value in tensors)
    out = function(x.requires_grad_(), groups, weight, bias, 1e-5)
    return out.detach(), *torch.autograd.grad(out, x, grad)


def test_it_is_what_torch_does_one_after_the_other():
    norm, x = nn.GroupNorm(4, 8), torch.randn(2, 8, 3, 5)
    nn.init.normal_(norm.weight)
    expected = nn.functional.silu(norm(x))
    torch.testing.assert_close(group_norm_silu(x, 4, norm.weight, norm.bias, norm.eps), expected)


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="10 channels in 4 groups"):
        group_norm_silu(torch.randn(1, 10, 2), 4, torch.ones(10), torch.zeros(10))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_gpu_kernels_are_as_exact_as_eager(shape, dtype, last, mean):
    *sizes, groups = shape
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(sizes, generator=generator).cuda() for _ in range(2))
    weight, bias = (torch.randn(sizes[1], generator=generator).cuda() for _ in range(2))
    layout = torch.channels_last if last else torch.contiguous_format
    # in the dtype's numbers, so that all three see the same
    tensors = [
        (value.to(memory_format=layout) if value.ndim == 4 else value).to(dtype).float()
        for value in (2 * x + mean, weight, bias, grad)
    ]
    kernel = outputs(group_norm_silu, tensors, groups, dtype)
    eager, exact = (outputs(reference.group_norm_silu, tensors, groups, kind) for kind in (dtype, torch.float64))
    assert kernel[0].is_contiguous(memory_format=layout)
    for values in zip(kernel, eager, exact, strict=True):
        assert_as_exact(*values)


@pytest.mark.gpu
def test_gpu_kernels_leave_no_number_unwritten_and_take_nothing():
    poison = torch.full((2**20,), float("nan"), device="cuda")  # what torch hands out next
    del poison
    x = torch.randn(3, 64, 9, 11, device="cuda").half()
    assert group_norm_silu(x, 32, torch.ones(64).cuda().half(), torch.zeros(64).cuda().half()).isfinite().all()
    empty = x[:0].requires_grad_()
    out = group_norm_silu(empty, 32, torch.ones(64).cuda().half(), torch.zeros(64).cuda().half())
    assert torch.autograd.grad(out.sum(), empty)[0].shape == empty.shape
