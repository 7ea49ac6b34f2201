"""Weights in every form that folders have them in, and what is said of broken ones."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_image_model, unet_2d
from transformers import CLIPTextModel

from dream4d.priors.errors import ModelError
from dream4d.priors.parts import load_parts
from dream4d.priors.weights import choose_weights, find_weights, load_module, read_folder, tensor_names

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "pytorch_model"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_image_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "copy")


def to_pickles(folder, suffix="bin", dtype=torch.float32):
    for part, stem in PARTS.items():
        file = next((folder / part).glob("*.safetensors"))
        tensors = {name: value.to(dtype) for name, value in load_file(file).items()}
        torch.save(tensors, folder / part / f"{stem}.{suffix}")
        file.unlink()


def outputs(parts):
    text = parts.condition(["a cat"], "").text
    with torch.no_grad():
        latents = parts.autoencoder.encode(torch.full((1, 16, 16, 3), 0.4))
        return text, latents, parts.unet(latents, 300, text).sample


def test_bin_files_load_as_tensors(model, copy):
    to_pickles(copy)
    for ours, expected in zip(outputs(load_parts(copy)), outputs(load_parts(model)), strict=True):
        assert ours.equal(expected)


def test_fp16_variants_of_bin_files(model, copy):
    to_pickles(copy, "fp16.bin", torch.float16)
    state = load_parts(model, dtype=torch.float16).unet.state_dict()
    for dtype in (torch.float16, torch.float32):
        ours = load_parts(copy, dtype=dtype).unet.state_dict()
        assert all(ours[name].equal(value.to(dtype)) for name, value in state.items())


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_weights(model, tmp_path, safe, variant):
    unet_2d().save_pretrained(
        tmp_path / "unet", max_shard_size="60KB", safe_serialization=safe, variant=variant
    )
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(model / part, tmp_path / part)
    assert len(find_weights(tmp_path / "unet").names) > 1
    ours, expected = load_parts(tmp_path).unet.state_dict(), load_parts(model).unet.state_dict()
    assert all(ours[name].equal(value) for name, value in expected.items())
    shard = tmp_path / "unet" / find_weights(tmp_path / "unet").names[0]
    shard.unlink()
    with pytest.raises(ModelError, match=r"shards of its weights: get the others") as error:
        load_parts(tmp_path)
    assert error.value.problem == "corrupt"


def test_a_sharded_text_encoder(model, tmp_path):
    encoder = CLIPTextModel.from_pretrained(model / "text_encoder")
    encoder.save_pretrained(tmp_path, max_shard_size="10KB")
    ours = load_module(CLIPTextModel, tmp_path, "cpu", torch.float32).state_dict()
    assert all(ours[name].equal(value) for name, value in encoder.state_dict().items())
    assert sorted(tensor_names(tmp_path)) == sorted(read_folder(tmp_path))


@pytest.mark.parametrize(("names", "half", "expected"), [
    (["a.bin", "model.safetensors", "pytorch_model.bin"], False, (["model.safetensors"], None)),
    (["model.fp16.safetensors", "pytorch_model.bin"], False, (["model.fp16.safetensors"], "fp16")),
    (["model.fp16.safetensors", "model.safetensors"], False, (["model.safetensors"], None)),
    (["model.fp16.safetensors", "model.safetensors"], True, (["model.fp16.safetensors"], "fp16")),
    (["pytorch_model.bin", "pytorch_model.fp16.bin"], True, (["pytorch_model.fp16.bin"], "fp16")),
    (["diffusion_pytorch_model.non_ema.safetensors"], False, None),
    ([], True, None),
])
def test_safetensors_come_first_then_the_precision(names, half, expected):
    weights = choose_weights(names, half=half)
    assert expected == (weights and (list(weights.names), weights.variant))


class Attack:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_the_names_that_weights_have_on_the_hub(model, copy):
    """Autoencoders from before diffusers renamed attention; text encoders with a prefix and a buffer of positions."""
    attention = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for new, old in attention.items():
        tensors = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): v for name, v in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    file = copy / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
    save_file(tensors | {"text_model.embeddings.position_ids": torch.arange(8)[None]}, file, metadata={"format": "pt"})
    for ours, expected in zip(outputs(load_parts(copy)), outputs(load_parts(model)), strict=True):
        assert ours.equal(expected)


def test_code_in_a_bin_file_is_refused_and_not_run(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    to_pickles(copy)
    torch.save(unet_2d().state_dict() | {"extra": Attack()}, copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"\.bin is a pickle that asks for posix\.system.*safetensors") as error:
        load_parts(copy)
    assert error.value.problem == "unsafe"
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_truncated_weights(copy, kind):
    if kind == "bin":
        to_pickles(copy)
    file = next((copy / "unet").glob(f"*.{kind}"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=rf"{file.name} is .*incomplete.*delete it and get it again") as error:
        load_parts(copy)
    assert error.value.problem == "corrupt"


def test_a_pointer_of_git_lfs(copy):
    file = next((copy / "vae").glob("*.safetensors"))
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(ModelError, match="is a git-lfs pointer"):
        load_parts(copy)


def test_no_weights(copy):
    next((copy / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match=r"unet has no \.safetensors or \.bin weights") as error:
        load_parts(copy)
    assert error.value.problem == "absent"


def test_weights_of_another_size(copy, tmp_path):
    config = copy / "unet" / "config.json"
    config.write_text(config.read_text().replace("16,\n", "24,\n", 1))
    with pytest.raises(ModelError, match=r"weights and config\.json cannot be loaded"):
        load_parts(copy)
