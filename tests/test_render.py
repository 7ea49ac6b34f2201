import math

import pytest
import torch
from tiny_scene import tiny_scene

from dream4d.cameras import Rays, orbit
from dream4d.occupancy import OccupancyGrid
from dream4d.render import render, render_image
from dream4d.scene import DeformationShape, Scene, SceneShape


def camera(azimuth=20.0, elevation=15.0, distance=2.5):
    return orbit(*(torch.tensor([value]) for value in (azimuth, elevation, distance, 40.0)))


def rays(size=12, **view):
    return camera(**view).rays(size, size).flatten()


class Analytic:
    """A scene whose density and colour are functions of the point."""

    deformation = None

    def __init__(self, density, color):
        self.density_of, self.color_of = density, color

    def __call__(self, points, time):
        return self.density_of(points), self.color_of(points), None

    def background(self, directions):
        return torch.zeros_like(directions)


def turn(degrees):
    a = math.radians(degrees)
    return torch.tensor([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])


def test_a_uniform_cube_seen_along_an_axis():
    """Opacity 1 - exp(-density * length), to the part of a step at which the cube ends."""
    cube = Analytic(lambda p: torch.full((len(p),), 0.8), lambda p: torch.tensor([1.0, 0.5, 0.2]).expand(len(p), 3))
    axis = Rays(torch.tensor([[3.0, 0.1, 0.2]]), torch.tensor([[-1.0, 0.0, 0.0]]))
    out = render(cube, axis, occupancy=OccupancyGrid(), samples_per_ray=4000)
    opacity = 1 - math.exp(-0.8 * 2)
    assert out.opacity.item() == pytest.approx(opacity, abs=5e-4)
    torch.testing.assert_close(out.foreground[0], opacity * torch.tensor([1.0, 0.5, 0.2]), rtol=1e-3, atol=0)
    mean = 2 * opacity + (1 - math.exp(-1.6) * (1 + 1.6)) / 0.8
    assert out.depth.item() == pytest.approx(mean, rel=1e-3)


def test_turning_camera_and_scene_together_changes_nothing():
    def ball(rotation):
        back = rotation.T
        return Analytic(
            lambda p: 20 * (0.6 - (p @ back.T - torch.tensor([0.2, 0.0, 0.1])).norm(dim=-1)).clamp(0),
            lambda p: (p @ back.T * 3).sin() / 2 + 0.5,
        )

    still = render(ball(torch.eye(3)), rays(azimuth=10.0), occupancy=OccupancyGrid(), samples_per_ray=256)
    turned = render(ball(turn(70)), rays(azimuth=80.0), occupancy=OccupancyGrid(), samples_per_ray=256)
    for name, value in vars(still).items():
        torch.testing.assert_close(getattr(turned, name), value, rtol=0, atol=2e-2 if name == "depth" else 1e-2)


def test_occupancy_skips_only_what_is_empty():
    scene, grid = tiny_scene(), OccupancyGrid(32, threshold=1e-3)
    whole = render(scene, rays(), occupancy=grid, samples_per_ray=128)
    grid.update(scene.canonical.density, torch.Generator().manual_seed(0))
    assert grid.occupied.float().mean() < 0.7
    skipped = render(scene, rays(), occupancy=grid, samples_per_ray=128)
    torch.testing.assert_close(skipped.rgb, whole.rgb, rtol=0, atol=1e-3)


def test_zero_displacement_renders_bit_identically_to_the_static_scene():
    scene = tiny_scene()
    static = render(scene, rays(), occupancy=OccupancyGrid(), samples_per_ray=64)
    scene.add_deformation(DeformationShape(levels=3, log2_size=10))
    with torch.no_grad():
        scene.deformation.mlp[-1].weight.zero_()
    for time in (0.0, 0.7, torch.rand(144)):
        moving = render(scene, rays(), time, occupancy=OccupancyGrid(), samples_per_ray=64)
        assert all(torch.equal(value, getattr(moving, name)) for name, value in vars(static).items())


def test_a_dynamic_step_changes_no_canonical_tensor():
    scene = tiny_scene(moving=True)
    scene.freeze_canonical()
    before = {name: value.clone() for name, value in scene.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in scene.parameters() if p.requires_grad], lr=0.1)
    out = render(scene, rays(), torch.rand(144), occupancy=OccupancyGrid(), samples_per_ray=32)
    (out.rgb.square().sum() + out.displacement.square().sum()).backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, value in scene.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"deformation"}


@pytest.mark.parametrize("field", ["grid", "hexplane"])
def test_gradients_reach_every_part_that_is_trained(field):
    scene = tiny_scene(moving=True, field=field)
    out = render(scene, rays(), 0.5, occupancy=OccupancyGrid(), samples_per_ray=32)
    (out.rgb.square().sum() + out.displacement.square().sum()).backward()
    assert all(value.grad is not None and value.grad.any() for value in scene.parameters())


@pytest.mark.parametrize("moving", [False, True])
def test_an_empty_scene_is_its_background(moving):
    scene, grid = tiny_scene(moving=moving), OccupancyGrid()
    grid.occupied = torch.zeros_like(grid.occupied)
    out = render(scene, rays(), occupancy=grid, samples_per_ray=32)
    assert torch.equal(out.rgb, scene.background(rays().directions))
    assert not any(value.any() for value in (out.opacity, out.depth, out.displacement, out.foreground))
    out.rgb.sum().backward()


def test_backgrounds():
    scene, colors = tiny_scene(), torch.rand(144, 3)
    for background in (torch.tensor([1.0, 0.0, 0.5]), colors):
        out = render(scene, rays(), occupancy=OccupancyGrid(), samples_per_ray=32, background=background)
        torch.testing.assert_close(out.rgb, out.foreground + (1 - out.opacity)[:, None] * background)


def test_jitter_is_the_generators():
    scene = tiny_scene()

    def image(seed):
        g = None if seed is None else torch.Generator().manual_seed(seed)
        return render(scene, rays(), occupancy=OccupancyGrid(), samples_per_ray=32, generator=g).rgb

    assert torch.equal(image(1), image(1))
    assert not torch.equal(image(1), image(2))
    assert torch.equal(image(None), image(None))


@pytest.mark.parametrize("background", [None, torch.ones(3), torch.rand(12 * 9, 3)], ids=["own", "colour", "each"])
def test_a_picture_is_the_same_in_chunks(background):
    scene, arguments = tiny_scene(moving=True), {"occupancy": OccupancyGrid(), "samples_per_ray": 32}
    pieces = render_image(scene, camera(), 12, 9, 0.3, chunk=25, background=background, **arguments)
    whole = render(scene, camera().rays(12, 9).flatten(), 0.3, background=background, **arguments)
    assert not pieces.rgb.requires_grad
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(pieces, name).flatten(0, 1), value)
    assert (pieces.rgb.shape, pieces.depth.shape) == ((12, 9, 3), (12, 9))


def test_a_scene_learns_a_ball_of_known_colour():
    """Fitting pictures with a known answer: a red ball of radius .4 before black."""
    torch.manual_seed(0)
    scene, grid = Scene(SceneShape(levels=6, base=8, log2_size=12)), OccupancyGrid()
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(scene.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-15)
    black = torch.zeros(3)
    for step in range(100):
        if step % 16 == 0:
            grid.update(scene.canonical.density, g)
        view = rays(24, azimuth=step * 37.0, elevation=10.0 * (step % 7))
        closest = torch.linalg.cross(view.origins, view.directions).norm(dim=-1)
        target = (closest < 0.4)[:, None] * torch.tensor([0.9, 0.1, 0.1])
        image = render(scene, view, occupancy=grid, samples_per_ray=64, generator=g, background=black).rgb
        loss = (image - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 2e-3  # 27 dB, aliasing at the silhouette included


def test_a_hexplane_learns_a_ball_that_moves():
    """A red ball of radius .3 on its way along y, from -.4 to .4."""
    torch.manual_seed(0)
    scene, grid = Scene(SceneShape("hexplane", plane_levels=2, plane_size=32, plane_times=5)), OccupancyGrid(16)
    scene.add_motion(DeformationShape())
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(scene.parameters(), lr=0.02, betas=(0.9, 0.99), eps=1e-15)
    black = torch.zeros(3)

    def error(step, time):
        view = rays(20, azimuth=step * 37.0, elevation=10.0 * (step % 7))
        center = torch.tensor([0.0, 0.8 * time - 0.4, 0.0])
        closest = torch.linalg.cross(view.origins - center, view.directions).norm(dim=-1)
        target = (closest < 0.3)[:, None] * torch.tensor([0.9, 0.1, 0.1])
        seen = render(scene, view, time, occupancy=grid, samples_per_ray=48, generator=g, background=black)
        return (seen.rgb - target).square().mean()

    for step in range(100):
        if step % 16 == 0:
            grid.update(scene.density, g, times=4)
        loss = error(step, step * 0.381966 % 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert max(error(1, time) for time in (0.0, 0.25, 0.5, 0.75, 1.0)) < 5e-3


def test_a_deformation_learns_a_known_shift():
    """Pictures of the frozen scene shifted by .2 along y at every time: the field must find that displacement."""
    scene = tiny_scene(moving=True)
    with torch.no_grad():
        scene.canonical.grid.table.normal_(std=2.0, generator=torch.Generator().manual_seed(0))
    scene.freeze_canonical()
    shift = torch.tensor([0.0, 0.2, 0.0])
    optimizer = torch.optim.AdamW([p for p in scene.parameters() if p.requires_grad], lr=0.005, betas=(0.9, 0.99))
    black, grid = torch.zeros(3), OccupancyGrid()
    still = Analytic(
        lambda p: scene.canonical.density((p + shift).clamp(-1, 1)),
        lambda p: scene.canonical((p + shift).clamp(-1, 1))[1],
    )
    losses = []
    for step in range(60):
        view = rays(16, azimuth=step * 50.0)
        with torch.no_grad():
            target = render(still, view, occupancy=grid, samples_per_ray=48, background=black).rgb
        time = torch.rand(256, generator=torch.Generator().manual_seed(step))
        out = render(scene, view, time, occupancy=grid, samples_per_ray=48, background=black)
        loss = (out.rgb - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    seen = out.displacement[out.opacity > 0.9] / out.opacity[out.opacity > 0.9, None]
    torch.testing.assert_close(seen.mean(0), shift, rtol=0, atol=0.06)


def gradients(scene, out):
    weight = torch.linspace(0, 1, out.rgb.numel()).reshape(out.rgb.shape)
    loss = (out.rgb * weight).sum() + out.displacement.square().sum() + out.opacity.square().sum() + out.depth.sum()
    return torch.autograd.grad(loss, [p for p in scene.parameters() if p.requires_grad])


@pytest.mark.parametrize(
    ("moving", "field"), [(False, "grid"), (True, "grid"), (True, "hexplane")], ids=["still", "moving", "hexplane"]
)
@pytest.mark.parametrize("few", [0, 2**20], ids=["hidden samples skipped", "all computed"])
@pytest.mark.parametrize("budget", [1, 50, 5000])
def test_rendering_again_within_a_budget_gives_the_same_gradients(moving, field, few, budget, monkeypatch):
    """Of rays with jitter and times of their own, some of which see nothing; one ray may hold more than the budget."""
    monkeypatch.setattr("dream4d.render.FEW", {"cpu": few})
    scene, view = tiny_scene(moving=moving, field=field), rays(10)
    with torch.no_grad():
        for features in scene.canonical.grid.parameters():
            features.normal_(std=3.0, generator=torch.Generator().manual_seed(0))
    if moving:
        scene.freeze_canonical()

    def seen(budget):
        generator = torch.Generator().manual_seed(1)
        return render(
            scene, view, torch.linspace(0, 1, 100), occupancy=OccupancyGrid(), samples_per_ray=80,
            generator=generator, budget=budget,
        )  # fmt: skip

    kept, tight = seen(2**30), seen(budget)
    torch.testing.assert_close(tight.rgb, kept.rgb, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(scene, tight), gradients(scene, kept), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_a_budget_bounds_what_is_kept_for_gradients():
    """Bytes that autograd holds on to between the forward and the backward pass."""
    scene = tiny_scene(moving=True)

    def kept(budget):
        seen = {}

        def note(tensor):
            seen[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = render(scene, rays(24), 0.3, occupancy=OccupancyGrid(), samples_per_ray=80, budget=budget)
        assert out.rgb.requires_grad
        return sum(seen.values())

    assert kept(2000) < kept(2**20) / 2


def test_nothing_is_computed_behind_what_is_opaque(monkeypatch):
    monkeypatch.setattr("dream4d.render.FEW", {})
    looked = []

    def wall(points):
        looked.append(len(points))
        return torch.where(points[:, 0] > 0.5, 1e4, 1.0)

    scene = Analytic(wall, lambda p: (p * 3).sin() / 2 + 0.5)
    origin = torch.stack([torch.full((9,), 3.0), torch.linspace(-0.8, 0.8, 9), torch.zeros(9)], dim=1)
    toward = Rays(origin, torch.tensor([[-1.0, 0.0, 0.0]]).expand(9, 3))
    options = {"occupancy": OccupancyGrid(), "samples_per_ray": 400}
    early = render(scene, toward, **options)
    few = sum(looked)
    looked.clear()
    monkeypatch.setattr("dream4d.render.OPAQUE", math.inf)
    whole = render(scene, toward, **options)
    assert few < sum(looked) / 2
    torch.testing.assert_close(early.rgb, whole.rgb, rtol=0, atol=1e-4)
    torch.testing.assert_close(early.depth, whole.depth, rtol=0, atol=1e-3)
