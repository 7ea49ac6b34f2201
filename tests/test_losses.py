import math

import pytest
import torch

from dream4d.losses import colour_error, mask_error, opacity_entropy, plane_variation, sparsity, total_variation


def test_total_variation_equals_the_formula_written_out():
    d = torch.randn(2, 3, 4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = 0.0
    for b in range(2):
        for t in range(3):
            for y in range(4):
                for x in range(5):
                    for dt, dy, dx in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
                        if t >= dt and y >= dy and x >= dx:
                            total += float(((d[b, t - dt, y - dy, x - dx] - d[b, t, y, x]) ** 2).sum())
    torch.testing.assert_close(total_variation(d), torch.tensor(total / 2, dtype=torch.float64))


def test_uniform_displacement_costs_nothing():
    assert total_variation(torch.full((1, 2, 3, 3, 3), 0.7)) == 0


def test_plane_variation_is_the_mean_square_of_steps():
    rows, columns = torch.arange(4.0)[:, None].expand(4, 5), torch.arange(5.0).expand(4, 5)
    assert plane_variation([2 * rows + 3 * columns]) == 4 + 9
    assert plane_variation([rows.expand(3, 2, 4, 5), 3 * columns[None]]) == 1 + 9
    assert plane_variation([torch.ones(2, 3, 3)]) == 0


def test_the_entropy_is_greatest_at_one_half_and_pulls_haze_to_nothing():
    assert math.isclose(opacity_entropy(torch.full((2, 3), 0.5)), math.log(2), rel_tol=1e-6)
    assert opacity_entropy(torch.tensor([0.0, 1.0])) < 0.01
    opacity = torch.tensor([0.1, 0.9], requires_grad=True)
    opacity_entropy(opacity).backward()
    assert opacity.grad[0] > 0 > opacity.grad[1]


def test_the_reference_view_is_compared_pixel_by_pixel():
    picture = torch.zeros(2, 2, 3)
    assert colour_error(picture + torch.tensor([0.3, 0.0, 0.0]), picture).item() == pytest.approx(0.03)
    assert mask_error(torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.5])) == 0.5


def test_sparsity_is_smooth_and_least_where_all_is_empty():
    opacity = torch.tensor([0.0, 0.5], requires_grad=True)
    value = sparsity(opacity)
    value.backward()
    assert value.item() == pytest.approx((0.1 + 0.26**0.5) / 2)
    assert opacity.grad[0] == 0 < opacity.grad[1]
