import pytest
import torch
from yardstick import assert_kernels_are_as_exact_as_eager

from dream4d.ops.composite import composite, cpu, reference


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def data(m, rays, dtype=torch.float32, channels=3):
    generator = torch.Generator().manual_seed(m)
    ray = torch.randint(max(rays, 1), (m,), generator=generator).sort().values
    start = torch.arange(m) * 0.05 + 0.02 * torch.rand(m, generator=generator)
    density = torch.rand(m, generator=generator) ** 4 * 60
    values = torch.randn(m, channels, generator=generator)
    return [value.to(dtype) for value in (density, start, start + 0.03, values)] + [ray]


def run(path, m, rays, dtype):
    density, start, end, values, ray = data(m, rays, dtype)
    out = path.composite(density.requires_grad_(), start, end, values.requires_grad_(), ray, rays)
    outputs = [out.values, out.opacity, out.depth, out.weights]
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(value.shape, generator=generator).to(value) for value in outputs]
    return [value.detach() for value in outputs] + list(torch.autograd.grad(outputs, (density, values), grads))


@pytest.mark.parametrize(("m", "rays"), [(0, 0), (0, 5), (1, 1), (63, 7), (1000, 40), (1000, 3000), (20_000, 1500)])
def test_kernels_are_as_exact_as_eager(m, rays):
    assert_kernels_are_as_exact_as_eager(lambda path, dtype: run(path, m, rays, dtype), cpu, reference)


@pytest.mark.gpu
@pytest.mark.parametrize(("m", "rays"), [(0, 0), (0, 5), (1, 1), (63, 7), (1000, 3000), (200_000, 1500)])
def test_gpu_kernels_are_as_exact_as_eager(m, rays, monkeypatch):
    from dream4d.ops.composite import gpu

    torch.use_deterministic_algorithms(False)  # index_add of the twin
    on_cpu = data
    monkeypatch.setitem(globals(), "data", lambda *arguments: [value.cuda() for value in on_cpu(*arguments)])
    assert_kernels_are_as_exact_as_eager(lambda path, dtype: run(path, m, rays, dtype), gpu, reference)


@pytest.mark.gpu
def test_extreme_densities_are_finite_on_a_gpu():
    density = torch.tensor([0.0, 1e20, 1e-30, 1e20, 5.0], device="cuda", requires_grad=True)
    values, start = torch.ones(5, 2, device="cuda", requires_grad=True), torch.arange(5.0, device="cuda")
    out = composite(density, start, start + 1, values, torch.tensor([0, 0, 0, 1, 1], device="cuda"), 3)
    assert out.opacity.tolist() == [1, 1, 0]
    (out.values.sum() + out.depth.sum()).backward()
    assert density.grad.isfinite().all()


def test_gradcheck_of_the_twin():
    density, start, end, values, ray = data(12, 4, torch.float64)

    def outputs(density, values):
        return tuple(vars(composite(density, start, end, values, ray, 4)).values())

    assert torch.autograd.gradcheck(outputs, (density.requires_grad_(), values.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_slab(dtype):
    """Opacity 1 - exp(-density * length); depth is the exponential distribution's truncated mean."""
    edges = torch.linspace(2, 3, 2001, dtype=dtype)
    density = torch.full((2000,), 1.7, dtype=dtype)
    values = torch.tensor([0.2, 0.5, 0.9], dtype=dtype).expand(2000, 3)
    out = composite(density, edges[:-1], edges[1:], values, torch.zeros(2000, dtype=torch.long), 1)
    opacity = 1 - torch.exp(torch.tensor(-1.7, dtype=dtype))
    torch.testing.assert_close(out.opacity[0], opacity)
    torch.testing.assert_close(out.values[0], opacity * values[0])
    mean = 2 * opacity + 1 / 1.7 * opacity - torch.exp(torch.tensor(-1.7, dtype=dtype))
    torch.testing.assert_close(out.depth[0], mean, rtol=1e-5, atol=0)


@pytest.mark.parametrize("path", [cpu, reference])
def test_extreme_densities_are_finite(path):
    density = torch.tensor([0.0, 1e20, 1e-30, 1e20, 5.0], requires_grad=True)
    values = torch.ones(5, 2, requires_grad=True)
    start = torch.arange(5.0)
    out = path.composite(density, start, start + 1, values, torch.tensor([0, 0, 0, 1, 1]), 3)
    assert out.opacity.tolist() == [1, 1, 0]
    (out.values.sum() + out.depth.sum()).backward()
    assert density.grad.isfinite().all()
    assert values.grad.isfinite().all()


def test_more_channels_do_not_change_the_others():
    density, start, end, values, ray = data(1000, 30, channels=6)
    six = composite(density, start, end, values, ray, 30)
    three = composite(density, start, end, values[:, :3], ray, 30)
    assert torch.equal(six.values[:, :3], three.values)
