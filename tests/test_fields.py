import pytest
import torch

from dream4d.encodings import HashGrid, HexPlane, PositionalEncoding
from dream4d.fields import Background, DeformationField, RadianceField


def canonical(grid=None):
    torch.manual_seed(0)
    return RadianceField(grid or HashGrid(3, levels=3, base=4, log2_size=8))


@pytest.mark.parametrize("grid", [None, HexPlane(levels=2, size=8)], ids=["grid", "hexplane"])
def test_density_starts_as_a_blob_and_is_the_same_without_colour(grid):
    field = canonical(grid)
    points = torch.tensor([[0.0, 0, 0], [0, 0.5, 0], [0, 0, 1]])
    density, rgb = field(points)
    assert torch.equal(field.density(points), density)
    expected = torch.nn.functional.softplus(torch.tensor([10.0, 0.0, -10.0]))
    torch.testing.assert_close(density, expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(rgb, torch.full((3, 3), 0.5), rtol=0, atol=1e-3)


def test_the_paper_has_no_biases_and_these_layers():
    field, background = canonical(), Background()
    motion = DeformationField(HashGrid(4, levels=3, base=2, log2_size=8))
    assert not [name for part in (field, background, motion) for name, _ in part.named_parameters() if "bias" in name]
    hidden = [sum(isinstance(layer, torch.nn.ReLU) for layer in mlp) for mlp in
              (field.density_mlp, field.color_mlp, background.mlp, motion.mlp)]
    assert hidden == [1, 1, 3, 4]


def test_displacement_starts_near_zero_and_is_bounded_by_the_cube():
    points, time = torch.rand(50, 3) * 2 - 1, torch.rand(50)
    grid, waves = HashGrid(4, levels=3, base=2, log2_size=8), PositionalEncoding(4, frequencies=4)
    for encoding in (grid, waves):
        field = DeformationField(encoding)
        assert field(points, time).abs().max() < 1e-3
        with torch.no_grad():
            field.mlp[-1].weight.mul_(1e6)
        assert field(points, time).abs().max() <= 2


@pytest.mark.parametrize("encoding", [HashGrid(4, levels=3, base=2, log2_size=8), PositionalEncoding(4, frequencies=2)])
def test_at_rest_nothing_is_displaced_at_time_0_and_the_rest_is_measured_from_there(encoding):
    points, now, zero = torch.rand(50, 3) * 2 - 1, torch.rand(50), torch.zeros(50)
    held, free = DeformationField(encoding, at_rest=True), DeformationField(encoding)
    free.mlp = held.mlp
    with torch.no_grad():
        held.mlp[-1].weight.normal_()
        for table in encoding.parameters():
            table.normal_()
    assert free(points, zero).abs().max() > 0.01
    assert (held(points, zero) == 0).all()
    assert (held(points, now, 1) == free(points, now, 1) - free(points, zero, 1)).all()


def test_background_of_no_rays():
    assert Background()(torch.zeros(0, 3)).shape == (0, 3)
