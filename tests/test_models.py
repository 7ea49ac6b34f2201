"""Models by every kind of name in whole jobs: which are found, and that nothing is written where one is not."""

import gc
import shutil
import weakref
from pathlib import Path

import ldm_models as ldm
import pytest
import torch
from huggingface_hub import constants
from tiny_models import save_denoiser, save_image_model, text_encoder, tokenizer, unet_2d, unet_3d

from dream4d import models, recipes
from dream4d.cli import main
from dream4d.presets import merge, preset
from dream4d.priors.errors import ModelError
from dream4d.priors.parts import TextEncoder

COMMIT = "f" * 40


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("DREAM4D_CACHE", str(tmp_path / "dream4d"))


def cached(repo):
    """Where the hub's library has a repository."""
    root = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    return root / "snapshots" / COMMIT


def settings(**priors):
    return merge(preset("builtin"), {
        "device": "cpu", "priors": {**priors, "video_frames": 2}, "scene": {"log2_size": 10, "levels": 2},
        "static": {"steps": 1, "resolution": 8, "samples_per_ray": 8},
    })


class StopError(Exception):
    pass


def priors_of_the_static_stage(monkeypatch, tmp_path, chosen):
    seen = []

    def spy(state, *, image_prior, multiview_prior, **_):
        seen.extend((image_prior, multiview_prior))
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(recipes, "fit_static", spy)
        with pytest.raises(StopError):
            recipes.static_scene("a cat", chosen, tmp_path / "run")
    return seen


def test_an_id_in_the_cache_and_a_checkpoint_guide_a_run(tmp_path, monkeypatch):
    torch.manual_seed(0)
    folder = save_image_model(cached("some/model"))
    words = tokenizer(folder / "tokenizer")
    text_encoder(len(words), width=64).save_pretrained(folder / "text_encoder")
    image = unet_2d()
    save_denoiser(folder, type(image)(**{**image.config, "cross_attention_dim": 64}))
    torch.save(ldm.checkpoint(
        unet=ldm.UNet(widths=(64, 128), context=64, camera="camera_embed"), vae=ldm.Vae(), text=ldm.OpenClipText(60)
    ), tmp_path / "four.pt")
    chosen = settings(image="some/model", multiview=str(tmp_path / "four.pt"))
    image_prior, multiview_prior = priors_of_the_static_stage(monkeypatch, tmp_path, chosen)
    assert image_prior.resolution == (16, 16)
    assert multiview_prior.resolution == (64, 64)


def test_text_encoders_are_gone_before_the_first_step(tmp_path, monkeypatch):
    save_image_model(tmp_path / "image")
    save_denoiser(tmp_path / "multiview", unet_2d(multiview=True))
    loaded = []
    plain = TextEncoder.__init__

    def watched(self, tokenizer, load):
        plain(self, tokenizer, load)
        loaded.append(weakref.ref(self.model))

    monkeypatch.setattr(TextEncoder, "__init__", watched)
    chosen = settings(image=str(tmp_path / "image"), multiview=str(tmp_path / "multiview"))
    priors = priors_of_the_static_stage(monkeypatch, tmp_path, chosen)
    gc.collect()
    assert [encoder() for encoder in loaded] == [None]  # one, which both share
    for prior in priors:
        prior.parts.text(["a cat", "a cat, back view", "a cat, overhead view", chosen.negative])
        assert prior.parts.text._model is None


@pytest.mark.parametrize(("priors", "message"), [
    ({"image": "stabilityai/stable-diffusion-2-1-base"}, "image stabilityai/.* dream4d models fetch stable-d"),
    ({"multiview": "mvdream"}, r"--priors\.multiview mvdream: .* dream4d models fetch mvdream"),
    ({"image": "none", "base": "who/ever"}, "who/ever: there is no such folder, and the cache"),
    ({"video": "{tmp}/broken"}, r"broken/unet/.*safetensors is damaged or incomplete .*delete it and get it again"),
    ({"video": "{tmp}/video.ckpt"}, r"video\.ckpt is incomplete: delete it and get it again"),
    ({"video": "{tmp}/image"}, r"priors\.video .*this is not a text-to-video model: .*has _class_name"),
    ({"image": "{tmp}/multiview"}, r"--priors\.image .*this is not an image model: .*class_embed_type projection"),
    ({"image": "{tmp}"}, r"no model in diffusers layout \(no unet/config\.json\)"),
])
def test_nothing_is_written_where_a_model_is_missing(tmp_path, priors, message):
    save_denoiser(tmp_path / "image", unet_2d())
    save_denoiser(tmp_path / "multiview", unet_2d(multiview=True))
    save_denoiser(tmp_path / "video", unet_3d())
    file = next((save_denoiser(tmp_path / "broken", unet_3d()) / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    (tmp_path / "video.ckpt").write_bytes(b"PK\x03\x04 and then nothing")
    named = {"image": "{tmp}/image", "multiview": "{tmp}/multiview", "video": "{tmp}/video"} | priors
    chosen = settings(**{name: value.replace("{tmp}", str(tmp_path)) for name, value in named.items()})
    with pytest.raises(ModelError, match=message) as error:
        recipes.text_to_4d("a cat", chosen, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_paper_preset_tells_what_to_fetch(tmp_path, capsys):
    argv = ["generate", "a cat", "--preset", "paper", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --priors.image stable-diffusion: ")
    assert "dream4d models fetch stable-diffusion" in error
    assert not (tmp_path / "run").exists()


def test_the_listing_measures_what_is_here(tmp_path):
    assert "stable-diffusion image        2.6" in models.listing()
    folder = save_image_model(cached("Manojb/stable-diffusion-2-1-base"))
    (folder / "large.safetensors").write_bytes(b"0" * 200_000_000)
    assert "stable-diffusion image        0.2" in models.listing()
    assert str(folder) in models.listing()
    shutil.rmtree(folder / "vae")
    (folder / "vae").mkdir()
    assert str(folder) not in models.listing()
