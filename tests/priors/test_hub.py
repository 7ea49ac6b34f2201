"""Names of models become folders; the network is a server of ours on 127.0.0.1."""

import json
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_hub import COMMIT, serving
from huggingface_hub import constants
from tiny_models import save_denoiser, save_image_model, unet_2d, unet_3d

from dream4d import models
from dream4d.cli import main
from dream4d.priors import catalogue
from dream4d.priors.catalogue import MODELS, Model, Source, find_model
from dream4d.priors.download import choose_files
from dream4d.priors.errors import ModelError
from dream4d.priors.hub import check_model, fetch, locate, resolve
from dream4d.priors.parts import load_parts
from dream4d.priors.stable_diffusion import StableDiffusion

TINY = Model(
    "tiny", "Tiny", "image", (Source("a/gone"), Source("b/closed"), Source("c/mirror")), "CC0", "https://example.org",
    0.1, {"unet/config.json": {"_class_name": "UNet2DConditionModel", "block_out_channels": [16, 32]},
          "scheduler/scheduler_config.json": {"beta_end": 0.012}},
)


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    return save_image_model(tmp_path_factory.mktemp("image"))


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine of its own: empty caches, offline until a test says otherwise."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("DREAM4D_CACHE", str(tmp_path / "dream4d"))
    monkeypatch.setattr(catalogue, "MODELS", (*MODELS, TINY))
    monkeypatch.setattr(models, "MODELS", (*MODELS, TINY))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch):
    with serving() as hub:
        online(monkeypatch, hub.endpoint)
        yield hub


def online(monkeypatch, endpoint):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


def in_cache(repo, source, revision="main"):
    """A repository as the hub's library keeps it."""
    root = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / revision).write_text(COMMIT)
    shutil.copytree(source, root / "snapshots" / COMMIT)
    return root / "snapshots" / COMMIT


def problem(error):
    """One line that says what it is; returns which."""
    assert "\n" not in str(error.value)
    return error.value.problem


def test_a_local_folder_comes_first(image_model, tmp_path):
    assert resolve(str(image_model), "image") == image_model
    shutil.copytree(image_model, tmp_path / "c" / "mirror")
    assert resolve("c/mirror") == Path("c/mirror")


@pytest.mark.parametrize("name", ["c/mirror", "a/gone", "tiny", f"c/mirror@{COMMIT}"])
def test_what_is_in_the_cache_is_found_by_every_name(image_model, name):
    folder = in_cache("c/mirror", image_model)
    assert resolve(name, "image") == folder
    prior = StableDiffusion.load(resolve(name))
    assert prior.resolution == (16, 16)


def test_an_id_that_is_not_in_the_catalogue(image_model):
    folder = in_cache("someone/else", image_model)
    assert resolve("someone/else", "image") == folder


@pytest.mark.parametrize(("name", "message"), [
    ("stabilityai/stable-diffusion-2-1-base", "does not have that model; get it with dream4d models fetch stable-diff"),
    ("zeroscope", "dream4d models fetch zeroscope, or name the folder"),
    ("some/one@v2", "dream4d models fetch some/one@v2, or name the folder"),
    ("models/sd21", "there is no such folder, and the cache .* does not have that model"),
    ("/nowhere/at/all", "there is no such folder or file; name a folder in diffusers layout, or one of stable-diff"),
])
def test_what_is_not_here(name, message):
    start = time.monotonic()
    with pytest.raises(ModelError, match=message) as error:
        resolve(name)
    assert problem(error) == "absent"
    assert time.monotonic() - start < 2


def test_half_a_download_is_not_there(image_model):
    folder = in_cache("c/mirror", image_model)
    next((folder / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(ModelError) as error:
        resolve("c/mirror")
    assert problem(error) == "absent"


@pytest.mark.parametrize(("role", "message"), [
    ("multiview", "this is not a multi-view model: unet/config.json has class_embed_type None, expected projection"),
    ("video", "not a text-to-video model: unet/config.json has _class_name UNet2DConditionModel, expected UNet3D"),
])
def test_a_model_for_something_else(image_model, role, message):
    with pytest.raises(ModelError, match=message) as error:
        resolve(str(image_model), role)
    assert problem(error) == "wrong"


def test_roles_of_the_tiny_models(tmp_path):
    for role, unet in {"multiview": unet_2d(multiview=True), "video": unet_3d()}.items():
        folder = save_denoiser(tmp_path / role, unet)
        assert resolve(str(folder), role) == folder
        with pytest.raises(ModelError, match="this is not an image model"):
            resolve(str(folder), "image")


def test_another_model_under_a_known_name(image_model):
    in_cache("cerspense/zeroscope_v2_576w", image_model)
    with pytest.raises(ModelError, match=r"not Zeroscope v2 576w: unet/config\.json has _class_name UNet2D") as error:
        resolve("zeroscope")
    assert problem(error) == "wrong"


def test_values_of_the_scheduler_are_checked(tmp_path):
    with pytest.raises(ModelError, match=r"not Tiny: scheduler/scheduler_config\.json has beta_end 0\.02, expected 0"):
        check_model(save_image_model(tmp_path / "other", beta_end=0.02), TINY)


def test_fetch_goes_from_mirror_to_mirror(hub, image_model, capfd):
    hub.repos = {"b/closed": image_model, "c/mirror": image_model}
    hub.gated = {"b/closed"}
    folder = fetch("tiny")
    said = capfd.readouterr()
    assert "a/gone was removed from the hub, renamed or made private" in said.out
    assert "b/closed is gated: accept its licence at https://huggingface.co/b/closed" in said.out
    assert "100%" in said.err
    assert resolve("tiny") == folder
    assert load_parts(folder).text is not None
    asked = len(hub.asked)
    assert locate("tiny") == folder
    assert len(hub.asked) == asked


def test_a_stopped_download_goes_on(hub, image_model):
    hub.repos = {"c/mirror": image_model}
    file = next((fetch("c/mirror") / "vae").glob("*.safetensors"))
    file.unlink()
    assert locate("c/mirror") is None
    hub.asked.clear()
    fetch("c/mirror")
    assert file.is_file()
    assert fetch("c/mirror") == locate("c/mirror")
    assert sum(path.startswith("api/") for path in hub.asked) == 1


@pytest.mark.parametrize(("name", "kind", "message"), [
    ("x/gone", "removed", "x/gone was removed from the hub.*to log in would not help.*name a local folder"),
    ("x/closed", "gated", "x/closed is gated: accept its licence at https://huggingface.co/x/closed, make a token"),
    ("c/mirror@v9", "removed", "c/mirror has no revision v9"),
    ("x/empty", "wrong", r"x/empty has no unet/config\.json: it is another kind of model"),
])
def test_what_the_hub_refuses(hub, image_model, tmp_path, name, kind, message):
    (tmp_path / "empty").mkdir()
    hub.repos = {"x/closed": image_model, "c/mirror": image_model, "x/empty": tmp_path / "empty"}
    hub.gated = {"x/closed"}
    with pytest.raises(ModelError, match=message) as error:
        fetch(name)
    assert problem(error) == kind


@pytest.mark.parametrize(("status", "kind", "message"), [
    (401, "gated", "refuses your token"), (403, "gated", "is gated"), (503, "offline", "answers 503"),
])
def test_other_answers(hub, status, kind, message):
    hub.status = status
    with pytest.raises(ModelError, match=message) as error:
        fetch("c/mirror")
    assert problem(error) == kind


def test_without_a_network(monkeypatch):
    with pytest.raises(ModelError, match="cannot be fetched offline: HF_HUB_OFFLINE is set") as error:
        fetch("c/mirror")
    assert problem(error) == "offline"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    online(monkeypatch, closed)
    start = time.monotonic()
    with pytest.raises(ModelError, match=rf"{closed} cannot be reached; .*HF_ENDPOINT") as error:
        fetch("tiny")
    assert problem(error) == "offline"
    assert time.monotonic() - start < 10


def test_a_broken_download_is_not_kept(hub, image_model):
    hub.repos = {"c/mirror": image_model}
    weights = next((image_model / "unet").glob("*.safetensors"))
    hub.bodies = {f"unet/{weights.name}": weights.read_bytes()[:-50]}
    with pytest.raises(ModelError) as error:
        fetch("c/mirror")
    assert problem(error) == "corrupt"
    hub.bodies = {}
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert fetch("c/mirror").is_dir()


def test_no_room(hub, image_model, monkeypatch):
    hub.repos = {"c/mirror": image_model}
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(ValueError, match=r"c/mirror needs .* GB left: make room, or set HF_HOME"):
        fetch("c/mirror")


def test_a_checkpoint_of_the_hub_is_converted(hub, image_model, tmp_path, monkeypatch):
    import ldm_models as ldm

    torch.manual_seed(0)
    (tmp_path / "repo").mkdir()
    torch.save(ldm.checkpoint(
        unet=ldm.UNet(widths=(64, 128), context=64, camera="camera_embed"), vae=ldm.Vae(), text=ldm.OpenClipText(60)
    ), tmp_path / "repo" / "four.pt")
    (tmp_path / "repo" / "large.bin").write_bytes(b"0" * 100)
    model = replace(TINY, name="views", sources=(Source("d/views", "four.pt"),), role="multiview",
                    parts=("unet", "vae", "text_encoder", "scheduler"),
                    values={"unet/config.json": {"block_out_channels": [64, 128], "cross_attention_dim": 64}})
    monkeypatch.setattr(catalogue, "MODELS", (model,))
    hub.repos = {"d/views": tmp_path / "repo"}
    folder = fetch("views")
    assert folder.is_relative_to(tmp_path / "dream4d")
    assert resolve("d/views", "multiview") == folder
    assert not any("large.bin" in path for path in hub.asked)


def test_only_what_is_needed_is_chosen():
    names = [
        "README.md", "model_index.json", "v2-1_512-ema-pruned.ckpt", "safety_checker/model.safetensors",
        "unet/config.json", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.bin",
        "text_encoder/config.json", "text_encoder/pytorch_model.bin.index.json",
        "text_encoder/model.safetensors.index.json", "text_encoder/model.safetensors.index.fp16.json",
        *(f"text_encoder/model-0000{i}-of-00002.safetensors" for i in (1, 2)),
        *(f"text_encoder/model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)),
        "tokenizer/merges.txt", "tokenizer/vocab.json", "tokenizer/spiece.model", "scheduler/scheduler_config.json",
    ]
    common = {
        "unet/config.json", "vae/config.json", "vae/diffusion_pytorch_model.bin", "text_encoder/config.json",
        "tokenizer/merges.txt", "tokenizer/vocab.json", "tokenizer/spiece.model", "scheduler/scheduler_config.json",
    }
    assert set(choose_files(names, half=True)) == common | {
        "unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors.index.fp16.json",
        "text_encoder/model.fp16-00001-of-00002.safetensors", "text_encoder/model.fp16-00002-of-00002.safetensors",
    }
    assert set(choose_files(names, half=False)) == common | {
        "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors.index.json",
        "text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors",
    }


def test_the_catalogue_knows_its_models():
    assert len({model.name for model in MODELS}) == len(MODELS)
    ids = [source.id for model in MODELS for source in model.sources]
    assert len(set(ids)) == len(ids)
    assert find_model("vdo/zeroscope_v2_576w").name == "zeroscope"
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    for model in MODELS:
        assert model.name in page
        assert model.licence in page
        assert all(source.id in page for source in model.sources)


def test_the_command_lists_and_fetches(hub, image_model, capsys):
    hub.repos = {"c/mirror": image_model}
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    for model in MODELS:
        assert model.name in listed
        assert model.licence in listed
    assert "a/gone or b/closed or c/mirror" in listed
    assert "preset builtin" in listed
    assert hub.asked == []
    assert main(["models", "fetch", "tiny"]) == 0
    assert "tiny is in " in capsys.readouterr().out
    assert main(["models", "list"]) == 0
    assert constants.HF_HUB_CACHE in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "message"), [
    (["fetch"], "say which models to fetch: stable-diffusion"),
    (["fetch", "zeroskope"], "there is no model 'zeroskope'; did you mean zeroscope?"),
    (["fetch", "x/gone"], "x/gone was removed from the hub"),
    (["get", "tiny"], "invalid choice 'get'"),
])
def test_the_command_refuses_in_one_line(hub, capsys, argv, message):
    assert main(["models", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_json_that_is_none(image_model, tmp_path):
    folder = shutil.copytree(image_model, tmp_path / "broken")
    (folder / "unet" / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ModelError, match=r"config\.json is not a JSON object") as error:
        resolve(str(folder), "image")
    assert problem(error) == "corrupt"
