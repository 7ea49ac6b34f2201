import pytest
import torch

from dream4d.cameras import view_words
from dream4d.toyworld import examples
from dream4d.toyworld.examples import (
    NAMED,
    SIDES,
    Sentences,
    image_examples,
    multiview_examples,
    novel_examples,
    photograph,
    pool,
    random_subjects,
    random_toys,
    video_examples,
)
from dream4d.toyworld.grammar import COLOURS, KINDS, NAMES, PROPS, evaluation_combinations, held_out, parse
from dream4d.toyworld.networks import FRAMES, IMAGE_SIZE
from dream4d.toyworld.world import make_toys

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_held_out_combinations_are_never_drawn():
    toys = random_toys(20_000, generator(), textured=True)
    props = [None, *PROPS]
    seen = {
        (KINDS[k], COLOURS[c], props[p])
        for k, c, p in zip(toys.kind.tolist(), toys.colour.tolist(), toys.prop.tolist(), strict=True)
    }
    assert not seen & set(held_out())
    assert len(seen) == len(KINDS) * len(COLOURS) * len(props) - len(held_out())


def test_the_judge_sees_everything():
    toys = random_toys(20_000, generator(), textured=True, everything=True)
    triples = torch.stack([toys.kind, toys.colour, toys.prop], 1).unique(dim=0)
    assert len(triples) == len(KINDS) * len(COLOURS) * (len(PROPS) + 1)


def test_who_has_a_name_has_markings():
    subjects, name = random_subjects(2_000, generator(), textured=False)
    marked = (subjects.sizes > 0).any(1) | subjects.dyed.any(1)
    assert (marked == (name > 0)).all()
    assert abs(marked.float().mean() - NAMED) < 0.03
    assert len(name.unique()) == len(NAMES) + 1


@pytest.mark.parametrize(
    ("make", "count"), [(image_examples, 1), (multiview_examples, 4), (video_examples, FRAMES)]
)  # fmt: skip
def test_examples_are_pictures_with_sentences(make, count):
    made = make(3, generator(), CPU)
    assert made.images.shape == (3, count, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert 0 <= made.images.min() < made.images.max() <= 1
    assert made.sentence.shape == (3,)
    assert all(Sentences().texts[row] for row in made.sentence.tolist())
    again = make(3, generator(), CPU)
    torch.testing.assert_close(again.images, made.images)


def test_a_sentence_row_is_the_sentence():
    sentences = Sentences()
    one = torch.ones(1, dtype=torch.long)
    text = sentences.texts[int(Sentences.row(one * 5, one, one * 2, one * 3, one * 4, one * 0))]
    found = parse(text)
    assert (found.colour, found.kind, found.prop) == (COLOURS[1], KINDS[2], list(PROPS)[2])
    assert f"{COLOURS[1]} {NAMES[4]} {KINDS[2]}" in text
    assert text.endswith(", front view")
    assert sentences.texts[sentences.empty] == ""


def test_view_words_are_the_program_s(monkeypatch):
    seen = []
    monkeypatch.setattr(examples, "_draw", lambda toys, time, cameras, *rest: seen.append(cameras) or torch.zeros(
        len(toys), 4, 4, 3))
    made = image_examples(200, generator(1), CPU)
    for words, row in zip(view_words(seen[0]), made.sentence.tolist(), strict=True):
        text = _TEXTS[row]
        assert "view" not in text or text.endswith(words)


_TEXTS = Sentences().texts


def test_the_views_of_a_scene_go_around_it():
    made = multiview_examples(2, generator(), CPU)
    assert made.camera is not None
    position = made.camera.reshape(2, 4, 4, 4)[..., :3, 3]
    angle = torch.rad2deg(torch.atan2(position[..., 1], position[..., 0]))
    torch.testing.assert_close((angle - angle[:, :1]).remainder(360), torch.tensor([[0.0, 90, 180, 270]] * 2),
                               atol=1e-2, rtol=0)  # fmt: skip


def test_a_clip_moves_unless_its_sentence_says_nothing():
    made = video_examples(24, generator(4), CPU)  # a far arm may wave behind its toy: here none does
    moves = made.images.diff(dim=1).abs().amax(dim=(1, 2, 3, 4)) > 0.05
    said = torch.tensor([" is " in _TEXTS[row] for row in made.sentence.tolist()])
    assert (moves == said).all()


def test_a_pool_is_its_chunks_in_order():
    encoded = pool(image_examples, 5, generator(), CPU, 2, lambda images: images.mean(dim=(1, 2)))
    assert encoded.images.shape == (5, 1, 3)
    first = image_examples(2, generator(), CPU)
    torch.testing.assert_close(encoded.images[:2, 0], first.images[:, 0].mean(dim=(1, 2)))


def test_a_picture_of_a_toy_is_framed_as_one_that_is_read(tmp_path):
    made = novel_examples(6, generator(4), CPU)  # one further view in fifty is cut by its border: here none is
    assert made.images.shape == (6, 1 + SIDES, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert (made.images[:, :, 0] == 1).all(), "before white"
    elevation, _, distance = made.camera.unbind(-1)
    assert -11 < elevation.rad2deg().min() < elevation.rad2deg().max() < 81
    assert distance.std() < 1e-5
    for image in made.images[:, 0]:
        rows, columns = ((image.amin(-1) < 0.97).any(axis).nonzero().flatten() for axis in (1, 0))
        sides = [float(ends[-1] - ends[0] + 1) / IMAGE_SIZE for ends in (rows, columns)]
        assert max(sides) == pytest.approx(0.8, abs=0.06)
        for ends in (rows, columns):
            assert float(ends[0] + ends[-1] + 1) / 2 == pytest.approx(IMAGE_SIZE / 2, abs=2)


def test_views_around_a_picture_are_of_one_toy():
    """From the other side at the same height a toy is its mirror image, up to its front and tail: as wide and high."""
    toy = make_toys(evaluation_combinations(1))
    images, cameras = photograph(toy, torch.tensor([0.0, 180.0]), torch.zeros(2), CPU)
    front, back = (image.amin(-1) < 0.97 for image in images)
    assert (front == back.flip(1)).float().mean() > 0.95
    assert cameras.azimuth[1].abs() == pytest.approx(180)
