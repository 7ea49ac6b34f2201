"""MVDream: an image diffusion model that draws several views of one object at once (paper Sec. 3.1, its ref. [32]).

The network is diffusers' ``UNet2DConditionModel`` with ``class_embed_type="projection"`` over 16 camera numbers, whose
self-attention reaches over the tokens of all views of a scene. Views of a scene are consecutive in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dream4d.cameras import Cameras
from dream4d.priors.parts import Condition, ImagePrior, Parts, Shared, load_parts


def camera_embedding(cameras: Cameras) -> Tensor:
    """MVDream's camera input, [b, 16]: camera-to-world, row by row, its translation scaled to unit length.

    MVDream's world is ours (right-handed, +z up, azimuth 0 on +x, OpenGL camera axes), so nothing is rotated.
    """
    matrix = cameras.camera_to_world.clone()
    matrix[:, :3, 3] = nn.functional.normalize(matrix[:, :3, 3], dim=-1)
    return matrix.flatten(1)


class MultiviewAttention:
    """Attention processor: the self-attention of `views` consecutive images as one sequence of views x tokens."""

    def __init__(self, views: int):
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.views = views
        self.attend: Any = AttnProcessor2_0()

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        assert encoder_hidden_states is None, "for self-attention only"
        assert attention_mask is None, "for self-attention without a mask"
        batch, tokens, width = hidden_states.shape
        joined = hidden_states.reshape(batch // self.views, self.views * tokens, width)
        attended: Tensor = self.attend(attn, joined)
        return attended.reshape(batch, tokens, width)


def multiview_attention(unet: Any, views: int) -> None:
    """Let every self-attention of a ``UNet2DConditionModel`` reach over `views` consecutive images of the batch.

    Changes the processors of ``attn1`` in place and adds no parameters, so that an image model's weights fit as they
    are. Afterwards the batch of a call must be a multiple of `views`.
    """
    unet.set_attn_processor({
        name: MultiviewAttention(views) if name.endswith("attn1.processor") else processor
        for name, processor in unet.attn_processors.items()
    })


class MVDream(ImagePrior):
    """A multi-view `distill.Prior`: an item is an image, and every `views` consecutive ones show one scene."""

    def __init__(self, parts: Parts, views: int = 4, resolution: tuple[int, int] | None = None):
        super().__init__(parts, resolution)
        multiview_attention(parts.unet, views)
        self.views = views

    @classmethod
    def load(
        cls, folder: str | Path, base: str | Path | None = None, *, views: int = 4,
        resolution: tuple[int, int] | None = None, device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32, chunk: int | None = None, shared: Shared | None = None,
    ) -> MVDream:
        """From a local folder in diffusers layout; parts that it lacks come from `base`. shared: see `parts.Shared`.

        Raises ValueError, see `parts.load_parts`, and where the UNet takes no camera.
        """
        parts = load_parts(
            folder, base, kind="a multi-view model", device=device, dtype=dtype, chunk=chunk, shared=shared
        )
        inputs = parts.unet.config.projection_class_embeddings_input_dim
        if parts.unet.config.class_embed_type != "projection" or inputs != 16:
            raise ValueError(
                f"{folder}: this is not a multi-view model: unet/config.json has no camera input "
                '(class_embed_type "projection" with projection_class_embeddings_input_dim 16)'
            )
        return cls(parts, views, resolution)

    def condition(self, prompts: Sequence[str], negative: str, cameras: Cameras) -> Condition:
        camera = camera_embedding(cameras).to(self.alpha_bar.device, non_blocking=True)
        return self.parts.condition(prompts, negative, camera)
