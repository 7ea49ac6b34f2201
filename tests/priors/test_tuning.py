import pytest
import torch
from tiny_models import unet_2d, unet_3d, vae

from dream4d.priors import tuning


def run(kind, network):
    """Its output for fixed inputs; for the autoencoder the gradient to the images as well."""
    generator = torch.Generator().manual_seed(1)
    if kind == "vae":
        images = torch.randn(2, 3, 16, 16, generator=generator).requires_grad_()
        latents = network.encode(images).latent_dist.mode()
        return [latents, *torch.autograd.grad(latents.square().sum(), images), network.decode(latents).sample]
    shape = (2, 4, 8, 8) if kind == "2d" else (2, 4, 3, 8, 8)
    noisy, text = torch.randn(shape, generator=generator), torch.randn(2, 8, 32, generator=generator)
    return [network(noisy, torch.tensor(500), text).sample]


@pytest.mark.parametrize("kind", ["2d", "3d", "vae"])
@pytest.mark.parametrize("trick", ["channels_last", "fuse_norms", "compile_blocks"])
def test_a_tuned_network_computes_the_same(kind, trick):
    make = {"2d": unet_2d, "3d": unet_3d, "vae": vae}[kind]
    plain, tuned = (make().requires_grad_(False) for _ in range(2))
    names = list(tuned.state_dict())
    if trick == "compile_blocks":
        assert tuning.compile_blocks(tuned, backend="eager") > 0
    elif trick == "fuse_norms":
        assert tuning.fuse_norms(tuned) > 2
    else:
        tuning.channels_last(tuned)
    for value, expected in zip(run(kind, tuned), run(kind, plain), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    assert list(tuned.state_dict()) == names


def test_every_norm_before_an_activation_is_fused():
    """In the autoencoder: two in each residual block, one at the end of encoder and of decoder; not in attention."""
    network = vae()
    blocks = [module for module in network.modules() if type(module).__name__ == "ResnetBlock2D"]
    assert tuning.fuse_norms(network) == 2 * len(blocks) + 2
    left = [name for name, module in network.named_modules() if type(module) is torch.nn.GroupNorm]
    assert left
    assert all("attentions" in name for name in left)
