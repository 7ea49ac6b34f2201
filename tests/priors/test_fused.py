from copy import deepcopy

import pytest
import torch
from tiny_models import unet_2d, unet_3d, vae
from yardstick import assert_as_exact

from dream4d.priors import fused
from dream4d.priors.mvdream import multiview_attention


def multiview_unet():
    network = unet_2d(multiview=True)
    multiview_attention(network, 2)
    return network


NETWORKS = {"2d": unet_2d, "multiview": multiview_unet, "3d": unet_3d, "vae": vae}


def prepared(kind):
    """Frozen, with parameters that are not what layers begin with: zeros, and ones, hide what is left out."""
    network = NETWORKS[kind]().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1 or "conv4" in name:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network


def outputs(kind, network):
    """For fixed inputs; of the autoencoder the gradient to the images as well."""
    generator, where = torch.Generator().manual_seed(1), {"device": network.device, "dtype": network.dtype}

    def random(*shape):
        return torch.randn(shape, generator=generator).to(**where)

    if kind == "vae":
        images = random(2, 3, 16, 16).requires_grad_()
        latents = network.encode(images).latent_dist.mode()
        gradient = torch.autograd.grad(latents, images, random(2, 4, 8, 8))[0]
        with torch.no_grad():
            return latents.detach(), gradient, network.decode(latents).sample
    labels = {"class_labels": random(2, 16)} if kind == "multiview" else {}
    with torch.no_grad():
        noisy, text = random(2, 4, *([3] if kind == "3d" else []), 8, 8), random(2, 8, 32)
        return (network(noisy, torch.tensor(500, device=network.device), text, **labels).sample,)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_fused_network_computes_the_same(kind):
    plain = prepared(kind)
    quick = deepcopy(plain)
    assert fused.fuse(quick) > 10
    for value, expected in zip(outputs(kind, quick), outputs(kind, plain), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    assert list(quick.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_a_fused_network_can_still_be_trained(kind):
    plain = prepared(kind).requires_grad_(True)
    quick = deepcopy(plain)
    fused.fuse(quick)
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, *([3] if kind == "3d" else []), 8, 8, generator=generator)
    text = torch.randn(2, 8, 32, generator=generator)
    for network in (plain, quick):
        network(noisy, torch.tensor(500), text).sample.square().mean().backward()
    for value, expected in zip(quick.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(value.grad, expected.grad, rtol=1e-3, atol=1e-6)


def test_wide_attention_keeps_scores_that_half_precision_would_round():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 64, 128, generator=generator) for _ in range(3))
    query, key, value = 3 * query.half(), key.half(), value.half()  # scores of about 35
    exact = ((query.double() @ key.double().transpose(1, 2)).softmax(-1)) @ value.double()
    rounded = (query.double() @ key.double().transpose(1, 2)).half().double().softmax(-1) @ value.double()
    error = (fused._Attention.apply(query, key, value) - exact).abs().max()
    assert error < 0.25 * (rounded - exact).abs().max()


def test_what_has_no_quick_way_is_left_alone():
    network = unet_2d()
    network.down_blocks[0].resnets[0].output_scale_factor = 2.0
    fused.fuse(network)
    kinds = [type(module) for module in network.down_blocks[0].resnets]
    assert kinds == [fused.ResnetBlock2D]
    assert isinstance(network.down_blocks[1].resnets[0], fused.Resnet)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_fused_network_is_as_exact_on_a_gpu(kind, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # it would be for one layout and not for the other
    exact = prepared(kind).cuda().to(dtype)
    eager, quick = deepcopy(exact), deepcopy(exact)
    fused.fuse(quick)
    results = [outputs(kind, network) for network in (quick, eager, exact.double())]
    for values in zip(*results, strict=True):
        assert_as_exact(*values)
