"""The paper's networks at full size with random weights, from their published configurations; and tiny ones like them.

Speed and memory do not depend on the values of weights. As a program it writes them as folders that `dream4d generate
--preset paper` takes: DIR/sd (with tokenizer and text encoder), DIR/mvdream and DIR/zeroscope.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dream4d.cameras import orbit
from dream4d.priors.deepfloyd import DeepFloyd, PromptFeatures
from dream4d.priors.mvdream import MVDream, multiview_attention
from dream4d.priors.parts import Autoencoder, Parts, cumulative_alphas, quiet_libraries
from dream4d.priors.stable_diffusion import StableDiffusion
from dream4d.priors.text_to_video import TextToVideo
from dream4d.priors.zero123 import POSE, Reference, Zero123

TOKENS, VIEWS, FRAMES = 77, 4, 24
SCHEDULE = {
    "num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
}  # fmt: skip
UNET_2D = {
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
}  # fmt: skip
UNET_REFERENCE = {
    "sample_size": 32, "in_channels": 8, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768,
    "attention_head_dim": 8,
}  # fmt: skip
UNET_PIXELS = {
    "sample_size": 64, "in_channels": 3, "out_channels": 6, "block_out_channels": (704, 1408, 2112, 2816),
    "layers_per_block": 3, "attention_head_dim": 64, "cross_attention_dim": 2816, "encoder_hid_dim": 4096,
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"), "act_fn": "gelu",
    "addition_embed_type": "text", "addition_embed_type_num_heads": 64, "cross_attention_norm": "group_norm",
    "resnet_time_scale_shift": "scale_shift", "time_embedding_act_fn": "gelu",
}  # fmt: skip
UNET_3D = {"sample_size": 32, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024}
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 4,
}  # fmt: skip
TINY_UNET = {"sample_size": 8, "block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 16, "layers_per_block": 1}
TINY_PIXELS = {
    "sample_size": 8, "block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "cross_attention_dim": 64,
    "attention_head_dim": 16, "encoder_hid_dim": 16, "addition_embed_type_num_heads": 4,
}  # fmt: skip
TINY_VAE = VAE | {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}


def width(tiny: bool) -> int:
    """Of the text features."""
    return TINY_UNET["cross_attention_dim"] if tiny else 1024  # type: ignore[return-value]


def image_unet(device: torch.device, dtype: torch.dtype, *, tiny: bool = False, multiview: bool = False) -> Any:
    """Stable Diffusion 2.1's, or MVDream's: with a camera input and self-attention over four views."""
    from diffusers import UNet2DConditionModel

    camera = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16} if multiview else {}
    config = TINY_UNET | {"attention_head_dim": 2} if tiny else UNET_2D
    unet = _build(UNet2DConditionModel, config | camera, device, dtype)
    if multiview:
        multiview_attention(unet, VIEWS)
    return unet


def reference_unet(device: torch.device, dtype: torch.dtype, *, tiny: bool = False) -> Any:
    """zero123-xl's, which sees the latents of a picture beside the noisy ones."""
    from diffusers import UNet2DConditionModel

    config = UNET_REFERENCE | TINY_UNET | {"attention_head_dim": 2} if tiny else UNET_REFERENCE
    return _build(UNet2DConditionModel, config, device, dtype)


def pixel_unet(device: torch.device, dtype: torch.dtype, *, tiny: bool = False) -> Any:
    """DeepFloyd IF's of the first stage, XL."""
    from diffusers import UNet2DConditionModel

    return _build(UNet2DConditionModel, UNET_PIXELS | TINY_PIXELS if tiny else UNET_PIXELS, device, dtype)


def video_unet(device: torch.device, dtype: torch.dtype, *, tiny: bool = False) -> Any:
    """Zeroscope's."""
    from diffusers import UNet3DConditionModel

    return _build(UNet3DConditionModel, TINY_UNET | {"attention_head_dim": 16} if tiny else UNET_3D, device, dtype)


def autoencoder(device: torch.device, dtype: torch.dtype, *, tiny: bool = False) -> Any:
    """The one that all three share."""
    from diffusers import AutoencoderKL

    return _build(AutoencoderKL, TINY_VAE if tiny else VAE, device, dtype)


class Text:
    """Random features in place of a text encoder, which has nothing to do during steps once its prompts are known."""

    def __init__(self, device: torch.device, dtype: torch.dtype, channels: int):
        self.features = torch.randn(TOKENS, channels, device=device).to(dtype)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        return self.features.expand(len(prompts), -1, -1)


def static_priors(device: torch.device, dtype: torch.dtype, tiny: bool) -> tuple[StableDiffusion, MVDream]:
    """With one autoencoder, at 512x512 and 256x256, or tiny ones at 64x64 and 32x32."""
    vae = Autoencoder(autoencoder(device, dtype, tiny=tiny))
    image, multiview = (
        _parts(image_unet(device, dtype, tiny=tiny, multiview=views), vae, device, dtype, tiny)
        for views in (False, True)
    )
    return StableDiffusion(image, _size(512, 512, tiny)), MVDream(multiview, VIEWS, _size(256, 256, tiny))


def video_prior(device: torch.device, dtype: torch.dtype, tiny: bool) -> TextToVideo:
    """Clips of 24 frames of 320x576, or of 3 of 40x72."""
    vae = Autoencoder(autoencoder(device, dtype, tiny=tiny))
    parts = _parts(video_unet(device, dtype, tiny=tiny), vae, device, dtype, tiny)
    return TextToVideo(parts, 3 if tiny else FRAMES, _size(320, 576, tiny))


def picture_priors(device: torch.device, dtype: torch.dtype, tiny: bool) -> tuple[DeepFloyd, Zero123]:
    """Of Sec. 3.3, at 64x64 pixels and at 256x256, or tiny ones at 8x8 and 32x32; of a picture of noise."""
    unet = pixel_unet(device, dtype, tiny=tiny)
    features = unet.config.encoder_hid_dim
    words = PromptFeatures({}, lambda prompts: [torch.randn(TOKENS, features) for _ in prompts])
    alpha_bar = cumulative_alphas(SCHEDULE | {"beta_schedule": "squaredcos_cap_v2"}).to(device)
    image = DeepFloyd(unet, alpha_bar, words)
    vae = Autoencoder(autoencoder(device, dtype, tiny=tiny))
    parts = _parts(reference_unet(device, dtype, tiny=tiny), vae, device, dtype, tiny)
    channels, (height, wide) = parts.unet.config.cross_attention_dim, _size(256, 256, tiny)
    projection = torch.randn(channels, channels + POSE, device=device) / channels, torch.zeros(channels, device=device)
    camera = orbit(*torch.tensor([[0.0], [0.0], [3.8], [20.0]]))
    seen = Reference(
        torch.randn(1, 4, height // 8, wide // 8, device=device), torch.randn(1, channels, device=device), camera
    )
    return image, Zero123(parts, projection, seen, (height, wide))


def _size(height: int, width: int, tiny: bool) -> tuple[int, int]:
    return (height // 8, width // 8) if tiny else (height, width)


def _parts(unet: Any, vae: Autoencoder, device: torch.device, dtype: torch.dtype, tiny: bool) -> Parts:
    text: Any = Text(device, dtype, width(tiny))
    return Parts(unet, vae, cumulative_alphas(SCHEDULE).to(device), "epsilon", text)


def _build(kind: Any, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    with quiet_libraries(), device:
        return kind(**config).to(dtype).requires_grad_(False).eval()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where they are made")
    options = parser.parse_args(argv)
    device, dtype, tiny = torch.device(options.device), torch.float16, options.tiny
    unets = {
        "sd": image_unet(device, dtype, tiny=tiny), "zeroscope": video_unet(device, dtype, tiny=tiny),
        "mvdream": image_unet(device, dtype, tiny=tiny, multiview=True),
    }  # fmt: skip
    for name, unet in unets.items():
        unet.save_pretrained(options.folder / name / "unet")
        _save_schedule(options.folder / name / "scheduler")
    autoencoder(device, dtype, tiny=tiny).save_pretrained(options.folder / "sd" / "vae")
    _save_text(options.folder / "sd", device, dtype, tiny)
    print(options.folder)
    return 0


def _save_schedule(folder: Path) -> None:
    from diffusers import DDIMScheduler

    DDIMScheduler(**SCHEDULE, prediction_type="epsilon").save_pretrained(folder)


def _save_text(folder: Path, device: torch.device, dtype: torch.dtype, tiny: bool) -> None:
    """A tokenizer that spells, and a text encoder of Stable Diffusion 2.1's size."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [*string.ascii_lowercase, *string.digits, ",", ".", "-"]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(
        folder / "tokenizer", model_max_length=TOKENS, pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    layers, heads, feed_forward = (1, 2, 32) if tiny else (23, 16, 4096)
    config = CLIPTextConfig(
        vocab_size=len(words) if tiny else 49408, hidden_size=width(tiny), intermediate_size=feed_forward,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=TOKENS,
        bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    with quiet_libraries(), device:
        CLIPTextModel(config).to(dtype).save_pretrained(folder / "text_encoder")


if __name__ == "__main__":
    raise SystemExit(main())
