import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from tiny_models import TOKENS, WIDTH, save_denoiser, save_image_model, scheduler, text_encoder, unet_2d, unet_3d

from dream4d.priors.parts import ImagePrior, cumulative_alphas, load_parts, resize


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_image_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def copy(model, tmp_path) -> Path:
    return shutil.copytree(model, tmp_path / "copy")


def test_text_is_encoded_once_a_prompt(model):
    parts = load_parts(model)
    calls = []
    parts.text.model.register_forward_hook(lambda *_: calls.append(1))
    first = parts.condition(["a cat", "a dog", "a cat"], "bad")
    second = parts.condition(["a dog"], "bad")
    assert len(calls) == 3
    assert first.text.shape == first.negative.shape == (3, TOKENS, WIDTH)
    assert torch.equal(first.text[0], first.text[2])
    assert torch.equal(first.text[1], second.text[0])
    assert not torch.equal(first.text[0], first.text[1])
    assert torch.equal(first.negative[0], first.negative[1])


def test_text_encoders_leave_memory_and_come_back_for_a_new_prompt(model):
    prepared, plain = load_parts(model), load_parts(model)
    released = weakref.ref(prepared.text.model)
    prepared.text.prepare(["", "a cat"])
    assert released() is None
    for prompts in (["a cat"], ["a dog", "a cat"]):
        assert prepared.condition(prompts, "").text.equal(plain.condition(prompts, "").text)


def test_loading_says_nothing_and_leaves_the_libraries_as_they_were(model):
    """In a fresh process: some of what the libraries say comes with their import."""
    code = (
        "import sys, warnings\n"
        "from dream4d.priors.parts import load_parts\n"
        "load_parts(sys.argv[1])\n"
        "from transformers.utils import logging\n"
        "assert logging.is_progress_bar_enabled()\n"
        "assert 'TRANSFORMERS_VERBOSITY' not in __import__('os').environ\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=False,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_everything_is_frozen(model):
    parts = load_parts(model)
    for module in (parts.unet, parts.autoencoder.vae, parts.text.model):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_base_lends_what_a_folder_lacks(model, tmp_path):
    folder = save_denoiser(tmp_path, unet_2d(seed=5))
    parts = load_parts(folder, model)
    expected = unet_2d(seed=5).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in parts.unet.state_dict().items())
    assert load_parts(folder, model, text=False).text is None


def test_what_comes_from_the_same_folder_is_shared_and_nothing_else(model, tmp_path):
    folder, shared = save_denoiser(tmp_path / "denoiser", unet_2d(seed=5)), {}
    first, second = load_parts(model, shared=shared), load_parts(folder, model, shared=shared)
    assert first.autoencoder is second.autoencoder
    assert first.text is second.text
    assert first.unet is not second.unet
    assert load_parts(model, shared=shared, chunk=2).autoencoder is not first.autoencoder
    assert load_parts(model, shared=shared, dtype=torch.bfloat16).text is not first.text
    elsewhere = load_parts(shutil.copytree(model, tmp_path / "copy"), shared=shared)
    assert elsewhere.autoencoder is not first.autoencoder
    assert elsewhere.text is not first.text


def test_a_latent_space_is_an_autoencoder_and_a_resolution(model):
    shared = {}
    first, second = (load_parts(model, shared=shared) for _ in range(2))
    assert ImagePrior(first).latent_space == ImagePrior(second, (16, 16)).latent_space
    assert ImagePrior(first).latent_space != ImagePrior(second, (32, 32)).latent_space
    assert ImagePrior(first).latent_space != ImagePrior(load_parts(model)).latent_space


def test_weights_come_in_the_dtype_asked_for(model):
    parts = load_parts(model, dtype=torch.bfloat16)
    assert parts.unet.dtype == parts.autoencoder.vae.dtype == parts.text.model.dtype == torch.bfloat16
    latents = parts.autoencoder.encode(torch.rand(1, 16, 16, 3))
    noise, _ = parts.predict_noise(latents, torch.tensor([500]), parts.condition(["a cat"], ""))
    assert latents.dtype == noise.dtype == parts.alpha_bar.dtype == torch.float32


def test_encoding_in_chunks_changes_neither_latents_nor_gradients(model):
    images = torch.rand(5, 16, 16, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    results = []
    for chunk in (None, 2):
        autoencoder = load_parts(model, chunk=chunk, text=False).autoencoder
        latents = autoencoder.encode(images)
        results.append((latents, torch.autograd.grad(latents.square().sum(), images)[0], autoencoder.decode(latents)))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)
    assert results[0][0].shape == (5, 4, 8, 8)
    assert results[0][2].shape == images.shape
    assert 0 <= results[0][2].min() <= results[0][2].max() <= 1


@pytest.mark.parametrize("camera", [False, True])
def test_two_calls_of_the_unet_predict_what_one_does(model, tmp_path, camera):
    parts = load_parts(save_denoiser(tmp_path, unet_2d(multiview=camera)), model)
    condition = parts.condition(["a cat", "a dog"], "blurry", torch.rand(2, 16) if camera else None)
    noisy, timestep, calls = torch.randn(2, 4, 8, 8), torch.tensor([100, 900]), []
    parts.unet.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    whole = parts.predict_noise(noisy, timestep, condition)
    parts.limit(images=1, split=True)
    for one, of_both in zip(parts.predict_noise(noisy, timestep, condition), whole, strict=True):
        torch.testing.assert_close(one, of_both, rtol=1e-4, atol=1e-5)
    assert calls == [4, 2, 2]
    assert parts.autoencoder.chunk == 1


def test_v_prediction_becomes_epsilon(model, tmp_path):
    """The same network read as v: eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) z_t."""
    as_epsilon = load_parts(model)
    as_v = load_parts(save_denoiser(tmp_path, unet_2d(), prediction_type="v_prediction"), model)
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([100, 900])
    condition = as_v.condition(["a cat", "a dog"], "")
    a = as_v.alpha_bar[t].reshape(2, 1, 1, 1)
    for v, eps in zip(as_epsilon.predict_noise(z, t, condition), as_v.predict_noise(z, t, condition), strict=True):
        torch.testing.assert_close(eps, a.sqrt() * v + (1 - a).sqrt() * z)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_alphas_are_those_of_diffusers(kind):
    reference = scheduler(beta_schedule=kind)
    alpha_bar = cumulative_alphas(dict(reference.config))
    assert alpha_bar.dtype == torch.float32
    torch.testing.assert_close(alpha_bar, reference.alphas_cumprod, rtol=1e-4, atol=1e-7)


def test_unknown_noise_schedule_is_an_error():
    with pytest.raises(ValueError, match=r"sigmoid.*expected linear"):
        cumulative_alphas({"num_train_timesteps": 10, "beta_schedule": "sigmoid"})


def test_missing_folder_and_part_are_named(copy, model, tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        load_parts(tmp_path / "nowhere")
    shutil.rmtree(copy / "vae")
    with pytest.raises(ValueError, match=r"no vae/config\.json in .*copy: .*`base`"):
        load_parts(copy)
    assert load_parts(copy, model).autoencoder.downsampling == 2


def test_half_precision_variant_is_found(copy):
    weights = next((copy / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert load_parts(copy).unet.dtype == torch.float32


def test_parts_of_different_models_are_refused(copy):
    text_encoder(60, width=64).save_pretrained(copy / "text_encoder")
    with pytest.raises(ValueError, match="cross_attention_dim is 32, the text encoder's is 64"):
        load_parts(copy)


def test_incomplete_weights_are_refused(copy):
    from safetensors.torch import load_file, save_file

    file = next((copy / "unet").glob("*.safetensors"))
    tensors = load_file(file)
    del tensors["conv_in.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"conv_in\.bias"):
        load_parts(copy)


def test_wrong_class_is_named(model, tmp_path):
    folder = save_denoiser(tmp_path, unet_3d())
    with pytest.raises(ValueError, match=r"not an image model: unet/config\.json says UNet3DConditionModel"):
        load_parts(folder, model)


def test_resize_is_the_identity_at_the_same_size_and_keeps_flat_colours():
    images = torch.rand(2, 4, 6, 3)
    assert resize(images, 4, 6) is images
    for size in ((9, 12), (2, 3)):
        torch.testing.assert_close(resize(torch.full((1, 4, 6, 3), 0.3), *size), torch.full((1, *size, 3), 0.3))
