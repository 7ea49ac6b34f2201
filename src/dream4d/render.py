"""Images of a scene, by volume rendering."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dream4d.cameras import Cameras, Rays
from dream4d.occupancy import OccupancyGrid
from dream4d.ops.composite import composite
from dream4d.ops.march import march
from dream4d.scene import Scene


@dataclass(frozen=True)
class Render:
    """What rays see, [n, ..], or a picture, [h, w, ..].

    rgb: [.., 3], the foreground before its background. opacity: [..]. depth: [..], the sum of weight * distance.
    displacement: [.., 3], the sum of weight * displacement, in scene units (paper Sec. 3.2). foreground: [.., 3],
    premultiplied by opacity.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    displacement: Tensor
    foreground: Tensor


def render(
    scene: Scene, rays: Rays, time: float | Tensor = 0.0, *, occupancy: OccupancyGrid, samples_per_ray: int,
    generator: torch.Generator | None = None, background: Tensor | None = None,
) -> Render:
    """What `rays` ([n, 3]) see at `time`, a number in [0, 1] or one for each ray, [n].

    samples_per_ray: samples across the diagonal of the scene's cube. generator: shifts each ray's samples by a random
    part of a step; None for no shift. background: a colour [3] or [n, 3]; None for the scene's own.
    """
    origins, directions = rays.origins, rays.directions
    jitter = None
    if generator is not None:
        jitter = torch.rand(len(origins), generator=generator, device=generator.device).to(origins)
    samples = march(
        origins, directions, occupancy.occupied, radius=occupancy.radius, samples_per_ray=samples_per_ray, jitter=jitter
    )
    middle = (samples.start + samples.end) / 2
    points = torch.addcmul(origins[samples.ray], directions[samples.ray], middle[:, None])
    times = time[samples.ray] if isinstance(time, Tensor) and time.ndim else time
    density, rgb, displacement = scene(points, times)

    values = rgb if displacement is None else torch.cat([rgb, displacement], dim=-1)
    pixels = composite(density, samples.start, samples.end, values, samples.ray, len(origins))
    foreground = pixels.values[:, :3]
    behind = scene.background(directions) if background is None else background
    return Render(
        rgb=foreground + (1 - pixels.opacity)[:, None] * behind,
        opacity=pixels.opacity,
        depth=pixels.depth,
        displacement=torch.zeros_like(foreground) if displacement is None else pixels.values[:, 3:],
        foreground=foreground,
    )


@torch.no_grad()
def render_image(
    scene: Scene, camera: Cameras, height: int, width: int, time: float = 0.0, *, occupancy: OccupancyGrid,
    samples_per_ray: int, chunk: int = 65536, background: Tensor | None = None,
) -> Render:
    """A picture, [height, width, ..], without gradients, of a single camera. chunk: rays rendered at a time."""
    rays = camera.rays(height, width).flatten()

    def behind(part: slice) -> Tensor | None:
        return background if background is None or background.ndim == 1 else background[part]

    parts = [
        render(
            scene, Rays(rays.origins[part], rays.directions[part]), time, occupancy=occupancy,
            samples_per_ray=samples_per_ray, background=behind(part),
        )
        for part in (slice(first, first + chunk) for first in range(0, height * width, chunk))
    ]
    joined = {field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Render)}
    return Render(**{name: value.unflatten(0, (height, width)) for name, value in joined.items()})
