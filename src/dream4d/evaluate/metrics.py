"""Numbers of pictures, depth and displacement maps, readings: arrays in, numbers out. docs/evaluation.md explains them.

Pictures are [.., h, w, 3] in [0, 1], clips [.., time, h, w, ..], masks bool without the last axis. What has nothing to
look at, such as an empty mask, is nan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dream4d.cameras import Cameras

NOISELESS = 100.0
"""dB of pictures that are equal."""
TOLERANCE = 0.06
"""Scene units by which two views may differ in where a surface is: about two pixels of `footage.SIZE`."""
COARSE = 16
"""Pixels across, at which the motion of pictures is looked at: coarser than details in which two toys of one sentence
differ, and than the edges that run over a pixel at once."""


def mean(values: Tensor) -> float:
    return values.double().mean().item()


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Degrees between two directions, 0 to 180."""
    return ((a - b + 180).remainder(360) - 180).abs()


def faces(azimuth: Tensor) -> float:
    """How many faces an object has around it, from the apparent azimuths [n] of n views evenly spaced around it.

    The mean of max(cos, 0), by which a view shows the face, over its mean around an object with one front, 1 / pi:
    1 for one face, 2 for two on opposite sides (the Janus problem of paper Sec. 3.1), pi where every view is a front.
    """
    return math.pi * mean(torch.deg2rad(azimuth).cos().clamp(min=0))


def psnr(images: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and images, at most `NOISELESS`."""
    error = mean((images.double() - truth.double()).square())
    return NOISELESS if error <= 10 ** (-NOISELESS / 10) else -10 * math.log10(error)


def view_agreement(rgb: Tensor, opacity: Tensor, depth: Tensor, cameras: Cameras) -> tuple[float, float]:
    """Do neighbouring views of a ring show the same surface? Share in [0, 1], and PSNR of its colour in dB.

    rgb [n, h, w, 3], opacity [n, h, w], depth [n, h, w] (sum of weight * distance), one of each camera. The surface
    that a view sees inside the object's outline is looked at from the view before and the one after: it may be hidden
    there, but neither may the background nor anything behind it be seen in its place. Colour is compared where both
    see it.
    """
    inside = -F.max_pool2d(-(opacity > 0.5).float(), 3, stride=1, padding=1) > 0
    rays = cameras.rays(*opacity.shape[1:])
    points = rays.origins + (depth / opacity.clamp(min=1e-6))[..., None] * rays.directions
    maps = torch.cat([rgb, opacity[..., None], depth[..., None]], dim=-1).permute(0, 3, 1, 2)
    agrees, errors = [], []
    for step in (1, -1):
        neighbour = torch.arange(len(cameras), device=rgb.device).roll(step)
        places, distance = _project(points, cameras[neighbour])
        found = F.grid_sample(maps[neighbour], places, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)
        solid = found[..., 3] > 0.5
        further = found[..., 4] / found[..., 3].clamp(min=1e-6) - distance
        agrees.append((solid & (further < TOLERANCE))[inside])
        errors.append((found[..., :3] - rgb)[inside & solid & (further.abs() < TOLERANCE)])
    difference = torch.cat(errors)
    return mean(torch.cat(agrees)), psnr(difference, torch.zeros_like(difference)) if len(difference) else math.nan


def coarse(clips: Tensor) -> Tensor:
    """Means of blocks, [n, t, h, w, c] -> [n, t, COARSE, COARSE, c]."""
    small = F.adaptive_avg_pool2d(clips.flatten(0, 1).permute(0, 3, 1, 2), COARSE).permute(0, 2, 3, 1)
    return small.reshape(*clips.shape[:2], *small.shape[1:])


def spread(clips: Tensor, mask: Tensor) -> float:
    """Root mean square of what each pixel differs from its own mean over time, [.., t, h, w, c] -> amount of motion.

    In the unit of `clips`. Only frames in which the pixel is in the mask [.., t, h, w] count.
    """
    weight = mask[..., None].to(clips)
    middle = (clips * weight).sum(-4, keepdim=True) / weight.sum(-4, keepdim=True).clamp(min=1)
    return math.sqrt(mean((clips - middle).square().sum(-1)[mask]))


def acceleration(clips: Tensor, mask: Tensor) -> float:
    """Mean length of the second difference over time, [.., t, h, w, c], in units of `clips` a frame^2: jitter in time.

    Where the pixel is in the mask [.., t, h, w] in all three frames.
    """
    inside = mask.unfold(-3, 3, 1).all(-1)
    return mean(clips.diff(n=2, dim=-4).norm(dim=-1)[inside])


def roughness(clips: Tensor, mask: Tensor) -> float:
    """Mean length of the Laplacian over the picture, [.., h, w, c], in units of `clips` a pixel^2: jitter in space.

    Where the pixel and its four neighbours are in the mask [.., h, w].
    """
    laplacian = clips.diff(n=2, dim=-3)[..., :, 1:-1, :] + clips.diff(n=2, dim=-2)[..., 1:-1, :, :]
    inside = mask.unfold(-2, 3, 1).all(-1)[..., 1:-1] & mask.unfold(-1, 3, 1).all(-1)[..., 1:-1, :]
    return mean(laplacian.norm(dim=-1)[inside])


def motion_agreement(clips: Tensor, truth: Tensor) -> tuple[float, int]:
    """How much a scene moves as it should, whenever it does: cosine in [-1, 1], and the shift in frames that gives it.

    clips, truth: [n, t, h, w, 3] from the same n sides. Compared is what differs from the mean over time, in pictures
    of `COARSE` pixels, all sides at once, with the clips shifted in a circle by each number of frames; the largest
    counts. The last frame is left out: it shows the first again. nan where either stands still.
    """
    ours, true = (coarse(value[:, :-1]).double() for value in (clips, truth))
    ours, true = (value - value.mean(1, keepdim=True) for value in (ours, true))
    products = torch.stack([(ours.roll(shift, 1) * true).sum() for shift in range(ours.shape[1])])
    shift = int(products.argmax())
    return (products[shift] / (ours.norm() * true.norm())).item(), shift


def interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 4000
) -> tuple[float, float, float]:
    """Mean, and the ends of its confidence interval by the percentile bootstrap over `values`, always the same one."""
    sample = torch.tensor(values, dtype=torch.double)
    choice = torch.randint(len(sample), (resamples, len(sample)), generator=torch.Generator().manual_seed(0))
    tail = (1 - confidence) / 2
    low, high = torch.quantile(sample[choice].mean(1), torch.tensor([tail, 1 - tail], dtype=torch.double)).tolist()
    return sample.mean().item(), low, high


def _project(points: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Points [n, h, w, 3], of each camera's own picture of the size h x w: places in it as `grid_sample` takes them,
    [n, h, w, 2], and distances from the camera, [n, h, w]."""
    height, width = points.shape[1:3]
    local = (points - cameras.position[:, None, None]) @ cameras.camera_to_world[:, None, :3, :3]
    half = -local[..., 2] * torch.tan(torch.deg2rad(cameras.fov_y) / 2)[:, None, None]
    places = torch.stack([local[..., 0] / half * (height / width), -local[..., 1] / half], dim=-1)
    return places, local.norm(dim=-1)
