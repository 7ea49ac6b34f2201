import copy

import pytest
import torch
from tiny_models import unet_2d, unet_3d
from torch import nn

from dream4d.priors.onednn import Linear, TemporalConv, quicken


@pytest.mark.parametrize("build", [unet_2d, unet_3d])
def test_a_quickened_unet_gives_the_same(build):
    network = build().eval()
    quick = copy.deepcopy(network)
    quicken(quick)
    assert any(type(module) is Linear for module in quick.modules())
    assert (build is unet_3d) == any(type(module) is TemporalConv for module in quick.modules())
    frames = (6,) if build is unet_3d else ()
    generator = torch.Generator().manual_seed(0)
    size, config = network.config.sample_size, network.config
    noisy = torch.randn(2, config.in_channels, *frames, size, size, generator=generator)
    text = torch.randn(2, 5, config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        expected, got = (net(noisy, torch.tensor([7, 700]), text).sample for net in (network, quick))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert quick.state_dict().keys() == network.state_dict().keys()


def test_gradients_are_those_of_the_plain_layers():
    torch.manual_seed(0)
    along_time = nn.Conv3d(3, 4, (3, 1, 1), padding=(1, 0, 0))
    layers = nn.Sequential(along_time, nn.Conv3d(4, 2, 3, padding=1), nn.Linear(5, 5))
    quick = copy.deepcopy(layers)
    quicken(quick)
    assert [type(layer) for layer in quick] == [TemporalConv, nn.Conv3d, Linear]
    x = torch.randn(2, 3, 6, 4, 5)
    grads = [torch.autograd.grad(net(x).square().sum(), list(net.parameters())) for net in (layers, quick)]
    for expected, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("options", [{"stride": (2, 1, 1)}, {"groups": 2}, {"dilation": (2, 1, 1)}])
def test_other_convolutions_stay_as_they_are(options):
    network = nn.Sequential(nn.Conv3d(4, 4, (3, 1, 1), **options))
    quicken(network)
    assert type(network[0]) is nn.Conv3d
