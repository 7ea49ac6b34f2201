"""Pinhole cameras and their rays (paper Sec. 3.1 and 3.2, supplement 3).

World: right-handed, +z up, the front of an object faces +x. ``camera_to_world`` is 4x4 in OpenGL axes (the camera
looks along its -z, +y is up in the image). Azimuth 0 is a camera on the +x axis, which sees the front; azimuth grows
counter-clockwise seen from above (90 degrees is a camera on +y). Angles in the public API are degrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rays:
    """Origins and unit directions, both [..., 3]."""

    origins: Tensor
    directions: Tensor

    def flatten(self) -> Rays:
        return Rays(self.origins.reshape(-1, 3), self.directions.reshape(-1, 3))


@dataclass(frozen=True)
class Cameras:
    """A batch of pinhole cameras.

    camera_to_world: [b, 4, 4], OpenGL axes. fov_y: [b], vertical field of view in degrees.
    """

    camera_to_world: Tensor
    fov_y: Tensor

    def __len__(self) -> int:
        return self.camera_to_world.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Cameras:
        if isinstance(index, int):
            index = slice(index, index + 1)
        return Cameras(self.camera_to_world[index], self.fov_y[index])

    def to(self, device: torch.device | str) -> Cameras:
        return Cameras(self.camera_to_world.to(device), self.fov_y.to(device))

    @property
    def position(self) -> Tensor:
        """[b, 3]"""
        return self.camera_to_world[:, :3, 3]

    @property
    def azimuth(self) -> Tensor:
        """[b], degrees in (-180, 180]."""
        return torch.rad2deg(torch.atan2(self.position[:, 1], self.position[:, 0]))

    @property
    def elevation(self) -> Tensor:
        """[b], degrees; 90 is straight above."""
        return torch.rad2deg(torch.asin((self.position[:, 2] / self.position.norm(dim=-1)).clamp(-1, 1)))

    def rays(self, height: int, width: int) -> Rays:
        """Rays through the pixel centres, [b, height, width, 3]; row 0 is the top of the image."""
        dtype, device = self.camera_to_world.dtype, self.camera_to_world.device
        tan = torch.tan(torch.deg2rad(self.fov_y) / 2)[:, None, None]
        y = (1 - (torch.arange(height, dtype=dtype, device=device) + 0.5) * 2 / height)[None, :, None]
        x = ((torch.arange(width, dtype=dtype, device=device) + 0.5) * 2 / width - 1)[None, None, :] * (width / height)
        local = torch.stack(torch.broadcast_tensors(x * tan, y * tan, -torch.ones_like(x * tan * y)), dim=-1)
        local = local / local.norm(dim=-1, keepdim=True)
        rotation = self.camera_to_world[:, None, None, :3, :3]
        directions = (rotation @ local[..., None])[..., 0]
        return Rays(self.position[:, None, None, :].expand_as(directions), directions)


def orbit(azimuth: Tensor, elevation: Tensor, distance: Tensor, fov_y: Tensor) -> Cameras:
    """Cameras that look at the origin with +z up. All arguments [b] (degrees, scene units) and broadcast together."""
    azimuth, elevation, distance, fov_y = torch.broadcast_tensors(azimuth, elevation, distance, fov_y)
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    backward = torch.stack([a.cos() * e.cos(), a.sin() * e.cos(), e.sin()], dim=-1)
    right = torch.stack([-a.sin(), a.cos(), torch.zeros_like(a)], dim=-1)
    up = torch.linalg.cross(backward, right)
    pose = torch.zeros(*a.shape, 4, 4, dtype=a.dtype, device=a.device)
    pose[..., :3, 0], pose[..., :3, 1], pose[..., :3, 2] = right, up, backward
    pose[..., :3, 3] = backward * distance[..., None]
    pose[..., 3, 3] = 1
    return Cameras(pose, fov_y)


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """[n] random numbers between `low` and `high`."""
    return low + (high - low) * torch.rand(n, generator=generator)


def framing_distance(fov_y: Tensor, generator: torch.Generator) -> Tensor:
    """U[.8, 1] / tan(fov_y / 2): an object of radius .8 to 1 fills the image, whatever the field of view."""
    return uniform(len(fov_y), 0.8, 1.0, generator) / torch.tan(torch.deg2rad(fov_y) / 2)


def sample_multiview(
    scenes: int, generator: torch.Generator, *, views: int = 4,
    elevation: tuple[float, float] = (0.0, 30.0), fov_y: tuple[float, float] = (15.0, 60.0),
    distance: float | None = None,
) -> Cameras:
    """`scenes` groups of `views` cameras, evenly spaced in azimuth with a random start (supplement 3.1).

    Cameras of a group share elevation, distance and field of view and are consecutive in the batch. Half of the
    elevations are uniform in angle, half uniform on the sphere. distance: that of all; `framing_distance` if None.
    """
    low, high = elevation
    uniform_angle = uniform(scenes, low, high, generator)
    sines = uniform(scenes, math.sin(math.radians(low)), math.sin(math.radians(high)), generator)
    on_sphere = torch.rad2deg(torch.asin(sines))
    chosen = torch.where(torch.rand(scenes, generator=generator) < 0.5, uniform_angle, on_sphere)
    fov = uniform(scenes, *fov_y, generator)
    away = framing_distance(fov, generator) if distance is None else torch.full((scenes,), distance)
    start = uniform(scenes, 0.0, 360.0 / views, generator) + 360.0 / views * torch.randint(
        views, (scenes,), generator=generator
    )
    azimuth = start[:, None] + torch.arange(views) * (360.0 / views)
    flat = [value[:, None].expand(scenes, views).reshape(-1) for value in (chosen, away, fov)]
    return orbit(azimuth.reshape(-1), *flat)


def sample_clip(
    clips: int, generator: torch.Generator, *, azimuth: tuple[float, float] = (-150.0, 150.0),
    elevation: tuple[float, float] = (0.0, 45.0), fov_y: tuple[float, float] = (15.0, 60.0),
) -> Cameras:
    """One fixed camera a clip (paper Sec. 3.2: "we sample a static camera parameter")."""
    fov = uniform(clips, *fov_y, generator)
    return orbit(
        uniform(clips, *azimuth, generator), uniform(clips, *elevation, generator),
        framing_distance(fov, generator), fov,
    )


VIEW_WORDS = ("front view", "side view", "back view", "overhead view")
"""All that `view_words` may say."""


def view_words(cameras: Cameras, *, front: float = 30.0, overhead: float = 60.0) -> list[str]:
    """The view suffix of each camera's prompt: front and back reach `front` degrees to each side, overhead begins at
    `overhead` degrees of elevation."""
    words = []
    for azimuth, elevation in zip(cameras.azimuth.tolist(), cameras.elevation.tolist(), strict=True):
        if elevation > overhead:
            words.append("overhead view")
        elif abs(azimuth) <= front:
            words.append("front view")
        elif abs(azimuth) >= 180 - front:
            words.append("back view")
        else:
            words.append("side view")
    return words
