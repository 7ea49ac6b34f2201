"""LoRA files: low-rank updates of a network's weights, W + scale alpha / r B A (Hu et al., 2021), as training on a few
photos of a subject writes them (paper Sec. 3.3).

They are added to the weights themselves, in place: nothing is slower afterwards, CUDA graphs stay valid, and networks
take them that diffusers has no adapters for, such as ``UNet3DConditionModel``.

Read are the names that peft, diffusers before peft, its attention processors and kohya's scripts give, for UNets and
CLIP text encoders. Modules are found by their path with "_" for ".", which is all that kohya's names tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dream4d.priors.errors import ModelError
from dream4d.priors.weights import read_json

FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""What diffusers and peft call the file in a folder."""

_PREFIXES = {
    "unet.": "unet", "lora_unet_": "unet",
    "text_encoder.": "text_encoder", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
}
"""Beginnings of names and the part that they mean."""

_WRAPPER = "base_model.model."
_IN_TEXT = ("text_model.", "encoder.layers.")

_NAME = re.compile(
    r"(?P<module>.+?)(?:"
    r"\.lora_(?P<peft>[AB])(?:\.\w+)?\.weight"  # perhaps with the adapter's name
    r"|\.lora(?:_linear_layer)?\.(?P<diffusers>down|up)\.weight"
    r"|(?:\.processor)?\.(?P<projection>to_[qkv]|to_out|add_[kv]_proj)_lora\.(?P<processor>down|up)\.weight"
    r"|\.lora_(?P<kohya>down|up)\.weight"
    r"|\.(?P<alpha>alpha)"
    r")"
)
_SIDES = {"A": "down", "B": "up"}
_OF_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Update:
    """factor up @ down: down [r, in, ...] in the shape of the weight, up [out, r, ...ones], factor alpha / r.

    name: of the module in the file.
    """

    name: str
    down: Tensor
    up: Tensor
    factor: float

    def __call__(self, weight: Tensor) -> Tensor:
        """What it adds to `weight`, in its shape and at least in fp32."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        up, down = (side.to(weight.device, dtype).flatten(1) for side in (self.up, self.down))
        return (self.factor * (up @ down)).reshape(weight.shape)


@dataclass(frozen=True)
class Lora:
    """Updates of a UNet and of a text encoder, by the path of a module with "_" for "."."""

    file: Path
    unet: Mapping[str, Update] = field(default_factory=dict)
    text_encoder: Mapping[str, Update] = field(default_factory=dict)


def read_lora(path: str | Path) -> Lora:
    """A file, or a folder that has one of `FILES`. alpha is the file's own, peft's configuration's, or else r.

    Raises ModelError for a file that is none, and for one with tensors that are no pairs of a plain LoRA: DoRA, LoHa,
    biases and the like.
    """
    file = _find(Path(path))
    metadata, tensors = _read(file)
    found: dict[str, dict[str, dict[str, Tensor]]] = {"unet": {}, "text_encoder": {}}
    names: dict[tuple[str, str], str] = {}
    unknown = []
    for key, value in tensors.items():
        if (parsed := _parse(key)) is None:
            unknown.append(key)
            continue
        part, name, side = parsed
        module = _flat(name, part)
        if side in found[part].setdefault(module, {}):
            raise ModelError("wrong", f"{file}: more than one LoRA for {name}: give each a file of its own")
        found[part][module][side] = value
        names[part, module] = name
    if unknown or not tensors:
        raise ModelError("wrong", f"{file} is not a plain LoRA of a UNet or a text encoder: {_some(unknown)}")
    factor_of = {part: _factors(file, metadata, part) for part in found}
    return Lora(file, **{
        part: {module: _update(file, names[part, module], sides, factor_of[part]) for module, sides in modules.items()}
        for part, modules in found.items()
    })


def fuse(
    lora: Lora, *, unet: nn.Module | None = None, text_encoder: nn.Module | None = None, scale: float = 1.0
) -> None:
    """Add scale x the updates to the weights of these networks, in place and in fp32, rounded to their dtype once.

    For a `parts.TextEncoder` this comes before its prompts are prepared: those that it has encoded stay as they were,
    and a model that it loads again is without the updates. One that priors share changes for all of them.

    Raises ModelError, and changes nothing, unless every update finds a module of its shape.
    """
    planned = [
        *_plan(lora, lora.unet, unet, "UNet", "unet"),
        *_plan(lora, lora.text_encoder, text_encoder, "text encoder", "text_encoder"),
    ]
    with torch.no_grad():
        for weight, update in planned:
            delta = update(weight)
            weight.copy_(weight.to(delta.dtype) + scale * delta)


def unfuse(
    lora: Lora, *, unet: nn.Module | None = None, text_encoder: nn.Module | None = None, scale: float = 1.0
) -> None:
    """Take away what `fuse` with the same arguments added; weights come back up to a rounding of their dtype."""
    fuse(lora, unet=unet, text_encoder=text_encoder, scale=-scale)


def _plan(
    lora: Lora, updates: Mapping[str, Update], network: nn.Module | None, kind: str, part: str
) -> Iterator[tuple[Tensor, Update]]:
    if network is None:
        if updates:
            raise ModelError("wrong", f"{lora.file} also changes a {kind}, in {len(updates)} modules: give it as well")
        return
    weights = _weights(network, part)
    if missing := [update.name for module, update in updates.items() if module not in weights]:
        raise ModelError("wrong", f"{lora.file} is for another {kind}, this one lacks {_some(missing)}")
    for module, update in updates.items():
        weight = weights[module]
        if not _fits(update, weight):
            raise ModelError(
                "wrong", f"{lora.file} is for another {kind}: {update.name} is {list(update.up.shape)} x "
                f"{list(update.down.shape)}, the weight there {list(weight.shape)}"
            )
        yield weight, update


def _weights(network: nn.Module, part: str) -> dict[str, Tensor]:
    """Of linear layers and convolutions, by flat path."""
    weights: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            flat = _flat(name, part)
            assert flat not in weights, f"{flat} means two modules"
            weights[flat] = module.weight
    return weights


def _fits(update: Update, weight: Tensor) -> bool:
    """Linear layers and 1x1 convolutions are the same to a LoRA, and files write either for either."""
    rank, out = update.down.shape[0], weight.shape[0]
    inputs = list(weight.shape[1:]), list(update.down.shape[1:])
    shorter, longer = sorted(inputs, key=len)
    same = longer == shorter + [1] * (len(longer) - len(shorter))
    return same and list(update.up.shape) == [out, rank] + [1] * (update.up.ndim - 2)


def _find(path: Path) -> Path:
    files = [path] if not path.is_dir() else [path / name for name in FILES if (path / name).is_file()]
    if not files or not files[0].is_file():
        raise ModelError("absent", f"no LoRA at {path}: give a .safetensors file, or a folder with {FILES[0]}")
    if files[0].suffix != ".safetensors":
        raise ModelError("unsafe", f"{files[0]} is not a safetensors file, and pickles are not read: convert it")
    return files[0]


def _read(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}, {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError("corrupt", f"{file} is damaged or incomplete ({error}): get it again") from None


def _parse(key: str) -> tuple[str, str, str] | None:
    """Part, path of the module as the file writes it, and `down`, `up` or `alpha`; None for a name of another kind."""
    match = _NAME.fullmatch(key)
    if match is None:
        return None
    name = match["module"].removeprefix(_WRAPPER)
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    name = name.removeprefix(prefix)
    part = _PREFIXES.get(prefix) or ("text_encoder" if name.startswith(_IN_TEXT) else "unet")
    if projection := match["projection"]:
        in_text = _OF_TEXT.get(projection) if part == "text_encoder" else None
        name += "." + (in_text or ("to_out.0" if projection == "to_out" else projection))
    side = match["peft"] or match["diffusers"] or match["processor"] or match["kohya"] or match["alpha"]
    return part, name, _SIDES.get(side, side)


def _flat(name: str, part: str) -> str:
    """A path with "_" for ".". transformers 5 leaves out the first step of a text encoder's, files have it."""
    flat = name.replace(".", "_")
    return flat.removeprefix("text_model_") if part == "text_encoder" else flat


def _update(file: Path, name: str, sides: dict[str, Tensor], factor: Callable[[str, int], float]) -> Update:
    down, up = sides.get("down"), sides.get("up")
    if down is None or up is None:
        raise ModelError("corrupt", f"{file}: of {name} only {' and '.join(sorted(sides))} is there: get it again")
    if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1]:
        raise ModelError(
            "corrupt", f"{file}: the ranks of {name} differ: down is {list(down.shape)}, up is {list(up.shape)}"
        )
    rank = down.shape[0]
    return Update(name, down, up, float(sides["alpha"]) / rank if "alpha" in sides else factor(name, rank))


def _factors(file: Path, metadata: dict[str, str], part: str) -> Callable[[str, int], float]:
    """alpha / r by name and rank of a module, from peft's configuration: in diffusers' file, or beside peft's own."""
    config: dict[str, Any] = {}
    if "lora_adapter_metadata" in metadata:
        values = json.loads(metadata["lora_adapter_metadata"])
        config = {key.removeprefix(f"{part}."): value for key, value in values.items() if key.startswith(f"{part}.")}
    elif (beside := file.with_name("adapter_config.json")).is_file() and file.name == FILES[1]:
        config = read_json(beside)

    def factor(name: str, rank: int) -> float:
        patterns = (config.get("alpha_pattern") or {}).items()
        fitting = (value for pattern, value in patterns if re.fullmatch(rf"(.*\.)?({pattern})", name))
        alpha = next(fitting, config.get("lora_alpha") or rank)
        return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)

    return factor


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "no tensors"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
