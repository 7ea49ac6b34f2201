from dataclasses import replace

import pytest
import torch
from toy_mesh import from_front

from dream4d.cameras import Rays
from dream4d.film import cameras_at
from dream4d.mesh import LIGHT, Mesh, draw, draw_images
from dream4d.ops.raycast import build

BLUE = torch.tensor([0.1, 0.2, 0.9, 1.0])


def square(*, x=0.0, colours=BLUE, picture=None):
    """A square of side 1 that faces the front, y and z in [-.5, .5]; its texture stands upright seen from there."""
    corners = torch.tensor([[x, -0.5, -0.5], [x, 0.5, -0.5], [x, 0.5, 0.5], [x, -0.5, 0.5]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    picture = torch.zeros(0, 0, 4) if picture is None else picture
    return Mesh(
        tree=build(corners[faces]), colours=colours.expand(4, 4)[faces], uv=(corners[:, 1:] + 0.5)[faces],
        texture=torch.full((2,), 0 if picture.numel() else -1), pixels=(picture * 255).byte().reshape(-1, 4),
        places=torch.tensor([[0, *picture.shape[:2]]]),
    )


def together(*meshes):
    """Meshes without textures as one."""
    triangles = torch.cat([mesh.tree.triangles for mesh in meshes])
    joined = {name: torch.cat([getattr(mesh, name) for mesh in meshes]) for name in ("colours", "uv", "texture")}
    return replace(meshes[0], tree=build(triangles), **joined)


def test_colour_opacity_and_depth_of_a_square():
    seen = draw(square(x=0.25), from_front(torch.tensor([0.0, 0.49, 0.51]), torch.zeros(3)))
    assert torch.equal(seen.rgb, torch.stack([BLUE[:3], BLUE[:3], torch.zeros(3)]))
    assert seen.opacity.tolist() == [1, 1, 0]
    assert seen.depth.tolist() == [2.75, 2.75, 0]


def test_a_texture_stands_upright_and_blends_between_its_pixels():
    picture = torch.zeros(2, 2, 4)
    picture[..., 3] = 1
    picture[0, 0, 0] = picture[1, 1, 1] = 1  # red upper left, green lower right
    mesh = square(colours=torch.ones(4), picture=picture)
    quarter = torch.tensor([-0.25, 0.25, 0.0])
    seen = draw(mesh, from_front(quarter, torch.tensor([0.25, -0.25, 0.25])))
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.5, 0, 0]])
    assert (seen.rgb - expected).abs().max() < 1e-6
    tinted = draw(square(colours=torch.tensor([0.5, 1, 1, 1]), picture=picture), from_front(quarter, quarter.flip(0)))
    assert tinted.rgb.max() <= 1


def test_what_is_transparent_shows_what_is_behind_it():
    glass = square(x=0.5, colours=torch.tensor([1.0, 1, 1, 0.4]))
    ray = from_front(torch.zeros(1), torch.zeros(1))
    seen = draw(together(square(), glass, glass), ray)
    assert torch.equal(seen.rgb[0], BLUE[:3])
    assert seen.depth.item() == 3
    assert draw(glass, ray).opacity.item() == 0


def test_light_darkens_what_faces_away_and_nothing_else():
    front = torch.tensor([0.0]), torch.tensor([0.0])
    back = Rays(-from_front(*front).origins, -from_front(*front).directions)
    for rays, cosine in ((from_front(*front), LIGHT[0]), (back, -LIGHT[0])):
        lit = draw(square(), rays, light=0.6).rgb / BLUE[:3]
        assert lit[0].tolist() == pytest.approx([1 - 0.6 * (0.5 - 0.5 * cosine)] * 3)
    assert torch.equal(draw(square(), back).rgb[0], BLUE[:3])


def test_pictures_are_means_of_their_rays():
    camera = cameras_at([0.0], 0.0)
    coarse, fine = (draw_images(square(), camera, size, samples=16 // size) for size in (4, 16))
    assert coarse.opacity.shape == (1, 4, 4)
    pooled = fine.opacity.view(4, 4, 4, 4).mean(dim=(1, 3))
    assert torch.allclose(coarse.opacity[0], pooled)
    assert 0 < coarse.opacity.mean() < 1
