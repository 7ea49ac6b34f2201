"""What is measured: a scene, or the toy that it should be, from the same sides at the same times."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from dream4d.cameras import Cameras
from dream4d.film import AROUND, THROUGHOUT, Extent, cameras_at
from dream4d.render import Render, render_images
from dream4d.scene import Scene

Shot = tuple[float, float]
"""Time, and azimuth in degrees."""
SIZE, GREY = 64, 0.5
SAMPLES_PER_RAY = 256
RING: list[Shot] = [(0.0, 15.0 * i) for i in range(24)]
STILLS: list[Shot] = list(itertools.product(THROUGHOUT, AROUND))
CLIP_AZIMUTHS, CLIP_FRAMES = (-60.0, -30.0, 0.0, 30.0, 60.0), 16
CLIPS: list[Shot] = [(float(t), a) for a in CLIP_AZIMUTHS for t in np.linspace(0, 1, CLIP_FRAMES)]
FILM_FRAMES = 46
"""About as many as a video has; every third is a frame of CLIPS, between which fast motion looks like jitter."""
FILMS: list[Shot] = [(float(t), a) for a in CLIP_AZIMUTHS for t in np.linspace(0, 1, FILM_FRAMES)]


@dataclass(frozen=True)
class Footage:
    """ring: once around at time 0, [24, h, w, ..]. stills: eight sides at each of six times, [48, h, w, ..]. films: the
    whole time from five sides in front, [5, 46, h, w, ..]."""

    ring: Render
    stills: Render
    films: Render

    @property
    def clips(self) -> Tensor:
        """The films' pictures at the times of CLIPS, [5, 16, h, w, 3]."""
        return self.films.rgb[:, :: (FILM_FRAMES - 1) // (CLIP_FRAMES - 1)]


def footage(take: Callable[[Sequence[Shot]], Render]) -> Footage:
    """take: pictures of shots, [shots, h, w, ..]."""
    every = take([*RING, *STILLS, *FILMS])
    values = [getattr(every, field.name).split([len(RING), len(STILLS), len(FILMS)]) for field in fields(Render)]
    ring, stills = (Render(*(value[i] for value in values)) for i in range(2))
    return Footage(ring, stills, Render(*(value[2].unflatten(0, (-1, FILM_FRAMES)) for value in values)))


def cameras_of(shots: Sequence[Shot]) -> Cameras:
    return cameras_at([azimuth for _, azimuth in shots])


def photograph(
    scene: Scene, shots: Sequence[Shot], samples_per_ray: int = SAMPLES_PER_RAY, *, size: int = SIZE,
    grey: float = GREY, extent: Extent | None = None,
) -> Render:
    """The scene before grey, [shots, size, size, ..] on its device. extent: the scene's, if it is known already."""
    extent = extent or Extent(scene)
    device = next(scene.parameters()).device
    behind = torch.full((3,), grey, device=device)
    cameras = cameras_of(shots).to(device)
    by_time: dict[float, list[int]] = {}
    for index, (time, _) in enumerate(shots):
        by_time.setdefault(time, []).append(index)
    parts = [
        render_images(
            scene, cameras[torch.tensor(group, device=device)], size, size, time, occupancy=extent.at(time),
            samples_per_ray=samples_per_ray, background=behind,
        )
        for time, group in by_time.items()
    ]
    order = torch.tensor([*itertools.chain(*by_time.values())], device=device).argsort()
    return Render(*(torch.cat([getattr(part, field.name) for part in parts])[order] for field in fields(Render)))
