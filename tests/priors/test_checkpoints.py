"""Original checkpoints become folders in diffusers layout that compute what the original networks compute."""

import json
import os
import pickle
import zipfile

import ldm_models as ldm
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_models import save_image_model, tokenizer
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from dream4d.cameras import orbit
from dream4d.priors import ldm as names
from dream4d.priors.checkpoints import converted
from dream4d.priors.errors import ModelError
from dream4d.priors.mvdream import MVDream
from dream4d.priors.parts import load_parts

WIDTHS, TEXT = (64, 128), 64
X, TIMESTEP = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 250, 700, 999])
CONTEXT, CAMERA = (torch.randn(4, *shape, generator=torch.Generator().manual_seed(2)) for shape in ((8, TEXT), (16,)))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAM4D_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "converted"


def unet(seed=0, **changes):
    torch.manual_seed(seed)
    return ldm.UNet(**{"widths": WIDTHS, "context": TEXT, **changes}).eval()


def close(ours, theirs):
    """fp32 rounding, of sums in another order."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def every_value_once(folder, module):
    """The file's tensors are the module's, value for value; those of attention are cut in three or lose axes of 1."""
    ours = torch.cat([value.flatten() for file in folder.glob("*.safetensors") for value in load_file(file).values()])
    theirs = torch.cat([value.flatten() for value in module.parameters()])
    assert ours.sort().values.equal(theirs.sort().values)


@pytest.fixture
def stable_diffusion():
    torch.manual_seed(5)
    return {"unet": unet(), "vae": ldm.Vae().eval(), "text": ldm.OpenClipText(vocabulary=60).eval()}


@torch.no_grad()
def test_stable_diffusion_computes_what_the_original_computes(stable_diffusion, tmp_path):
    file = tmp_path / "v2-1_512-ema-pruned.ckpt"
    torch.save({"state_dict": ldm.checkpoint(**stable_diffusion), "global_step": 3}, file)
    folder = converted(file)
    network, vae, text = stable_diffusion.values()
    every_value_once(folder / "unet", network)
    every_value_once(folder / "vae", vae)
    ours = UNet2DConditionModel.from_pretrained(folder / "unet")
    close(ours(X, TIMESTEP, CONTEXT).sample, network(X, TIMESTEP, CONTEXT))
    autoencoder = AutoencoderKL.from_pretrained(folder / "vae")
    images = torch.randn(2, 3, 16, 16)
    close(autoencoder.encode(images).latent_dist.mode(), vae.encode(images))
    close(autoencoder.decode(X).sample, vae.decode(X))
    tokens = torch.tensor([[58, 3, 4, 59, 59, 59, 59, 59]])
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    assert encoder.config.num_hidden_layers == 2
    close(encoder(tokens).last_hidden_state, text(tokens))


@torch.no_grad()
@pytest.mark.parametrize("camera", ["camera_embed", "label_emb"])
def test_mvdream_takes_its_camera(stable_diffusion, tmp_path, camera):
    network = unet(camera=camera)
    file = tmp_path / "sd-v2.1-base-4view.pt"
    torch.save(ldm.checkpoint(**stable_diffusion | {"unet": network}), file)
    folder = converted(file)
    ours = UNet2DConditionModel.from_pretrained(folder / "unet")
    close(ours(X, TIMESTEP, CONTEXT, class_labels=CAMERA).sample, network(X, TIMESTEP, CONTEXT, CAMERA))
    tokenizer(tmp_path / "base" / "tokenizer").save_pretrained(tmp_path / "base" / "tokenizer")
    prior = MVDream.load(folder, tmp_path / "base")
    assert prior.resolution == (64, 64)  # 32 latents, which this autoencoder halves once
    cameras = orbit(torch.arange(4) * 90.0, torch.zeros(4), torch.full((4,), 2.0), torch.tensor(40.0))
    assert prior.condition(["a cat"] * 4, "", cameras).camera.shape == (4, 16)


def zero123(tmp_path, **more):
    """As it is: under state_dict, with averages, CLIP's leftovers, and what Lightning pickles beside it."""
    torch.manual_seed(7)
    modules = {"unet": unet(channels=8, context=32, linear=False), "vae": ldm.Vae().eval(),
               "vision": ldm.ClipVision().eval()}
    state = ldm.checkpoint(**modules) | ldm.averages(modules["unet"])
    state |= {"cond_stage_model.model.logit_scale": torch.ones([]), "cond_stage_model.model.ln_final.weight": X[0, 0],
              "cc_projection.weight": torch.randn(32, 36), "cc_projection.bias": torch.randn(32)}
    file = tmp_path / "zero123-xl.ckpt"
    torch.save({"epoch": 1, "state_dict": state, "loops": {"a": [1, None]}, **more}, file)
    return modules, state, file


@torch.no_grad()
def test_zero123_computes_what_the_original_computes(tmp_path):
    modules, state, file = zero123(tmp_path)
    folder = converted(file)
    ours = UNet2DConditionModel.from_pretrained(folder / "unet")
    assert ours.config.sample_size == 32
    network = modules["unet"]
    network.load_state_dict({name: 0.5 * value + 0.01 for name, value in network.state_dict().items()})  # the averages
    x, context = torch.cat([X, X.flip(0)], dim=1), CONTEXT[..., :32]
    close(ours(x, TIMESTEP, context).sample, network(x, TIMESTEP, context))
    vision = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    images = torch.randn(2, 3, 12, 12)
    close(vision(images).image_embeds, modules["vision"](images))
    projection = load_file(folder / "clip_camera_projection" / "diffusion_pytorch_model.safetensors")
    assert projection["proj.weight"].equal(state["cc_projection.weight"])
    assert projection["proj.bias"].equal(state["cc_projection.bias"])
    parts = load_parts(folder, text=False, latents=2)
    assert parts.resolution == (64, 64)


def test_sizes_of_the_real_models():
    """Without values: what the shapes of Stable Diffusion 2.1, OpenCLIP-H, CLIP ViT-L/14 and Zero-1-to-3 tell."""
    widths = (320, 640, 1280, 1280)
    with torch.device("meta"):
        mvdream = ldm.UNet(widths=widths, context=1024, camera="camera_embed").state_dict()
        zero = ldm.UNet(widths=widths, context=768, channels=8, linear=False).state_dict()
        text = ldm.OpenClipText(49408, width=1024, layers=24, tokens=77, inner=4).state_dict()
        vision = ldm.ClipVision(width=1024, layers=24, patch=14, side=16, out=768, inner=4).state_dict()
        vae = ldm.Vae(widths=(128, 256, 512, 512)).state_dict()
    unet = names.unet(mvdream)
    assert {key: unet.config[key] for key in (
        "block_out_channels", "layers_per_block", "attention_head_dim", "cross_attention_dim", "use_linear_projection",
        "class_embed_type", "projection_class_embeddings_input_dim", "in_channels", "out_channels", "sample_size",
    )} == {
        "block_out_channels": list(widths), "layers_per_block": 2, "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024, "use_linear_projection": True, "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 16, "in_channels": 4, "out_channels": 4, "sample_size": 32,
    }
    assert unet.config["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert round(sum(value.numel() for value in unet.tensors.values()) / 1e6) == 868  # 865.9 and the camera's
    zero123 = names.unet(zero).config
    assert (zero123["in_channels"], zero123["cross_attention_dim"], zero123["attention_head_dim"]) == (8, 768, 8)
    assert zero123["use_linear_projection"] is False
    assert names.vae(vae).config["block_out_channels"] == [128, 256, 512, 512]
    encoder = names.text_encoder({f"model.{name}": value for name, value in text.items()}).config
    assert (encoder["num_hidden_layers"], encoder["hidden_size"], encoder["num_attention_heads"]) == (23, 1024, 16)
    assert (encoder["intermediate_size"], encoder["max_position_embeddings"]) == (4096, 77)
    image = names.image_encoder({f"model.visual.{name}": value for name, value in vision.items()}).config
    assert (image["num_hidden_layers"], image["image_size"], image["patch_size"]) == (24, 224, 14)
    assert (image["num_attention_heads"], image["projection_dim"], image["intermediate_size"]) == (16, 768, 4096)


class Callback:
    """Of a training program: it would show that it was made."""

    made = 0

    def __init__(self):
        Callback.made += 1
        self.value = [1]

    def __reduce__(self):
        return Callback, (), {"value": [1]}


def test_objects_beside_the_weights_are_neither_made_nor_imported(tmp_path):
    _, _, file = zero123(tmp_path, callbacks={Callback: Callback(), "b": [Callback()]}, path=os.path.join)
    Callback.made = 0
    assert (converted(file) / "unet").is_dir()
    assert Callback.made == 0


class Attack:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "b": Attack()}, tmp_path / "a.ckpt")
    with pytest.raises(ModelError, match=r"a\.ckpt: .*refuses it .*safetensors") as error:
        converted(tmp_path / "a.ckpt")
    assert error.value.problem == "unsafe"
    assert not (tmp_path / "pwned").exists()
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ModelError):
        converted(tmp_path / "b.ckpt")
    assert not (tmp_path / "pwned").exists()


def test_conversion_is_done_once_and_again_for_a_changed_file(stable_diffusion, tmp_path, cache):
    file = tmp_path / "sd.safetensors"
    state = {name: value.contiguous() for name, value in ldm.checkpoint(**stable_diffusion).items()}
    save_file(state, file)
    first = converted(file)
    stamp = (first / "unet" / "config.json").stat().st_mtime_ns
    assert converted(file) == first
    assert (first / "unet" / "config.json").stat().st_mtime_ns == stamp
    save_file(state | {"model_ema.decay": torch.ones(1)}, file)
    assert converted(file) != first
    assert len(list(cache.iterdir())) == 2  # and nothing half done


@pytest.mark.parametrize(("change", "message"), [
    (lambda state: state.pop("first_stage_model.quant_conv.bias"), r"no vae can be made of it.*quant_conv\.bias"),
    (lambda state: state.update({"model.diffusion_model.extra.weight": X}), r"unet has 1 tensors more.*extra\.weight"),
    (lambda state: state.update({"model.diffusion_model.out.2.bias": X}), r"out\.2\.bias is \[4, 4, 8, 8\]"),
    (lambda state: [state.pop(name) for name in list(state) if name.startswith("model.")], "no unet can be made"),
])
def test_another_model_is_named(stable_diffusion, tmp_path, cache, change, message):
    state = ldm.checkpoint(**stable_diffusion)
    change(state)
    torch.save(state, tmp_path / "sd.pt")
    with pytest.raises(ModelError, match=message) as error:
        converted(tmp_path / "sd.pt")
    assert error.value.problem == "wrong"
    assert list(cache.iterdir()) == []


def test_files_that_are_not_checkpoints(stable_diffusion, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ModelError, match="expected a folder in diffusers layout, or a checkpoint"):
        converted(tmp_path / "a.txt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        converted(tmp_path / "list.pt")
    torch.save(ldm.checkpoint(**stable_diffusion), tmp_path / "v2-1_768-ema.ckpt")
    with pytest.raises(ModelError, match="768-pixel model predicts v"):
        converted(tmp_path / "v2-1_768-ema.ckpt")


@pytest.mark.parametrize("name", ["sd.pt", "sd.safetensors"])
def test_truncated_files(stable_diffusion, tmp_path, name):
    file, state = tmp_path / name, ldm.checkpoint(**stable_diffusion)
    torch.save(state, file) if name.endswith("pt") else save_file(state, file)
    whole = file.read_bytes()
    for length in (len(whole) - 100, len(whole) // 2, 20):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=rf"{name} .*get it again") as error:
            converted(file)
        assert error.value.problem == "corrupt"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        converted(file)


def test_a_pickle_of_before_zip_is_read(stable_diffusion, tmp_path):
    file = tmp_path / "old.pt"
    torch.save(ldm.checkpoint(**stable_diffusion), file, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(file)
    every_value_once(converted(file) / "unet", stable_diffusion["unet"])


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "unet."])
def test_a_port_with_the_originals_names(tmp_path, prefix):
    """ashawkey/mvdream-sd2.1-diffusers and its like: a custom class in unet/, everything else plain."""
    network, folder = unet(camera="camera_embed"), save_image_model(tmp_path / "port")
    for file in (folder / "unet").iterdir():
        file.unlink()
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "MultiViewUNetModel"}))
    save_file({prefix + name: value for name, value in network.state_dict().items()},
              folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    ours = converted(folder)
    close(UNet2DConditionModel.from_pretrained(ours / "unet")(X, TIMESTEP, CONTEXT, class_labels=CAMERA).sample,
          network(X, TIMESTEP, CONTEXT, CAMERA))
    assert load_file(ours / "vae" / "diffusion_pytorch_model.safetensors").keys()
    assert (ours / "tokenizer" / "tokenizer_config.json").is_file()


@torch.no_grad()
def test_a_port_with_its_camera_apart(tmp_path):
    """lzq49/mvdream-sd21-diffusers: a plain UNet, and camera_proj/ with the two layers of the embedding."""
    from tiny_models import unet_2d

    whole, folder = unet_2d(multiview=True), save_image_model(tmp_path / "port")
    (folder / "camera_proj").mkdir()
    state = whole.state_dict()
    (folder / "camera_proj" / "config.json").write_text('{"_class_name": "CameraMatrixEmbedding", "in_channels": 16}')
    camera = {name: state.pop(name) for name in list(state) if name.startswith("class_embedding.")}
    save_file({name.removeprefix("class_embedding."): value for name, value in camera.items()},
              folder / "camera_proj" / "diffusion_pytorch_model.safetensors")
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    prior = MVDream.load(converted(folder))
    ours = prior.parts.unet.state_dict()
    assert all(ours[name].equal(value) for name, value in whole.state_dict().items())


def test_a_plain_folder_is_itself(tmp_path):
    folder = save_image_model(tmp_path)
    assert converted(folder) == folder
