import pytest
import torch
from gaussian_prior import GaussianPrior

from dream4d.distill import (
    add_noise,
    classifier_free_guidance,
    reconstruction_loss,
    remove_noise,
    sample_timesteps,
    sds_loss,
    video_reconstruction_loss,
)

PURPLE = torch.tensor([0.7, 0.2, 0.9])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 3, generator=generator(7)).requires_grad_()


def test_guidance_convention():
    unconditional, conditional = torch.randn(2, 5), torch.randn(2, 5)
    torch.testing.assert_close(classifier_free_guidance(unconditional, conditional, 0), unconditional)
    torch.testing.assert_close(classifier_free_guidance(unconditional, conditional, 1), conditional)
    expected = unconditional + 100 * (conditional - unconditional)
    torch.testing.assert_close(classifier_free_guidance(unconditional, conditional, 100), expected)


def test_remove_noise_inverts_add_noise():
    z, eps, a = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0.9, 0.5, 0.1])
    torch.testing.assert_close(remove_noise(add_noise(z, eps, a), eps, a), z)


def test_timesteps_cover_the_interval_with_its_ends():
    prior = GaussianPrior(PURPLE)
    drawn = sample_timesteps(20_000, prior, (0.98, 1.0), generator())
    assert set(drawn.tolist()) == set(range(980, 1000))
    assert set(sample_timesteps(5, prior, (0.98, 0.98), generator()).tolist()) == {980}
    with pytest.raises(ValueError, match="fractions"):
        sample_timesteps(1, prior, (0.5, 0.2), generator())


def test_sds_gradient_is_the_weighted_noise_difference_exactly():
    prior, images, scale = GaussianPrior(PURPLE), image(2, 4, 4), 7.5
    loss = sds_loss(prior, images, PURPLE, scale=scale, timesteps=(0.2, 0.6), generator=generator())
    loss.backward()
    replay = generator()
    timestep = torch.randint(200, 601, (2,), generator=replay)
    noise = torch.randn(images.shape, generator=replay)
    a = prior.alpha_bar[timestep].reshape(2, 1, 1, 1)
    unconditional, conditional = prior.predict_noise(add_noise(images.detach(), noise, a), timestep, PURPLE)
    gradient = (1 - a) * (classifier_free_guidance(unconditional, conditional, scale) - noise)
    assert torch.equal(images.grad, gradient / 2)
    torch.testing.assert_close(loss.detach(), gradient.square().sum() / 2 / 2)


def test_reconstruction_gradient_points_away_from_the_target():
    """Without rescaling and guidance the target is the posterior mean, and loss and gradient are those of a square."""
    prior, images = GaussianPrior(PURPLE), image(4, 2, 2)
    loss = reconstruction_loss(
        prior, images, PURPLE, scale=1, timesteps=(0.5, 0.5), views=4, std_rescale=0.0, generator=generator()
    )
    loss.backward()
    residual = images.grad * 4 / 2
    torch.testing.assert_close(residual.square().sum() / 4, loss.detach())
    replay = generator()
    torch.randint(500, 501, (1,), generator=replay)
    a = prior.alpha_bar[500]
    noisy = a.sqrt() * images.detach() + (1 - a).sqrt() * torch.randn(images.shape, generator=replay)
    s = prior.deviation**2
    posterior_mean = (s * a.sqrt() * noisy + (1 - a) * PURPLE) / (a * s + 1 - a)
    torch.testing.assert_close(images.detach() - residual, posterior_mean, rtol=1e-4, atol=1e-4)


def test_full_rescaling_gives_each_scene_the_deviation_of_the_unguided_estimate():
    prior, images = GaussianPrior(PURPLE), image(8, 4, 4)

    def target(scale: float, rescale: float) -> torch.Tensor:
        images.grad = None
        reconstruction_loss(
            prior, images, PURPLE, scale=scale, timesteps=(0.7, 0.7), views=4, std_rescale=rescale,
            generator=generator(),
        ).backward()
        return (images.detach() - images.grad * 8 / 2).reshape(2, -1)

    plain, full, half, none = target(1, 0), target(50, 1), target(50, 0.5), target(50, 0)
    torch.testing.assert_close(full.std(dim=1), plain.std(dim=1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(half, (full + none) / 2, rtol=1e-3, atol=1e-3)


def test_multiview_timestep_is_shared():
    seen = []

    class Recorder(GaussianPrior):
        def predict_noise(self, noisy, timestep, condition):
            seen.append(timestep)
            return super().predict_noise(noisy, timestep, condition)

    prior, options = Recorder(PURPLE), {"scale": 1, "timesteps": (0, 1), "generator": generator()}
    reconstruction_loss(prior, image(8, 2, 2), PURPLE, views=4, std_rescale=0.5, **options)
    sds_loss(prior, image(8, 2, 2), PURPLE, **options)
    assert len(seen[0].unique()) == 1
    assert len(seen[1].unique()) > 1


def test_video_loss_is_half_the_latent_term_and_the_weighted_pixel_term():
    """Where latents are pixels and the target lies in [0, 1], the two terms differ by their factors only."""
    prior, videos = GaussianPrior(PURPLE, deviation=1e-3), image(2, 3, 4, 4)
    options = {"scale": 1, "timesteps": (0.5, 0.9)}
    latent = video_reconstruction_loss(prior, videos, PURPLE, pixel_weight=0, generator=generator(), **options)
    both = video_reconstruction_loss(prior, videos, PURPLE, pixel_weight=0.1, generator=generator(), **options)
    torch.testing.assert_close(both / latent, torch.tensor(0.6 / 0.5), rtol=1e-3, atol=0)
    torch.testing.assert_close(latent, (videos - PURPLE).square().sum() / 2 / 2, rtol=1e-2, atol=0)


def test_some_decoded_frames_stand_for_all():
    """The pixel term of one frame at a time, times their number, is on average that of all."""
    prior, videos = GaussianPrior(PURPLE, deviation=1e-4), image(1, 3, 4, 4)

    def pixel_term(frames, seed):
        terms = [
            video_reconstruction_loss(
                prior, videos, PURPLE, scale=1, timesteps=(0.5, 0.5), pixel_weight=weight, pixel_frames=frames,
                generator=generator(seed),
            )
            for weight in (0, 1)
        ]  # fmt: skip
        return (terms[1] - terms[0]).item()

    single = {round(pixel_term(1, seed), 2) for seed in range(20)}
    assert len(single) == 3
    assert sum(single) / 3 == pytest.approx(pixel_term(None, 0), rel=1e-2)
    assert pixel_term(3, 0) == pixel_term(None, 0)


@pytest.mark.parametrize("pixel_weight", [0, 0.1])
def test_a_kept_mean_leaves_changes_over_time(pixel_weight):
    prior, videos = GaussianPrior(PURPLE, deviation=1e-4), image(1, 3, 4, 4)

    def gradient(share):
        loss = video_reconstruction_loss(
            prior, videos, PURPLE, scale=1, timesteps=(0.5, 0.5), pixel_weight=pixel_weight, kept_mean=share,
            generator=generator(),
        )
        return torch.autograd.grad(loss, videos)[0]

    whole = gradient(0)
    mean = whole.mean(1, keepdim=True)
    torch.testing.assert_close(gradient(1), whole - mean)
    torch.testing.assert_close(gradient(0.5), whole - 0.75 * mean)  # half of a mean has a quarter of the square


@pytest.mark.parametrize("loss", ["sds", "reconstruction", "video"])
def test_distillation_pulls_pixels_to_the_mean_of_the_data(loss):
    prior, draw = GaussianPrior(PURPLE), generator()
    pixels = image(4, 2, 2) if loss != "video" else image(1, 3, 2, 2)
    optimizer = torch.optim.SGD([pixels], lr=0.2 * len(pixels))
    for _ in range(150):
        optimizer.zero_grad()
        options = {"scale": 1, "timesteps": (0.3, 0.9), "generator": draw}
        if loss == "sds":
            value = sds_loss(prior, pixels, PURPLE, **options)
        elif loss == "reconstruction":
            value = reconstruction_loss(prior, pixels, PURPLE, views=4, std_rescale=0.0, **options)
        else:
            value = video_reconstruction_loss(prior, pixels, PURPLE, pixel_weight=0.1, **options)
        value.backward()
        optimizer.step()
    torch.testing.assert_close(pixels.detach(), PURPLE.expand_as(pixels), rtol=0, atol=0.1)
