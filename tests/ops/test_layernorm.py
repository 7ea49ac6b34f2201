import pytest
import torch
from torch.nn import functional as F
from yardstick import assert_as_exact

from dream4d.ops.layernorm import add_layer_norm, reference


def test_it_gives_the_sum_and_its_norm():
    x, other, weight, bias = torch.randn(3, 5), torch.randn(3, 5), torch.randn(5), torch.randn(5)
    total, normal = add_layer_norm(x, other, weight, bias)
    torch.testing.assert_close(total, x + other)
    torch.testing.assert_close(normal, F.layer_norm(x + other, (5,), weight, bias))
    total, normal = add_layer_norm(x, None, weight, bias)
    torch.testing.assert_close(total, x)
    torch.testing.assert_close(normal, F.layer_norm(x, (5,), weight, bias))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7, 320), (50, 1280), (2, 5000), (0, 8)])
@pytest.mark.parametrize("with_other", [False, True])
def test_the_gpu_kernel_is_as_exact_as_eager(shape, mean, with_other, dtype):
    x, other = ((mean + torch.randn(shape, device="cuda")).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[-1], device="cuda").to(dtype) for _ in range(2))
    arguments = (x, other if with_other else None, weight, bias, 1e-5)
    exact = reference.add_layer_norm(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
    eager = reference.add_layer_norm(*arguments)
    for values in zip(add_layer_norm(*arguments), eager, exact, strict=True):
        assert_as_exact(*values)
