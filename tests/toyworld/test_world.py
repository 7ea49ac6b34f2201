import itertools

import pytest
import torch

from dream4d.toyworld.grammar import COLOURS, KINDS, MOTIONS, PROPS, Combination
from dream4d.toyworld.world import ROOT, build, make_toys, pose, world_from_rest


def every_toy(generator=None):
    every = itertools.product(KINDS, COLOURS[:1], (None, *PROPS), MOTIONS)
    return make_toys([Combination(*attributes) for attributes in every], generator)


def extremes(primitives, directions):
    """Points of the world where the balls of each cone reach farthest in some directions of the cone, [b, p, n, 3]."""
    linear, offset = primitives.to_cone[..., :3], primitives.to_cone[..., 3]
    ends = torch.stack([torch.zeros_like(primitives.height), primitives.height], dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0])
    points = ends[..., None, None] * up + primitives.radii[..., None, None] * directions
    points = points.flatten(2, 3) - offset[..., None, :]
    return points @ torch.linalg.inv(linear).mT


@pytest.mark.parametrize("seed", [None, 0])
def test_toys_stay_in_the_unit_ball(seed):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    toys = every_toy(generator)
    directions = torch.nn.functional.normalize(
        torch.tensor([d for d in itertools.product((-1.0, 0.0, 1.0), repeat=3) if any(d)]), dim=-1
    )
    farthest = 0.0
    for time in (0.0, 0.125, 0.25, 0.5, 0.75):
        primitives = build(toys, torch.full((len(toys),), time))
        reach = extremes(primitives, directions).norm(dim=-1).amax(-1)
        farthest = max(farthest, reach[primitives.radii[..., 0] > 0].max().item())
    assert 0.8 < farthest < 1


def test_rest_undoes_to_cone_at_rest():
    """At time 0 a cone's space leads to the rest pose by `rest`, and to the world by the inverse of `to_cone`."""
    toys = every_toy(torch.Generator().manual_seed(0))
    time = torch.zeros(len(toys))
    primitives = build(toys, time)
    point = torch.tensor([0.1, -0.2, 0.05])
    rest = primitives.rest[..., :3] @ point + primitives.rest[..., 3]
    world = world_from_rest(toys, time, rest, primitives.bone)
    back = (primitives.to_cone[..., :3] @ world[..., None])[..., 0] + primitives.to_cone[..., 3]
    torch.testing.assert_close(back, point.expand_as(back), rtol=0, atol=1e-5)


def test_bones_move_rigidly():
    toys = every_toy()
    rotation, _ = pose(toys, torch.linspace(0, 1, len(toys)))
    eye = torch.eye(3).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, eye, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(rotation.shape[:2]), rtol=0, atol=1e-5)


def poses_of_motions(times):
    """Where a point far out on each bone is, [motion, time, bone, 3]."""
    toys = make_toys([Combination("cat", "red", None, motion) for motion in MOTIONS])
    reach = torch.tensor([0.1, 0.3, 0.4])
    frames = []
    for time in times:
        rotation, translation = pose(toys, time.expand(len(toys)))
        frames.append(rotation @ reach + translation)
    return torch.stack(frames, dim=1)


def test_motions_begin_and_end_at_rest():
    places = poses_of_motions(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(places[:, 0], places[:1, 0].expand(len(MOTIONS), -1, -1))
    torch.testing.assert_close(places[:, 1], places[:, 0], rtol=0, atol=1e-5)


def test_motions_move_and_differ():
    places = poses_of_motions(torch.linspace(0, 1, 17))
    moved = (places - places[:, :1]).norm(dim=-1).amax((1, 2))
    assert moved.min() > 0.15
    difference = (places[:, None] - places[None]).norm(dim=-1).amax((2, 3))
    assert difference[~torch.eye(len(MOTIONS), dtype=bool)].min() > 0.15


def test_motions_are_smooth():
    """Without jumps, the largest step halves with the time between frames."""
    coarse, fine = (
        poses_of_motions(torch.linspace(0, 1, n + 1)).diff(dim=1).norm(dim=-1).amax((1, 2)) for n in (160, 320)
    )
    torch.testing.assert_close(fine, coarse / 2, rtol=0.02, atol=0)


def test_only_jumping_and_dancing_shift_the_root():
    places = poses_of_motions(torch.linspace(0, 1, 17))[:, :, ROOT]
    moving = (places - places[:, :1]).norm(dim=-1).amax(1) > 0.05
    assert {motion for motion, moves in zip(MOTIONS, moving.tolist(), strict=True) if moves} == {"jumping", "dancing"}


def test_the_same_generator_makes_the_same_toys():
    first, again, other = (every_toy(torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.scales, again.scales)
    assert torch.equal(first.stripes, again.stripes)
    assert not torch.equal(first.scales, other.scales)
