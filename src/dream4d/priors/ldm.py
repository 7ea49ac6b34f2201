"""How latent diffusion's original code and diffusers name the same tensors, and the sizes that shapes tell.

Each function takes the original's tensors without their prefix and returns a `Part`: the class that holds them in
diffusers' layout, its configuration, and its tensors. Only architecture is translated; no value is changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HEAD = 64  # channels of an attention head in Stable Diffusion 2, OpenCLIP and CLIP

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


@dataclass(frozen=True)
class Part:
    """A folder of diffusers' layout. unused: names of the original that it has no place for."""

    library: str
    cls: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    unused: frozenset[str]


def unet(source: Mapping[str, Tensor]) -> Part:
    """``UNet2DConditionModel`` of the original's ``UNetModel``, with a camera input where it has one."""
    widths, attends, layers = _levels(source)
    projection = next(value for name, value in source.items() if name.endswith("1.proj_in.weight"))
    cross = next(value for name, value in source.items() if name.endswith("attn2.to_k.weight"))
    linear = projection.ndim == 2
    camera = next((name for name in ("camera_embed.0", "label_emb.0.0") if f"{name}.weight" in source), None)
    config: dict[str, Any] = {
        "sample_size": 64, "in_channels": source["input_blocks.0.0.weight"].shape[1],
        "out_channels": source["out.2.weight"].shape[0], "block_out_channels": widths, "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "cross_attention_dim": cross.shape[1], "use_linear_projection": linear,
        # diffusers' name for the number of heads
        "attention_head_dim": [width // HEAD for width in widths] if linear else 8,
    }
    if camera is not None:
        config |= {
            "sample_size": 32, "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": source[f"{camera}.weight"].shape[1],
        }
    embeddings = {"time_embedding": "time_embed"} | ({} if camera is None else {"class_embedding": camera[:-2]})
    return _part(
        "diffusers", "UNet2DConditionModel", config, source,
        lambda name: _unet_name(name, layers, list(reversed(attends)), embeddings),
    )


def _levels(source: Mapping[str, Tensor]) -> tuple[list[int], list[bool], int]:
    """Width of each level, whether it has attention, and residual blocks a level, from the blocks of the way down."""
    widths, attends, counts = [], [], [0]
    for block in range(1, 1 + max(int(name.split(".")[1]) for name in source if name.startswith("input_blocks."))):
        if f"input_blocks.{block}.0.op.weight" in source:
            counts.append(0)
            continue
        if counts[-1] == 0:
            widths.append(source[f"input_blocks.{block}.0.out_layers.3.weight"].shape[0])
            attends.append(f"input_blocks.{block}.1.proj_in.weight" in source)
        counts[-1] += 1
    return widths, attends, counts[0]


def _unet_name(name: str, layers: int, up_attends: list[bool], embeddings: Mapping[str, str]) -> str:
    """The original's name of a tensor of ``UNet2DConditionModel``."""
    for ours, theirs in {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}.items():
        if name.startswith(f"{ours}."):
            return theirs + name[len(ours):]
    if match := re.fullmatch(r"(\w+_embedding)\.linear_([12])\.(\w+)", name):
        return f"{embeddings[match[1]]}.{0 if match[2] == '1' else 2}.{match[3]}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, index, rest = match[1], int(match[2]), match[3]
        return f"middle_block.{2 * index}.{_swap(rest, _RESNET)}" if kind == "resnets" else f"middle_block.1.{rest}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    assert match, name
    way, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{level * (layers + 1) + layers}.{2 if up_attends[level] else 1}.{rest}"
    first = "input_blocks" if way == "down" else "output_blocks"
    block = level * (layers + 1) + index + (1 if way == "down" else 0)
    return f"{first}.{block}.0.{_swap(rest, _RESNET)}" if kind == "resnets" else f"{first}.{block}.1.{rest}"


def vae(source: Mapping[str, Tensor]) -> Part:
    """``AutoencoderKL`` of the original's first stage, with Stable Diffusion's factor of the latents."""
    levels = 1 + max(int(name.split(".")[2]) for name in source if name.startswith("encoder.down."))
    layers = sum(bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name)) for name in source)
    config = {
        "in_channels": source["encoder.conv_in.weight"].shape[1],
        "out_channels": source["decoder.conv_out.weight"].shape[0],
        "latent_channels": source["post_quant_conv.weight"].shape[1], "layers_per_block": layers,
        "block_out_channels": [source[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": 0.18215, "sample_size": 512,
    }
    return _part("diffusers", "AutoencoderKL", config, source, lambda name: _vae_name(name, levels))


def _vae_name(name: str, levels: int) -> str:
    """The original's name of a tensor of ``AutoencoderKL``."""
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", rest):
        way, kind = match[1], match[3]
        level = int(match[2]) if way == "down" else levels - 1 - int(match[2])
        if kind == "resnets":
            inner = _swap(match[5], {"conv_shortcut": "nin_shortcut"})
            return f"{side}.{way}.{level}.block.{match[4]}.{inner}"
        return f"{side}.{way}.{level}.{'downsample' if way == 'down' else 'upsample'}.{match[5]}"
    if match := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.+)", rest):
        return f"{side}.mid.block_{int(match[1]) + 1}.{_swap(match[2], {'conv_shortcut': 'nin_shortcut'})}"
    if match := re.fullmatch(r"mid_block\.attentions\.0\.(.+)", rest):
        return f"{side}.mid.attn_1.{_swap(match[1], _VAE_ATTENTION)}"
    return f"{side}.{_swap(rest, {'conv_norm_out': 'norm_out'})}"


def text_encoder(source: Mapping[str, Tensor]) -> Part:
    """``CLIPTextModel`` of OpenCLIP's text transformer up to its last layer but one, which is what is read from it."""
    width, layers = source["model.ln_final.weight"].shape[0], _clip_layers(source, "model.transformer.") - 1
    vocabulary = source["model.token_embedding.weight"].shape[0]
    config = {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers, "hidden_act": "gelu",
        "intermediate_size": source["model.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_attention_heads": width // HEAD, "max_position_embeddings": source["model.positional_embedding"].shape[0],
        "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 1,
    }
    names = {
        "embeddings.token_embedding.weight": "model.token_embedding.weight",
        "embeddings.position_embedding.weight": "model.positional_embedding",
        "final_layer_norm.weight": "model.ln_final.weight", "final_layer_norm.bias": "model.ln_final.bias",
    }
    return _part(
        "transformers", "CLIPTextModel", config, source,
        lambda name: names.get(name.removeprefix("text_model.")) or _clip_name(name, "model.transformer."),
    )


def image_encoder(source: Mapping[str, Tensor]) -> Part:
    """``CLIPVisionModelWithProjection`` of CLIP's vision transformer."""
    root = "model.visual."
    width, patch = source[f"{root}conv1.weight"].shape[0], source[f"{root}conv1.weight"].shape[2]
    side = round((source[f"{root}positional_embedding"].shape[0] - 1) ** 0.5)
    config = {
        "hidden_size": width, "num_hidden_layers": _clip_layers(source, f"{root}transformer."),
        "intermediate_size": source[f"{root}transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_attention_heads": width // HEAD, "patch_size": patch, "image_size": side * patch,
        "projection_dim": source[f"{root}proj"].shape[1], "hidden_act": "quick_gelu",
    }
    names = {
        "embeddings.class_embedding": "class_embedding", "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "pre_layrnorm.weight": "ln_pre.weight", "pre_layrnorm.bias": "ln_pre.bias",
        "post_layernorm.weight": "ln_post.weight", "post_layernorm.bias": "ln_post.bias",
    }

    def original(name: str) -> str:
        if name == "visual_projection.weight":
            return f"{root}proj"
        known = names.get(name.removeprefix("vision_model."))
        return f"{root}{known}" if known else _clip_name(name, f"{root}transformer.")

    return _part("transformers", "CLIPVisionModelWithProjection", config, source, original)


def _clip_layers(source: Mapping[str, Tensor], root: str) -> int:
    return sum(name.startswith(root) and name.endswith(".ln_1.weight") for name in source)


def _clip_name(name: str, root: str) -> str:
    match = re.search(r"encoder\.layers\.(\d+)\.(.+)", name)
    assert match, name
    layer = f"{root}resblocks.{match[1]}"
    if attention := re.fullmatch(r"self_attn\.[qkv]_proj\.(weight|bias)", match[2]):
        return f"{layer}.attn.in_proj_{attention[1]}"
    return f"{layer}.{_swap(match[2], _CLIP_LAYER)}"


def _swap(name: str, table: Mapping[str, str]) -> str:
    """`name` with the part before its last dot as the table says."""
    stem, _, last = name.rpartition(".")
    return f"{table.get(stem, stem)}.{last}"


def _part(
    library: str, cls: str, config: dict[str, Any], source: Mapping[str, Tensor], original: Callable[[str], str]
) -> Part:
    """The tensors of an empty model of that class, each taken from `source` by its original name.

    Raises KeyError for a tensor that `source` lacks and ValueError for one of another size.
    """
    tensors, used = {}, set()
    for name, shape in _expected(library, cls, config):
        theirs = original(name)
        used.add(theirs)
        value = source[theirs]
        if third := re.search(r"self_attn\.([qkv])_proj", name):
            value = value.chunk(3)["qkv".index(third[1])]
        elif name == "visual_projection.weight":
            value = value.T
        elif value.ndim == len(shape) + 2 and value.shape[2:] == (1, 1):
            value = value[..., 0, 0]
        if value.shape != shape:
            raise ValueError(f"{theirs} is {list(value.shape)}, expected {list(shape)}")
        tensors[name] = value.contiguous()
    return Part(library, cls, config, tensors, frozenset(source) - used)


def _expected(library: str, cls: str, config: dict[str, Any]) -> Iterable[tuple[str, torch.Size]]:
    with torch.device("meta"):
        model = build(library, cls, config)
    return [(name, value.shape) for name, value in model.state_dict().items()]


def build(library: str, cls: str, config: dict[str, Any]) -> Any:
    """An untrained model of the class."""
    if library == "diffusers":
        import diffusers

        return getattr(diffusers, cls)(**config)
    import transformers

    kind = getattr(transformers, cls)
    return kind(kind.config_class(**config))
