"""Tiny networks built as latent diffusion's original code builds them, so that their tensors have its names by
themselves, and computing by themselves what theirs compute. Independent of diffusers and of the conversion."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32


class Sequence(nn.Sequential):
    """Passes each layer what it takes: the embedding of the time to residual blocks, the text to transformers."""

    def forward(self, x: Tensor, embedding: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class ResBlock(nn.Module):
    def __init__(self, channels: int, out: int, embedding: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, out), nn.SiLU(), nn.Dropout(0), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(embedding)[..., None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class GatedGelu(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(GatedGelu(width, 4 * width), nn.Dropout(0), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.attn1 = Attention(width, width, heads)
        self.ff = FeedForward(width)
        self.attn2 = Attention(width, context, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, context: int, heads: int, linear: bool):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context, heads)])
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        height = x.shape[2]
        h = self.norm(x)
        if self.linear:
            h = self.transformer_blocks[0](self.proj_in(h.flatten(2).transpose(1, 2)), context)
            return x + self.proj_out(h).transpose(1, 2).unflatten(2, (height, -1))
        h = self.transformer_blocks[0](self.proj_in(h).flatten(2).transpose(1, 2), context)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, (height, -1)))


class Downsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class UNet(nn.Module):
    """Two residual blocks a level, attention everywhere but at the last. camera: the name of its embedding, or None."""

    def __init__(
        self, *, widths: tuple[int, ...], context: int, channels: int = 4, linear: bool = True,
        camera: str | None = None,
    ):
        super().__init__()
        first, time = widths[0], 4 * widths[0]
        self.first, self.camera = first, camera
        self.time_embed = nn.Sequential(nn.Linear(first, time), nn.SiLU(), nn.Linear(time, time))
        embedding = nn.Sequential(nn.Linear(16, time), nn.SiLU(), nn.Linear(time, time))
        if camera == "camera_embed":
            self.camera_embed = embedding
        elif camera == "label_emb":
            self.label_emb = nn.Sequential(embedding)

        def transformer(width: int) -> SpatialTransformer:
            return SpatialTransformer(width, context, width // 64 if linear else 8, linear)

        self.input_blocks = nn.ModuleList([Sequence(nn.Conv2d(channels, first, 3, padding=1))])
        skips, width = [first], first
        for level, out in enumerate(widths):
            for _ in range(2):
                block = [ResBlock(width, out, time)] + ([transformer(out)] if level < len(widths) - 1 else [])
                self.input_blocks.append(Sequence(*block))
                width = out
                skips.append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(Sequence(Downsample(width)))
                skips.append(width)
        self.middle_block = Sequence(ResBlock(width, width, time), transformer(width), ResBlock(width, width, time))
        self.output_blocks = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for index in range(3):
                block = [ResBlock(width + skips.pop(), out, time)]
                block += [transformer(out)] if level < len(widths) - 1 else []
                block += [Upsample(out)] if level and index == 2 else []
                self.output_blocks.append(Sequence(*block))
                width = out
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, first), nn.SiLU(), nn.Conv2d(first, 4, 3, padding=1))

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, camera: Tensor | None = None) -> Tensor:
        half = self.first // 2
        angles = timestep[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        if self.camera is not None:
            embedding = embedding + getattr(self, self.camera)(camera)
        kept = []
        for block in self.input_blocks:
            x = block(x, embedding, context)
            kept.append(x)
        x = self.middle_block(x, embedding, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, kept.pop()], dim=1), embedding, context)
        return self.out(x)


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=1e-6)


class VaeBlock(nn.Module):
    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class VaeAttention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), dim=-1)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


class VaeDownsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Middle(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = VaeBlock(width, width), VaeAttention(width), VaeBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Coder(nn.Module):
    """The encoder, or the decoder if `up`; both as wide as `widths` from the images inwards."""

    def __init__(self, widths: tuple[int, ...], latents: int, *, up: bool):
        super().__init__()
        self.is_decoder = up
        levels = nn.ModuleList([nn.Module() for _ in widths])
        width = widths[-1] if up else widths[0]
        self.conv_in = nn.Conv2d(latents if up else 3, width, 3, padding=1)
        for index in reversed(range(len(widths))) if up else range(len(widths)):
            level = levels[index]
            level.block = nn.ModuleList()
            for _ in range(3 if up else 2):
                level.block.append(VaeBlock(width, widths[index]))
                width = widths[index]
            if up and index > 0:
                level.upsample = Upsample(width)
            if not up and index < len(widths) - 1:
                level.downsample = VaeDownsample(width)
        setattr(self, "up" if up else "down", levels)
        self.mid = Middle(widths[-1])
        self.norm_out = norm(width)
        self.conv_out = nn.Conv2d(width, 3 if up else 2 * latents, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        if self.is_decoder:
            x = self.mid(x)
        for level in reversed(self.up) if self.is_decoder else self.down:
            for block in level.block:
                x = block(x)
            for name in ("upsample", "downsample"):
                if hasattr(level, name):
                    x = getattr(level, name)(x)
        if not self.is_decoder:
            x = self.mid(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Vae(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (32, 64), latents: int = 4):
        super().__init__()
        self.encoder, self.decoder = Coder(widths, latents, up=False), Coder(widths, latents, up=True)
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1)
        self.post_quant_conv = nn.Conv2d(latents, latents, 1)

    def encode(self, images: Tensor) -> Tensor:
        """The mean."""
        return self.quant_conv(self.encoder(images)).chunk(2, dim=1)[0]

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))


class ClipLayer(nn.Module):
    def __init__(self, width: int, activation: nn.Module, inner: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, inner * width))
        self.mlp.add_module("gelu", activation)
        self.mlp.add_module("c_proj", nn.Linear(inner * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, activation: nn.Module, inner: int):
        super().__init__()
        self.resblocks = nn.ModuleList([ClipLayer(width, activation, inner) for _ in range(layers)])


class OpenClipText(nn.Module):
    """Read before its last layer, as Stable Diffusion 2 does."""

    def __init__(self, vocabulary: int, width: int = 64, layers: int = 3, tokens: int = 8, inner: int = 2):
        super().__init__()
        self.transformer = Transformer(width, layers, nn.GELU(), inner)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(tokens, width) * 0.1)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, width))
        self.logit_scale = nn.Parameter(torch.ones([]))
        self.register_buffer("attn_mask", torch.full((tokens, tokens), -torch.inf).triu(1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding
        for layer in self.transformer.resblocks[:-1]:
            x = layer(x, self.attn_mask)
        return self.ln_final(x)


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ClipVision(nn.Module):
    def __init__(
        self, width: int = 64, layers: int = 2, patch: int = 4, side: int = 3, out: int = 24, inner: int = 2
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, QuickGelu(), inner)
        self.proj = nn.Parameter(torch.randn(width, out))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for layer in self.transformer.resblocks:
            x = layer(x)
        return self.ln_post(x[:, 0]) @ self.proj


def averages(unet: UNet) -> dict[str, Tensor]:
    """What the original keeps beside a UNet in training, under names without dots; other numbers than the weights."""
    names = {"model_ema." + f"diffusion_model.{name}".replace(".", ""): 0.5 * value + 0.01
             for name, value in unet.state_dict().items()}
    return names | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}


def checkpoint(**modules: nn.Module) -> dict[str, Tensor]:
    """Their tensors in one state dict: model, first_stage_model, cond_stage_model."""
    prefixes = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model.model.",
                "vision": "cond_stage_model.model.visual."}
    return {prefixes[kind] + name: value for kind, module in modules.items()
            for name, value in module.state_dict().items()}
