import pytest
import torch
from tiny_models import save_denoiser, save_image_model, unet_2d

from dream4d.cameras import orbit
from dream4d.priors.mvdream import MVDream, camera_embedding, multiview_attention


def test_camera_embedding_is_the_pose_at_unit_distance():
    cameras = orbit(torch.tensor([0.0, 90.0]), torch.tensor([0.0, 30.0]), torch.tensor([3.0, 5.0]), torch.tensor(40.0))
    embedding = camera_embedding(cameras)
    pose = embedding.reshape(2, 4, 4)
    assert embedding.shape == (2, 16)
    torch.testing.assert_close(pose[:, :3, 3].norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(pose[:, :3, :3], cameras.camera_to_world[:, :3, :3])
    torch.testing.assert_close(pose[0], torch.tensor([[0.0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]))
    torch.testing.assert_close(cameras.position.norm(dim=-1), torch.tensor([3.0, 5.0]))  # the argument is untouched


def test_multiview_attention_equals_a_softmax_over_all_views():
    unet, views, tokens = unet_2d(multiview=True), 4, 9
    multiview_attention(unet, views)
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    x = torch.randn(2 * views, tokens, 16, generator=torch.Generator().manual_seed(1))
    out = attention(x)
    head = 16 // attention.heads
    for scene in range(2):
        sequence = torch.cat(list(x[scene * views : (scene + 1) * views]))
        q, k, v = attention.to_q(sequence), attention.to_k(sequence), attention.to_v(sequence)
        heads = [slice(i * head, (i + 1) * head) for i in range(attention.heads)]
        mixed = torch.cat([torch.softmax(q[:, h] @ k[:, h].T / head**0.5, dim=-1) @ v[:, h] for h in heads], dim=-1)
        expected = attention.to_out[0](mixed).reshape(views, tokens, 16)
        torch.testing.assert_close(out[scene * views : (scene + 1) * views], expected)


def test_multiview_unet_couples_the_views_of_a_scene_and_only_those():
    unet = unet_2d(multiview=True)
    multiview_attention(unet, 4)
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text, camera = torch.zeros(8, 5, 32), torch.zeros(8, 16)
    with torch.no_grad():
        before = unet(x, 500, text, class_labels=camera).sample
        x[0] += 1
        change = (unet(x, 500, text, class_labels=camera).sample - before).flatten(1).abs().amax(dim=1)
    assert (change[:4] > 1e-5).all()
    assert (change[4:] < 1e-5).all()


def test_loaded_prior_knows_its_cameras(tmp_path):
    base = save_image_model(tmp_path / "image")
    prior = MVDream.load(save_denoiser(tmp_path / "multiview", unet_2d(multiview=True)), base)
    azimuth = torch.arange(4) * 90.0
    near, far = (orbit(azimuth, torch.tensor(15.0), torch.tensor(d), torch.tensor(40.0)) for d in (2.0, 4.0))
    other = orbit(azimuth + 30, torch.tensor(15.0), torch.tensor(2.0), torch.tensor(40.0))
    z, t = torch.randn(4, 4, 8, 8), torch.full((4,), 500)
    near, far, other = (prior.predict_noise(z, t, prior.condition(["a cat"] * 4, "", c))[1] for c in (near, far, other))
    torch.testing.assert_close(near, far)
    assert (near - other).abs().max() > 1e-4


def test_a_model_without_camera_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no camera input"):
        MVDream.load(save_image_model(tmp_path))
