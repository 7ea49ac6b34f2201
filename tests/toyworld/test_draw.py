import math

import pytest
import torch

from dream4d.cameras import orbit
from dream4d.toyworld import draw_cpu
from dream4d.toyworld.draw import draw, draw_rgba, over, surface_motion
from dream4d.toyworld.grammar import COLOURS, KINDS, MOTIONS, PROPS, Combination
from dream4d.toyworld.world import BLACK, FIXED, Primitives, build, make_toys, world_from_rest


def cameras_at(azimuth, elevation=10.0, fov_y=40.0, fill=0.95):
    """Cameras that see a ball of radius `fill` from border to border, roughly."""
    azimuth, elevation, fov_y = torch.broadcast_tensors(*map(torch.as_tensor, (azimuth, elevation, fov_y)))
    return orbit(azimuth, elevation, fill / torch.tan(torch.deg2rad(fov_y) / 2), fov_y)


def some_toys(n, seed=0):
    """Toys that differ in everything, with times and cameras."""
    generator = torch.Generator().manual_seed(seed)
    props = (None, *PROPS)
    toys = make_toys(
        [
            Combination(KINDS[i % 7], COLOURS[i % 8], props[(i + i // 7) % 7], MOTIONS[(3 * i + 1) % 7])
            for i in range(n)
        ],
        generator,
    )
    azimuth, elevation, fov_y = torch.rand(3, n, generator=generator)
    cameras = cameras_at(360 * azimuth, 80 * elevation, 15 + 45 * fov_y)
    return toys, torch.rand(n, generator=generator), cameras


def one_ball(centre, radius):
    to_cone = torch.cat([torch.eye(3), -torch.tensor(centre)[:, None]], dim=1)[None, None]
    return Primitives(
        to_cone=to_cone, height=torch.zeros(1, 1), radii=torch.full((1, 1, 2), radius), colour=torch.ones(1, 1, 3),
        rest=to_cone.clone(), stripes=torch.zeros(1, 1, 3), bone=torch.zeros(1, 1, dtype=torch.long),
    )  # fmt: skip


def distance_to_cones(primitives, points, balls):
    """How far [b, n, 3] are outside of each cone, [b, p, n], in the cone's space: it is the union of many balls."""
    local = points[:, None] @ primitives.to_cone[..., :3].mT + primitives.to_cone[:, :, None, :, 3]
    ra, rb = (radius[..., None] for radius in primitives.radii.unbind(-1))
    least = torch.full(local.shape[:-1], math.inf)
    for s in torch.linspace(0, 1, balls):
        z = local[..., 2] - s * primitives.height[..., None]
        far = (local[..., 0] ** 2 + local[..., 1] ** 2 + z**2) ** 0.5 - (ra + s * (rb - ra))
        least = torch.minimum(least, far)
    return torch.where(ra > 0, least, math.inf)


def test_what_is_seen_is_the_first_point_of_the_surface():
    toys, time, cameras = some_toys(7)
    picture = draw(toys, time, cameras, 12, samples=1)
    primitives, rays = build(toys, time), cameras.rays(12, 12)
    origins, directions = rays.origins.flatten(1, 2), rays.directions.flatten(1, 2)
    mask, depth = picture.mask.flatten(1), picture.depth.flatten(1)
    assert 0.1 < mask.float().mean() < 0.6

    seen = distance_to_cones(primitives, origins + depth[..., None] * directions, balls=101)
    own = torch.gather(seen, 1, picture.slot.flatten(1).clamp(min=0)[:, None])[:, 0]
    assert own[mask].abs().max() < 2e-3
    assert seen.amin(1)[mask].abs().max() < 2e-3
    first, last = origins.norm(dim=-1) - 1, torch.where(mask, depth, origins.norm(dim=-1) + 1)
    for part in torch.linspace(0, 0.995, 16):
        between = first + part * (last - first)
        nearest = distance_to_cones(primitives, origins + between[..., None] * directions, balls=7).amin(1)
        assert nearest.min() > -1e-4


def test_depth_and_rest_name_the_same_point():
    toys, time, cameras = some_toys(7, seed=1)
    picture = draw(toys, time, cameras, 24, samples=2)
    rays = cameras.rays(48, 48)
    seen = rays.origins + rays.directions * picture.depth.repeat_interleave(2, 1).repeat_interleave(2, 2)[..., None]
    seen = seen[:, ::2, ::2]
    rest = world_from_rest(toys, time, picture.rest.flatten(1, 2), picture.bone.clamp(min=0).flatten(1, 2))
    difference = (rest.reshape(seen.shape) - seen)[picture.mask]
    assert difference.abs().max() < 1e-5


def test_nothing_is_where_the_mask_is_not():
    toys, time, cameras = some_toys(3)
    picture = draw(toys, time, cameras, 16, samples=1)
    empty = ~picture.mask
    assert torch.equal(picture.rgba[..., 3], picture.mask.float())
    assert (picture.rgba[empty] == 0).all()
    assert (picture.depth[empty] == 0).all()
    assert (picture.rest[empty] == 0).all()
    assert (picture.slot[empty] == -1).all()
    assert (picture.bone[empty] == -1).all()


def test_over_a_background():
    rgba = torch.tensor([0.25, 0.0, 0.5, 0.5]).expand(2, 1, 1, 4)
    out = over(rgba, torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.5, 0.0]]))
    assert out[:, 0, 0].tolist() == [[0.75, 0.5, 1.0], [0.25, 0.25, 0.5]]


def test_a_ball_covers_its_disc():
    """A ball of radius r in the distance D is seen as a disc of radius tan(asin(r / D))."""
    radius, distance, fov_y = 0.5, 2.0, 50.0
    cameras = orbit(*map(torch.tensor, ([30.0], [20.0], [distance], [fov_y])))
    rgba = draw_cpu.draw_rgba(one_ball([0.0, 0.0, 0.0], radius), cameras, 64, 4)
    disc = math.tan(math.asin(radius / distance)) / math.tan(math.radians(fov_y / 2))
    assert rgba[..., 3].mean().item() == pytest.approx(math.pi * disc**2 / 4, rel=2e-3)
    torch.testing.assert_close(rgba, rgba * rgba[..., 3:].ceil())


def test_a_ball_to_the_left_and_above_is_seen_there():
    cameras = orbit(*map(torch.tensor, ([0.0], [0.0], [3.0], [40.0])))  # from +x: +y is to the right
    alpha = draw_cpu.draw_rgba(one_ball([0.0, -0.4, 0.3], 0.2), cameras, 32, 2)[0, :, :, 3]
    assert alpha[:16, :16].sum() == alpha.sum() > 0


def test_the_face_is_seen_from_the_front_only():
    toys = make_toys([Combination(kind, "green", None, "walking") for kind in KINDS])
    time = torch.zeros(len(KINDS))
    black = (build(toys, time).colour == FIXED[BLACK - 3]).all(-1)  # pupils and noses

    def marks(azimuth):
        slot = draw(toys, time, cameras_at(torch.full((len(KINDS),), azimuth)), 48, samples=1).slot.flatten(1)
        return (torch.gather(black, 1, slot.clamp(min=0)) & (slot >= 0)).sum(1)

    assert marks(0.0).min() >= 8
    assert marks(180.0).max() == 0
    assert marks(150.0).max() == 0


def test_the_sides_are_mirror_images_without_a_prop():
    toys = make_toys([Combination(kind, "red", None, "bowing") for kind in KINDS if kind != "cat"])  # its tail bends
    left, right = (
        draw_rgba(toys, torch.full((6,), 0.4), cameras_at(torch.full((6,), a)), 32)[..., 3] for a in (90.0, -90.0)
    )
    assert (left - right.flip(2)).abs().mean() < 1e-3


def test_a_prop_changes_the_picture():
    for kind in KINDS[::3]:
        toys = make_toys([Combination(kind, "yellow", prop, "nodding") for prop in (None, *PROPS)])
        rgba = draw_rgba(toys, torch.zeros(len(toys)), cameras_at(torch.full((len(toys),), 20.0)), 32)
        difference = (rgba[:, None] - rgba[None]).abs().amax(-1)
        changed = (difference > 0.1).flatten(2).sum(-1)
        assert changed[~torch.eye(len(toys), dtype=bool)].min() > 15


def test_a_colour_colours_the_picture():
    toys = make_toys([Combination("bear", colour, None, "nodding") for colour in COLOURS])
    rgba = draw_rgba(toys, torch.zeros(8), cameras_at(torch.full((8,), 180.0)), 32)
    mean = rgba[..., :3].sum((1, 2)) / rgba[..., 3:].sum((1, 2))
    apart = (mean[:, None] - mean[None]).norm(dim=-1) + 10 * torch.eye(8)
    assert apart.min() > 0.1


def test_surface_motion_leads_to_the_same_surface_at_time_zero():
    toys, time, cameras = some_toys(5, seed=2)
    picture = draw(toys, time, cameras, 12, samples=1)
    rays = cameras.rays(12, 12)
    start = rays.origins + picture.depth[..., None] * rays.directions + surface_motion(toys, picture, time)
    outside = distance_to_cones(build(toys, torch.zeros_like(time)), start.flatten(1, 2), balls=101)
    own = torch.gather(outside, 1, picture.slot.flatten(1).clamp(min=0)[:, None])[:, 0]
    assert own[picture.mask.flatten(1)].abs().max() < 2e-3
    assert surface_motion(toys, picture, time)[picture.mask].norm(dim=-1).max() > 0.1


def test_surface_motion_of_a_jump_is_straight_down():
    toys = make_toys([Combination("frog", "green", None, "jumping")])
    picture = draw(toys, torch.tensor([0.25]), cameras_at(torch.tensor([0.0])), 24, samples=1)
    motion = surface_motion(toys, picture, torch.tensor([0.25]))
    head = picture.bone == 2
    assert head.sum() > 20
    torch.testing.assert_close(motion[head], torch.tensor([0.0, 0.0, -0.2]).expand(head.sum(), 3), rtol=0, atol=1e-5)
    assert (motion[~picture.mask] == 0).all()
    still = surface_motion(toys, picture, torch.zeros(1))
    assert (still == 0).all()


def assert_same_pictures(ours, twin):
    """To 1e-4, but for rays that graze a silhouette or a seam: one pixel in 2000, and two."""
    difference = (ours.cpu() - twin).abs().amax(-1)
    assert (difference > 1e-4).sum() <= 2 + difference.numel() / 2000
    assert ours.isfinite().all()


@pytest.mark.parametrize(("size", "samples"), [(32, 2), (21, 1), (9, 3)])
def test_the_cpu_kernel_draws_the_same(size, samples):
    toys, time, cameras = some_toys(14)
    ours = draw_rgba(toys, time, cameras, size, samples=samples)
    assert_same_pictures(ours, draw(toys, time, cameras, size, samples=samples).rgba)


def test_the_cpu_kernel_draws_the_same_close_up():
    """Also where toys are cut by the image's border, and reach behind the camera."""
    toys, time, _ = some_toys(7)
    for fill in (0.1, 0.4):
        cameras = cameras_at(torch.linspace(0, 300, 7), 5.0, 20.0, fill=fill)
        ours = draw_cpu.draw_rgba(build(toys, time), cameras, 16, 2)
        assert_same_pictures(ours, draw(toys, time, cameras, 16, samples=2).rgba)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("size", "samples"), [(64, 2), (21, 1), (9, 3)])
def test_the_gpu_kernel_draws_the_same(size, samples):
    toys, time, cameras = some_toys(56)
    ours = draw_rgba(toys.to("cuda"), time.cuda(), cameras.to("cuda"), size, samples=samples)
    assert_same_pictures(ours, draw(toys, time, cameras, size, samples=samples).rgba)
