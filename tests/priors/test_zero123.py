import gc
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import EMBEDDING, WIDTH, image_encoder, save_image_model, save_zero123, scheduler
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from dream4d.cameras import Cameras, orbit
from dream4d.distill import encode, sds_loss
from dream4d.priors import graphs
from dream4d.priors.graphs import Recording
from dream4d.priors.parts import load_parts
from dream4d.priors.stable_diffusion import StableDiffusion
from dream4d.priors.zero123 import CLIP_MEAN, CLIP_STD, Zero123, relative_pose

FRONT = orbit(torch.zeros(1), torch.zeros(1), torch.tensor([3.8]), torch.tensor(20.0))
PICTURE = torch.rand(20, 20, 3, generator=torch.Generator().manual_seed(0))


def around(azimuth, elevation, distance=3.8, fov_y=20.0) -> Cameras:
    return orbit(*(torch.tensor(value, dtype=torch.float64).reshape(-1) for value in (
        azimuth, elevation, distance, fov_y
    )))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_zero123(tmp_path_factory.mktemp("zero123"))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def prior(folder):
    return Zero123.load(folder, image=PICTURE, camera=FRONT)


def test_the_same_camera_is_no_change():
    for camera in (FRONT, around(70.0, 40.0, 2.0, 50.0)):
        torch.testing.assert_close(relative_pose(camera, camera), torch.tensor([[0.0, 0, 1, 0]]).to(camera.fov_y))


def test_relative_poses_by_hand():
    """Higher is a smaller polar angle; counter-clockwise seen from above is a positive azimuth."""
    reference = around(30.0, 10.0)
    cameras = around([30.0, 120.0, -60.0, 210.0], [40.0, 10.0, 10.0, -20.0])
    expected = [[-math.pi / 6, 0, 1, 0], [0, 1, 0, 0], [0, -1, 0, 0], [math.pi / 6, 0, -1, 0]]
    torch.testing.assert_close(relative_pose(cameras, reference), torch.tensor(expected, dtype=torch.float64))


def test_poses_do_not_jump_where_azimuth_does():
    pose = relative_pose(around([179.0, -179.0], [0.0, 0.0]), around(178.0, 0.0))
    expected = [[0, math.sin(math.radians(a)), math.cos(math.radians(a)), 0] for a in (1, 3)]
    torch.testing.assert_close(pose, torch.tensor(expected, dtype=torch.float64))


def test_distances_are_those_of_the_lens_it_was_trained_with():
    """35 mm on 32 mm: with it distances are what they are, and a wider lens that shows as much is as far."""
    own = 2 * math.degrees(math.atan(16 / 35))
    far, near = around(0.0, 0.0, 2.0, own), around(0.0, 0.0, 1.5, own)
    assert relative_pose(far, near)[0, 3].item() == pytest.approx(0.5)
    wide = around(0.0, 0.0, 1.5 * (16 / 35) / math.tan(math.radians(30)), 60.0)
    assert relative_pose(wide, near)[0, 3].item() == pytest.approx(0)


def by_hand(folder, prior, cameras):
    """Token and unscaled latents from the raw parts, step by step."""
    pixels = F.interpolate(PICTURE.permute(2, 0, 1)[None], (16, 16), mode="bilinear", antialias=True)
    latents = prior.parts.autoencoder.vae.encode(2 * pixels - 1).latent_dist.mean
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    seen = F.interpolate(pixels, (24, 24), mode="bicubic", align_corners=True)
    seen = torch.stack([(seen[:, i] - CLIP_MEAN[i]) / CLIP_STD[i] for i in range(3)], dim=1)
    clip = encoder(seen).image_embeds[0]
    layer = load_file(folder / "clip_camera_projection" / "diffusion_pytorch_model.safetensors")
    azimuth, elevation = cameras.azimuth.deg2rad(), cameras.elevation.deg2rad()
    tokens = [
        layer["proj.weight"] @ torch.cat([clip, torch.tensor([-e, a.sin(), a.cos(), 0])]) + layer["proj.bias"]
        for a, e in zip(azimuth, elevation, strict=True)
    ]
    return torch.stack(tokens)[:, None], latents


def test_both_predictions_equal_the_network_called_by_hand(folder, prior):
    cameras = orbit(torch.tensor([40.0, 200.0]), torch.tensor([20.0, -5.0]), torch.tensor(3.8), torch.tensor(20.0))
    z, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([100, 700])
    with torch.no_grad():
        tokens, latents = by_hand(folder, prior, cameras)
        seen, blank = (torch.cat([z, x.expand(2, -1, -1, -1)], dim=1) for x in (latents, 0 * latents))
        expected = [prior.parts.unet(blank, t, 0 * tokens).sample, prior.parts.unet(seen, t, tokens).sample]
    predicted = prior.predict_noise(z, t, prior.condition(["", ""], "", cameras))
    for ours, theirs in zip(predicted, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_reference_is_not_scaled_and_rendered_images_are(prior):
    pixels = prior.resize(PICTURE[None])
    scale = prior.parts.autoencoder.vae.config.scaling_factor
    assert scale != 1
    torch.testing.assert_close(prior.reference.latents * scale, prior.encode(pixels))


def test_without_the_reference_neither_picture_nor_camera_matters(folder, prior):
    other = Zero123.load(folder, image=1 - PICTURE, camera=FRONT)
    z, t = torch.randn(1, 4, 8, 8), torch.tensor([400])
    here, there = (p.predict_noise(z, t, p.condition([""], "", c)) for p, c in (
        (prior, FRONT), (other, orbit(torch.tensor([90.0]), torch.zeros(1), torch.tensor(2.0), torch.tensor(20.0)))
    ))
    assert torch.equal(here[0], there[0])
    assert (here[1] - there[1]).abs().max() > 1e-4


def test_guidance_takes_one_call_of_the_network(prior):
    calls = []
    handle = prior.parts.unet.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape))
    prior.predict_noise(torch.zeros(3, 4, 8, 8), torch.tensor([1, 2, 3]), prior.condition([""] * 3, "", around(
        [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]
    )))
    handle.remove()
    assert calls == [(6, 8, 8, 8)]


def test_guidance_in_two_calls_is_the_same(folder, prior):
    split = Zero123.load(folder, image=PICTURE, camera=FRONT)
    split.limit(images=1, split=True)
    calls = []
    split.parts.unet.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape))
    z, t, cameras = torch.randn(2, 4, 8, 8), torch.tensor([5, 600]), around([10.0, 20.0], [0.0, 5.0])
    results = (p.predict_noise(z, t, p.condition(["", ""], "", cameras)) for p in (split, prior))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert calls == [(2, 8, 8, 8)] * 2
    assert split.parts.autoencoder.chunk == 1


def record(function, inputs, pool):
    """Stands in for a CUDA graph."""
    output = function(*inputs).clone()
    return Recording(inputs, output, lambda: output.copy_(function(*inputs)), pool or object())


def test_recorded_calls_are_the_same(folder, prior, monkeypatch):
    monkeypatch.setattr(graphs, "RECORDERS", {"cpu": record})
    recorded = Zero123.load(folder, image=PICTURE, camera=FRONT)
    for turn in (20.0, 120.0):
        z, t, cameras = torch.randn(2, 4, 8, 8), torch.tensor([5, int(turn)]), around([10.0, turn], [0.0, 5.0])
        ours = recorded.predict_noise(z, t, recorded.condition(["", ""], "", cameras))
        condition = prior.condition(["", ""], "", cameras)
        with torch.no_grad():
            theirs = prior.parts.unet(torch.cat([z, condition.latents], dim=1), t, condition.token).sample
        torch.testing.assert_close(ours[1], theirs, rtol=1e-4, atol=1e-5)


def test_sds_reaches_the_pixels(prior):
    images = torch.rand(2, 12, 12, 3, requires_grad=True)
    condition = prior.condition(["", ""], "", around([10.0, 90.0], [0.0, 30.0]))
    generator = torch.Generator().manual_seed(0)
    sds_loss(prior, encode(prior, images), condition, scale=3, timesteps=(0.2, 0.6), generator=generator).backward()
    assert images.grad.isfinite().all()
    assert (images.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_the_other_port_is_the_same_model(prior, tmp_path):
    other = Zero123.load(
        save_zero123(tmp_path, projection="cc_projection", layer="projection"), image=PICTURE, camera=FRONT
    )
    camera = around(50.0, 10.0)
    torch.testing.assert_close(
        other.condition([""], "", camera).token, prior.condition([""], "", camera).token, rtol=0, atol=0
    )


def test_the_projection_may_be_a_pickle_of_tensors(prior, tmp_path):
    """As in the port that has `cc_projection`."""
    folder = save_zero123(tmp_path, projection="cc_projection", layer="projection")
    file = folder / "cc_projection" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    other = Zero123.load(folder, image=PICTURE, camera=FRONT)
    assert torch.equal(other.projection[0], prior.projection[0])


def test_a_pipeline_of_a_class_of_its_own_is_no_obstacle(copy):
    (copy / "model_index.json").write_text('{"_class_name": "Zero123Pipeline", "unet": ["zero123", "Custom"]}')
    Zero123.load(copy, image=PICTURE, camera=FRONT)


def test_the_image_encoder_leaves_memory(prior):
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is CLIPVisionModelWithProjection]


def test_the_autoencoder_is_shared(folder):
    shared = {}
    prior = Zero123.load(folder, image=PICTURE, camera=FRONT, shared=shared)
    assert load_parts(folder, latents=2, text=False, shared=shared).autoencoder is prior.latent_space[0]


def test_weights_in_half_precision_leave_latents_and_poses_whole(folder):
    prior = Zero123.load(folder, image=PICTURE, camera=FRONT, dtype=torch.bfloat16)
    condition = prior.condition([""], "", around(1.0, 0.0))
    assert prior.parts.unet.dtype == torch.bfloat16
    assert condition.token.dtype == condition.latents.dtype == torch.float32
    assert prior.predict_noise(torch.zeros(1, 4, 8, 8), torch.tensor([5]), condition)[1].dtype == torch.float32


def test_models_of_another_kind_are_refused_in_one_line(folder, copy, tmp_path):
    image = save_image_model(tmp_path / "image")
    with pytest.raises(ValueError, match=r"not a zero123 model: .* in_channels 4 for out_channels 4") as error:
        Zero123.load(image, image=PICTURE, camera=FRONT)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"in_channels is 8, an image model has 1 x 4"):
        StableDiffusion.load(folder, image)
    scheduler(prediction_type="v_prediction").save_pretrained(copy / "scheduler")
    with pytest.raises(ValueError, match="its prediction_type is v_prediction"):
        Zero123.load(copy, image=PICTURE, camera=FRONT)


def test_missing_and_foreign_parts_are_named(copy):
    image_encoder(width=16).save_pretrained(copy / "image_encoder")
    with pytest.raises(ValueError, match=rf"projection is .*, {EMBEDDING + 4}\].*, expected .*\[{WIDTH}, 20\]"):
        Zero123.load(copy, image=PICTURE, camera=FRONT)
    shutil.rmtree(copy / "image_encoder")
    with pytest.raises(ValueError, match=r"no image_encoder/config\.json"):
        Zero123.load(copy, image=PICTURE, camera=FRONT)
    shutil.rmtree(copy / "clip_camera_projection")
    with pytest.raises(ValueError, match="no clip_camera_projection or cc_projection in"):
        Zero123.load(copy, image=PICTURE, camera=FRONT)


def test_a_projection_with_more_in_it_is_refused(copy):
    file = copy / "clip_camera_projection" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "norm.scale": torch.ones(3)}, file)
    with pytest.raises(ValueError, match="camera projection is"):
        Zero123.load(copy, image=PICTURE, camera=FRONT)


@pytest.mark.parametrize(("image", "camera"), [(PICTURE[None], FRONT), (PICTURE, around([0.0, 1.0], [0.0, 0.0]))])
def test_one_picture_and_one_camera(folder, image, camera):
    with pytest.raises(ValueError, match=r"expected \[h, w, 3\] and one camera"):
        Zero123.load(folder, image=image, camera=camera)
