"""Other layouts of known models, turned once into folders in diffusers layout: original checkpoints and ports.

The result is kept in a cache (``DREAM4D_CACHE``, by default ``~/.cache/dream4d``) under a name that tells the source's
path, length and date, so that a changed source is converted anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dream4d.priors import ldm
from dream4d.priors.errors import ModelError
from dream4d.priors.ldm import Part
from dream4d.priors.weights import find_weights, read_checkpoint, read_folder, read_json, tensor_names

CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors")
_Maker = Callable[[Mapping[str, Tensor]], Part]
_LAYOUT = 1  # grows when what is written changes
_SCHEDULER = {  # of all Stable Diffusion models: 1000 steps, linear in the square root of beta
    "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "clip_sample": False, "set_alpha_to_one": False,
    "steps_offset": 1,
}
_UNREAD = {  # what the original's parts hold and nothing here reads
    "unet": (), "vae": ("loss.",), "image_encoder": ("model.",),
    "text_encoder": (
        "model.logit_scale", "model.text_projection", "model.attn_mask", "model.transformer.resblocks.", "model.visual."
    ),
}


def converted(source: Path) -> Path:
    """A folder in diffusers layout with the model of `source`: itself, or its conversion, made where there is none.

    source: a checkpoint file of latent diffusion's original code (Stable Diffusion 2.1, MVDream, Zero-1-to-3), or a
    folder. Of folders, MVDream's ports with the original's names in ``unet/`` and those with a ``camera_proj/`` are
    converted. A checkpoint has no tokenizer: it comes from the settings' `base`.

    Raises ModelError for a file that is damaged or no such checkpoint.
    """
    if source.is_dir():
        if (source / "camera_proj" / "config.json").is_file():
            return _cached(source, _weight_files(source, "unet", "camera_proj"), _join_camera)
        if _has_original_names(source):
            return _cached(source, _weight_files(source, "unet"), _rename_unet)
        return source
    if source.suffix not in CHECKPOINTS:
        raise ModelError(
            "wrong", f"{source}: expected a folder in diffusers layout, or a checkpoint {', '.join(CHECKPOINTS)}"
        )
    return _cached(source, [source], _convert_checkpoint)


def _convert_checkpoint(file: Path, target: Path) -> None:
    parts = convert(read_checkpoint(file), file)
    for name, part in parts.items():
        _write(part, target / name)
    (target / "scheduler").mkdir()
    (target / "scheduler" / "scheduler_config.json").write_text(json.dumps(_SCHEDULER, indent=2))


def convert(state: Mapping[str, Tensor], file: Path) -> dict[str, Part]:
    """The parts of a checkpoint by their folder in diffusers layout. file: what errors name.

    The moving averages of the UNet's weights are taken where the checkpoint has them, as the original programs do.

    Raises ModelError where it is of another model.
    """
    unet = _below(state, "model.diffusion_model.")
    averages = {
        name: state[key] for name in unet if (key := "model_ema." + f"diffusion_model.{name}".replace(".", "")) in state
    }
    encoder = _below(state, "cond_stage_model.")
    if "768" in file.stem:
        raise ModelError(
            "wrong", f"{file}: the 768-pixel model predicts v, which its checkpoint does not say: take its folder in "
            "diffusers layout"
        )
    makers: dict[str, tuple[_Maker, Mapping[str, Tensor]]] = {
        "unet": (ldm.unet, averages if len(averages) == len(unet) else unet),
        "vae": (ldm.vae, _below(state, "first_stage_model.")),
    }
    if "cc_projection.weight" in state:
        makers["image_encoder"] = (ldm.image_encoder, encoder)
    else:
        makers["text_encoder"] = (ldm.text_encoder, encoder)
    parts = {name: _checked(name, make, tensors, file) for name, (make, tensors) in makers.items()}
    if "cc_projection.weight" in state:
        parts["unet"].config["sample_size"] = 32
        parts["clip_camera_projection"] = _camera_projection(state)
    return parts


def _checked(name: str, make: _Maker, tensors: Mapping[str, Tensor], file: Path) -> Part:
    verdict = f"{file} is not a checkpoint of Stable Diffusion 2.1, MVDream (sd-v2.1) or Zero-1-to-3"
    try:
        part = make(tensors)
    except (KeyError, ValueError, IndexError, StopIteration) as error:
        raise ModelError("wrong", f"{verdict}: no {name} can be made of it ({error})") from None
    left = sorted(key for key in part.unused if not key.startswith(_UNREAD[name]))
    if left:
        raise ModelError("wrong", f"{verdict}: {name} has {len(left)} tensors more, such as {left[0]}")
    return part


def _camera_projection(state: Mapping[str, Tensor]) -> Part:
    weight, bias = state["cc_projection.weight"], state["cc_projection.bias"]
    config = {
        "_class_name": "CLIPCameraProjection", "embedding_dim": weight.shape[0],
        "additional_embeddings": weight.shape[1] - weight.shape[0],
    }
    return Part("", "", config, {"proj.weight": weight, "proj.bias": bias}, frozenset())


def _rename_unet(folder: Path, target: Path) -> None:
    """A port whose UNet keeps the original's names."""
    tensors = read_folder(folder / "unet")
    prefix = next(name for name in tensors if name.endswith(_FIRST)).removesuffix(_FIRST)
    _write(_checked("unet", ldm.unet, _below(tensors, prefix), folder / "unet"), target / "unet")
    _link_others(folder, target, "unet")


def _join_camera(folder: Path, target: Path) -> None:
    """A port whose camera embedding is a folder of its own, beside a plain UNet."""
    tensors = read_folder(folder / "unet")
    camera = read_folder(folder / "camera_proj")
    tensors |= {f"class_embedding.{name}": value for name, value in camera.items()}
    config = read_json(folder / "unet" / "config.json") | {
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": camera["linear_1.weight"].shape[1],
    }
    _write(Part("", "", config, tensors, frozenset()), target / "unet")
    _link_others(folder, target, "unet", "camera_proj")


_FIRST = "input_blocks.0.0.weight"


def _has_original_names(folder: Path) -> bool:
    """Looked at only where the configuration names another class than diffusers' own."""
    config = folder / "unet" / "config.json"
    if not config.is_file() or str(read_json(config).get("_class_name")).startswith(("UNet2D", "UNet3D")):
        return False
    return any(name.endswith(_FIRST) for name in tensor_names(folder / "unet"))


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _weight_files(folder: Path, *parts: str) -> list[Path]:
    return [folder / part / name for part in parts for name in find_weights(folder / part).names]


def _link_others(folder: Path, target: Path, *replaced: str) -> None:
    for part in folder.iterdir():
        if part.is_dir() and part.name not in replaced:
            (target / part.name).symlink_to(part.resolve())


def _write(part: Part, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    config = part.config
    if part.library == "diffusers":
        config = {"_class_name": part.cls, **config}
    elif part.library == "transformers":
        with torch.device("meta"):
            config = ldm.build(part.library, part.cls, config).config.to_dict() | {"architectures": [part.cls]}
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str))
    stem = "model" if part.library == "transformers" else "diffusion_pytorch_model"
    tensors = {name: _alone(value) for name, value in part.tensors.items()}
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def _alone(value: Tensor) -> Tensor:
    """A copy where `value` is a slice of a larger tensor, which a file of safetensors cannot hold twice."""
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def cache_folder() -> Path:
    """Where conversions are kept."""
    if chosen := os.environ.get("DREAM4D_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dream4d"


def _cached(source: Path, files: Iterable[Path], make: Callable[[Path, Path], None]) -> Path:
    """The folder that ``make(source, folder)`` filled; it appears complete or not at all."""
    facts: list[Any] = [_LAYOUT, str(source.resolve())]
    for file in files:
        status = file.stat()
        facts += [file.name, status.st_size, status.st_mtime_ns]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    target = cache_folder() / "converted" / f"{source.stem if source.is_file() else source.name}-{digest}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    print(f"converting {source} once, into {target}", file=sys.stderr)
    try:
        make(source, work)
        if not target.is_dir():
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target
