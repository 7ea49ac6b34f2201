import math

import pytest
import torch

from dream4d.ops.march import cpu, march, reference


def rays(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    origins = torch.randn(n, 3, generator=generator) * 1.5
    directions = torch.randn(n, 3, generator=generator) * 0.7 - origins  # roughly at the cube
    return origins, directions / directions.norm(dim=-1, keepdim=True), torch.rand(n, generator=generator)


def checkers(resolution):
    i = torch.arange(resolution)
    return (i[:, None, None] + i[:, None] + i) % 2 == 0


@pytest.mark.parametrize("n", [0, 1, 63, 3000])
@pytest.mark.parametrize("radius", [1.0, 0.7])
def test_kernel_equals_twin(n, radius):
    origins, directions, jitter = rays(n)
    arguments = (origins, directions, checkers(8), radius, 0.031 * radius, jitter)
    kernel, twin = cpu.march(*arguments), reference.march(*arguments)
    assert torch.equal(kernel.ray, twin.ray)
    assert torch.equal(kernel.start, twin.start)
    assert torch.equal(kernel.end, twin.end)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [0, 1, 63, 30_000])
@pytest.mark.parametrize("radius", [1.0, 0.7])
def test_gpu_kernel_equals_twin_to_the_rounding_of_a_distance(n, radius):
    from dream4d.ops.march import gpu

    origins, directions, jitter = (value.cuda() for value in rays(n))
    arguments = (origins, directions, checkers(8).cuda(), radius, 0.031 * radius, jitter)
    kernel, twin = gpu.march(*arguments), reference.march(*arguments)
    counts = [torch.bincount(samples.ray, minlength=n) for samples in (kernel, twin)]
    alike = counts[0] == counts[1]  # a sample's middle may lie within a rounding of a face
    assert alike.float().mean() > 0.999 or n == 0
    ours, theirs = (samples.start[alike[samples.ray]] for samples in (kernel, twin))
    assert ((ours - theirs).abs() < 1e-5).float().mean() > 0.999 or not len(ours)
    assert (kernel.ray.diff() >= 0).all()
    assert (kernel.start.diff()[kernel.ray.diff() == 0] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_are_sorted_equal_and_only_where_occupied(dtype):
    occupied = checkers(5)
    origins, directions, jitter = (value.to(dtype) for value in rays(500))
    samples = march(origins, directions, occupied, radius=1.0, samples_per_ray=64, jitter=jitter)
    middle = (samples.start + samples.end) / 2
    points = origins[samples.ray] + middle[:, None] * directions[samples.ray]
    cell = ((points + 1) * 2.5).long().clamp(0, 4)
    torch.testing.assert_close(samples.end - samples.start, torch.full_like(middle, 2 * math.sqrt(3) / 64))
    assert (samples.ray.diff() >= 0).all()
    assert (samples.start.diff()[samples.ray.diff() == 0] > 0).all()
    assert (points.abs() < 1 + 1e-5).all()
    assert occupied[cell.unbind(-1)].double().mean() > 0.999  # the rest lies on a face between two cells


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ray_along_an_axis_crosses_the_whole_cube(axis, dtype):
    direction = torch.zeros(1, 3, dtype=dtype)
    direction[0, axis] = 1
    full = torch.ones(4, 4, 4, dtype=torch.bool)
    samples = march(-3 * direction, direction, full, radius=1.0, samples_per_ray=100, jitter=None)
    assert samples.start[0].item() == pytest.approx(2)
    assert len(samples.ray) == math.floor(2 / (2 * math.sqrt(3) / 100) + 0.5)


def test_one_cell_of_each_axis_is_the_right_one():
    occupied = torch.zeros(4, 4, 4, dtype=torch.bool)
    occupied[0, 1, 3] = True  # x in [-1, -.5], y in [-.5, 0], z in [.5, 1]
    origin, direction = torch.tensor([[-3.0, -0.25, 0.75]]), torch.tensor([[1.0, 0.0, 0.0]])
    samples = march(origin, direction, occupied, radius=1.0, samples_per_ray=1000, jitter=None)
    assert samples.start[0].item() == pytest.approx(2, abs=0.004)
    assert samples.end[-1].item() == pytest.approx(2.5, abs=0.004)


def test_jitter_shifts_by_a_part_of_a_step_and_a_camera_inside_starts_at_itself():
    full = torch.ones(2, 2, 2, dtype=torch.bool)
    origin, direction = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]])
    for jitter, shift in ((None, 0.0), (torch.tensor([0.25]), 0.25)):
        samples = march(origin, direction, full, radius=1.0, samples_per_ray=50, jitter=jitter)
        assert samples.start[0].item() == pytest.approx(shift * 2 * math.sqrt(3) / 50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_occupied_or_missed_gives_nothing(dtype):
    origins, directions, _ = (value.to(dtype) for value in rays(7))
    full = torch.ones(2, 2, 2, dtype=torch.bool)
    for o, grid in ((origins, ~full), (origins + 100, full)):
        samples = march(o, directions, grid, radius=1.0, samples_per_ray=32, jitter=None)
        assert samples.ray.shape == samples.start.shape == samples.end.shape == (0,)
        assert samples.ray.dtype == torch.long


def test_bad_numbers_are_errors():
    with pytest.raises(ValueError, match="samples_per_ray"):
        march(*rays(1)[:2], torch.ones(2, 2, 2, dtype=torch.bool), radius=1.0, samples_per_ray=0, jitter=None)
