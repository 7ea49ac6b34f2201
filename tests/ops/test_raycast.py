import pytest
import torch

from dream4d.ops.raycast import build, cpu, raycast, reference


def soup(n, seed=0, size=0.2):
    """Triangles in [-1, 1]^3 that cut through each other."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 3, generator=generator) * 2 - 1 + size * torch.randn(n, 3, 3, generator=generator)


def rays(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    origins = torch.randn(n, 3, generator=generator) * 2
    directions = torch.randn(n, 3, generator=generator) - origins
    return origins, directions / directions.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("faces", [1, 4, 5, 63, 1000])
@pytest.mark.parametrize("n", [0, 1, 63, 1000])
def test_kernel_equals_every_ray_against_every_triangle(faces, n):
    triangles, (origins, directions) = soup(faces), rays(n)
    beyond = torch.rand(n) * 3
    kernel = cpu.raycast(build(triangles), origins, directions, beyond)
    if not n:
        assert kernel.face.shape == (0,)
        return
    twin = reference.raycast(triangles, origins, directions, beyond)
    assert torch.equal(kernel.face, twin.face)
    assert torch.equal(kernel.distance, twin.distance)
    assert torch.allclose(kernel.weights, twin.weights, rtol=0, atol=1e-6)


def test_weights_and_distance_name_the_same_point_of_the_surface():
    triangles, (origins, directions) = soup(300), rays(2000)
    hits = raycast(build(triangles), origins, directions)
    met = hits.face >= 0
    assert 0.2 < met.float().mean() < 1
    on_face = (hits.weights[met, :, None] * triangles[hits.face[met]]).sum(dim=1)
    on_ray = origins[met] + hits.distance[met, None] * directions[met]
    assert (on_face - on_ray).abs().max() < 2e-6
    assert (hits.weights.sum(dim=1) - met.float()).abs().max() < 1e-6


def test_no_ray_slips_through_the_edges_of_a_closed_surface():
    """A finely divided cube hides what is in it, rays along the axes and through its corners included."""
    steps = torch.linspace(-1, 1, 21)
    u, v = torch.meshgrid(steps[:-1], steps[:-1], indexing="ij")
    square = torch.tensor([[[0.0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1]]]) * 0.1
    flat = (torch.stack([u, v], dim=-1).reshape(-1, 1, 1, 2) + square).reshape(-1, 3, 2)
    side = torch.cat([flat, torch.ones(len(flat), 3, 1)], dim=-1)
    cube = torch.cat([(sign * side).roll(axis, dims=-1) for axis in range(3) for sign in (1, -1)])
    origins, targets = rays(4000)[0], rays(4000, seed=2)[0] * 0.2
    origins = origins / origins.norm(dim=-1, keepdim=True) * 3
    axes = torch.cat([torch.eye(3), -torch.eye(3), torch.ones(1, 3)]) * 3
    origins, targets = torch.cat([origins, axes]), torch.cat([targets.clamp(-0.9, 0.9), torch.zeros(7, 3)])
    hits = raycast(build(cube), origins, targets - origins)
    assert (hits.face >= 0).all()
    assert (hits.distance < 1).all()


def test_what_is_behind_a_distance_is_seen_by_casting_again():
    layers = torch.stack([torch.tensor([[-9.0, -9, z], [9, -9, z], [0, 9, z]]) for z in (0.0, -1, -2)])
    origin, down = torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.0, 0, -1]])
    tree, beyond = build(layers), torch.zeros(1)
    for face in (0, 1, 2, -1):
        hits = raycast(tree, origin, down, beyond)
        assert hits.face.item() == face
        beyond = hits.distance
