import math

import pytest
import torch

from dream4d.evaluate import metrics
from dream4d.evaluate.footage import CLIP_FRAMES, CLIPS, RING, cameras_of
from dream4d.evaluate.toy import drawing, exact
from dream4d.toyworld.grammar import MOTIONS, Combination

CAT = Combination("cat", "red", "top hat", "waving")
EVERYWHERE = torch.ones(8, 6, 6, dtype=torch.bool)
AROUND = torch.arange(0.0, 360.0, 15.0)


def clip(values):
    """[8] along time -> a clip [8, 6, 6, 1] that is the same in all pixels."""
    return values.reshape(8, 1, 1, 1).expand(8, 6, 6, 1)


def clips_of(combination, delay=0.0):
    shots = [((time + delay) % 1, azimuth) for time, azimuth in CLIPS]
    return drawing(combination, shots, "cpu", torch.Generator().manual_seed(1)).unflatten(0, (-1, CLIP_FRAMES))


@pytest.mark.parametrize(
    ("apparent", "count"),
    [
        (AROUND, 1),
        (AROUND + 77, 1),
        (torch.where((AROUND > 90) & (AROUND < 270), AROUND + 180, AROUND), 2),
        (torch.zeros(24), math.pi),
        (torch.full((24,), 180.0), 0),
    ],
    ids=["one", "one turned", "one on either side", "everywhere", "none"],
)
def test_faces_are_counted(apparent, count):
    assert metrics.faces(apparent) == pytest.approx(count, abs=0.02)


def test_psnr_is_that_of_its_formula():
    grey = torch.full((2, 4, 4, 3), 0.5)
    assert metrics.psnr(grey + 0.1, grey) == pytest.approx(20, abs=1e-5)
    assert metrics.psnr(grey, grey) == metrics.NOISELESS


@pytest.fixture(scope="module")
def ring():
    return exact(CAT, RING, "cpu")


def test_exact_views_agree(ring):
    share, decibels = metrics.view_agreement(ring.rgb, ring.opacity, ring.depth, cameras_of(RING))
    assert share > 0.97
    assert decibels > 23


def test_the_depth_of_a_hollow_view_gives_it_away(ring):
    """Half of the views see the toy's back wall, as through a front that is not there."""
    depth = ring.depth.clone()
    depth[::2] += 0.5 * (depth[::2] > 0)
    assert metrics.view_agreement(ring.rgb, ring.opacity, depth, cameras_of(RING))[0] < 0.6


def test_a_part_that_only_one_view_has_is_seen_through(ring):
    opacity, depth = ring.opacity.clone(), ring.depth.clone()
    opacity[::2, 2:12, 2:12], depth[::2, 2:12, 2:12] = 1, 2.9
    before, _ = metrics.view_agreement(ring.rgb, ring.opacity, ring.depth, cameras_of(RING))
    after, _ = metrics.view_agreement(ring.rgb, opacity, depth, cameras_of(RING))
    assert after < before - 0.05


def test_colours_that_change_from_view_to_view_are_told_from_shape(ring):
    rgb = ring.rgb.clone()
    rgb[::2] = rgb[::2].flip(-1)
    share, decibels = metrics.view_agreement(rgb, ring.opacity, ring.depth, cameras_of(RING))
    assert share == metrics.view_agreement(ring.rgb, ring.opacity, ring.depth, cameras_of(RING))[0]
    assert decibels < 12


def test_nothing_to_look_at_is_nan():
    empty = torch.zeros(24, 8, 8)
    values = metrics.view_agreement(torch.zeros(24, 8, 8, 3), empty, empty, cameras_of(RING))
    nowhere = torch.zeros(8, 6, 6, dtype=torch.bool)
    still = clip(torch.zeros(8))
    values += metrics.spread(still, nowhere), metrics.acceleration(still, nowhere), metrics.roughness(still, nowhere)
    assert all(map(math.isnan, values))


def test_acceleration_and_spread_have_their_closed_forms():
    time = torch.arange(8, dtype=torch.double)
    assert metrics.acceleration(clip(3 * time), EVERYWHERE) == 0
    assert metrics.acceleration(clip(0.25 * time**2), EVERYWHERE) == pytest.approx(0.5)
    assert metrics.acceleration(clip((-1.0) ** time), EVERYWHERE) == pytest.approx(4)
    assert metrics.spread(clip((-1.0) ** time), EVERYWHERE) == pytest.approx(1)
    assert metrics.spread(clip(torch.full((8,), 5.0)), EVERYWHERE) == 0, "a constant offset is no motion"


def test_roughness_has_its_closed_form():
    x = torch.arange(6, dtype=torch.double)
    assert metrics.roughness((x[None] + 2 * x[:, None])[None, ..., None].expand(8, 6, 6, 1), EVERYWHERE) == 0
    bowl = (x[None] ** 2 + 3 * x[:, None] ** 2)[None, ..., None].expand(8, 6, 6, 1)
    assert metrics.roughness(bowl, EVERYWHERE) == pytest.approx(2 + 6)


def test_what_is_outside_the_mask_does_not_count():
    values, mask = clip(torch.arange(8.0)).clone(), EVERYWHERE.clone()
    values[3, 2, 2] = 1e6
    mask[3, 2, 2] = False
    assert metrics.acceleration(values, mask) == 0
    assert metrics.roughness(values, mask) == 0
    assert metrics.spread(values, mask) < 3


@pytest.fixture(scope="module")
def truths():
    moving = {motion: Combination("dog", "blue", "scarf", motion) for motion in MOTIONS}
    return {name: drawing(toy, CLIPS, "cpu").unflatten(0, (-1, CLIP_FRAMES)) for name, toy in moving.items()}


@pytest.mark.parametrize("motion", MOTIONS)
def test_motion_agrees_with_itself_whenever_it_begins_and_with_no_other(truths, motion):
    late = clips_of(Combination("dog", "blue", "scarf", motion), delay=0.2)
    found = {name: metrics.motion_agreement(late, truth) for name, truth in truths.items()}
    cosine, shift = found.pop(motion)
    assert cosine > 0.85
    assert shift == 3, "a fifth of 15 frames"
    assert max(other for other, _ in found.values()) < 0.4


def test_frozen_and_random_clips_agree_with_no_motion():
    truth = clips_of(CAT)
    assert math.isnan(metrics.motion_agreement(truth[:, :1].expand_as(truth), truth)[0])
    assert metrics.motion_agreement(torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)), truth)[0] < 0.1


def test_an_interval_holds_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(5)
    hits = 0
    for _ in range(200):
        mean, low, high = metrics.interval(torch.randn(20, generator=generator).tolist(), resamples=500)
        assert low <= mean <= high
        hits += low <= 0 <= high
    assert 175 <= hits <= 198  # binomial of .93, the percentile bootstrap's coverage for 20 values
    assert metrics.interval([2.0, 2.0]) == (2, 2, 2)
    assert metrics.interval([1.0, 2.0, 4.0]) == metrics.interval([1.0, 2.0, 4.0])
