import pytest
import torch
from tiny_scene import tiny_scene

from dream4d.evaluate.footage import CLIPS, FILM_FRAMES, FILMS, RING, STILLS, footage, photograph
from dream4d.film import Extent, camera_at
from dream4d.render import Render, render_image


def test_every_shot_lands_where_it_belongs():
    """Pictures that say when and from where they were taken."""
    def take(shots):
        said = torch.tensor(shots)[:, None, None, :]
        return Render(said, said[..., 0], said[..., 0], said, said)

    seen = footage(take)
    for part, shots in ((seen.ring, RING), (seen.stills, STILLS)):
        assert part.rgb.squeeze((1, 2)).tolist() == torch.tensor(shots).tolist()
    films = seen.films.rgb.squeeze((2, 3))
    assert films.shape == (5, FILM_FRAMES, 2)
    assert films.flatten(0, 1).tolist() == torch.tensor(FILMS).tolist()
    assert torch.allclose(seen.clips.squeeze((2, 3)).flatten(0, 1), torch.tensor(CLIPS))


def test_a_photograph_is_the_render_of_its_shot():
    scene = tiny_scene(moving=True)
    extent = Extent(scene, resolution=16, moments=2)
    taken = photograph(scene, [(0.0, 0.0), (0.4, 110.0)], 32, size=10, grey=0.3, extent=extent)
    alone = render_image(
        scene, camera_at(110.0), 10, 10, 0.4, occupancy=extent.at(0.4), samples_per_ray=32,
        background=torch.full((3,), 0.3),
    )
    for name, tail in (("rgb", (3,)), ("opacity", ()), ("depth", ()), ("displacement", (3,))):
        assert getattr(taken, name).shape == (2, 10, 10, *tail)
        assert torch.equal(getattr(taken, name)[1], getattr(alone, name))
    assert taken.rgb[0, 0, 0].tolist() == pytest.approx([0.3] * 3)
