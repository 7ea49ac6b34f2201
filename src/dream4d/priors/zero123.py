"""Zero-1-to-3: an image diffusion model that sees one picture of an object and draws it from elsewhere (paper Sec. 3.3,
its ref. [16]; weights zero123-xl).

The network is diffusers' ``UNet2DConditionModel`` with twice the autoencoder's channels: beside the noisy latents it
sees those of the reference, which are *not* multiplied with the scaling factor. Its one token of cross-attention is a
linear layer over the reference's CLIP embedding and four numbers of the relative camera. Without the reference both
are zeros: the token after the linear layer, not its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dream4d.cameras import Cameras
from dream4d.priors.errors import ModelError
from dream4d.priors.graphs import graphed
from dream4d.priors.parts import Autoencoder, ImagePrior, Parts, Shared, find_part, load_parts, quiet_libraries, resize
from dream4d.priors.weights import load_module, read_folder, read_json

POSE = 4
"""Numbers of a relative camera."""

LENS = 16 / 35
"""Tangent of half the field of view of the cameras that it was trained with: 35 mm lenses on 32 mm sensors, 49.1
degrees, 1.5 to 2.2 away from objects in a cube of edge 1."""

PROJECTIONS = ("clip_camera_projection", "cc_projection")
"""Folders that hold the linear layer in the ports to diffusers."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def relative_pose(cameras: Cameras, reference: Cameras) -> Tensor:
    """How `cameras` [b] stand to the `reference` [1], in Zero-1-to-3's numbers, [b, 4].

    The polar angle's difference in radians, which falls where elevation grows; sine and cosine of the azimuth's, which
    grows as ours does; the distance's. Fields of view differ between cameras here and never did in its training, so
    that distances are those from which its lens would show as much: tan(fov_y / 2) / `LENS` of the real ones.
    """
    return pose_between(spherical(cameras), spherical(reference))


def spherical(cameras: Cameras) -> Tensor:
    """Elevation and azimuth in radians and the distance from which Zero-1-to-3's lens would show as much, [b, 3]."""
    distance = cameras.position.norm(dim=-1) * torch.tan(torch.deg2rad(cameras.fov_y) / 2) / LENS
    return torch.stack([torch.deg2rad(cameras.elevation), torch.deg2rad(cameras.azimuth), distance], dim=-1)


def pose_between(seen: Tensor, reference: Tensor) -> Tensor:
    """`relative_pose` of cameras in `spherical` numbers, both [.., 3] -> [.., 4]."""
    elevation, azimuth, distance = (seen - reference).unbind(-1)
    return torch.stack([-elevation, azimuth.sin(), azimuth.cos(), distance], dim=-1)


@dataclass(frozen=True)
class Reference:
    """A picture as the model sees it: latents [1, c, h', w'], unscaled; CLIP embedding [1, channels]; its camera [1].

    Tensors are fp32.
    """

    latents: Tensor
    embedding: Tensor
    camera: Cameras


@dataclass(frozen=True)
class ViewCondition:
    """Tokens of the reference and the relative cameras, [b, 1, channels]; the reference's latents, [b, c, h', w']."""

    token: Tensor
    latents: Tensor


class Zero123(ImagePrior):
    """A multi-view `distill.Prior` made for one reference picture: an item is an image.

    The picture alone says what there is to see: prompts are not used. Each view is predicted on its own.
    projection: weight [channels, embedding + 4] and bias of the linear layer.
    """

    def __init__(
        self, parts: Parts, projection: tuple[Tensor, Tensor], reference: Reference,
        resolution: tuple[int, int] | None = None,
    ):
        super().__init__(parts, resolution)
        self.projection = projection
        self.reference = reference
        self._predict = graphed(partial(_predict, parts.unet), parts.unet)

    @classmethod
    def load(
        cls, folder: str | Path, base: str | Path | None = None, *, image: Tensor, camera: Cameras,
        resolution: tuple[int, int] | None = None, device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32, chunk: int | None = None, shared: Shared | None = None,
    ) -> Zero123:
        """From a local folder in diffusers layout; parts that it lacks come from `base`. shared: see `parts.Shared`.

        image: the reference [h, w, 3] in [0, 1], the object before white, as high and wide as `resolution` is in
        proportion; camera: the one that sees it. The image encoder is dropped once it has seen it.

        Raises ValueError, see `parts.load_parts`; where the UNet takes no reference; where the linear layer does not
        fit it; and for an image or a camera of another shape.
        """
        if image.ndim != 3 or image.shape[-1] != 3 or len(camera) != 1:
            raise ValueError(
                f"reference image {list(image.shape)} with {len(camera)} cameras: expected [h, w, 3] and one camera"
            )
        folders = [Path(folder)] + ([] if base is None else [Path(base)])
        _check(folders)
        parts = load_parts(
            folder, base, kind="a zero123 model", latents=2, device=device, dtype=dtype, text=False, chunk=chunk,
            shared=shared,
        )
        if parts.prediction_type != "epsilon":
            raise ModelError(
                "wrong", f"{folder}: this is not a zero123 model: its prediction_type is {parts.prediction_type}"
            )
        pixels = resize(image[None].to(parts.alpha_bar.device, torch.float32), *(resolution or parts.resolution))
        embedding = _embed(folders, pixels, dtype)
        projection = _load_projection(folders, parts.unet.config.cross_attention_dim, embedding.shape[-1])
        return cls(
            parts, (projection[0].to(device), projection[1].to(device)),
            Reference(_unscaled_latents(parts.autoencoder, pixels), embedding, camera), resolution,
        )

    @torch.no_grad()
    def condition(self, prompts: Sequence[str], negative: str, cameras: Cameras) -> ViewCondition:
        """One camera an item; of the prompts only the number counts."""
        assert len(prompts) == len(cameras)
        seen = self.reference
        pose = relative_pose(cameras, seen.camera).to(seen.embedding, non_blocking=True)
        joined = torch.cat([seen.embedding.expand(len(cameras), -1), pose], dim=-1)
        token = F.linear(joined, *self.projection)[:, None]
        return ViewCondition(token, seen.latents.expand(len(cameras), -1, -1, -1))

    @torch.no_grad()
    def predict_noise(self, noisy: Tensor, timestep: Tensor, condition: ViewCondition) -> tuple[Tensor, Tensor]:
        """eps without and with the reference, fp32; from one call of the UNet on both, unless `Parts.split`."""
        token, latents = condition.token, condition.latents
        no_token, no_latents = torch.zeros_like(token), torch.zeros_like(latents)
        if self.parts.split:
            unconditional = self._predict(noisy, timestep, no_token, no_latents)
            return unconditional, self._predict(noisy, timestep, token, latents)
        tokens, references = torch.cat([no_token, token]), torch.cat([no_latents, latents])
        both = self._predict(torch.cat([noisy, noisy]), timestep.repeat(2), tokens, references)
        unconditional, conditional = both.chunk(2)
        return unconditional, conditional


def _predict(unet: Any, noisy: Tensor, timestep: Tensor, token: Tensor, latents: Tensor) -> Tensor:
    """eps, [b, c, h', w'], in fp32."""
    inputs = torch.cat([noisy, latents], dim=1).to(unet.dtype)
    output: Tensor = unet(inputs, timestep, token.to(unet.dtype)).sample.float()
    return output


@torch.no_grad()
def _unscaled_latents(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    latents: Tensor = autoencoder.encode(images) / autoencoder.vae.config.scaling_factor
    return latents


@torch.no_grad()
def _embed(folders: list[Path], images: Tensor, dtype: torch.dtype) -> Tensor:
    """CLIP embeddings [b, channels], fp32, of images [b, h, w, 3], by the image encoder of the folders."""
    with quiet_libraries():
        import transformers

        folder = find_part(folders, "image_encoder", "config.json")
        encoder = load_module(transformers.CLIPVisionModelWithProjection, folder, images.device, dtype)
    return embed(encoder, images)


def embed(encoder: Any, images: Tensor) -> Tensor:
    """What a ``CLIPVisionModelWithProjection`` says of images [b, h, w, 3]: [b, channels] in fp32; differentiable.

    Zero-1-to-3 was trained with pictures that were resized like this, corners on corners, and not as CLIP does it.
    """
    size = (encoder.config.image_size,) * 2
    pixels = F.interpolate(images.permute(0, 3, 1, 2).float(), size, mode="bicubic", align_corners=True)
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    embedding: Tensor = encoder(((pixels - mean) / std).to(encoder.dtype)).image_embeds.float()
    return embedding


def _load_projection(folders: list[Path], width: int, embedding: int) -> tuple[Tensor, Tensor]:
    """Weight [width, embedding + 4] and bias [width] in fp32: half a million numbers, and poses need the digits."""
    folder = _projection_folder(folders)
    # The ports call the layer `proj` or `projection`.
    tensors = {name.rpartition(".")[2]: value.float() for name, value in read_folder(folder).items()}
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    if shapes != (expected := {"weight": [width, embedding + POSE], "bias": [width]}):
        raise ModelError(
            "wrong", f"{folder}: the camera projection is {shapes}, expected {expected}: take both from one model"
        )
    return tensors["weight"], tensors["bias"]


def _projection_folder(folders: list[Path]) -> Path:
    for place in (folder / name for folder in folders for name in PROJECTIONS):
        if place.is_dir():
            return place
    wanted, where = " or ".join(PROJECTIONS), " nor in ".join(map(str, folders))
    raise ModelError("absent", f"no {wanted} in {where}: this is not a zero123 model, or copy that folder there")


def _check(folders: list[Path]) -> None:
    """Before gigabytes are read: is it such a model at all?"""
    config = read_json(find_part(folders, "unet", "config.json") / "config.json")
    if config.get("in_channels") != 2 * config.get("out_channels", 0):
        raise ModelError(
            "wrong", f"{folders[0]}: this is not a zero123 model: unet/config.json has in_channels "
            f"{config.get('in_channels')} for out_channels {config.get('out_channels')}, not twice as many"
        )
    _projection_folder(folders)
