import json

import pytest
import torch
from safetensors import safe_open
from tiny_models import text_encoder, unet_2d

from dream4d.priors.adapters import ATTENTION, ATTENTION_OF_TEXT, adapt, lora_file, write_lora
from dream4d.priors.lora import fuse, read_lora

TOKENS = torch.tensor([[3, 5, 7]])


def generator():
    return torch.Generator().manual_seed(0)


def trained(network, ends, rank=3):
    adapters = adapt(network, ends, rank, random := generator())
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.up.normal_(generator=random)
    return adapters


@torch.no_grad()
def outputs(unet, text):
    noisy, features = torch.randn(1, 4, 8, 8, generator=generator()), torch.randn(1, 5, 32, generator=generator())
    return unet(noisy, torch.tensor([300]), features).sample, text(TOKENS).last_hidden_state


def test_nothing_changes_before_training():
    before = outputs(unet_2d(), text_encoder(60))
    unet, text = unet_2d(), text_encoder(60)
    adapt(unet, ATTENTION, 3, generator())
    adapt(text, ATTENTION_OF_TEXT, 3, generator())
    assert all(a.equal(b) for a, b in zip(outputs(unet, text), before, strict=True))


def test_only_the_adapters_get_gradients():
    unet = unet_2d()
    adapters = trained(unet, ATTENTION)
    unet(torch.randn(1, 4, 8, 8), torch.tensor([300]), torch.randn(1, 5, 32)).sample.sum().backward()
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert all(adapter.down.grad.any() and adapter.up.grad.any() for name, adapter in adapters.items()
               if not name.endswith(("to_q", "to_k")))  # sums are blind to some directions of these


def test_what_was_trained_is_what_is_loaded(tmp_path):
    unet, text = unet_2d(), text_encoder(60)
    adapters, of_text = trained(unet, ATTENTION), trained(text, ATTENTION_OF_TEXT)
    write_lora(tmp_path / "pytorch_lora_weights.safetensors", unet=adapters, text_encoder=of_text)
    plain, plain_text = unet_2d(), text_encoder(60)
    fuse(read_lora(lora_file(tmp_path)), unet=plain, text_encoder=plain_text)
    untrained = outputs(unet_2d(), text_encoder(60))
    for loaded, expected, before in zip(outputs(plain, plain_text), outputs(unet, text), untrained, strict=True):
        torch.testing.assert_close(loaded, expected, rtol=1e-3, atol=1e-4)
        assert (expected - before).abs().max() > 0.01


def test_the_file_has_the_names_and_the_configuration_of_diffusers(tmp_path):
    file = tmp_path / "x.safetensors"
    write_lora(file, unet=trained(unet_2d(), ATTENTION), text_encoder=trained(text_encoder(60), ATTENTION_OF_TEXT))
    with safe_open(file, framework="pt") as opened:
        config, names = json.loads(opened.metadata()["lora_adapter_metadata"]), set(opened.keys())
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight" in names
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight" in names
    assert (config["unet.r"], config["text_encoder.lora_alpha"]) == (3, 3)
    assert config["unet.target_modules"] == sorted(ATTENTION)


def test_diffusers_loads_the_file(tmp_path):
    pytest.importorskip("peft")
    unet = unet_2d()
    write_lora(tmp_path / "pytorch_lora_weights.safetensors", unet=trained(unet, ATTENTION))
    theirs = unet_2d()
    theirs.load_lora_adapter(tmp_path, prefix="unet")
    torch.testing.assert_close(outputs(theirs, text_encoder(60)), outputs(unet, text_encoder(60)))


def test_what_cannot_be_adapted():
    with pytest.raises(ValueError, match="rank is 0, expected at least 1"):
        adapt(unet_2d(), ATTENTION, 0, generator())
    with pytest.raises(ValueError, match="CLIPTextModel has no layers called to_q"):
        adapt(text_encoder(60), ATTENTION, 2, generator())
