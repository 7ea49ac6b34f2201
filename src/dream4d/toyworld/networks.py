"""The networks of the built-in priors: plain diffusers and transformers classes, small enough for two CPU cores.

Their folders have the layout of the paper's models, so that one loading code serves both (`dream4d.priors`).
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dream4d.toyworld.grammar import every_word

IMAGE_SIZE = 64
LATENT_SIZE = 16
LATENT_CHANNELS = 8
TEXT_WIDTH = 128
TOKENS = 24  # the longest sentence has 16
FRAMES = 16
VIEWS = 4
_WIDTHS = (64, 96, 144)
_HEAD = 16  # channels of an attention head
_START, _END = "<|startoftext|>", "<|endoftext|>"


def autoencoder() -> Any:
    """An ``AutoencoderKL``: 64x64 pixels to 16x16x8: eyes are three pixels wide, and with four channels they smear."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64, 96), layers_per_block=2, latent_channels=LATENT_CHANNELS, norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=IMAGE_SIZE,
    )  # fmt: skip


def image_unet(**more: Any) -> Any:
    """A ``UNet2DConditionModel`` with attention at every level."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D",) * 3, up_block_types=("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=tuple(width // _HEAD for width in _WIDTHS), use_linear_projection=True, **(_COMMON | more),
    )  # fmt: skip


def multiview_unet() -> Any:
    """The image UNet with MVDream's camera input; `priors.mvdream.multiview_attention` joins its views."""
    return image_unet(class_embed_type="projection", projection_class_embeddings_input_dim=16)


def novel_unet() -> Any:
    """The image UNet with the latents of a reference beside the noisy ones, as Zero-1-to-3 has it."""
    return image_unet(in_channels=2 * LATENT_CHANNELS)


def start_novel_unet(unet: Any, image: dict[str, torch.Tensor]) -> None:
    """Give a `novel_unet` an image UNet's weights, so that it draws as that does and does not see the reference."""
    first = torch.zeros_like(unet.conv_in.weight)
    first[:, :LATENT_CHANNELS] = image["conv_in.weight"]
    unet.load_state_dict(image | {"conv_in.weight": first})


def image_encoder() -> Any:
    """A ``CLIPVisionModelWithProjection`` of four layers, for pictures of 64x64 in patches of 8x8."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=4, num_attention_heads=4,
            image_size=IMAGE_SIZE, patch_size=8, projection_dim=TEXT_WIDTH,
        )
    )  # fmt: skip


def video_unet() -> Any:
    """A ``UNet3DConditionModel`` whose spatial tensors have the image UNet's names and sizes."""
    from diffusers import UNet3DConditionModel

    return UNet3DConditionModel(
        down_block_types=("CrossAttnDownBlock3D",) * 3, up_block_types=("CrossAttnUpBlock3D",) * 3,
        attention_head_dim=_HEAD, **_COMMON,
    )  # fmt: skip


_COMMON: dict[str, Any] = {
    "sample_size": LATENT_SIZE, "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS,
    "block_out_channels": _WIDTHS, "layers_per_block": 1, "cross_attention_dim": TEXT_WIDTH, "norm_num_groups": 16,
}  # fmt: skip


def start_video_unet(unet: Any, image: dict[str, torch.Tensor]) -> None:
    """Give a `video_unet` an image UNet's weights and silence its temporal layers, so that it draws every frame as the
    image UNet would. Raises ValueError where a tensor does not fit."""
    own = unet.state_dict()
    if bad := [name for name, tensor in image.items() if name not in own or own[name].shape != tensor.shape]:
        raise ValueError(f"the image UNet does not fit the video UNet: {bad[:3]}")
    unet.load_state_dict(image, strict=False)
    for name, module in unet.named_modules():
        temporal = "temp_attentions" in name or name.startswith("transformer_in")
        if name.endswith("proj_out") and temporal:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def text_encoder(vocabulary: int) -> Any:
    """A ``CLIPTextModel`` of two layers; begin and end of text are the last two of `vocabulary`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=TOKENS, projection_dim=TEXT_WIDTH,
            bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
        )
    )  # fmt: skip


def tokenizer() -> Any:
    """A ``CLIPTokenizer`` that has each word of the grammar as one token.

    Its byte pairs join letters to the known words from the left; other words fall apart into pieces.
    """
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789,.'-!?")
    merges: list[tuple[str, str]] = []
    for word in every_word():
        spelled = [*word[:-1], word[-1] + "</w>"]
        while len(pieces := _byte_pairs(spelled, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), _START, _END]
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        Path(scratch, "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
        return CLIPTokenizer.from_pretrained(scratch, model_max_length=TOKENS, pad_token=_END)


def _byte_pairs(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Join neighbours while one of `merges` applies, the earliest first."""
    while ranks := [merges.index(pair) for pair in itertools.pairwise(pieces) if pair in merges]:
        at = next(i for i, pair in enumerate(itertools.pairwise(pieces)) if pair == merges[min(ranks)])
        pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]
    return pieces


def scheduler(name: str) -> Any:
    """The noise schedule of the prior `name`: Stable Diffusion's; for video one that ends in 20 times as much noise.

    A clip says everything once a frame: 16 frames that stand still outvote the noise of Stable Diffusion's last
    timestep (a signal to noise ratio of .0047), and hardly a sentence makes the whole toy move. Video's ends at .00024
    (Hoogeboom et al. 2023, "Simple diffusion", shift the schedule of larger images for the same reason). So near to
    pure noise, dividing by the signal would blow up an epsilon prediction's errors; a v prediction's it does not.
    """
    from diffusers import DDIMScheduler

    noise = {"beta_end": 0.02, "prediction_type": "v_prediction"} if name == "video" else {"beta_end": 0.012}
    return DDIMScheduler(
        beta_start=0.00085, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        **noise,
    )  # fmt: skip
