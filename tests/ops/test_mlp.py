import pytest
import torch
from yardstick import assert_kernels_are_as_exact_as_eager

from dream4d.ops.encoded_mlp import encoded_mlp
from dream4d.ops.hashgrid import GridLayout, encode
from dream4d.ops.mlp import cpu, mlp, reference

WIDTHS = {
    "radiance": (32, 128, 4),
    "deformation": (24, 64, 64, 64, 64, 3),
    "narrow": (5, 16, 1),
    "two": (40, 32, 32, 16),
}
LAYOUTS = {
    "3d": GridLayout(3, levels=5, features=2, base=4, growth=1.6, log2_size=9),
    "4d": GridLayout(4, levels=12, features=2, base=2, growth=1.3, log2_size=9),
}
sizes = pytest.mark.parametrize("n", [0, 1, 63, 1000, 200_000])


def weights_of(widths, device="cpu"):
    generator = torch.Generator().manual_seed(len(widths))
    shapes = zip(widths[1:], widths[:-1], strict=True)
    return [(torch.randn(out, into, generator=generator) * (2 / into) ** 0.5).to(device) for out, into in shapes]


def outputs(function, inputs, weights, dtype, grad):
    """What the function gives and all gradients."""
    inputs = [value.to(dtype, copy=True).requires_grad_() for value in inputs]
    weights = [value.to(dtype, copy=True).requires_grad_() for value in weights]
    out = function(*inputs, weights)
    return [out.detach(), *torch.autograd.grad(out, (*inputs, *weights), grad.to(out.dtype))]


def assert_between_half_and_brain(kernel, half, brain, exact):
    """Values as exact as eager fp16, gradients as eager bf16, to a few roundings; and gradients on the whole, too."""
    for value, eager, truth in zip(kernel, (half[0], *brain[1:]), exact, strict=True):
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        roundings = 4 * torch.finfo(eager.dtype).eps
        if truth.numel():
            errors = [(values - truth).abs().max() for values in (value, eager)]
            assert errors[0] <= 2 * errors[1] + roundings * truth.abs().max()
        assert (value - truth).norm() <= 1.5 * (eager - truth).norm() + roundings * truth.norm()


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_it_is_linear_layers_with_relu(widths):
    weights = weights_of(widths)
    layers = [torch.nn.Linear(weight.shape[1], len(weight), bias=False) for weight in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data = weight
    network = torch.nn.Sequential(*[part for layer in layers for part in (layer, torch.nn.ReLU())][:-1])
    x = torch.randn(7, widths[0], generator=torch.Generator().manual_seed(0))
    assert torch.equal(reference.mlp(x, weights), network(x))


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("n", [0, 1, 63, 10_000])
def test_kernels_are_as_exact_as_eager(widths, n):
    generator = torch.Generator().manual_seed(n)
    x, grad = torch.randn(n, widths[0], generator=generator), torch.randn(n, widths[-1], generator=generator)
    weights = weights_of(widths)
    assert_kernels_are_as_exact_as_eager(
        lambda path, dtype: outputs(path.mlp, [x], weights, dtype, grad), cpu, reference
    )


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_only_the_gradients_that_are_needed(frozen):
    """Of the input, the first weights and the second weights."""
    tensors = [torch.randn(70, 24), *weights_of((24, 64, 3))]
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i != frozen)
    cpu.mlp(tensors[0], tensors[1:]).sum().backward()
    assert [tensor.grad is None for tensor in tensors] == [i == frozen for i in range(3)]


@pytest.mark.gpu
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@sizes
def test_gpu_kernels_are_as_exact_as_eager(widths, half, n):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(widths[0], n, generator=generator).cuda().T  # the memory of encoded points
    grad, weights = torch.randn(n, widths[-1], generator=generator).cuda(), weights_of(widths, "cuda")

    def on_gpu(x, weights):
        return mlp(x.half() if half else x, weights)

    kernel = outputs(on_gpu, [x], weights, torch.float32, grad)
    eager = [outputs(reference.mlp, [x], weights, dtype, grad) for dtype in (torch.float16, torch.bfloat16)]
    exact = outputs(reference.mlp, [x.half() if half else x], weights, torch.float64, grad)
    assert_between_half_and_brain(kernel, *eager, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@sizes
def test_gpu_kernels_of_both_are_as_exact_as_eager(layout, n):
    generator = torch.Generator().manual_seed(n)
    points = torch.rand(n, layout.dim, generator=generator).cuda()
    table = torch.randn(layout.rows, layout.features, generator=generator).cuda()
    weights = weights_of((layout.levels * layout.features, 64, 3), "cuda")
    grad = torch.randn(n, 3, generator=generator).cuda()
    active = layout.levels - 1

    def eager(dtype):
        """Encoded in fp64, then a perceptron in `dtype`."""
        double, cast = [points.double(), table.double()], [weight.to(dtype) for weight in weights]
        leaves = [value.detach().requires_grad_() for value in (*double, *cast)]
        features = encode(*leaves[:2], layout, active)
        out = reference.mlp(features.to(dtype), leaves[2:])
        return [out.detach(), *(slope.to(dtype) for slope in torch.autograd.grad(out, leaves, grad.to(dtype)))]

    def on_gpu(points, table, weights):
        return encoded_mlp(points, table, layout, weights, active)

    kernel = outputs(on_gpu, [points, table], weights, torch.float32, grad)
    assert_between_half_and_brain(kernel, *map(eager, (torch.float16, torch.bfloat16, torch.float64)))


def test_both_are_one_after_the_other():
    layout = LAYOUTS["4d"]
    generator = torch.Generator().manual_seed(0)
    points, table = torch.rand(9, 4, generator=generator), torch.randn(layout.rows, 2, generator=generator)
    weights = weights_of((24, 64, 3))
    assert torch.equal(
        encoded_mlp(points, table, layout, weights, 5), mlp(encode(points, table, layout, 5), weights)
    )
