import math

import numpy as np
import pytest
import torch

from dream4d.encodings import HashGrid, HexPlane, PositionalEncoding, spherical_harmonics


def test_spherical_harmonics_are_orthonormal():
    """The Gram matrix by quadrature: Gauss-Legendre in z, uniform in angle; exact for degree 6."""
    nodes, weights = (torch.from_numpy(value) for value in np.polynomial.legendre.leggauss(8))
    angle = torch.arange(16, dtype=torch.float64) * 2 * math.pi / 16
    z, a = torch.meshgrid(nodes, angle, indexing="ij")
    r = (1 - z * z).sqrt()
    harmonics = spherical_harmonics(torch.stack([r * a.cos(), r * a.sin(), z], dim=-1).reshape(-1, 3))
    area = (weights[:, None] * 2 * math.pi / 16).expand(-1, 16).reshape(-1, 1)
    torch.testing.assert_close(harmonics.T @ (area * harmonics), torch.eye(16, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["grid", "waves"])
def test_width_and_masked_levels(kind):
    encoding = HashGrid(4, levels=3, base=4, log2_size=8) if kind == "grid" else PositionalEncoding(4, frequencies=3)
    points = torch.rand(9, 4)
    features = encoding(points)
    assert features.shape == (9, encoding.width)
    masked = encoding(points, 2)
    kept = encoding.width - (2 if kind == "grid" else 2 * 4)
    assert torch.equal(masked[:, :kept], features[:, :kept])
    assert not masked[:, kept:].any()


def test_positional_encoding_is_of_minus_one_to_one():
    waves = PositionalEncoding(1, frequencies=2)(torch.tensor([[0.75]]))  # x = .5
    torch.testing.assert_close(waves, torch.tensor([[0.5, 1.0, 0.0, 0.0, -1.0]]), rtol=0, atol=1e-6)


def test_positional_encoding_tells_the_ends_of_an_axis_apart():
    begin, end = PositionalEncoding(1, frequencies=4)(torch.tensor([[0.0], [1.0]]))
    assert (begin - end).abs().max() > 1


def test_features_of_a_hexplane_are_products_of_complementary_planes():
    """Planes of 2 x 2 values are a + b * row + c * column in between."""
    encoding = HexPlane(levels=1, size=2, features=1)
    encoding.add_time(2)
    coefficients = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [9, 7, 5], [3, 1, 2], [4, 6, 8.0]])
    a, b, c = coefficients[:, :, None, None].unbind(1)
    planes = (a + b * torch.tensor([0.0, 1.0])[:, None] + c * torch.tensor([0.0, 1.0]))[:, None]
    with torch.no_grad():
        encoding.space[0].copy_(planes[:3])
        encoding.time[0].copy_(planes[3:])
    x, y, z, t = 0.25, 0.5, 0.75, 0.375
    space = [1 + 2 * y + 3 * x, 4 + 5 * z + 6 * x, 7 + 8 * z + 9 * y]
    time = [9 + 7 * t + 5 * z, 3 + 1 * t + 2 * y, 4 + 6 * t + 8 * x]
    torch.testing.assert_close(encoding(torch.tensor([[x, y, z]])), torch.tensor([space]))
    expected = torch.tensor(space) * torch.tensor(time)
    torch.testing.assert_close(encoding(torch.tensor([[x, y, z, t]])), expected[None])


def test_planes_of_time_change_nothing_at_first():
    encoding, points = HexPlane(levels=2, size=8, features=3), torch.rand(20, 4)
    still = encoding(points[:, :3])
    assert torch.equal(encoding(points), still)
    encoding.add_time(5)
    torch.testing.assert_close(encoding(points), still)
    assert still.shape == (20, encoding.width)


def test_gradients_of_a_hexplane():
    generator = torch.Generator().manual_seed(0)
    encoding = HexPlane(levels=2, size=4, features=2)
    encoding.add_time(3)
    encoding.double()
    for planes in encoding.parameters():
        torch.nn.init.normal_(planes, generator=generator)
    points = torch.rand(5, 4, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda points, *_: encoding(points), (points, *encoding.parameters()))


def test_a_hexplane_too_small_for_its_levels_is_refused():
    with pytest.raises(ValueError, match="4 levels of planes need 16 rows or more, not 8"):
        HexPlane(levels=4, size=8)


def test_a_grid_starts_near_zero():
    table = HashGrid(3, levels=2, base=4, log2_size=8).table
    assert 0.5e-4 < table.abs().max() <= 1e-4
