"""DeepFloyd IF, first stage: an image diffusion model in the space of 64x64 pixels (paper Sec. 3.3, its ref. [1]).

The network is diffusers' ``UNet2DConditionModel``, whose output is the noise and, in as many channels again, a learned
variance, which only sampling has a use for. There is no autoencoder: latents are pixels in [-1, 1].
Text comes from T5-XXL, larger than the UNet: `PromptFeatures` has it in memory only while it encodes, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dream4d.cameras import Cameras
from dream4d.files import atomic
from dream4d.priors.errors import ModelError
from dream4d.priors.graphs import graphed
from dream4d.priors.parts import (
    Condition,
    cumulative_alphas,
    find_part,
    prediction_type,
    quiet_libraries,
    resize,
)
from dream4d.priors.weights import load_module, read_json

CHANNELS = 3

TOKENS = 77
"""Length of the prompts that IF was trained with; T5 itself takes more."""


def in_pixel_space(folder: str | Path) -> bool:
    """Whether the UNet of a folder takes pixels, as DeepFloyd IF's do, and not latents."""
    config = read_json(find_part([Path(folder)], "unet", "config.json") / "config.json")
    return config.get("encoder_hid_dim") is not None and config.get("in_channels") in (CHANNELS, 2 * CHANNELS)


class PromptFeatures:
    """Prompts to T5 features. Each distinct prompt is encoded once and remembered; case and outer blanks do not count.

    known: features [tokens, channels] by prompt. encode: features of the prompts that are not known, which may take
    minutes a call, so that `prepare` with all prompts to come is best; None where there is no encoder.
    """

    def __init__(self, known: Mapping[str, Tensor], encode: Callable[[Sequence[str]], list[Tensor]] | None):
        self._known = {_normal(prompt): features for prompt, features in known.items()}
        self._encode = encode

    def __call__(self, prompts: Iterable[str]) -> Tensor:
        """[b, tokens, channels]. Raises ValueError for an unknown prompt where there is no encoder."""
        normal = [_normal(prompt) for prompt in prompts]
        unknown = [prompt for prompt in dict.fromkeys(normal) if prompt not in self._known]
        if unknown and self._encode is None:
            raise ValueError(
                f"no features of the prompt {unknown[0]!r}: encode it where the model's text_encoder/ is, "
                "and save it with the others"
            )
        if unknown and self._encode is not None:
            self._known.update(zip(unknown, self._encode(unknown), strict=True))
        return torch.stack([self._known[prompt] for prompt in normal])

    def prepare(self, prompts: Sequence[str]) -> None:
        """Encode all prompts that are to come, as `parts.TextEncoder` does."""
        self(prompts)

    def save(self, path: str | Path) -> None:
        """All that is known, as a safetensors file: a tensor [tokens, channels] a prompt, whose name is the prompt."""
        from safetensors.torch import save_file

        with atomic(path) as file:
            save_file({prompt: value.clone() for prompt, value in self._known.items()}, file)


def _normal(prompt: str) -> str:
    return prompt.lower().strip()


class DeepFloyd:
    """An image `distill.Prior`: an item is an image; where a camera stands is told by the words of the prompt only.

    resolution: height and width of its images; by default what the UNet was made for. split: see `parts.Parts`.
    """

    def __init__(
        self, unet: Any, alpha_bar: Tensor, text: PromptFeatures, resolution: tuple[int, int] | None = None
    ):
        self.unet = unet
        self.alpha_bar = alpha_bar
        self.text = text
        self.resolution = resolution or (unet.config.sample_size, unet.config.sample_size)
        self.split = False
        self._predict = graphed(partial(_predict, unet), unet)

    @classmethod
    def load(
        cls, folder: str | Path, base: str | Path | None = None, *, features: str | Path | None = None,
        prompts: Sequence[str] = (), resolution: tuple[int, int] | None = None, device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> DeepFloyd:
        """From a local folder in diffusers layout; parts that it lacks come from `base`.

        features: a file of `PromptFeatures.save`; without it the folders must have a text encoder. prompts: those to
        come, negative ones too; they are encoded first, so that text encoder and UNet are never in memory together.
        dtype: fp16 is what the weights were released for; transformers keeps T5's output layers in fp32 then, which
        overflow otherwise.

        Raises ValueError where a part is missing, has only pickled weights, or belongs to another kind of model.
        """
        folders = [Path(folder)] + ([] if base is None else [Path(base)])
        unet_folder = find_part(folders, "unet", "config.json")
        config = read_json(unet_folder / "config.json")
        _check(folder, config)
        noise = read_json(find_part(folders, "scheduler", "scheduler_config.json") / "scheduler_config.json")
        if (kind := prediction_type(noise)) != "epsilon":
            raise ModelError(
                "wrong", f"{folder}: this is not a first stage of DeepFloyd IF: its prediction_type is {kind}"
            )
        text = _prompt_features(folders, features, config["encoder_hid_dim"], device, dtype)
        if prompts:
            text.prepare(prompts)
        with quiet_libraries():
            import diffusers

            unet = load_module(diffusers.UNet2DConditionModel, unet_folder, device, dtype)
        return cls(unet, cumulative_alphas(noise).to(device), text, resolution)

    @property
    def latent_space(self) -> tuple[str, tuple[int, int]]:
        """Equal for priors in pixel space with one resolution."""
        return "pixels", self.resolution

    def condition(self, prompts: Sequence[str], negative: str, cameras: Cameras) -> Condition:
        text = self.text([negative, *prompts]).to(self.alpha_bar.device, self.unet.dtype)
        return Condition(text[:1].expand(len(prompts), -1, -1), text[1:])

    def resize(self, images: Tensor) -> Tensor:
        return resize(images, *self.resolution)

    def encode(self, images: Tensor) -> Tensor:
        """[b, h, w, 3] in [0, 1] -> [b, 3, h, w] in [-1, 1]."""
        return (2 * images - 1).permute(0, 3, 1, 2).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return (latents / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    def limit(self, *, images: int | None, split: bool) -> None:
        """See `Parts.limit`; `images` is for autoencoders, and there is none."""
        self.split = split

    @torch.no_grad()
    def predict_noise(self, noisy: Tensor, timestep: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """eps for the negative prompt and for the prompt, fp32; from one call of the UNet on both, unless `split`."""
        negative, text = condition.negative, condition.text
        if self.split:
            return self._predict(noisy, timestep, negative), self._predict(noisy, timestep, text)
        both = self._predict(torch.cat([noisy, noisy]), timestep.repeat(2), torch.cat([negative, text]))
        unconditional, conditional = both.chunk(2)
        return unconditional, conditional


def _predict(unet: Any, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    """eps, [b, 3, h, w], in fp32; the learned variance, which comes after it, is left out."""
    output: Tensor = unet(noisy.to(unet.dtype), timestep, text).sample
    return output[:, :CHANNELS].float()


def _check(folder: str | Path, config: dict[str, Any]) -> None:
    expected = {"_class_name": "UNet2DConditionModel", "in_channels": CHANNELS, "out_channels": 2 * CHANNELS}
    wrong = [f"{name} {config.get(name)}, not {value}" for name, value in expected.items() if config.get(name) != value]
    if not wrong and config.get("encoder_hid_dim") is None:
        wrong = ["no encoder_hid_dim"]
    if wrong:
        kind = "this is not a first stage of DeepFloyd IF"
        if config.get("in_channels") == 2 * CHANNELS:
            kind += " but a later one, which enlarges images"
        raise ModelError("wrong", f"{folder}: {kind}: unet/config.json says {'; '.join(wrong)}")


def _prompt_features(
    folders: list[Path], file: str | Path | None, width: int, device: torch.device | str, dtype: torch.dtype
) -> PromptFeatures:
    if file is not None and not any((folder / "text_encoder").is_dir() for folder in folders):
        return PromptFeatures(_read_features(Path(file), width, device), None)
    tokenizer = find_part(folders, "tokenizer", "tokenizer_config.json")
    encoder = find_part(folders, "text_encoder", "config.json")
    if (found := read_json(encoder / "config.json")["d_model"]) != width:
        raise ModelError(
            "wrong", f"{encoder}/config.json: d_model is {found}, the UNet's encoder_hid_dim {width}: "
            "take both from one model"
        )
    known = {} if file is None else _read_features(Path(file), width, device)
    return PromptFeatures(known, partial(_encode_prompts, tokenizer, encoder, device, dtype))


def _read_features(file: Path, width: int, device: torch.device | str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        features = load_file(file, device=str(device))
    except (OSError, SafetensorError) as error:
        raise ModelError("corrupt", f"{file} is not a safetensors file of prompt features: {error}") from None
    for prompt, value in features.items():
        if value.ndim != 2 or value.shape[1] != width:
            raise ModelError(
                "wrong", f"{file}: features of {prompt!r} are {list(value.shape)}, expected [tokens, {width}]: "
                "encode the prompts with this model's text encoder"
            )
    return features


@torch.no_grad()
def _encode_prompts(
    tokenizer_folder: Path, encoder_folder: Path, device: torch.device | str, dtype: torch.dtype,
    prompts: Sequence[str],
) -> list[Tensor]:
    """Loads tokenizer and encoder, and lets them go."""
    if not (tokenizer_folder / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
        raise ValueError(f"{tokenizer_folder} needs two more packages: pip install sentencepiece protobuf")
    with quiet_libraries():
        import transformers

        tokenizer = transformers.T5Tokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
        encoder = load_module(transformers.T5EncoderModel, encoder_folder, device, dtype)
        features = []
        for prompt in prompts:
            tokens = tokenizer(
                [prompt], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
            ).to(device)
            # What attention reads leaves the padding out; the UNet then sees all 77 features, as it was trained to.
            features.append(encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state[0])
    return features
