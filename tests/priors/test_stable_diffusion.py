import pytest
import torch
from tiny_models import save_denoiser, save_image_model, unet_2d

from dream4d.cameras import orbit
from dream4d.distill import encode, sds_loss
from dream4d.priors.stable_diffusion import StableDiffusion


def test_sds_reaches_the_pixels(tmp_path):
    prior = StableDiffusion.load(save_image_model(tmp_path))
    assert prior.resolution == (16, 16)
    images = torch.rand(2, 12, 12, 3, requires_grad=True)
    cameras = orbit(torch.zeros(2), torch.zeros(2), torch.full((2,), 3.0), torch.tensor(40.0))
    condition = prior.condition(["a cat, front view", "a cat, back view"], "blurry", cameras)
    generator = torch.Generator().manual_seed(0)
    latents = encode(prior, images)
    sds_loss(prior, latents, condition, scale=10, timesteps=(0.2, 0.6), generator=generator).backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0


def test_both_predictions_of_one_call_equal_two_calls(tmp_path):
    prior = StableDiffusion.load(save_image_model(tmp_path))
    cameras = orbit(torch.zeros(2), torch.zeros(2), torch.full((2,), 3.0), torch.tensor(40.0))
    condition = prior.condition(["a cat", "a dog"], "blurry", cameras)
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 700])
    with torch.no_grad():
        alone = [prior.parts.unet(z, t, text).sample for text in (condition.negative, condition.text)]
    for together, apart in zip(prior.predict_noise(z, t, condition), alone, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_a_multiview_model_is_not_an_image_model(tmp_path):
    base = save_image_model(tmp_path / "image")
    with pytest.raises(ValueError, match=r"not an image model.*class_embed_type projection"):
        StableDiffusion.load(save_denoiser(tmp_path / "multiview", unet_2d(multiview=True)), base)
