import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import save_image_model, text_encoder, unet_2d, unet_3d, unet_pixels
from torch import nn
from torch.nn import functional as F

from dream4d.priors.errors import ModelError
from dream4d.priors.lora import fuse, read_lora, unfuse
from dream4d.priors.stable_diffusion import StableDiffusion

RANK, ALPHA = 3, 1.5
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEXT = "encoder.layers.0.self_attn"
CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


def layers(network):
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear) or type(m) in CONVOLUTIONS}


def pair(weight, rank=RANK, seed=0, size=0.1):
    """down [r, in, ...], up [out, r, 1, ...] for a weight."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *weight.shape[1:], generator=generator) * size
    return down, torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator) * size


def updates(network, names=None, **options):
    found = layers(network)
    chosen = list(found) if names is None else names
    return {name: pair(found[name].weight, seed=seed, **options) for seed, name in enumerate(chosen)}


def write(file, pairs, *, down="lora_A.weight", up="lora_B.weight", prefix="unet.", metadata=None, **more):
    tensors = {f"{prefix}{name}.{side}": value for name, values in pairs.items()
               for side, value in zip((down, up), values, strict=True)}
    save_file({**tensors, **more}, file, metadata=metadata)
    return file


def outputs(network, *, seed=9):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if "Text" in type(network).__name__:
            return network(torch.tensor([[3, 5, 7]])).last_hidden_state
        size = (2, network.config.in_channels, *([3] if "3D" in type(network).__name__ else []), 16, 16)
        width = network.config.get("encoder_hid_dim") or network.config.cross_attention_dim
        text = torch.randn(2, 5, width, generator=generator)
        return network(torch.randn(size, generator=generator), torch.tensor([5, 700]), text).sample


def with_adapters(network, pairs, factor):
    """Outputs with W x + factor B (A x), each product run as a layer of its own as adapters do, weights untouched."""
    handles = []
    for name, (down, up) in pairs.items():
        def add(module, inputs, output, down=down, up=up):
            if isinstance(module, nn.Linear):
                return output + factor * F.linear(F.linear(inputs[0], down), up)
            convolve = CONVOLUTIONS[type(module)]
            inner = convolve(inputs[0], down, stride=module.stride, padding=module.padding, dilation=module.dilation)
            return output + factor * convolve(inner, up)

        handles.append(layers(network)[name].register_forward_hook(add))
    result = outputs(network)
    for handle in handles:
        handle.remove()
    return result


@pytest.mark.parametrize("make", [unet_2d, unet_3d, unet_pixels], ids=lambda make: make.__name__)
def test_fused_weights_do_what_adapters_do(make, tmp_path):
    """In every linear layer and convolution, the strided and those along time too."""
    network = make()
    pairs = updates(network, size=0.3)
    before, expected = outputs(network), with_adapters(network, pairs, 0.7)
    fuse(read_lora(write(tmp_path / "x.safetensors", pairs)), unet=network, scale=0.7)
    assert (expected - before).abs().max() > 0.01
    torch.testing.assert_close(outputs(network), expected, rtol=1e-3, atol=1e-4)


def test_a_text_encoder_too(tmp_path):
    network = text_encoder(60)
    pairs = updates(network)
    expected = with_adapters(network, pairs, 1.0)
    file = write(tmp_path / "x.safetensors", pairs, prefix="text_encoder.text_model.")
    fuse(read_lora(file), text_encoder=network)
    torch.testing.assert_close(outputs(network), expected, rtol=1e-4, atol=1e-5)


def kohya(name):
    return name.replace(".", "_")


STYLES = {
    "peft": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight"),
    "peft-with-its-adapter": ("base_model.model.{}.lora_A.default.weight", "base_model.model.{}.lora_B.default.weight"),
    "diffusers": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight"),
    "bare": ("{}.lora.down.weight", "{}.lora.up.weight"),
    "kohya": ("lora_unet_{_}.lora_down.weight", "lora_unet_{_}.lora_up.weight"),
}


@pytest.mark.parametrize("style", STYLES)
def test_all_writers_of_unet_names_mean_the_same(style, tmp_path):
    network = unet_2d()
    pairs = updates(network)
    tensors = {
        pattern.format(name, _=kohya(name)): value
        for name, values in pairs.items() for pattern, value in zip(STYLES[style], values, strict=True)
    }
    save_file(tensors, tmp_path / "x.safetensors")
    lora = read_lora(tmp_path / "x.safetensors")
    assert len(lora.unet) == len(pairs)
    fuse(lora, unet=network)
    reference = unet_2d()
    for name, (down, up) in pairs.items():
        weight = layers(reference)[name].weight.data
        weight += (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("part", "prefix", "network", "attention", "projections"), [
    ("unet", "unet.", unet_2d, f"{ATTENTION}.processor", ["to_q", "to_k", "to_v", "to_out.0"]),
    ("unet", "", unet_3d, f"{ATTENTION}.processor", ["to_q", "to_k", "to_v", "to_out.0"]),
    ("text_encoder", "text_encoder.text_model.", lambda: text_encoder(60), TEXT,
     ["q_proj", "k_proj", "v_proj", "out_proj"]),
])
def test_attention_processors_of_old(part, prefix, network, attention, projections, tmp_path):
    network = network()
    modules = [f"{attention.removesuffix('.processor')}.{projection}" for projection in projections]
    pairs = updates(network, modules)
    tensors = {
        f"{prefix}{attention}.{old}_lora.{side}.weight": value
        for old, name in zip(("to_q", "to_k", "to_v", "to_out"), modules, strict=True)
        for side, value in zip(("down", "up"), pairs[name], strict=True)
    }
    save_file(tensors, tmp_path / "x.safetensors")
    expected = with_adapters(network, pairs, 1.0)
    fuse(read_lora(tmp_path / "x.safetensors"), **{part: network})
    torch.testing.assert_close(outputs(network), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pattern", [
    "text_encoder.text_model.{}.lora_linear_layer.{side}.weight", "lora_te_text_model_{_}.lora_{side}.weight",
    "lora_te1_text_model_{_}.lora_{side}.weight", "base_model.model.text_model.{}.lora_{peft}.weight",
    "base_model.model.{}.lora_{peft}.weight",
])
def test_names_of_text_encoders(pattern, tmp_path):
    network, name = text_encoder(60), f"{TEXT}.q_proj"
    pairs = updates(network, [name])
    save_file({
        pattern.format(name, _=kohya(name), side=side, peft=peft): value
        for side, peft, value in zip(("down", "up"), "AB", pairs[name], strict=True)
    }, tmp_path / "x.safetensors")
    expected = with_adapters(network, pairs, 1.0)
    fuse(read_lora(tmp_path / "x.safetensors"), text_encoder=network)
    torch.testing.assert_close(outputs(network), expected, rtol=1e-4, atol=1e-5)


def metadata(**values):
    return {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in values.items()})}


@pytest.mark.parametrize(("values", "alphas", "factor"), [
    ({}, {}, 1),
    ({}, {f"unet.{ATTENTION}.to_q.alpha": torch.tensor(ALPHA)}, ALPHA / RANK),
    (metadata(lora_alpha=ALPHA, r=RANK, alpha_pattern={}), {}, ALPHA / RANK),
    (metadata(lora_alpha=9, alpha_pattern={"to_k": 8, r"attn1\.to_q": ALPHA}), {}, ALPHA / RANK),
    (metadata(lora_alpha=ALPHA, use_rslora=True, alpha_pattern=None), {}, ALPHA / RANK**0.5),
    ({"lora_adapter_metadata": json.dumps({"text_encoder.lora_alpha": 7})}, {}, 1),
])
def test_alpha_is_the_files_or_that_of_pefts_configuration_or_the_rank(values, alphas, factor, tmp_path):
    name = f"{ATTENTION}.to_q"
    file = write(tmp_path / "x.safetensors", updates(unet_2d(), [name]), metadata=values, **alphas)
    (update,) = read_lora(file).unet.values()
    assert update.factor == pytest.approx(factor)


def test_folders_of_peft_and_of_diffusers(tmp_path):
    name = f"{ATTENTION}.to_q"
    file = write(tmp_path / "adapter_model.safetensors", updates(unet_2d(), [name]), prefix="base_model.model.")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": ALPHA, "r": RANK}))
    (update,) = read_lora(tmp_path).unet.values()
    assert update.factor == ALPHA / RANK
    file.rename(tmp_path / "pytorch_lora_weights.safetensors")
    (update,) = read_lora(tmp_path).unet.values()
    assert update.factor == 1


def test_scale_zero_changes_no_bit(tmp_path):
    network = unet_2d()
    lora = read_lora(write(tmp_path / "x.safetensors", updates(network)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fuse(lora, unet=network, scale=0.0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unfusing_brings_the_weights_back_up_to_rounding(dtype, tmp_path):
    """Two roundings to the dtype, of numbers as large as |W| + |update|, beside those of fp32."""
    network = unet_3d().to(dtype)
    pairs = updates(network)
    lora = read_lora(write(tmp_path / "x.safetensors", pairs))
    before = {name: layer.weight.detach().clone() for name, layer in layers(network).items()}
    places = [layer.weight.data_ptr() for layer in layers(network).values()]
    fuse(lora, unet=network, scale=0.5)
    assert all(not torch.equal(layer.weight, before[name]) for name, layer in layers(network).items())
    unfuse(lora, unet=network, scale=0.5)
    for name, layer in layers(network).items():
        down, up = pairs[name]
        size = before[name].float().abs() + 0.5 * (up.flatten(1) @ down.flatten(1)).reshape(before[name].shape).abs()
        error = (layer.weight.float() - before[name].float()).abs()
        assert (error <= 2 * (torch.finfo(dtype).eps / 2 + 4 * torch.finfo(torch.float32).eps) * size + 1e-7).all()
    assert places == [layer.weight.data_ptr() for layer in layers(network).values()]  # CUDA graphs read them there


def test_half_precision_is_rounded_once(tmp_path):
    """An update far below the weight's own digits still counts where it crosses one."""
    network = unet_2d().to(torch.bfloat16)
    pairs = updates(network, size=0.02)
    before = {name: layer.weight.detach().double() for name, layer in layers(network).items()}
    fuse(read_lora(write(tmp_path / "x.safetensors", pairs)), unet=network)
    for name, layer in layers(network).items():
        down, up = (side.flatten(1).double() for side in pairs[name])
        exact = before[name] + (up @ down).reshape(before[name].shape)
        error = (layer.weight.double() - exact).abs()
        assert (error <= torch.finfo(torch.bfloat16).eps / 2 * exact.abs() * 1.01 + 1e-7).all()


def test_a_prior_runs_with_it(tmp_path):
    prior = StableDiffusion.load(save_image_model(tmp_path / "model"))
    pairs = updates(prior.parts.unet, size=0.3)
    z, t, condition = torch.randn(1, 4, 8, 8), torch.tensor([300]), prior.condition(["a cat"], "", None)
    before = prior.predict_noise(z, t, condition)[1]
    lora = read_lora(write(tmp_path / "x.safetensors", pairs))
    fuse(lora, unet=prior.parts.unet)
    assert (prior.predict_noise(z, t, condition)[1] - before).abs().max() > 1e-3
    assert not any(p.requires_grad for p in prior.parts.unet.parameters())


def test_linear_layers_and_1x1_convolutions_are_the_same(tmp_path):
    network, linear, convolution = unet_2d(), f"{ATTENTION}.to_q", "down_blocks.0.attentions.0.proj_in"
    assert layers(network)[convolution].weight.ndim == 4
    pairs = updates(network, [linear, convolution])
    swapped = {
        linear: tuple(side[..., None, None] for side in pairs[linear]),
        convolution: tuple(side[..., 0, 0].contiguous() for side in pairs[convolution]),
    }
    expected = with_adapters(network, pairs, 1.0)
    fuse(read_lora(write(tmp_path / "x.safetensors", swapped)), unet=network)
    torch.testing.assert_close(outputs(network), expected, rtol=1e-4, atol=1e-5)


def check_refused(network, lora, match, **networks):
    """One line, and nothing has changed."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ModelError, match=match) as error:
        fuse(lora, unet=network, **networks)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_finds_no_module_is_named(tmp_path):
    network = unet_2d()
    pairs = updates(network)
    pairs["down_blocks.9.attn1.to_q"] = pair(torch.empty(16, 16))
    check_refused(network, read_lora(write(tmp_path / "x.safetensors", pairs)), r"lacks down_blocks\.9\.attn1\.to_q$")


def test_shapes_of_another_model_are_named(tmp_path):
    network = unet_2d()
    pairs = {**updates(network), f"{ATTENTION}.to_q": (torch.ones(RANK, 99), torch.ones(16, RANK))}
    check_refused(
        network, read_lora(write(tmp_path / "x.safetensors", pairs)),
        r"attn1\.to_q is \[16, 3\] x \[3, 99\], the weight there \[16, 16\]",
    )
    check_refused(network, read_lora(write(tmp_path / "y.safetensors", updates(unet_3d()))), "another UNet, this one")


def test_no_part_of_a_file_is_left_out_silently(tmp_path):
    network, text = unet_2d(), text_encoder(60)
    both = {f"unet.{name}": value for name, value in updates(network, [f"{ATTENTION}.to_q"]).items()} | {
        f"text_encoder.text_model.{name}": value for name, value in updates(text, [f"{TEXT}.q_proj"]).items()
    }
    lora = read_lora(write(tmp_path / "x.safetensors", both, prefix=""))
    check_refused(network, lora, "also changes a text encoder, in 1 modules")
    fuse(lora, unet=network, text_encoder=text)
    fuse(replace(lora, text_encoder={}), unet=network)


def test_ranks_that_differ_and_halves(tmp_path):
    file = tmp_path / "x.safetensors"
    name = f"unet.{ATTENTION}.to_q"
    save_file({f"{name}.lora_A.weight": torch.ones(4, 16), f"{name}.lora_B.weight": torch.ones(16, 8)}, file)
    with pytest.raises(ModelError, match=r"ranks of .*to_q differ: down is \[4, 16\], up is \[16, 8\]"):
        read_lora(file)
    save_file({f"{name}.lora_A.weight": torch.ones(4, 16), f"{name}.alpha": torch.tensor(4.0)}, file)
    with pytest.raises(ModelError, match="only alpha and down is there"):
        read_lora(file)


@pytest.mark.parametrize("key", [
    "unet.x.to_q.lora_magnitude_vector", "lora_unet_x_to_q.dora_scale", "lora_unet_x_to_q.hada_w1_a",
    "lora_unet_x.lora_mid.weight", "unet.x.to_q.lora_B.bias", "lora_unet_x.diff", "conv_in.weight",
])
def test_other_kinds_of_adapters_are_refused(key, tmp_path):
    file = write(tmp_path / "x.safetensors", updates(unet_2d(), [f"{ATTENTION}.to_q"]), **{key: torch.ones(1)})
    with pytest.raises(ModelError, match=f"not a plain LoRA of a UNet or a text encoder: {key}"):
        read_lora(file)


def test_two_adapters_in_one_file_are_refused(tmp_path):
    pairs = updates(unet_2d(), [f"{ATTENTION}.to_q"])
    write(tmp_path / "x.safetensors", pairs, down="lora_A.first.weight", up="lora_B.first.weight", **{
        f"unet.{ATTENTION}.to_q.lora_A.second.weight": torch.ones(RANK, 16)
    })
    with pytest.raises(ModelError, match="more than one LoRA for"):
        read_lora(tmp_path / "x.safetensors")


def test_files_that_are_none(tmp_path):
    with pytest.raises(ModelError, match=r"no LoRA at .*nowhere"):
        read_lora(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"or a folder with pytorch_lora_weights\.safetensors"):
        read_lora(tmp_path)
    (tmp_path / "x.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match="pickles are not read"):
        read_lora(tmp_path / "x.bin")
    (tmp_path / "x.safetensors").write_bytes(b"half a file")
    with pytest.raises(ModelError, match="damaged or incomplete"):
        read_lora(tmp_path / "x.safetensors")
    save_file({}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=r"not a plain LoRA .*: no tensors"):
        read_lora(tmp_path / "x.safetensors")
