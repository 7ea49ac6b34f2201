"""Can a video prior's guidance set a scene in motion that stands still?

For each motion of the toy world: exact clips of a toy that rests, noised to a timestep, and the prior's one-step
estimate of them under a sentence that names the motion (what the dynamic stage pulls the scene toward). The table has
the cosine between the estimate's change over time and the true clip's, in latents: 1 is the true motion, 0 none of it.
See README.md in this folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from report import RESULTS, print_table, provenance, write_json
from torch import Tensor

from dream4d import loading
from dream4d.cameras import orbit
from dream4d.distill import VideoPrior, add_noise, classifier_free_guidance, remove_noise
from dream4d.evaluate.toy import drawing
from dream4d.priors.text_to_video import TextToVideo
from dream4d.toyworld.grammar import COLOURS, KINDS, MOTIONS, PROPS, Combination, sentence
from dream4d.toyworld.networks import FRAMES

TIMESTEPS = (999, 960, 930, 900, 850, 800, 700, 600, 400)
AZIMUTH = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--priors", type=Path, default=loading.BUILTIN_PRIORS, help="folder with video/ and image/")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--timesteps", type=int, nargs="+", default=TIMESTEPS)
    parser.add_argument("--repeats", type=int, default=2, help="draws of the noise that are averaged")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS / "motion_signal.json")
    options = parser.parse_args(argv)
    device = loading.pick_device(options.device)
    prior = TextToVideo.load(options.priors / "video", options.priors / "image", frames=FRAMES, device=device)
    props = (None, *PROPS)
    toys = [Combination(KINDS[i], COLOURS[i], props[i], motion) for i, motion in enumerate(MOTIONS)]
    rows = {str(toy.motion): signal(prior, toy, options) for toy in toys}
    print_table(["motion", *map(str, options.timesteps)], [[m, *(f"{x:.2f}" for x in row)] for m, row in rows.items()])
    write_json(options.out, {**provenance(str(device)), "guidance": options.guidance, "repeats": options.repeats,
                             "timesteps": list(options.timesteps), "cosine": rows})  # fmt: skip
    return 0


@torch.no_grad()
def signal(prior: VideoPrior, toy: Combination, options: argparse.Namespace) -> list[float]:
    """The cosine at each timestep."""
    generator = torch.Generator().manual_seed(0)
    rest = prior.encode(clip(toy, torch.zeros(FRAMES), prior.alpha_bar.device))
    truth = change(prior.encode(clip(toy, torch.linspace(0.05, 0.95, FRAMES), prior.alpha_bar.device)))
    condition = prior.condition([f"{sentence(toy)}, front view"], "", orbit(*torch.zeros(4, 1)))
    cosines = []
    for timestep in torch.tensor(options.timesteps, device=prior.alpha_bar.device).split(1):
        alpha_bar, estimate = prior.alpha_bar[timestep], torch.zeros_like(rest)
        for _ in range(options.repeats):
            noisy = add_noise(rest, torch.randn(rest.shape, generator=generator).to(rest), alpha_bar)
            noise = classifier_free_guidance(*prior.predict_noise(noisy, timestep, condition), options.guidance)
            estimate += remove_noise(noisy, noise, alpha_bar)
        cosines.append(torch.cosine_similarity(change(estimate), truth, dim=0).item())
    return cosines


def clip(toy: Combination, times: Tensor, device: torch.device) -> Tensor:
    """The exact toy, [1, frames, h, w, 3]."""
    return drawing(toy, [(time, AZIMUTH) for time in times.tolist()], str(device))[None]


def change(latents: Any) -> Tensor:
    """What differs from the mean over time, flat."""
    flat: Tensor = (latents - latents.mean(dim=1, keepdim=True)).flatten()
    return flat


if __name__ == "__main__":
    raise SystemExit(main())
