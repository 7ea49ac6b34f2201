"""The static stage without diffusion: the canonical scene becomes a given model, from all sides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dream4d.cameras import Rays
from dream4d.film import DISTANCE, RGB, Occupancy, cameras_at
from dream4d.mesh import Mesh, draw, draw_images
from dream4d.render import BUDGET, render, render_images
from dream4d.scene import Scene
from dream4d.settings import ReconstructSettings
from dream4d.state import State, StepReport

_DEFAULTS = ReconstructSettings()
MARGIN = 0.03
"""How far before the model space is surely empty, in scene units: a surface of finite density needs some depth."""
HELD_OUT = ((12.0, 15.0), (77.0, 0.0), (142.0, 30.0), (207.0, 15.0), (272.0, 45.0), (337.0, -15.0))
"""Azimuths and elevations from which `similarity` looks, in degrees."""


def fit_mesh(
    state: State, mesh: Mesh, *, background: RGB, settings: ReconstructSettings = _DEFAULTS, budget: int = BUDGET
) -> Iterator[StepReport]:
    """Train `state.scene` in place until step `settings.steps`; yields after each step, when `state` may be saved.

    Each step compares random rays through the ball around the scene: their colour before a random one behind each, so
    that opacity is not mistaken for colour, their opacity, and the depth of those that meet the model. background: what
    the scene's own becomes, everywhere. budget: see `render.render`.
    """
    scene, generator = state.scene, state.generator
    device = next(scene.parameters()).device
    step_length = 2 * math.sqrt(3) / settings.samples_per_ray
    backdrop = torch.tensor(background, device=device)
    while (step := state.step) < settings.steps:
        state.set_learning_rates(grid=settings.learning_rate_grid(step), mlp=settings.learning_rate_mlp(step))
        if step % settings.occupancy_every == 0:
            state.occupancy.update(scene.canonical.density, generator)
        rays = sample_rays(settings.rays, generator)
        behind = torch.rand(settings.rays, 3, generator=generator).to(device)
        seen = draw(mesh, rays, light=settings.light)
        rgb, opacity, depth = (value.to(device) for value in (seen.rgb, seen.opacity, seen.depth))
        rays = Rays(rays.origins.to(device), rays.directions.to(device))
        rendered = render(
            scene, rays, occupancy=state.occupancy, samples_per_ray=settings.samples_per_ray, generator=generator,
            background=behind, budget=budget,
        )
        empty = scene.canonical.density(torch.cat([
            _in_front(rays, opacity, depth, generator), _around(mesh, settings.rays, generator).to(device)
        ]))
        losses = {
            "rgb": F.mse_loss(rendered.rgb, rgb + (1 - opacity)[:, None] * behind),
            "opacity": F.mse_loss(rendered.opacity, opacity),
            "depth": (opacity * (rendered.depth - depth).abs()).mean(),
            "empty": -torch.expm1(-empty * step_length).mean(),
            "background": F.binary_cross_entropy(  # whose gradient does not vanish where a sigmoid saturates
                scene.background(rays.directions), backdrop.expand(settings.rays, 3)
            ),
        }
        weights = {
            "rgb": 1.0, "opacity": settings.weight_opacity, "depth": settings.weight_depth,
            "empty": settings.weight_empty, "background": 1.0,
        }
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()

        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.step += 1
        yield StepReport(step, {name: value.detach() for name, value in losses.items()})


def sample_rays(n: int, generator: torch.Generator) -> Rays:
    """[n, 3], on the CPU: from random directions, each toward a random point of the ball of radius 0.9."""
    origins = DISTANCE * F.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    radius = 0.9 * torch.rand(n, 1, generator=generator) ** (1 / 3)
    targets = radius * F.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    return Rays(origins, F.normalize(targets - origins, dim=-1))


def _in_front(rays: Rays, opacity: Tensor, depth: Tensor, generator: torch.Generator) -> Tensor:
    """A random point of each ray that is in the scene's cube but not in the model or behind it, [at most n, 3]."""
    reach = math.sqrt(3)
    share = torch.rand(len(depth), generator=generator).to(depth)
    far = torch.where(opacity > 0, depth - MARGIN, DISTANCE + reach)
    distance = (DISTANCE - reach) + share * (far - DISTANCE + reach)
    points = rays.origins + distance[:, None] * rays.directions
    return points[points.abs().amax(dim=-1) <= 1]


def _around(mesh: Mesh, n: int, generator: torch.Generator) -> Tensor:
    """Those of n random points of the scene's cube that are not in the model's box."""
    points = 2 * torch.rand(n, 3, generator=generator) - 1
    low, high = mesh.tree.boxes[1].split(3)
    return points[((points < low - MARGIN) | (points > high + MARGIN)).any(dim=-1)]


def similarity(
    scene: Scene, occupancy: Occupancy, mesh: Mesh, *, time: float = 0.0, size: int = 128, samples_per_ray: int = 256,
    light: float = 0.0, views: Sequence[tuple[float, float]] = HELD_OUT,
) -> float:
    """PSNR in decibels between the scene at `time` and the model, over pictures before white from `views`: pairs of
    azimuth and elevation. Only pixels that either of the two covers count: empty ones are no achievement."""
    cameras = [cameras_at([azimuth], elevation) for azimuth, elevation in views]
    device = next(scene.parameters()).device
    errors: list[Tensor] = []
    for camera in cameras:
        model = draw_images(mesh, camera, size, light=light)
        seen = render_images(
            scene, camera.to(device), 2 * size, 2 * size, time, occupancy=occupancy(time),
            samples_per_ray=samples_per_ray, background=torch.ones(3, device=device),
        )
        pixels = torch.cat([seen.rgb, seen.opacity[..., None]], dim=-1).cpu()
        pixels = F.avg_pool2d(pixels.movedim(-1, 1), 2).movedim(1, -1)  # as smooth at edges as the model's picture
        error = (pixels[..., :3] - model.rgb - (1 - model.opacity[..., None])).square()
        errors.append(error[torch.maximum(model.opacity, pixels[..., 3]) > 0.05])
    return -10 * torch.cat(errors).mean().log10().item()
