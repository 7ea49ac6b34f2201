import pytest
import torch
from yardstick import assert_as_exact

from dream4d.ops.pointwise import add_bias, geglu, reference

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])


def test_a_gated_unit_multiplies_one_half_by_what_the_other_opens():
    x = torch.tensor([[2.0, -3.0, 0.0, 100.0]])
    torch.testing.assert_close(geglu(x), torch.tensor([[0.0, -300.0]]))


def test_a_bias_goes_to_its_channel():
    x, other = torch.zeros(1, 2, 1, 2), torch.full((1, 2, 1, 2), 10.0)
    expected = torch.tensor([[[[1.0, 1.0]], [[2.0, 2.0]]]])
    torch.testing.assert_close(add_bias(x.clone(), torch.tensor([1.0, 2.0])), expected)
    torch.testing.assert_close(add_bias(x.clone(), torch.tensor([1.0, 2.0]), other), expected + 10)


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("shape", [(3, 5, 2), (7, 640), (2, 9, 2560), (1, 10240), (0, 8)])
def test_the_gpu_kernel_of_the_gated_unit_is_as_exact_as_eager(shape, dtype):
    x = (3 * torch.randn(shape, device="cuda")).to(dtype)
    assert_as_exact(geglu(x), reference.geglu(x), reference.geglu(x.double()))


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("with_other", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 7, 3), (3, 320, 33, 9), (0, 4, 2, 2)])
def test_the_gpu_kernel_of_the_bias_is_as_exact_as_eager(shape, with_other, dtype):
    x, other = (torch.randn(shape, device="cuda").to(dtype) for _ in range(2))
    bias = torch.randn(shape[1], device="cuda").to(dtype)
    last = x.to(memory_format=torch.channels_last)
    added = other if with_other else None  # contiguous, unlike x
    exact = reference.add_bias(x.double(), bias.double(), None if added is None else added.double())
    eager = reference.add_bias(x, bias, added)
    assert_as_exact(add_bias(last.clone(memory_format=torch.preserve_format), bias, added), eager, exact)
