import pytest
import torch
from tiny_models import save_denoiser, save_image_model, unet_2d, unet_3d

from dream4d.cameras import orbit
from dream4d.distill import video_reconstruction_loss
from dream4d.priors.text_to_video import TextToVideo

CAMERA = orbit(torch.zeros(1), torch.zeros(1), torch.full((1,), 3.0), torch.tensor(40.0))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_image_model(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def prior(base, tmp_path_factory):
    return TextToVideo.load(save_denoiser(tmp_path_factory.mktemp("video"), unet_3d()), base, frames=3, chunk=2)


def test_time_is_the_second_axis_outside_and_the_third_inside(prior):
    latents = prior.encode(torch.rand(1, 3, 16, 16, 3))
    assert latents.shape == (1, 3, 4, 8, 8)
    assert prior.decode(latents).shape == (1, 3, 16, 16, 3)
    condition, timestep = prior.condition(["a cat jumps"], "", CAMERA), torch.tensor([300])
    with torch.no_grad():
        expected = prior.parts.unet(latents.permute(0, 2, 1, 3, 4), timestep, condition.text).sample
    _, conditional = prior.predict_noise(latents, timestep, condition)
    torch.testing.assert_close(conditional, expected.permute(0, 2, 1, 3, 4), rtol=1e-4, atol=1e-5)


def test_each_frame_is_encoded_as_an_image(prior):
    video = torch.rand(2, 3, 16, 16, 3)
    torch.testing.assert_close(
        prior.encode(video)[1, 2], prior.parts.autoencoder.encode(video[1, 2][None])[0], rtol=1e-4, atol=1e-5
    )


def test_video_loss_reaches_the_pixels(prior):
    videos = torch.rand(1, 3, 5, 9, 3, requires_grad=True)
    condition = prior.condition(["a cat jumps"], "", CAMERA)
    generator = torch.Generator().manual_seed(0)
    video_reconstruction_loss(
        prior, videos, condition, scale=10, timesteps=(0.2, 0.9), pixel_weight=0.1, generator=generator
    ).backward()
    assert videos.grad.isfinite().all()
    assert (videos.grad.abs().sum(dim=(2, 3, 4)) > 0).all()


def test_an_image_model_is_not_a_video_model(base, tmp_path):
    folder = save_denoiser(tmp_path, unet_2d())
    with pytest.raises(ValueError, match=r"not a text-to-video model: unet/config\.json says UNet2DConditionModel"):
        TextToVideo.load(folder, base)
