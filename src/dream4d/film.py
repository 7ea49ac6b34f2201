"""A scene as pictures: contact sheets of a moment, and videos of its whole time from several sides at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dream4d.cameras import Cameras, orbit
from dream4d.media import colour_depth, colour_displacement, contact_sheet
from dream4d.occupancy import OccupancyGrid, dilate, without_floaters
from dream4d.progress import track
from dream4d.render import Render, render_images
from dream4d.scene import Scene

View = Literal["fixed", "orbit"]
Channel = Literal["rgb", "depth", "displacement"]
Array = NDArray[np.floating[Any]]
RGB = tuple[float, float, float]
Occupancy = Callable[[float], OccupancyGrid]
SOLID = 0.25
"""Optical thickness of a cell, density times its width, from which it is no speck."""

DISTANCE, FOV_Y, ELEVATION = 2.92, 40.0, 15.0  # the ball of radius 1 fills the picture
FIXED = (20.0, 110.0, 200.0)
"""Azimuths of the fixed views, in degrees: front, side and back, each a little turned."""
AROUND = tuple(45.0 * i for i in range(8))
THROUGHOUT = tuple(i / 5 for i in range(6))
"""The sides and times of a finished scene's sheet."""


def camera_at(azimuth: float, elevation: float = ELEVATION) -> Cameras:
    """One camera on the evaluation circle; angles in degrees."""
    return cameras_at([azimuth], elevation)


def cameras_at(azimuths: Sequence[float], elevation: float = ELEVATION) -> Cameras:
    """Cameras on the evaluation circle, one for each azimuth; angles in degrees."""
    others = (torch.full((len(azimuths),), value) for value in (elevation, DISTANCE, FOV_Y))
    return orbit(torch.tensor(azimuths), *others)


class Extent:
    """The cells that a finished scene occupies at a time, found at once and without a history.

    Training's grid forgets and is updated again and again; this one must find at once what is much thinner than a
    cell. So nothing decays, cells beside an occupied one count too, and after a first look everywhere all further
    points go to where anything may be. Faint specks that touch nothing do not count: distillation leaves some in the
    air. A deformed scene occupies what it warps into the occupied part of the canonical; one that changes otherwise is
    looked at anew at each time.
    moments: when a deformed one is looked at to find where it ever is.
    """

    def __init__(self, scene: Scene, *, resolution: int = 64, moments: int = 48) -> None:
        self._scene, self._resolution = scene, resolution
        self._generator = torch.Generator().manual_seed(0)
        self._known: dict[float, OccupancyGrid] = {}
        if scene.deformation is None:
            return
        self._still, self._ever = self._find(scene.canonical.density), self._grid(32, dilation=1)
        for moment in np.linspace(0, 1, moments).tolist():
            self._ever.update(partial(self._occupied, time=moment), self._generator)

    def at(self, time: float) -> OccupancyGrid:
        """The grid of a time in [0, 1]."""
        time = time if self._scene.moves else 0.0
        if time not in self._known:
            if self._scene.deformation is None:
                self._known[time] = self._find(partial(self._scene.density, time=time))
            else:
                self._known[time] = self._warped(time)
        return self._known[time]

    def _warped(self, time: float) -> OccupancyGrid:
        """The cells that are warped into those of the canonical scene."""
        grid = self._grid(self._resolution)
        for _ in range(2):
            grid.update(
                lambda points: self._within(self._ever, points, partial(self._occupied, time=time)), self._generator
            )
        return grid

    def _find(self, density: Callable[[Tensor], Tensor]) -> OccupancyGrid:
        """The cells of what has this density."""
        near = self._grid(self._resolution, dilation=2)
        for _ in range(4):
            near.update(density, self._generator)
        grid = self._grid(self._resolution)
        grid.values = near.values
        for _ in range(8):
            grid.update(lambda points: self._within(near, points, density), self._generator)
        solid = grid.values > SOLID / (2 * grid.radius / self._resolution)
        settled = without_floaters(grid.occupied, solid, smallest=self._resolution**3 // 1000)
        grid.occupied = dilate(settled, 1)
        return grid

    def _grid(self, resolution: int, dilation: int = 0) -> OccupancyGrid:
        grid = OccupancyGrid(resolution, decay=1.0, dilation=dilation)
        return grid.to(next(self._scene.parameters()).device)

    def _occupied(self, points: Tensor, time: float) -> Tensor:
        return self._still.at(self._scene.warp(points, time)).float()

    @staticmethod
    def _within(grid: OccupancyGrid, points: Tensor, values: Callable[[Tensor], Tensor]) -> Tensor:
        """Values of the points in occupied cells, and zeros."""
        chosen, result = grid.at(points), torch.zeros(len(points), device=points.device)
        result[chosen] = values(points[chosen])
        return result


def film(
    scene: Scene, occupancy: Occupancy, *, views: Sequence[View], channels: Sequence[Channel], size: int,
    frames: int, samples_per_ray: int, elevation: float = ELEVATION, background: RGB | None = None,
) -> Array:
    """[frames, rows * size, columns * size, 3]: a row for each channel, a column for each camera.

    Time runs from 0 to 1. ``fixed`` views stand still, ``orbit`` goes once around. occupancy: the grid of a time, such
    as `Extent.at`. background: the scene's own if None.
    """
    pictures = _camera_man(scene, occupancy, size, samples_per_ray, background)
    times = np.linspace(0, 1, frames)
    rendered: list[Render] = []
    for index in track(range(frames), "video", frames):
        azimuths = [a for view in views for a in (FIXED if view == "fixed" else (360 * index / frames,))]
        rendered.append(pictures(cameras_at(azimuths, elevation), float(times[index])))
    rows = [_coloured(rendered, channel) for channel in channels]
    return np.concatenate([np.concatenate(list(row.swapaxes(0, 1)), axis=2) for row in rows], axis=1)


def still_sheet(
    scene: Scene, occupancy: Occupancy, *, times: Sequence[float], azimuths: Sequence[float], size: int,
    samples_per_ray: int, background: RGB | None = None,
) -> Array:
    """A contact sheet of every time from every azimuth; the more of the two stand beside each other. occupancy: see
    `film`."""
    pictures = _camera_man(scene, occupancy, size, samples_per_ray, background)
    cameras = cameras_at(azimuths)
    grid = np.stack([_array(pictures(cameras, time).rgb) for time in times])
    sides, moments = [f"{azimuth:.0f} deg" for azimuth in azimuths], [f"time {time:.2f}" for time in times]
    if len(times) > len(azimuths):
        return contact_sheet(grid.swapaxes(0, 1), moments, sides)
    return contact_sheet(grid, sides, moments)


def _camera_man(
    scene: Scene, occupancy: Occupancy, size: int, samples_per_ray: int, background: RGB | None
) -> Callable[[Cameras, float], Render]:
    """Takes square pictures with cameras at a time."""
    device = next(scene.parameters()).device
    behind = None if background is None else torch.tensor(background, device=device)

    def pictures(cameras: Cameras, time: float) -> Render:
        return render_images(
            scene, cameras.to(device), size, size, time, occupancy=occupancy(time), samples_per_ray=samples_per_ray,
            background=behind,
        )

    return pictures


def _coloured(rendered: list[Render], channel: Channel) -> Array:
    """[frames, views, h, w, 3]"""
    def gather(name: str) -> Array:
        return np.stack([_array(getattr(frame, name)) for frame in rendered])

    if channel == "rgb":
        return gather("rgb")
    if channel == "depth":
        opacity = gather("opacity")
        return colour_depth(gather("depth") / np.maximum(opacity, 1e-6), opacity, near=DISTANCE - 1, far=DISTANCE + 1)
    return colour_displacement(gather("displacement"), gather("opacity"))


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
