"""Loading a diffusion model's parts from a local folder in diffusers layout, and what every family does with them.

Nothing comes from a network, and no code from a file: see `weights`. A folder that lacks a part takes it from `base`.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dream4d.priors.graphs import Function, graphed
from dream4d.priors.onednn import quicken
from dream4d.priors.weights import load_module, read_json

Shared = dict[tuple[Any, ...], Any]
"""Autoencoders and text encoders by where they come from and how they are loaded: empty at first, and passed to every
load of priors that shall have the same objects where their folders are the same."""


class TextEncoder:
    """Prompts to the features of a ``CLIPTextModel``. Each distinct prompt is encoded once and remembered.

    load: gives the model; it is called at once, and again for a new prompt after `prepare`.
    """

    def __init__(self, tokenizer: Any, load: Callable[[], Any]):
        self.tokenizer = tokenizer
        self._load = load
        self._model: Any = load()
        self._known: dict[str, Tensor] = {}

    @property
    def model(self) -> Any:
        if self._model is None:
            self._model = self._load()
        return self._model

    def prepare(self, prompts: Sequence[str]) -> None:
        """Encode all prompts that are to come, then let go of the model and its memory."""
        self(prompts)
        self._model = None

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """[b, tokens, channels]; longer prompts are cut at the tokenizer's length."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._known:
                self._known[prompt] = self.encode([prompt])[0]
        return torch.stack([self._known[prompt] for prompt in prompts])

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """The same anew, nothing remembered; differentiable, for a model that is trained."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        features: Tensor = self.model(tokens.input_ids.to(self.model.device)).last_hidden_state
        return features

    def forget(self) -> None:
        """Encode all prompts anew when they come again: the model has changed."""
        self._known.clear()


class Autoencoder:
    """An ``AutoencoderKL``: images [n, h, w, 3] in [0, 1] to scaled latents [n, c, h', w'] in fp32 and back.

    chunk: images at a time, None for all. Encoding in chunks trades a second forward pass for memory: the activations
    of one chunk at a time are kept for the gradient.
    """

    SMALL = 50_000_000
    """Parameters below which all is done as CUDA graphs, whose backward pass is a second forward pass, too. Stable
    Diffusion's has 84 million: at its sizes kernels run longer than their launch takes, and graphs would hold on to the
    memory of all activations."""

    def __init__(self, vae: Any, chunk: int | None = None):
        self.vae = vae
        self.chunk = chunk
        self.downsampling = 2 ** (len(vae.config.block_out_channels) - 1)
        small = sum(parameter.numel() for parameter in vae.parameters()) < self.SMALL
        self._encode: Function = graphed(partial(_encode, vae), vae) if small else partial(_encode, vae)
        self._decode: Function = graphed(partial(_decode, vae), vae) if small else partial(_decode, vae)

    def encode(self, images: Tensor) -> Tensor:
        """The mean of the encoder's Gaussian: no noise beside the diffusion's own."""
        if self.chunk is None or len(images) <= self.chunk:
            return self._encode(images)
        from torch.utils.checkpoint import checkpoint

        return torch.cat([
            checkpoint(_encode, self.vae, part, use_reentrant=False, preserve_rng_state=False)
            for part in torch.split(images, self.chunk)
        ])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return torch.cat([self._decode(part) for part in torch.split(latents, self.chunk or len(latents))])


def _encode(vae: Any, images: Tensor) -> Tensor:
    pixels = (2 * images - 1).permute(0, 3, 1, 2).to(vae.dtype)
    latents: Tensor = vae.encode(pixels).latent_dist.mode().float() * vae.config.scaling_factor
    return latents


def _decode(vae: Any, latents: Tensor) -> Tensor:
    pixels: Tensor = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample.float()
    return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Condition:
    """Token features of the prompts and of the negative prompt, both [b, tokens, channels]; camera numbers [b, 16]."""

    negative: Tensor
    text: Tensor
    camera: Tensor | None = None


@dataclass
class Parts:
    """The frozen parts of a latent diffusion model, on one device and in one dtype (alpha_bar: [timesteps], fp32).

    split: guidance's two predictions come from two calls of the UNet, whose activations take half the memory then.
    """

    unet: Any
    autoencoder: Autoencoder
    alpha_bar: Tensor
    prediction_type: str
    text: TextEncoder | None
    split: bool = False

    def condition(self, prompts: Sequence[str], negative: str, camera: Tensor | None = None) -> Condition:
        assert self.text is not None, "loaded with text=False"
        text = self.text([negative, *prompts])
        return Condition(text[:1].expand(len(prompts), -1, -1), text[1:], camera)

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the images that the UNet was made for."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.autoencoder.downsampling, width * self.autoencoder.downsampling

    @torch.no_grad()
    def predict_noise(self, noisy: Tensor, timestep: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """eps for the negative prompt and for the prompt, fp32."""
        camera = condition.camera
        if self.split:
            unconditional = self._predict(noisy, timestep, condition.negative, camera)
            return unconditional, self._predict(noisy, timestep, condition.text, camera)
        both = self._predict_both(noisy, timestep, condition.negative, condition.text, camera)
        unconditional, conditional = both.chunk(2)
        return unconditional, conditional

    def limit(self, *, images: int | None, split: bool) -> None:
        """How much is computed at a time, to save memory: `Autoencoder.chunk`, and `split`. May change at any time:
        graphs of what was before give their memory back."""
        self.autoencoder.chunk = images
        if split != self.split:
            self.split = split
            for name in ("_predict", "_predict_both"):  # with their graphs
                self.__dict__.pop(name, None)

    @cached_property
    def _predict(self) -> Function:
        return graphed(partial(_predict, self.unet, self._v_alpha_bar), self.unet)

    @cached_property
    def _predict_both(self) -> Function:
        return graphed(partial(_predict_both, self.unet, self._v_alpha_bar), self.unet)

    @property
    def _v_alpha_bar(self) -> Tensor | None:
        return None if self.prediction_type == "epsilon" else self.alpha_bar


def _predict_both(
    unet: Any, alpha_bar: Tensor | None, noisy: Tensor, timestep: Tensor, negative: Tensor, text: Tensor,
    camera: Tensor | None,
) -> Tensor:
    """eps, [2 b, ...], for the negative prompts and then for the prompts, from one call of the UNet."""
    cameras = None if camera is None else camera.repeat(2, 1)
    return _predict(
        unet, alpha_bar, torch.cat([noisy, noisy]), timestep.repeat(2), torch.cat([negative, text]), cameras
    )


def _predict(
    unet: Any, alpha_bar: Tensor | None, noisy: Tensor, timestep: Tensor, text: Tensor, camera: Tensor | None
) -> Tensor:
    """eps, [b, ...], in fp32; of a v prediction if alpha_bar is given."""
    labels = {} if camera is None else {"class_labels": camera.to(unet.dtype)}
    output: Tensor = unet(noisy.to(unet.dtype), timestep, text, **labels).sample.float()
    if alpha_bar is None:
        return output
    a = alpha_bar.index_select(0, timestep).reshape(-1, *[1] * (noisy.ndim - 1))
    return (1 - a).sqrt() * noisy + a.sqrt() * output


class ImagePrior:
    """What every `distill.Prior` whose items are images has in common; `condition` is each family's own.

    resolution: height and width of its images; by default what the UNet was made for.
    """

    def __init__(self, parts: Parts, resolution: tuple[int, int] | None = None):
        self.parts = parts
        self.resolution = resolution or parts.resolution
        self.alpha_bar = parts.alpha_bar

    @property
    def latent_space(self) -> tuple[Autoencoder, tuple[int, int]]:
        """Equal for priors that share one `Autoencoder` object and one resolution."""
        return self.parts.autoencoder, self.resolution

    def resize(self, images: Tensor) -> Tensor:
        return resize(images, *self.resolution)

    def encode(self, images: Tensor) -> Tensor:
        return self.parts.autoencoder.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.parts.autoencoder.decode(latents)

    def limit(self, *, images: int | None, split: bool) -> None:
        """See `Parts.limit`; `images` that the autoencoder takes at a time, all if None."""
        self.parts.limit(images=images, split=split)

    def predict_noise(self, noisy: Tensor, timestep: Tensor, condition: Any) -> tuple[Tensor, Tensor]:
        return self.parts.predict_noise(noisy, timestep, condition)


def load_parts(
    folder: str | Path, base: str | Path | None = None, *, unet: str = "UNet2DConditionModel",
    kind: str = "an image model", latents: int = 1, device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32, text: bool = True, chunk: int | None = None, shared: Shared | None = None,
    quick: bool = True,
) -> Parts:
    """Parts from `folder`, and those that it lacks from `base`, frozen and in evaluation mode.

    unet: the diffusers class that ``unet/config.json`` must name, and kind: what such a model is called in errors.
    latents: how many the UNet sees side by side, 2 if those of a reference image come with the noisy ones.
    text=False leaves tokenizer and text encoder out. chunk: see `Autoencoder`. shared: see `Shared`.
    quick=False leaves the UNet as diffusers made it, for training.

    Raises ValueError where a part is missing, its weights cannot be used, or it belongs to another kind of model.
    """
    with quiet_libraries():
        return _load_parts(
            folder, base, unet=unet, kind=kind, latents=latents, device=device, dtype=dtype, text=text, chunk=chunk,
            shared={} if shared is None else shared, quick=quick,
        )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No bars, notices or warnings of diffusers and transformers, whose advice is for those who wrote the program;
    errors are raised as ever. Importing them belongs inside, since that talks too."""
    hub = {name: os.environ.get(name) for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")}
    os.environ.update(dict.fromkeys(hub, "error"))
    libraries: list[tuple[Any, int, bool]] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from diffusers.utils import logging as of_diffusers
            from transformers.utils import logging as of_transformers

            for library in (of_diffusers, of_transformers):
                libraries.append((library, library.get_verbosity(), library.is_progress_bar_enabled()))
                library.set_verbosity_error()
                library.disable_progress_bar()
            yield
    finally:
        for name, value in hub.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        for library, verbosity, bars in libraries:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def _load_parts(
    folder: str | Path, base: str | Path | None, *, unet: str, kind: str, latents: int,
    device: torch.device | str, dtype: torch.dtype, text: bool, chunk: int | None, shared: Shared, quick: bool,
) -> Parts:
    import diffusers
    import transformers

    folders = [Path(folder)] + ([] if base is None else [Path(base)])
    unet_folder = find_part(folders, "unet", "config.json")
    network_class = read_json(unet_folder / "config.json")["_class_name"]
    if network_class != unet:
        raise ValueError(f"{folder}: this is not {kind}: unet/config.json says {network_class}, not {unet}")
    noise = read_json(find_part(folders, "scheduler", "scheduler_config.json") / "scheduler_config.json")
    alpha_bar, prediction = cumulative_alphas(noise).to(device), prediction_type(noise)
    network = load_module(getattr(diffusers, unet), unet_folder, device, dtype)
    if quick:
        network = _quick(network)
    vae_folder = find_part(folders, "vae", "config.json")
    autoencoder = _load_once(
        shared, (vae_folder.resolve(), chunk, torch.device(device), dtype),
        lambda: Autoencoder(_quick(load_module(diffusers.AutoencoderKL, vae_folder, device, dtype)), chunk),
    )
    channels, width = network.config.in_channels, autoencoder.vae.config.latent_channels
    if channels != latents * width:
        raise ValueError(
            f"{unet_folder}/config.json: in_channels is {channels}, {kind} has {latents} x {width} of the autoencoder: "
            "take both from one model of this kind"
        )
    encoder = None
    if text:
        tokenizer_folder = find_part(folders, "tokenizer", "tokenizer_config.json")
        text_folder = find_part(folders, "text_encoder", "config.json")
        encoder = _load_once(
            shared, (tokenizer_folder.resolve(), text_folder.resolve(), torch.device(device), dtype),
            lambda: TextEncoder(
                transformers.CLIPTokenizer.from_pretrained(tokenizer_folder, local_files_only=True),
                partial(_load_quietly, transformers.CLIPTextModel, text_folder, device, dtype),
            ),
        )
        width = network.config.cross_attention_dim
        _expect_equal(unet_folder, "cross_attention_dim", width, "the text encoder's", encoder.model.config.hidden_size)
    return Parts(network, autoencoder, alpha_bar, prediction, encoder)


def _quick(network: Any) -> Any:
    """The network, with the quick ways that its device has."""
    if network.device.type == "cpu" and network.dtype == torch.float32:
        quicken(network)
    elif network.device.type == "cuda":
        from dream4d.priors.fused import fuse

        fuse(network)
    return network


def cumulative_alphas(config: dict[str, Any]) -> Tensor:
    """alpha_bar, [timesteps] in fp32, of a ``scheduler_config.json``; computed in fp64.

    Raises ValueError for a noise schedule that is not known here.
    """
    n, schedule = config["num_train_timesteps"], config["beta_schedule"]
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)  # diffusers' own defaults
    if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        raise ValueError("scheduler_config.json: trained_betas and rescale_betas_zero_snr are not supported")
    if schedule == "linear":
        betas = torch.linspace(start, end, n, dtype=torch.float64)
    elif schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64).square()
    elif schedule == "squaredcos_cap_v2":
        cosine = torch.cos((torch.arange(n + 1, dtype=torch.float64) / n + 0.008) / 1.008 * math.pi / 2).square()
        betas = (1 - cosine[1:] / cosine[:-1]).clamp_max(0.999)
    else:
        known = "linear, scaled_linear or squaredcos_cap_v2"
        raise ValueError(f"scheduler_config.json: beta_schedule is {schedule!r}, expected {known}")
    return (1 - betas).cumprod(dim=0).float()


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """[n, h, w, 3] -> [n, height, width, 3], bilinear, antialiased where it shrinks; differentiable."""
    if images.shape[1:3] == (height, width):
        return images
    shrinks = images.shape[1] > height or images.shape[2] > width
    channels_first = images.permute(0, 3, 1, 2)
    return F.interpolate(channels_first, (height, width), mode="bilinear", antialias=shrinks).permute(0, 2, 3, 1)


def find_part(folders: list[Path], part: str, file: str) -> Path:
    """The first of `folders` that has `part` in it, with `file` as the sign."""
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; a prior is a local folder in diffusers layout")
        if (folder / part / file).is_file():
            return folder / part
    where = " nor in ".join(map(str, folders))
    remedy = "" if len(folders) > 1 else ", or name as `base` a folder that has it"
    raise ValueError(f"no {part}/{file} in {where}: copy the model's {part}/ there{remedy}")


def _load_quietly(cls: Any, folder: Path, device: torch.device | str, dtype: torch.dtype) -> Any:
    with quiet_libraries():
        return load_module(cls, folder, device, dtype)


def _load_once(shared: Shared, key: tuple[Any, ...], load: Callable[[], Any]) -> Any:
    if key not in shared:
        shared[key] = load()
    return shared[key]


def prediction_type(config: dict[str, Any]) -> str:
    kind: str = config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"scheduler_config.json: prediction_type is {kind!r}, expected epsilon or v_prediction")
    return kind


def _expect_equal(unet_folder: Path, name: str, value: int, other: str, width: int) -> None:
    if value != width:
        raise ValueError(f"{unet_folder}/config.json: {name} is {value}, {other} is {width}: take both from one model")
