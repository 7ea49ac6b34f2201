"""The judge: a small network that reads a toy's kind, colour, prop and azimuth off a picture, its motion off a clip.

It is no prior: it never guides anything, it only measures. It is trained on exact renders of every combination, made
worse in the ways in which rendered fields are worse: blurred, noisy, hazy, passed through the autoencoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from dream4d.cameras import orbit
from dream4d.toyworld.draw import background_images
from dream4d.toyworld.examples import draw_each, random_toys
from dream4d.toyworld.grammar import COLOURS, KINDS, MOTIONS, PROPS
from dream4d.toyworld.networks import FRAMES, IMAGE_SIZE

WEIGHTS = "judge.safetensors"
SIZES = (len(KINDS), len(COLOURS), len(PROPS) + 1, 2)  # of the answers: three sets of logits and a direction
STANDING = len(MOTIONS)
"""What `Judge.read_motion` says of a toy that does not move."""


@dataclass(frozen=True)
class Reading:
    """kind, colour [n]: indices into its lists. prop [n]: 0 for none, then 1 + index. azimuth [n] in degrees."""

    kind: Tensor
    colour: Tensor
    prop: Tensor
    azimuth: Tensor


class JudgeNetwork(nn.Module):
    """Images [n, 3, 64, 64] in -1 to 1 -> logits of kind, colour, prop, and (cos, sin) of the azimuth; clips
    [n, 16, 3, 64, 64] -> logits of the motion."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128), features: int = 192):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU(),
                       nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(8, after), nn.SiLU()]  # fmt: skip
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * widths[-1], features), nn.SiLU())
        self.head = nn.Linear(features, sum(SIZES))
        self.motion = nn.Sequential(
            nn.Conv1d(features, features, 3, padding=1), nn.SiLU(),
            nn.Conv1d(features, features, 3, padding=1, stride=2), nn.SiLU(),
            nn.Flatten(), nn.Linear(features * FRAMES // 2, 128), nn.SiLU(), nn.Linear(128, len(MOTIONS) + 1),
        )  # fmt: skip

    def read(self, images: Tensor) -> Tensor:
        """[n, sum of sizes]"""
        result: Tensor = self.head(self.features(images))
        return result

    def read_motion(self, clips: Tensor) -> Tensor:
        """[n, motions + 1]"""
        features = self.features(clips.flatten(0, 1)).reshape(len(clips), FRAMES, -1)
        result: Tensor = self.motion((features - features.mean(1, keepdim=True)).transpose(1, 2))
        return result

    def forward(self, images: Tensor, clips: Tensor) -> tuple[Tensor, Tensor]:
        return self.read(images), self.read_motion(clips)


class Judge:
    def __init__(self, network: JudgeNetwork):
        self.network = network.eval()

    @classmethod
    def load(cls, folder: Path | None = None, device: torch.device | str = "cpu") -> Judge:
        """From `folder`, by default the one in the package. Raises ValueError where it has no judge."""
        file = (folder or Path(str(files("dream4d"))) / "data" / "judge") / WEIGHTS
        if not file.is_file():
            raise ValueError(f"there is no judge {file}; python -m dream4d.toyworld.train --stages judge trains one")
        network = JudgeNetwork()
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
        return cls(network.to(device))

    @torch.no_grad()
    def read(self, images: Tensor) -> Reading:
        """Of images [n, h, w, 3] in [0, 1]."""
        kind, colour, prop, direction = self.network.read(self._prepare(images)).split(SIZES, dim=1)
        azimuth = torch.rad2deg(torch.atan2(direction[:, 1], direction[:, 0]))
        return Reading(kind.argmax(1), colour.argmax(1), prop.argmax(1), azimuth)

    @torch.no_grad()
    def read_motion(self, clips: Tensor) -> Tensor:
        """Of clips [n, 16, h, w, 3], evenly spaced over the scene's time: [n], indices into MOTIONS or STANDING."""
        pictures = self._prepare(clips.flatten(0, 1))
        return self.network.read_motion(pictures.reshape(len(clips), FRAMES, *pictures.shape[1:])).argmax(1)

    def _prepare(self, images: Tensor) -> Tensor:
        channels_first = images.permute(0, 3, 1, 2).to(next(self.network.parameters()))
        return 2 * F.interpolate(channels_first, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True) - 1


def judge_loss(answers: Tensor, motion_answers: Tensor, truth: Tensor, motion: Tensor) -> dict[str, Tensor]:
    """truth [n, 4]: kind, colour, prop, azimuth in degrees. motion [n]."""
    *logits, direction = answers.float().split(SIZES, dim=1)
    losses = {
        name: F.cross_entropy(logit, truth[:, i].long())
        for i, (name, logit) in enumerate(zip(("kind", "colour", "prop"), logits, strict=True))
    }
    angle = torch.deg2rad(truth[:, 3])
    losses["azimuth"] = (direction - torch.stack([angle.cos(), angle.sin()], 1)).square().sum(1).mean()
    losses["motion"] = F.cross_entropy(motion_answers.float(), motion)
    return losses


def judge_clips(n: int, frames: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
    """Exact clips [n, frames, 64, 64, 3] over the whole time, [n, 4] as `judge_loss` wants it, motions [n]."""
    toys = random_toys(n, generator, textured=True, everything=True)
    still = torch.rand(n, generator=generator) < 0.1
    if frames == FRAMES:
        times = torch.linspace(0, 1, frames).expand(n, frames).clone()
        azimuth = 200 * torch.rand(n, generator=generator) - 100
    else:
        times = torch.rand(n, frames, generator=generator)
        azimuth = 360 * torch.rand(n, generator=generator) - 180
    times[still] = 0
    fov = 25 + 30 * torch.rand(n, generator=generator)
    distance = (0.85 + 0.3 * torch.rand(n, generator=generator)) / torch.tan(torch.deg2rad(fov) / 2)
    cameras = orbit(azimuth, 32 * torch.rand(n, generator=generator), distance, fov)
    images = draw_each(toys, times, cameras, background_images(n, generator), device)
    truth = torch.stack([toys.kind, toys.colour, toys.prop, azimuth], 1).float()
    return images, truth.to(device), torch.where(still, STANDING, toys.motion).to(device)


def spoil(images: Tensor, generator: torch.Generator) -> Tensor:
    """[n, k, h, w, 3] made worse, each of the n in its own way: blur, haze, colour, noise."""
    n, device = len(images), images.device

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    flat = images.flatten(0, 1).permute(0, 3, 1, 2)
    small, smaller = (
        F.interpolate(F.interpolate(flat, (s, s), mode="area"), flat.shape[-2:], mode="bilinear") for s in (32, 20)
    )
    share = random(n, 2).repeat_interleave(images.shape[1], 0)[:, :, None, None, None]
    blurred = torch.where(
        share[:, 0] < 0.6, flat + share[:, 1] * (small - flat), small + share[:, 1] * (smaller - small)
    )
    hazy = F.interpolate(random(n, 3, 5, 5), flat.shape[-2:], mode="bicubic").repeat_interleave(images.shape[1], 0)
    haze = 0.35 * random(n).square().repeat_interleave(images.shape[1], 0)[:, None, None, None]
    gain = (0.75 + 0.4 * random(n, 3)).repeat_interleave(images.shape[1], 0)[:, :, None, None]
    spoilt = (blurred + haze * (hazy - blurred)) * (0.5 * gain + 0.5 * gain.mean(1, keepdim=True))
    noise = 0.06 * random(n).repeat_interleave(images.shape[1], 0)[:, None, None, None] * torch.randn_like(flat)
    return (spoilt + noise).clamp(0, 1).permute(0, 2, 3, 1).reshape(images.shape)

