import math
from dataclasses import fields, replace

import pytest
import torch

from dream4d.evaluate import toy
from dream4d.evaluate.footage import CLIPS, FILM_FRAMES, FILMS, RING, STILLS, footage
from dream4d.evaluate.runs import measure_films
from dream4d.render import Render
from dream4d.toyworld.grammar import Combination
from dream4d.toyworld.judge import Judge

DOG = Combination("dog", "green", "top hat", "jumping")


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


def filmed(combination, move=lambda time, azimuth: (time, azimuth)):
    """Pictures alone, which are all that the judge sees; `move` says what is drawn for a shot."""
    def take(shots):
        rgb = toy.drawing(combination, [move(*shot) for shot in shots], "cpu")
        return Render(rgb, rgb[..., 0], rgb[..., 0], rgb, rgb)

    return footage(take)


def motion_of(times):
    """A film of one side, exact with depth and displacement."""
    film = toy.exact(DOG, [(time, 30.0) for time in times], "cpu")
    return Render(*(getattr(film, field.name)[None] for field in fields(Render)))


TIMES = [time for time, _ in FILMS[:FILM_FRAMES]]


@pytest.fixture(scope="module")
def film():
    return motion_of(TIMES)


@pytest.fixture(scope="module")
def smooth(film):
    return measure_films(film)


def test_the_exact_toy_is_what_its_sentence_says(judge):
    good, _ = toy.measure(judge, DOG, filmed(DOG))
    for name in ("aligned", "kind", "colour", "prop", "azimuth_right", "motion_right"):
        assert good[name] > 0.9, name
    assert good["motion_agreement"] == pytest.approx(1)
    assert good["faces"] == pytest.approx(1, abs=0.1)
    assert good["azimuth_error"] < 10


def test_a_second_face_is_counted(judge):
    """Who goes around it sees its front twice."""
    janus = filmed(DOG, lambda time, azimuth: (time, (azimuth + 90) % 180 - 90))
    found, _ = toy.measure(judge, DOG, janus)
    assert found["faces"] > 1.8
    assert found["azimuth_right"] < 0.7
    assert found["azimuth_error"] > 30
    assert found["aligned"] > 0.9, "it is what the sentence says all the same"


def test_a_missing_prop_is_missed(judge):
    found, read = toy.measure(judge, DOG, filmed(Combination("dog", "green", None, "jumping")))
    assert (found["prop"], found["aligned"], read["prop"]) == (0, 0, "nothing")
    assert found["kind"] > 0.8


def test_another_animal_of_another_colour_is_not_aligned(judge):
    found, read = toy.measure(judge, DOG, filmed(Combination("frog", "pink", "top hat", "jumping")))
    assert max(found["kind"], found["colour"], found["aligned"]) < 0.1
    assert (read["kind"], read["colour"]) == ("frog", "pink")


def test_frozen_motion_is_no_motion(judge):
    frozen = filmed(DOG, lambda time, azimuth: (0.0, azimuth))
    found, read = toy.measure(judge, DOG, frozen)
    assert (found["motion_right"], read["motion"]) == (0, "standing")
    assert math.isnan(found["motion_agreement"])
    still = measure_films(motion_of([0.0] * 5))
    assert max(still.values()) < 1e-6
    assert "amount" not in still, "nothing is displaced"


def test_another_motion_is_another_motion(judge):
    found, read = toy.measure(judge, DOG, filmed(Combination("dog", "green", "top hat", "bowing")))
    assert found["motion_right"] < 0.3
    assert found["motion_agreement"] < 0.3
    assert read["motion"] == "bowing"


def test_shaken_frames_jitter_and_move_no_more(smooth):
    """Every other frame comes a quarter of a frame too early, the others as much too late."""
    shaken = measure_films(motion_of([time + 0.25 / FILM_FRAMES * (-1) ** i for i, time in enumerate(TIMES)]))
    assert shaken["jitter"] > 2 * smooth["jitter"]
    assert shaken["flicker"] > 1.25 * smooth["flicker"]
    for name in ("amount", "change"):
        assert shaken[name] == pytest.approx(smooth[name], rel=0.05)


def test_half_the_motion_is_half_the_amount(film, smooth):
    half = measure_films(replace(film, displacement=film.displacement / 2))
    assert half["amount"] == pytest.approx(smooth["amount"] / 2)


def test_torn_displacement_is_rough(film, smooth):
    rows = (torch.arange(64) % 2 * 0.05)[:, None, None]
    torn = measure_films(replace(film, displacement=film.displacement + rows))
    assert torn["roughness"] > smooth["roughness"] + 0.05
    assert torn["jitter"] == pytest.approx(smooth["jitter"], abs=1e-4)


def test_only_what_the_sentence_says_is_asked(judge):
    seen = filmed(DOG)
    found, _ = toy.measure(judge, Combination(None, "green", None), seen)
    assert found.keys() == {"aligned", "colour", "azimuth_right", "azimuth_error", "faces"}


def test_a_toy_whose_sentence_names_no_motion_stands_still():
    first, *others = toy.drawing(Combination("dog", "green", None), [(time, 0.0) for time in (0.0, 0.3, 0.7)], "cpu")
    assert all(torch.equal(first, other) for other in others)


def test_a_prop_is_asked_for_where_it_can_be_seen():
    """A cape hangs at the back; a hat is seen from all sides; nothing is never seen."""
    shots = [(0.0, 0.0), (0.0, 180.0)]
    front, back = toy.prop_pixels(Combination("bear", "red", "cape"), shots, "cpu").tolist()
    assert back > 4 * front
    assert toy.prop_pixels(Combination("bear", "red", "top hat"), shots, "cpu").min() >= toy.PROP_PIXELS
    assert toy.prop_pixels(Combination("bear", "red", None), shots, "cpu").max() == 0


def test_drawings_and_exact_pictures_are_the_same():
    shots = [RING[3], STILLS[20], CLIPS[4]]
    seen = toy.exact(DOG, shots, "cpu")
    assert (seen.rgb - toy.drawing(DOG, shots, "cpu")).abs().mean() < 1e-3
    assert seen.displacement[0].abs().max() == 0, "nothing has moved yet"
    assert seen.displacement[2].abs().max() > 0.05
