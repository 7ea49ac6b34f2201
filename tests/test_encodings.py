import math

import numpy as np
import pytest
import torch

from dream4d.encodings import HashGrid, PositionalEncoding, spherical_harmonics


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
    kept = encoding.width * 2 // 3
    assert torch.equal(masked[:, :kept], features[:, :kept])
    assert not masked[:, kept:].any()


def test_positional_encoding_is_of_minus_one_to_one():
    waves = PositionalEncoding(1, frequencies=2)(torch.tensor([[0.75]]))  # x = .5
    torch.testing.assert_close(waves, torch.tensor([[1.0, 0.0, 0.0, -1.0]]), rtol=0, atol=1e-6)


def test_a_grid_starts_near_zero():
    table = HashGrid(3, levels=2, base=4, log2_size=8).table
    assert 0.5e-4 < table.abs().max() <= 1e-4
