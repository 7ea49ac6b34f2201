import subprocess
import sys

import pytest
import torch

from dream4d.cameras import orbit
from dream4d.media import read_photos
from dream4d.toyworld.draw import draw_primitives, draw_primitives_rgba
from dream4d.toyworld.grammar import Combination
from dream4d.toyworld.subjects import (
    build_subjects,
    differences,
    draw_subjects,
    make_subjects,
    mark,
    photographs,
    portraits,
)
from dream4d.toyworld.world import build

CAT = Combination("cat", "orange", None, "waving")


@pytest.fixture(scope="module")
def subjects():
    return make_subjects([CAT] * 4, torch.Generator().manual_seed(0))


def around(n):
    return orbit(torch.arange(n) * 360 / n, torch.tensor(10.0), torch.tensor(3.7), torch.tensor(30.0))


def test_every_renderer_draws_the_markings(subjects):
    primitives = build_subjects(subjects, torch.tensor([0.0, 0.3, 0.5, 0.9]))
    exact = draw_primitives(primitives, around(4), 24).rgba
    quick = draw_primitives_rgba(primitives, around(4), 24)
    assert (exact - quick).abs().max() < 0.02


def test_marks_are_on_the_body_and_hardly_change_its_outline(subjects):
    time = torch.full((4,), 0.4)
    plain = draw_primitives_rgba(build(subjects.toys, time), around(4), 48)
    marked = draw_primitives_rgba(build_subjects(subjects, time), around(4), 48)
    differing = (plain[..., :3] - marked[..., :3]).abs().amax(-1) > 0.1
    assert (differing.float().mean((1, 2)) / plain[..., 3].mean((1, 2))).min() > 0.1
    assert (plain[..., 3] - marked[..., 3]).abs().mean((1, 2)).max() < 0.01


def test_marks_move_with_their_bone(subjects):
    """A mark's centre, in the rest pose, stays where it is."""
    def centre(time):
        primitives = build_subjects(subjects, torch.full((4,), time))
        return primitives.rest[..., 3], primitives.to_cone[..., 3]

    (rest, placed), (rest_later, placed_later) = centre(0.0), centre(0.5)
    torch.testing.assert_close(rest, rest_later)
    assert not torch.allclose(placed, placed_later)


def test_photos_of_a_subject_show_it_and_differ(subjects):
    right, crowd = 0, portraits(subjects)
    for i in range(4):
        shots = photographs(subjects[torch.tensor([i])], 5, torch.Generator().manual_seed(i), size=64)
        assert shots.shape == (5, 64, 64, 3)
        assert min((shots[a] - shots[b]).abs().mean() for a in range(5) for b in range(a)) > 0.05
        right += (differences(shots, crowd).argmin(1) == i).sum().item()
    assert right >= 16  # of 20: 5 by chance


def test_drawings_are_recognised_and_nothing_is_nobody(subjects):
    cameras = orbit(torch.tensor([20.0, 100.0, 190.0, 300.0]), *torch.tensor([[8.0], [3.6], [30.0]]))
    rgba = draw_subjects(subjects, cameras, 64)
    images = rgba[..., :3] + (1 - rgba[..., 3:]) * torch.tensor([0.2, 0.3, 0.9])
    far = differences(torch.cat([images, torch.ones(1, 64, 64, 3)]), portraits(subjects))
    assert far[:4].argmin(1).tolist() == [0, 1, 2, 3]
    assert far[4].eq(1).all()


def test_who_moves_is_recognised_by_drawings_that_move():
    dancers = make_subjects([Combination("rabbit", "pink", None, "dancing")] * 3, torch.Generator().manual_seed(1))
    rgba = draw_subjects(dancers, orbit(*torch.tensor([[0.0] * 3, [15.0] * 3, [3.7] * 3, [30.0] * 3])), 64, time=0.25)
    images = rgba[..., :3] + (1 - rgba[..., 3:]) * 0.9
    moving, still = (differences(images, portraits(dancers, times=times)) for times in ((0.0, 0.25), (0.0,)))
    assert moving.argmin(1).tolist() == [0, 1, 2]
    assert (moving.diagonal() < 0.6 * still.diagonal()).all()


def test_only_those_who_shall_be_are_marked():
    toys = make_subjects([CAT] * 4, torch.Generator().manual_seed(0)).toys
    which = torch.tensor([True, False, True, False])
    marked = build_subjects(mark(toys, which, torch.Generator().manual_seed(1)), torch.zeros(4))
    plain = build(toys, torch.zeros(4))
    own = plain.colour.shape[1]
    assert marked.radii[:, own:].amax(dim=(1, 2)).gt(0).tolist() == which.tolist()
    same = (marked.colour[:, :own] == plain.colour).all(dim=2).all(dim=1)
    assert same.tolist() == (~which).tolist()


def test_the_command_writes_photos(tmp_path):
    argv = [sys.executable, "-m", "dream4d.toyworld.subjects", "--out", str(tmp_path), "--photos", "3"]
    subprocess.run(argv, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert read_photos(tmp_path, 32).shape == (3, 32, 32, 3)
