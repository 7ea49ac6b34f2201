"""The same frozen networks, quicker on NVIDIA GPUs.

Activations are channels_last from end to end, so that convolutions find the layout that tensor cores read, and tokens
are a view of pixels. What torch does in a pass over memory each (a convolution's bias, the time embedding, GroupNorm,
SiLU, the residual; a transformer's sums and norms; the halves of a gated unit) happens in the kernels of
`ops.groupnorm`, `ops.layernorm` and `ops.pointwise`.

`fuse` swaps the classes of diffusers' modules for those below: parameters keep their names and places. Where something
is trained, or a gradient is wanted that has no quick way, a module goes the way it came with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.downsampling import Downsample2D
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel, TransformerTemporalModelOutput
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dream4d.ops.groupnorm import group_norm
from dream4d.ops.layernorm import add_layer_norm
from dream4d.ops.paths import has_triton
from dream4d.ops.pointwise import add_bias, geglu


def fuse(network: nn.Module) -> int:
    """Let the modules of a frozen network take the quick ways that there are. Outputs change by roundings.

    Returns how many do.
    """
    count = 0
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            last = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
            module.weight.data = module.weight.data.contiguous(memory_format=last)
        for kind in (Resnet, Tokens, TokensOfClips, ConvolutionsInTime, Block, Gated, Downsample, Convolution):
            if type(module) is kind.__base__ and kind.suits(module):
                module.__class__ = kind
                count += 1
        if isinstance(module, Attention):
            count += _fuse_attention(module)
        norm, activation = getattr(module, "conv_norm_out", None), getattr(module, "conv_act", None)
        if type(norm) is nn.GroupNorm and isinstance(activation, nn.SiLU):
            norm.__class__ = NormSilu
            module.conv_act = nn.Identity()
            count += 1
    return count


def _fuse_attention(attn: Any) -> int:
    """The processor that does the arithmetic, which may be inside one that arranges tokens."""
    arranged = hasattr(attn.processor, "attend")
    inner = attn.processor.attend if arranged else attn.processor
    plain = attn.spatial_norm is None and attn.norm_q is None and attn.rescale_output_factor == 1
    if not plain or type(inner) is not AttnProcessor2_0:
        return 0
    if attn.group_norm is None and not attn.residual_connection and not attn.norm_cross:
        quick: Any = AttentionOfTokens()
    elif attn.group_norm is not None and attn.residual_connection and attn.heads == 1:
        quick = AttentionOfPixels()
    else:
        return 0
    if arranged:
        attn.processor.attend = quick
    else:
        attn.set_processor(quick)
    return 1


def gradients_wanted(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class Convolution(nn.Conv2d):
    """The bias comes in a kernel of its own, where torch's addition is slow; of gradients there is that to x."""

    @staticmethod
    def suits(module: Any) -> bool:
        return bool(module.groups == 1) and module.padding_mode == "zeros" and isinstance(module.padding, tuple)

    def forward(self, x: Tensor) -> Tensor:
        if gradients_wanted(self.weight) or self.bias is None:
            return super().forward(x)
        return _biased(x, Kernel.of(self), self.bias)


class Downsample(Downsample2D):
    """A stride of 2 over [x, 0]: over [0, x, 0], which convolutions pad themselves, with a row and a column of zeros
    before the weights."""

    @staticmethod
    def suits(module: Any) -> bool:
        conv = module.conv
        plain = module.use_conv and module.norm is None and module.padding == 0 and isinstance(conv, nn.Conv2d)
        return plain and conv.kernel_size == (3, 3) and conv.stride == (2, 2) and conv.bias is not None

    def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        conv: Any = self.conv
        height, width = hidden_states.shape[2:]
        if gradients_wanted(conv.weight) or height % 2 or width % 2:
            return super().forward(hidden_states, *args, **options)
        weight = F.pad(conv.weight, (1, 0, 1, 0)).contiguous(memory_format=torch.channels_last)
        return _biased(hidden_states, Kernel(weight, (2, 2), (1, 1), (1, 1)), conv.bias)


class Kernel(NamedTuple):
    """What a convolution is but for its bias."""

    weight: Tensor
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]

    @classmethod
    def of(cls, conv: Any) -> Kernel:
        return cls(conv.weight, conv.stride, conv.padding, conv.dilation)

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation)
        return out

    def back(self, grad: Tensor, like: Tensor) -> Tensor:
        """The gradient to the convolution's input, of which `like` has shape and layout."""
        out: Tensor = torch.ops.aten.convolution_backward(
            grad, like, self.weight, None, self.stride, self.padding, self.dilation, False, [0, 0], 1,
            [True, False, False],
        )[0]
        return out


def _biased(x: Tensor, kernel: Kernel, bias: Tensor) -> Tensor:
    if gradients_wanted(x):
        out: Tensor = _Convolution.apply(x, kernel, bias)  # type: ignore[no-untyped-call]
        return out
    return add_bias(kernel(x), bias)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Kernel, bias: Tensor) -> Tensor:
        ctx.kernel, ctx.shape = kernel, x.shape
        return add_bias(kernel(x), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        like = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
        return ctx.kernel.back(grad, like), None, None


class NormSilu(nn.GroupNorm):
    """And the SiLU that follows."""

    def forward(self, x: Tensor) -> Tensor:
        return _norm(self, x, silu=True)


class Resnet(ResnetBlock2D):
    """x + conv(silu(norm(conv(silu(norm(x))) + time embedding))). Gradients to x keep x and one activation."""

    @staticmethod
    def suits(module: Any) -> bool:
        return (
            module.time_embedding_norm in ("default", "group") and module.upsample is None and module.downsample is None
            and module.output_scale_factor == 1 and isinstance(module.nonlinearity, nn.SiLU)
            and type(module.norm1) is type(module.norm2) is nn.GroupNorm and not module.skip_time_act
        )  # fmt: skip

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **options: Any) -> Tensor:
        if gradients_wanted(self.conv1.weight, temb):
            return super().forward(input_tensor, temb, *args, **options)  # type: ignore[arg-type]
        shift: Any = self.conv1.bias
        if temb is not None and self.time_emb_proj is not None:
            shift = self.time_emb_proj(F.silu(temb)) + shift
        if gradients_wanted(input_tensor) and input_tensor.is_cuda and has_triton():
            out: Tensor = _Resnet.apply(input_tensor, shift, self)  # type: ignore[no-untyped-call]
            return out
        inside = Kernel.of(self.conv1)(_norm(self.norm1, input_tensor, silu=True))
        outside = Kernel.of(self.conv2)(_norm(self.norm2, inside, shift, silu=True))
        return self.join(outside, input_tensor)

    def join(self, outside: Tensor, x: Tensor) -> Tensor:
        """The sum with the residual. outside: what the second convolution gives, less its bias."""
        bias: Any = self.conv2.bias
        if self.conv_shortcut is None:
            return add_bias(outside, bias, x)
        if self.conv_shortcut.bias is not None:
            bias = bias + self.conv_shortcut.bias
        return add_bias(outside, bias, Kernel.of(self.conv_shortcut)(x))


class _Resnet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, block: Resnet) -> Tensor:
        from dream4d.ops.groupnorm import gpu

        x = x.contiguous(memory_format=torch.channels_last)
        normal, first = gpu.forward(x, *_about(block.norm1))
        inside = Kernel.of(block.conv1)(normal)
        normal, second = gpu.forward(inside, *_about(block.norm2), shift)
        ctx.save_for_backward(x, inside, shift, *first, *second)
        ctx.block = block
        return block.join(Kernel.of(block.conv2)(normal), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        from dream4d.ops.groupnorm import gpu

        x, inside, shift, *statistics = ctx.saved_tensors
        block: Resnet = ctx.block
        first, second = gpu.Statistics(*statistics[:2]), gpu.Statistics(*statistics[2:])
        one: Any = block.norm1
        two: Any = block.norm2
        grad = grad.contiguous(memory_format=torch.channels_last)
        skip = grad if block.conv_shortcut is None else Kernel.of(block.conv_shortcut).back(grad, x)
        through = Kernel.of(block.conv2).back(grad, inside)
        through = gpu.gradient(through, inside, second, two.weight, two.bias, shift)
        through = Kernel.of(block.conv1).back(through, x)
        return gpu.gradient(through, x, first, one.weight, one.bias, add=skip), None, None


class Gated(GEGLU):
    """The gated unit of a transformer's feed-forward network."""

    @staticmethod
    def suits(module: Any) -> bool:
        return True

    def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        if gradients_wanted(hidden_states, self.proj.weight):
            return super().forward(hidden_states, *args, **options)
        return geglu(self.proj(hidden_states))


class Block(BasicTransformerBlock):
    """Attention among tokens, attention to the text, and the feed-forward network, each with its residual."""

    @staticmethod
    def suits(module: Any) -> bool:
        return (
            module.norm_type == "layer_norm" and module.pos_embed is None and module.attn2 is not None
            and module.norm1.elementwise_affine and not module.only_cross_attention and not hasattr(module, "fuser")
        )  # fmt: skip

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None, *args: Any, **options: Any,
    ) -> Tensor:
        if torch.is_grad_enabled() or options.get("cross_attention_kwargs"):
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, *args, **options
            )
        stream, normal = _add_norm(self.norm1, hidden_states)
        stream, normal = _add_norm(self.norm2, self.attn1(normal, attention_mask=attention_mask), stream)
        seen = self.attn2(
            normal, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask
        )
        stream, normal = _add_norm(self.norm3, seen, stream)
        out: Tensor = self.ff(normal) + stream
        return out


class Tokens(Transformer2DModel):
    """Attention among an image's pixels, which channels_last has as tokens already."""

    @staticmethod
    def suits(module: Any) -> bool:
        return bool(module.is_input_continuous)

    def forward(self, hidden_states: Tensor, *args: Any, return_dict: bool = True, **options: Any) -> Any:
        if torch.is_grad_enabled() or args:
            return super().forward(hidden_states, *args, **{"return_dict": return_dict, **options})
        options.pop("added_cond_kwargs", None)
        batch, _, height, width = hidden_states.shape
        tokens = _norm(self.norm, hidden_states).permute(0, 2, 3, 1).reshape(batch, height * width, -1)
        tokens = _project(self.proj_in, tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, **options)
        pixels = _project(self.proj_out, tokens).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
        out = pixels + hidden_states
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)


class TokensOfClips(TransformerTemporalModel):
    """Attention along time, at each pixel alone."""

    @staticmethod
    def suits(module: Any) -> bool:
        return True

    def forward(
        self, hidden_states: Tensor, *args: Any, num_frames: int = 1, return_dict: bool = True, **options: Any
    ) -> Any:
        if torch.is_grad_enabled() or args:
            options |= {"num_frames": num_frames, "return_dict": return_dict}
            return super().forward(hidden_states, *args, **options)
        clips = _clips(hidden_states, num_frames)
        batch, _, _, places = clips.shape
        frames_last = _norm(self.norm, clips).permute(0, 3, 2, 1)  # [b, places, frames, c]
        tokens = self.proj_in(frames_last.reshape(batch * places, num_frames, -1))
        for block in self.transformer_blocks:
            tokens = block(tokens, **options)
        out = clips + self.proj_out(tokens).reshape(batch, places, num_frames, -1).permute(0, 3, 2, 1)
        out = _images(out, hidden_states)
        return TransformerTemporalModelOutput(sample=out) if return_dict else (out,)


class ConvolutionsInTime(TemporalConvLayer):
    """Convolutions along time, as ones in two dimensions over [frames, pixels]."""

    @staticmethod
    def suits(module: Any) -> bool:
        return all(conv[-1].kernel_size == (3, 1, 1) for conv in _sequence(module))

    def forward(self, hidden_states: Tensor, num_frames: int = 1) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(hidden_states, num_frames)
        clips = _clips(hidden_states, num_frames)
        inside: Tensor = clips
        bias: Any = None
        for norm, *_, conv in _sequence(self):
            inside = F.conv2d(_norm(norm, inside, bias, silu=True), conv.weight[..., 0], None, padding=(1, 0))
            bias = conv.bias
        return _images(add_bias(inside, bias, clips), hidden_states)


def _sequence(convolutions: Any) -> list[Any]:
    """Its steps: norm, SiLU, perhaps dropout, convolution."""
    return [convolutions.conv1, convolutions.conv2, convolutions.conv3, convolutions.conv4]


class AttentionOfTokens:
    """Attention processor: that of transformers."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, **options: Any,
    ) -> Tensor:
        if attention_mask is not None:
            masked: Tensor = AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, **options)
            return masked
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        layers = ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        query, key, value = (layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer, x in layers)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        out: Tensor = attn.to_out[0](seen)
        return out


class AttentionOfPixels:
    """Attention processor: an autoencoder's only head, too wide for torch's kernels, by two products and a softmax."""

    def __call__(self, attn: Any, hidden_states: Tensor, *, temb: Tensor | None = None, **options: Any) -> Tensor:
        normal = _norm(attn.group_norm, hidden_states)
        tokens = normal.permute(0, 2, 3, 1).flatten(1, 2)
        query, key, value = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
        seen = _Attention.apply(query * query.shape[-1] ** -0.5, key, value)  # type: ignore[no-untyped-call]
        out = attn.to_out[0](seen)
        pixels: Tensor = out.unflatten(1, hidden_states.shape[2:]).permute(0, 3, 1, 2)
        return pixels + hidden_states


class _Attention(torch.autograd.Function):
    """softmax(query key^T) value, [b, n, c], with scores in fp32: half precision would round those of 100 to .06."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = _product(query, key.transpose(1, 2)).softmax(-1).to(query.dtype)
        ctx.save_for_backward(query, key, value, weights)
        return weights @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, weights = ctx.saved_tensors
        to_weights = _product(grad, value.transpose(1, 2))
        to_scores: Tensor = torch.ops.aten._softmax_backward_data(
            to_weights, weights.to(to_weights.dtype), -1, to_weights.dtype
        )
        to_scores = to_scores.to(query.dtype)
        return to_scores @ key, to_scores.transpose(1, 2) @ query, weights.transpose(1, 2) @ grad


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Of batches of matrices; that of half precision in fp32."""
    if a.dtype not in (torch.float16, torch.bfloat16):
        return torch.bmm(a, b)
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.bmm(a.float(), b.float())


def _norm(norm: Any, x: Tensor, shift: Tensor | None = None, *, silu: bool = False) -> Tensor:
    return group_norm(x, *_about(norm), shift=shift, silu=silu)


def _add_norm(norm: Any, x: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return add_layer_norm(x, other, norm.weight, norm.bias, norm.eps)


def _about(norm: Any) -> tuple[int, Tensor, Tensor, float]:
    return norm.num_groups, norm.weight, norm.bias, norm.eps


def _project(layer: nn.Module, tokens: Tensor) -> Tensor:
    """A linear layer, or a convolution of 1x1 pixels, which is one."""
    if isinstance(layer, nn.Conv2d):
        return F.linear(tokens, layer.weight.flatten(1), layer.bias)
    out: Tensor = layer(tokens)
    return out


def _clips(images: Tensor, frames: int) -> Tensor:
    """[b * frames, c, h, w] -> [b, c, frames, h * w], channels_last: a view if the images are."""
    channels, height, width = images.shape[1:]
    tokens = images.permute(0, 2, 3, 1).reshape(-1, frames, height * width, channels)
    return tokens.permute(0, 3, 1, 2)


def _images(clips: Tensor, like: Tensor) -> Tensor:
    """Back to the shape of `like`."""
    batch, channels, height, width = like.shape
    return clips.permute(0, 2, 3, 1).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
