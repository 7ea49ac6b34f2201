"""Diffusers models so small that a test builds and runs them in well under a second; random weights, no network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel, UNet3DConditionModel
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WIDTH = 32  # of the text features
TOKENS = 8
EMBEDDING = 24  # of a reference image
T5_WIDTH = 16


def unet_2d(*, multiview: bool = False, reference: bool = False, seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    camera = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16} if multiview else {}
    return UNet2DConditionModel(
        sample_size=8, in_channels=8 if reference else 4, out_channels=4, block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=8, norm_num_groups=8, **camera,
    ).eval()


def unet_pixels(*, seed: int = 0) -> UNet2DConditionModel:
    """DeepFloyd IF's, for images of 16x16."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=16, in_channels=3, out_channels=6, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), cross_attention_dim=WIDTH,
        attention_head_dim=8, norm_num_groups=8, encoder_hid_dim=T5_WIDTH, addition_embed_type="text",
        addition_embed_type_num_heads=4, act_fn="gelu", time_embedding_act_fn="gelu",
        resnet_time_scale_shift="scale_shift",
    ).eval()


def unet_3d(*, seed: int = 0) -> UNet3DConditionModel:
    torch.manual_seed(seed)
    return UNet3DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=WIDTH, attention_head_dim=8, norm_num_groups=8,
    ).eval()


def vae(*, seed: int = 0) -> AutoencoderKL:
    """16x16 images to 4x8x8 latents."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, scaling_factor=0.5,
    ).eval()


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Knows every lower-case letter, alone and at the end of a word."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [","]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS, pad_token="<|endoftext|>")


def text_encoder(vocabulary: int, *, width: int = WIDTH, seed: int = 0) -> CLIPTextModel:
    torch.manual_seed(seed)
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=TOKENS, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
    )).eval()


def image_encoder(*, width: int = EMBEDDING, seed: int = 0) -> CLIPVisionModelWithProjection:
    torch.manual_seed(seed)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, projection_dim=width, num_hidden_layers=1, num_attention_heads=2,
        image_size=24, patch_size=8,
    )).eval()


def save_clip(folder: Path, *, seed: int = 0) -> Path:
    """A whole CLIP model, for pictures of 24x24."""
    words = tokenizer(folder)
    words.save_pretrained(folder)
    torch.manual_seed(seed)
    CLIPModel(CLIPConfig(
        text_config=text_encoder(len(words)).config.to_dict(), vision_config=image_encoder().config.to_dict(),
        projection_dim=EMBEDDING,
    )).save_pretrained(folder)
    return folder


def t5_tokenizer() -> T5Tokenizer:
    """Knows every lower-case letter."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [","]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    return T5Tokenizer(vocab=[*special, *((letter, -3.0) for letter in letters)], extra_ids=0)


def t5_encoder(vocabulary: int, *, width: int = T5_WIDTH, seed: int = 0) -> T5EncoderModel:
    torch.manual_seed(seed)
    return T5EncoderModel(T5Config(
        vocab_size=vocabulary, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
    )).eval()


def scheduler(**changes: Any) -> DDIMScheduler:
    return DDIMScheduler(**{
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "set_alpha_to_one": False, "steps_offset": 1, **changes,
    })


def save_image_model(folder: Path, **scheduler_changes: Any) -> Path:
    """A whole text-to-image model in diffusers layout."""
    words = tokenizer(folder / "tokenizer")
    words.save_pretrained(folder / "tokenizer")
    text_encoder(len(words)).save_pretrained(folder / "text_encoder")
    vae().save_pretrained(folder / "vae")
    unet_2d().save_pretrained(folder / "unet")
    scheduler(**scheduler_changes).save_pretrained(folder / "scheduler")
    return folder


def save_denoiser(folder: Path, unet: UNet2DConditionModel | UNet3DConditionModel, **scheduler_changes: Any) -> Path:
    """Only a UNet and its scheduler, as the built-in multi-view and video priors are."""
    unet.save_pretrained(folder / "unet")
    scheduler(**scheduler_changes).save_pretrained(folder / "scheduler")
    return folder


def save_zero123(
    folder: Path, *, projection: str = "clip_camera_projection", layer: str = "proj", **scheduler_changes: Any
) -> Path:
    """zero123-xl in the layout of its ports to diffusers, which differ in how they call the camera's linear layer."""
    save_denoiser(folder, unet_2d(reference=True), **scheduler_changes)
    vae().save_pretrained(folder / "vae")
    image_encoder().save_pretrained(folder / "image_encoder")
    generator = torch.Generator().manual_seed(1)
    weights = {"weight": torch.randn(WIDTH, EMBEDDING + 4, generator=generator), "bias": torch.zeros(WIDTH)}
    (folder / projection).mkdir()
    tensors = {f"{layer}.{name}": value for name, value in weights.items()}
    save_file(tensors, folder / projection / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return folder


def save_deepfloyd(folder: Path, *, text: bool = True, **scheduler_changes: Any) -> Path:
    """The first stage of DeepFloyd IF; without its text encoder, features must come from a file."""
    unet_pixels().save_pretrained(folder / "unet")
    DDPMScheduler(**{
        "beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range", "thresholding": True,
        "sample_max_value": 1.5, **scheduler_changes,
    }).save_pretrained(folder / "scheduler")
    if text:
        words = t5_tokenizer()
        words.save_pretrained(folder / "tokenizer")
        t5_encoder(len(words)).save_pretrained(folder / "text_encoder")
    return folder
