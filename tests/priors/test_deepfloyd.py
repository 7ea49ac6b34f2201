import gc
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import T5_WIDTH, save_deepfloyd, save_image_model, scheduler, t5_encoder, unet_pixels
from transformers import T5EncoderModel, T5Tokenizer

from dream4d.cameras import orbit
from dream4d.distill import encode, sds_loss
from dream4d.priors import deepfloyd, graphs
from dream4d.priors.deepfloyd import TOKENS, DeepFloyd, PromptFeatures
from dream4d.priors.graphs import Recording
from dream4d.priors.stable_diffusion import StableDiffusion

CAMERAS = orbit(torch.zeros(2), torch.zeros(2), torch.full((2,), 3.0), torch.tensor(40.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_deepfloyd(tmp_path_factory.mktemp("if"))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def prior(folder):
    return DeepFloyd.load(folder, prompts=["a cat", "a dog", "blurry"])


@pytest.fixture
def encodings(monkeypatch):
    """What T5 was loaded for."""
    calls, real = [], deepfloyd._encode_prompts
    monkeypatch.setattr(deepfloyd, "_encode_prompts", lambda *args: calls.append(list(args[-1])) or real(*args))
    return calls


def test_latents_are_pixels_from_minus_one_to_one(prior):
    images = torch.rand(2, 16, 16, 3)
    latents = prior.encode(images)
    assert latents.shape == (2, 3, 16, 16)
    assert torch.equal(latents[1, 2, 3, 4], 2 * images[1, 3, 4, 2] - 1)
    torch.testing.assert_close(prior.decode(latents), images)
    assert torch.equal(prior.decode(torch.tensor([-3.0, 0, 5]).reshape(1, 3, 1, 1)), torch.tensor([[[[0, 0.5, 1]]]]))


def test_priors_in_pixels_share_them(folder, prior):
    assert DeepFloyd.load(folder).latent_space == prior.latent_space == ("pixels", (16, 16))
    assert DeepFloyd.load(folder, resolution=(32, 32)).latent_space != prior.latent_space


def test_both_predictions_are_the_first_half_of_the_network_called_by_hand(folder, prior):
    """Text as the first stage was trained with it: 77 features, of padding too, which T5 itself does not look at."""
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder")
    z, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([100, 700])
    with torch.no_grad():
        features = {}
        for prompt in ("blurry", "a cat", "a dog"):
            tokens = tokenizer(prompt).input_ids
            padded = torch.tensor([tokens + [0] * (77 - len(tokens))])
            features[prompt] = t5(padded, attention_mask=(torch.arange(77) < len(tokens)).long()[None])[0]
        texts = [torch.cat([features["blurry"]] * 2), torch.cat([features["a cat"], features["a dog"]])]
        whole = [prior.unet(z, t, text).sample for text in texts]
    predicted = prior.predict_noise(z, t, prior.condition(["A cat ", "a dog"], "blurry", CAMERAS))
    for ours, theirs in zip(predicted, whole, strict=True):
        assert theirs.shape == (2, 6, 16, 16)
        torch.testing.assert_close(ours, theirs[:, :3], rtol=1e-4, atol=1e-5)
        assert (ours - theirs[:, 3:]).abs().max() > 0.01


def test_guidance_takes_one_call_of_the_network(prior):
    calls = []
    handle = prior.unet.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape))
    condition = prior.condition(["a cat", "a dog"], "blurry", CAMERAS)
    prior.predict_noise(torch.zeros(2, 3, 16, 16), torch.tensor([1, 2]), condition)
    handle.remove()
    assert calls == [(4, 3, 16, 16)]


def test_guidance_in_two_calls_is_the_same(folder, prior):
    split = DeepFloyd.load(folder)
    split.limit(images=None, split=True)
    calls = []
    split.unet.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape))
    z, t = torch.randn(2, 3, 16, 16), torch.tensor([5, 600])
    results = (p.predict_noise(z, t, p.condition(["a cat", "a dog"], "blurry", CAMERAS)) for p in (split, prior))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert calls == [(2, 3, 16, 16)] * 2


def record(function, inputs, pool):
    """Stands in for a CUDA graph."""
    output = function(*inputs).clone()
    return Recording(inputs, output, lambda: output.copy_(function(*inputs)), pool or object())


def test_recorded_calls_are_the_same(folder, prior, monkeypatch):
    monkeypatch.setattr(graphs, "RECORDERS", {"cpu": record})
    recorded = DeepFloyd.load(folder)
    for prompts in (["a cat", "a dog"], ["a dog", "a cat"]):
        z, t = torch.randn(2, 3, 16, 16), torch.tensor([5, 600])
        ours = recorded.predict_noise(z, t, recorded.condition(prompts, "blurry", CAMERAS))
        with torch.no_grad():
            theirs = prior.unet(z, t, prior.condition(prompts, "blurry", CAMERAS).text).sample[:, :3]
        torch.testing.assert_close(ours[1], theirs, rtol=1e-4, atol=1e-5)


def test_the_noise_schedule_is_the_cosine(prior):
    """Nichol and Dhariwal (2021), eq. 17, as long as its betas are below their cap."""
    def level(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = torch.tensor([level(t + 1) / level(0) for t in range(900)])
    torch.testing.assert_close(prior.alpha_bar[:900], expected, rtol=1e-5, atol=0)
    assert len(prior.alpha_bar) == 1000


def test_sds_reaches_the_pixels(prior):
    images = torch.rand(2, 40, 40, 3, requires_grad=True)
    condition, generator = prior.condition(["a cat"] * 2, "blurry", CAMERAS), torch.Generator().manual_seed(0)
    sds_loss(prior, encode(prior, images), condition, scale=20, timesteps=(0.02, 0.5), generator=generator).backward()
    assert images.grad.isfinite().all()
    assert (images.grad.abs().sum(dim=-1) > 0).all()


def test_a_prompt_is_encoded_once_and_all_of_a_call_together(folder, encodings):
    prior = DeepFloyd.load(folder)
    assert encodings == []
    prior.condition(["a cat", "A cat"], "", CAMERAS)
    prior.text.prepare(["a dog", "a cat"])
    prior.condition(["a dog", "a cat"], "", CAMERAS)
    assert encodings == [["", "a cat"], ["a dog"]]
    DeepFloyd.load(folder, prompts=["a cat, front view", "a cat, back view"])
    assert encodings[2:] == [["a cat, front view", "a cat, back view"]]


def test_the_text_encoder_leaves_memory(prior):
    prior.condition(["a new prompt"] * 2, "blurry", CAMERAS)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is T5EncoderModel]


def test_features_from_a_file_need_no_text_encoder(prior, tmp_path):
    prior.text(["a cat", "", "a dog"])
    prior.text.save(tmp_path / "prompts.safetensors")
    assert load_file(tmp_path / "prompts.safetensors")["a cat"].shape == (TOKENS, T5_WIDTH)
    lone = DeepFloyd.load(save_deepfloyd(tmp_path / "lone", text=False), features=tmp_path / "prompts.safetensors")
    ours, theirs = (p.condition(["a dog", "a cat"], "", CAMERAS) for p in (lone, prior))
    assert torch.equal(ours.text, theirs.text)
    assert torch.equal(ours.negative, theirs.negative)
    with pytest.raises(ValueError, match="no features of the prompt 'a bird'"):
        lone.condition(["a bird"] * 2, "", CAMERAS)


def test_a_file_of_features_spares_the_text_encoder_what_it_has(folder, tmp_path, encodings):
    PromptFeatures({"a cat": torch.zeros(TOKENS, T5_WIDTH)}, None).save(tmp_path / "prompts.safetensors")
    prior = DeepFloyd.load(folder, features=tmp_path / "prompts.safetensors")
    assert prior.condition(["a cat", "a dog"], "a cat", CAMERAS).negative.abs().max() == 0
    assert encodings == [["a dog"]]


def test_neither_text_encoder_nor_file_is_an_error(tmp_path):
    folder = save_deepfloyd(tmp_path / "if", text=False)
    with pytest.raises(ValueError, match=r"no tokenizer/tokenizer_config\.json in .*if"):
        DeepFloyd.load(folder)


def test_wrong_files_of_features_are_refused(folder, tmp_path):
    file = tmp_path / "prompts.safetensors"
    with pytest.raises(ValueError, match="not a safetensors file of prompt features"):
        DeepFloyd.load(folder, features=file)
    file.write_bytes(b"pickle")
    with pytest.raises(ValueError, match="not a safetensors file of prompt features"):
        DeepFloyd.load(folder, features=file)
    save_file({"a cat": torch.zeros(TOKENS, 7)}, file)
    with pytest.raises(ValueError, match=rf"features of 'a cat' are \[77, 7\], expected \[tokens, {T5_WIDTH}\]"):
        DeepFloyd.load(folder, features=file)


def test_sentencepiece_is_asked_for_by_name(copy, monkeypatch):
    """IF's own tokenizer/ has only spiece.model, for which transformers' error speaks of tiktoken."""
    (copy / "tokenizer" / "tokenizer.json").rename(copy / "tokenizer" / "spiece.model")
    monkeypatch.setattr(deepfloyd, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install sentencepiece protobuf"):
        DeepFloyd.load(copy, prompts=["a cat"])


def test_half_precision(folder):
    """What transformers keeps in fp32 of an fp16 T5 is not in the way."""
    prior = DeepFloyd.load(folder, dtype=torch.float16, prompts=["a cat", "blurry"])
    condition = prior.condition(["a cat"] * 2, "blurry", CAMERAS)
    assert prior.unet.dtype == condition.text.dtype == torch.float16
    for noise in prior.predict_noise(prior.encode(torch.rand(2, 16, 16, 3)), torch.tensor([5, 6]), condition):
        assert noise.dtype == torch.float32
        assert noise.isfinite().all()


def test_models_of_another_kind_are_refused_in_one_line(folder, copy, tmp_path):
    image = save_image_model(tmp_path / "image")
    with pytest.raises(ValueError, match=r"not a first stage .* in_channels 4, not 3; out_channels 4, not 6") as error:
        DeepFloyd.load(image)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"no vae/config\.json"):
        StableDiffusion.load(folder)
    scheduler(prediction_type="v_prediction").save_pretrained(copy / "scheduler")
    with pytest.raises(ValueError, match="its prediction_type is v_prediction"):
        DeepFloyd.load(copy)


def test_later_stages_and_other_text_encoders_are_named(copy):
    config = json.loads((copy / "unet" / "config.json").read_text())
    (copy / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 6}))
    with pytest.raises(ValueError, match="a later one, which enlarges images"):
        DeepFloyd.load(copy)
    (copy / "unet" / "config.json").write_text(json.dumps({**config, "encoder_hid_dim": None}))
    with pytest.raises(ValueError, match="no encoder_hid_dim"):
        DeepFloyd.load(copy)
    unet_pixels().save_pretrained(copy / "unet")
    t5_encoder(31, width=8).save_pretrained(copy / "text_encoder")
    with pytest.raises(ValueError, match=f"d_model is 8, the UNet's encoder_hid_dim {T5_WIDTH}"):
        DeepFloyd.load(copy)
