"""Which priors a job has: from its settings to loaded models, and the device that they are on."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch

from dream4d.cameras import VIEW_WORDS
from dream4d.media import parse_colour
from dream4d.picture import Picture
from dream4d.presets import Preset
from dream4d.priors.catalogue import Role
from dream4d.priors.deepfloyd import DeepFloyd, in_pixel_space
from dream4d.priors.errors import ModelError
from dream4d.priors.hub import resolve
from dream4d.priors.lora import Lora, fuse
from dream4d.priors.mvdream import MVDream
from dream4d.priors.parts import Autoencoder, Shared
from dream4d.priors.stable_diffusion import StableDiffusion
from dream4d.priors.text_to_video import TextToVideo
from dream4d.priors.zero123 import Zero123
from dream4d.settings import PriorSettings
from dream4d.static import reference_camera

Name = Literal["image", "multiview", "video", "novel", "picture"]
_ROLES: dict[Name, Role] = {"image": "image", "multiview": "multiview", "video": "video", "novel": "reference",
                             "picture": "image"}  # fmt: skip
_STANDS_FOR: dict[Name, Name] = {"novel": "multiview", "picture": "image"}
"""Models of the static stage from a picture, and those in whose place they are."""
BUILTIN_PRIORS = Path(str(files("dream4d"))) / "data" / "priors"


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU if there is one. Raises ValueError for a device that this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name}: torch sees no GPU here; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is unknown: expected auto, cpu or cuda") from None


def check(settings: Preset, *names: Name) -> None:
    """What can be refused before any work: the device, and priors that are not there."""
    pick_device(settings.device)
    parse_colour(settings.output.background)
    for name in names:
        if folder_of(settings.priors, name) is not None:
            base_of(settings.priors, name)


def folder_of(priors: PriorSettings, name: Name) -> Path | None:
    """Where the prior `name` is; None for `none`, and where that from a picture stands in for one that is `none`."""
    chosen: str | None = getattr(priors, name)
    if name in _STANDS_FOR and getattr(priors, _STANDS_FOR[name]) == "none":
        return None
    if chosen == "none" and name != "video":
        return None
    if chosen is None:
        return folder_of(priors, _STANDS_FOR[name])
    if chosen != "builtin":
        try:
            return resolve(chosen, _ROLES[name])
        except ModelError as error:
            raise ModelError(error.problem, f"--priors.{name} {error}") from error
    folder = BUILTIN_PRIORS / ("image" if name == "picture" else name)
    if (folder / "unet" / "config.json").is_file():
        return folder
    raise ValueError(
        f"this installation lacks the built-in {name} prior ({folder}): install dream4d again, or train the priors "
        f"with python -m dream4d.toyworld.train{', or go without: --priors.novel none' if name == 'novel' else ''}"
    )


def how_to_load(settings: Preset, name: Name, device: torch.device, shared: Shared | None = None) -> dict[str, Any]:
    priors = settings.priors
    half = device.type == "cuda" if priors.precision == "auto" else priors.precision == "half"
    dtype = torch.bfloat16 if priors.precision == "bf16" else torch.float16 if half else torch.float32
    return {"base": base_of(priors, name), "device": device, "dtype": dtype, "shared": shared}


def base_of(priors: PriorSettings, name: Name) -> Path | None:
    """Where the prior `name` takes the parts from that its folder lacks."""
    if name == "picture" and priors.picture is None:
        return base_of(priors, "image")
    if getattr(priors, name) == "builtin":
        return BUILTIN_PRIORS / "image"  # whatever the image prior is, these were trained on its latents and its words
    if name in _STANDS_FOR and not priors.base:
        return None
    return resolve(priors.base) if priors.base else folder_of(priors, "image")


def image_prior(
    settings: Preset, device: torch.device, shared: Shared | None = None, lora: Lora | None = None
) -> StableDiffusion | None:
    folder = folder_of(settings.priors, "image")
    if folder is None:
        return None
    own = _autoencoders(shared)
    prior = StableDiffusion.load(folder, **how_to_load(settings, "image", device, shared if lora is None else own))
    if lora is not None:
        _fuse(lora, prior, own, shared)
    return prior


def multiview_prior(
    settings: Preset, device: torch.device, shared: Shared | None = None, lora: Lora | None = None
) -> MVDream | None:
    folder = folder_of(settings.priors, "multiview")
    if folder is None:
        return None
    own = _autoencoders(shared)
    how = how_to_load(settings, "multiview", device, shared if lora is None else own)
    prior = MVDream.load(folder, **how, views=settings.static.views)
    if lora is not None:
        _fuse(lora, prior, own, shared)
    return prior


def _fuse(lora: Lora, prior: StableDiffusion | MVDream, own: Shared, shared: Shared | None) -> None:
    """Into `prior`. A LoRA may change a text encoder, which other priors shall have as it was: of the `own` parts of
    `prior` they share the autoencoder alone."""
    assert prior.parts.text is not None
    fuse(lora, unet=prior.parts.unet, text_encoder=prior.parts.text.model)
    if shared is not None:
        shared.update(_autoencoders(own))


def _autoencoders(shared: Shared | None) -> Shared:
    return {key: part for key, part in (shared or {}).items() if isinstance(part, Autoencoder)}


def video_prior(settings: Preset, device: torch.device) -> TextToVideo:
    folder = folder_of(settings.priors, "video")
    assert folder is not None
    priors = settings.priors
    return TextToVideo.load(
        folder, **how_to_load(settings, "video", device), frames=priors.video_frames, resolution=priors.video_resolution
    )


def picture_prior(
    prompt: str, settings: Preset, device: torch.device, shared: Shared | None = None
) -> StableDiffusion | DeepFloyd | None:
    folder = folder_of(settings.priors, "picture")
    if folder is None:
        return None
    loading = how_to_load(settings, "picture", device, shared)
    if not in_pixel_space(folder):
        return StableDiffusion.load(folder, **loading)
    del loading["shared"]
    return DeepFloyd.load(folder, **loading, prompts=prompts_of(prompt, settings))


def novel_prior(
    picture: Picture, elevation: float, settings: Preset, device: torch.device, shared: Shared | None = None
) -> Zero123 | None:
    folder = folder_of(settings.priors, "novel")
    if folder is None:
        return None
    camera = reference_camera(elevation, settings.picture)
    return Zero123.load(folder, **how_to_load(settings, "novel", device, shared), image=picture.rgb, camera=camera)


def image_folder(settings: Preset) -> Path:
    folder = folder_of(settings.priors, "image")
    if folder is None:
        raise ValueError("--priors.image is none: a subject needs an image model that learns it")
    return folder


def prompts_of(prompt: str, settings: Preset) -> list[str]:
    return [settings.negative, prompt, *(f"{prompt}, {words}" for words in VIEW_WORDS)]
