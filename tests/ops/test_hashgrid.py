import pytest
import torch
from yardstick import assert_as_exact, assert_kernels_are_as_exact_as_eager

from dream4d.ops.hashgrid import GridLayout, cpu, encode, reference

LAYOUTS = {
    "3d": GridLayout(3, levels=5, features=2, base=4, growth=1.6, log2_size=9),
    "4d": GridLayout(4, levels=4, features=2, base=2, growth=1.7, log2_size=9),
    "dense": GridLayout(3, levels=2, features=3, base=3, growth=2, log2_size=12),
    "hashed": GridLayout(4, levels=2, features=1, base=16, growth=1.5, log2_size=6),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def data(layout, n, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n)
    points = torch.rand(n, layout.dim, generator=generator, dtype=torch.float64)
    table = torch.randn(layout.rows, layout.features, generator=generator, dtype=torch.float64)
    grad = torch.randn(n, layout.levels * layout.features, generator=generator, dtype=torch.float64)
    points = points.float()
    # The slope jumps at a cell's border, and points within a rounding of one lie on either side of it.
    scaled = points.double()[..., None] * torch.tensor(layout.resolutions, dtype=torch.float64)
    grad[((scaled - scaled.round()).abs() < 1e-5).flatten(1).any(1)] = 0
    return [value.to(dtype) for value in (points, table.float(), grad.float())]


data_on_cpu = data


def run(path, layout, n, dtype, active):
    points, table, grad = data(layout, n, dtype)
    points.requires_grad_()
    table.requires_grad_()
    out = path.encode(points, table, layout, active)
    return [out.detach(), *torch.autograd.grad(out, (points, table), grad)]


def test_layouts_have_dense_and_hashed_levels():
    assert LAYOUTS["3d"].hashed == (False, False, True, True, True)
    assert not any(LAYOUTS["dense"].hashed)
    assert all(LAYOUTS["hashed"].hashed)


def test_the_papers_sizes():
    canonical = GridLayout(3, levels=16, features=2, base=16, growth=1.447269, log2_size=19)
    deformation = GridLayout(4, levels=12, features=2, base=4, growth=1.447269, log2_size=19)
    assert canonical.resolutions[-1] == pytest.approx(4096, rel=1e-3)
    assert deformation.resolutions[-1] == pytest.approx(232, rel=1e-2)
    assert canonical.offsets[1] == canonical.sizes[0] == 17**3
    assert canonical.rows == canonical.offsets[-1] + 2**19


@layouts
@pytest.mark.parametrize("n", [0, 1, 63, 1000, 5000])
def test_kernels_are_as_exact_as_eager(layout, n):
    levels = layout.levels
    assert_kernels_are_as_exact_as_eager(lambda path, dtype: run(path, layout, n, dtype, levels), cpu, reference)


@pytest.mark.gpu
@layouts
@pytest.mark.parametrize(("n", "active"), [(0, 9), (1, 9), (5000, 9), (200_000, 9), (131, 1)])
def test_gpu_kernels_are_as_exact_as_eager(layout, n, active, monkeypatch):
    from dream4d.ops.hashgrid import gpu

    torch.use_deterministic_algorithms(False)  # atomic adds come in any order
    monkeypatch.setitem(globals(), "data", lambda *arguments: [value.cuda() for value in data_on_cpu(*arguments)])
    levels = min(active, layout.levels)
    assert_kernels_are_as_exact_as_eager(lambda path, dtype: run(path, layout, n, dtype, levels), gpu, reference)


@pytest.mark.gpu
@layouts
@pytest.mark.parametrize("n", [0, 1, 63, 5000])
def test_half_tables_on_a_gpu_are_as_exact_as_eager(layout, n):
    points, table, grad = (value.cuda() for value in data(layout, n))

    def run(table):
        table = table.detach().requires_grad_()
        path = encode if table.dtype == torch.float16 else reference.encode
        out = path(points.to(torch.float32 if path is encode else table.dtype), table, layout, layout.levels)
        return out, torch.autograd.grad(out, table, grad.to(out.dtype))[0]

    half = table.half()
    out, slope = run(half)
    assert out.dtype == slope.dtype == torch.float16
    for kernel, exact in zip((out, slope), run(half.double()), strict=True):
        assert_as_exact(kernel, exact.half(), exact)


@layouts
@pytest.mark.parametrize("path", [cpu, reference])
def test_inactive_levels_are_zeros_and_have_no_gradient(layout, path):
    whole, part = run(path, layout, 63, torch.float32, layout.levels), run(path, layout, 63, torch.float32, 1)
    assert torch.equal(part[0][:, : layout.features], whole[0][:, : layout.features])
    assert not part[0][:, layout.features :].any()
    assert not part[2][layout.sizes[0] :].any()
    assert torch.equal(part[2][: layout.sizes[0]], whole[2][: layout.sizes[0]])
    none = path.encode(*data(layout, 63)[:2], layout, 0)
    assert none.shape == whole[0].shape
    assert not none.any()


@layouts
def test_gradcheck_of_the_twin(layout):
    points, table, _ = data(layout, 3, torch.float64)
    arguments = (points.requires_grad_(), table.requires_grad_())
    assert torch.autograd.gradcheck(lambda p, t: encode(p, t, layout), arguments, fast_mode=True)


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vertices_of_a_dense_level_return_their_rows(layout, dtype):
    if layout.hashed[0]:
        pytest.skip("has no dense level")
    points = torch.cartesian_prod(*[torch.linspace(0, 1, layout.base + 1, dtype=dtype)] * layout.dim).flip(-1)
    table = data(layout, 0, dtype)[1]
    out = encode(points, table, layout, 1)[:, : layout.features]
    torch.testing.assert_close(out, table[: layout.sizes[0]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_only_the_gradient_that_is_needed(needed, monkeypatch):
    layout = LAYOUTS["3d"]
    points, table, grad = data(layout, 5)
    unwanted = "_backward_table" if needed[0] else "_backward_points"
    monkeypatch.setattr(cpu, unwanted, None)
    out = encode(points.requires_grad_(needed[0]), table.requires_grad_(needed[1]), layout)
    out.backward(grad)
    assert (points.grad is not None, table.grad is not None) == needed


def test_results_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    layout = LAYOUTS["3d"]
    several = run(cpu, layout, 10_000, torch.float32, layout.levels)
    torch.set_num_threads(1)
    try:
        one = run(cpu, layout, 10_000, torch.float32, layout.levels)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(several, one, strict=True))


def test_points_that_are_not_numbers_or_far_outside_stay_within_the_table():
    layout = LAYOUTS["3d"]
    points = torch.tensor([[float("nan")] * 3, [1e30] * 3, [-1e30] * 3, [float("inf")] * 3], requires_grad=True)
    table = data(layout, 0)[1].requires_grad_()
    encode(points, table, layout).sum().backward()


def test_wrong_shapes_are_errors():
    layout = LAYOUTS["3d"]
    with pytest.raises(ValueError, match="points"):
        encode(torch.zeros(2, 4), torch.zeros(layout.rows, 2), layout)
    with pytest.raises(ValueError, match="table"):
        encode(torch.zeros(2, 3), torch.zeros(layout.rows, 3), layout)
    with pytest.raises(ValueError, match="dimensions"):
        GridLayout(2, levels=1, features=1, base=1, growth=1, log2_size=4)
