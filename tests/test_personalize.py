from dataclasses import replace

import pytest
import torch
from tiny_models import save_image_model

from dream4d.personalize import (
    class_prompts,
    denoising_error,
    draw,
    draw_class,
    fit_personal,
    start_personal,
    subject_of,
    without_token,
)
from dream4d.priors.stable_diffusion import StableDiffusion
from dream4d.schedules import Constant
from dream4d.settings import PersonalizeSettings

SETTINGS = PersonalizeSettings(
    steps=4, photos=2, rank=2, learning_rate=Constant(1e-2), class_images=6, sampling_steps=2, sampling_guidance=1.0
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_image_model(tmp_path_factory.mktemp("image"))


def photos(n=3):
    return torch.rand(n, 16, 16, 3, generator=torch.Generator().manual_seed(1))


def started(folder, settings=SETTINGS):
    return start_personal(StableDiffusion.load(folder, quick=False), settings, seed=0)


def fit(state, settings=SETTINGS):
    pictures = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    return list(fit_personal(
        state, photos=photos(), prompt="a sks b", pictures=pictures, class_prompt="a b", settings=settings
    ))


@torch.no_grad()
def error_of(state, prompt, times=20):
    latents = state.prior.encode(photos())
    generator = torch.Generator().manual_seed(3)
    features = state.prior.parts.text.encode([prompt] * len(latents))
    errors = [denoising_error(state.prior.parts, latents, features, generator) for _ in range(times)]
    return torch.stack(errors).mean().item()


@pytest.mark.parametrize("text_encoder", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_photos_are_learned(tmp_path, prediction, text_encoder):
    settings = replace(SETTINGS, steps=40, text_encoder=text_encoder, class_images=0)
    state = started(save_image_model(tmp_path, prediction_type=prediction), settings)
    before = error_of(state, "a sks b")
    fit(state, settings)
    assert error_of(state, "a sks b") < 0.9 * before


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_model_has_no_error(folder, prediction):
    """The photos are one point: the exact predictions are known in closed form."""
    parts = started(folder).prior.parts
    point = torch.randn(1, 4, 8, 8)

    class Perfect:
        dtype = torch.float32

        def __call__(self, noisy, timestep, text):
            a = parts.alpha_bar[timestep].reshape(-1, 1, 1, 1)
            noise = (noisy - a.sqrt() * point) / (1 - a).sqrt()
            known = noise if prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * point
            return type("Output", (), {"sample": known})

    exact = replace(parts, unet=Perfect(), prediction_type=prediction)
    errors = denoising_error(exact, point.expand(5, -1, -1, -1), torch.zeros(5, 8, 32), torch.Generator())
    assert errors.shape == (5,)
    assert errors.max() < 1e-6


def test_a_resumed_state_takes_the_same_steps(folder):
    settings = replace(SETTINGS, text_encoder=True)
    whole, first = started(folder, settings), started(folder, settings)
    fit(whole, settings)
    fit(first, replace(settings, steps=2))
    resumed = started(folder, settings)
    resumed.load_tensors(first.to_tensors())
    assert [report.step for report in fit(resumed, settings)] == [2, 3]
    expected, found = whole.to_tensors(), resumed.to_tensors()
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected)


def test_the_prior_preservation_loss_is_there_only_with_pictures(folder):
    assert set(fit(started(folder))[0].losses) == {"subject", "class"}
    without = fit_personal(
        started(folder), photos=photos(1), prompt="a sks b", pictures=torch.zeros(0, 4, 8, 8), class_prompt="a b",
        settings=SETTINGS,
    )
    assert set(next(without).losses) == {"subject"}


def test_what_is_drawn_follows_the_seed_and_the_training(folder):
    settings = replace(SETTINGS, text_encoder=True)
    state = started(folder, settings)
    one, again, other = (draw(state, ["a sks b"], settings, seed=seed) for seed in (0, 0, 1))
    assert one.equal(again)
    assert not one.equal(other)
    assert draw_class(state, "a b", settings, seed=0).shape == (6, 4, 8, 8)
    fit(state, settings)
    assert not draw(state, ["a sks b"], settings, seed=0).equal(one)


def test_words():
    assert without_token("a sks dog, eating", "sks") == "a dog, eating"
    assert without_token("SKS, the dog", "sks") == "the dog"
    with pytest.raises(ValueError, match=r"'a dog' does not say 'sks'.*--personalize\.token"):
        without_token("a dog", "sks")
    assert subject_of("a red sks cat, which is waving", "sks") == "a red sks cat"
    assert subject_of("a photo of an SKS cat.", "sks") == "an SKS cat"
    assert subject_of("sks cat with a hat", "sks") == "a sks cat"
    assert subject_of("this is sks", "sks") == "a sks"
    assert class_prompts("a dog")[:2] == ["a dog", "a dog, front view"]
