import pytest
import torch

from dream4d.priors.parts import cumulative_alphas
from dream4d.toyworld import networks
from dream4d.toyworld.examples import Sentences
from dream4d.toyworld.grammar import every_word


@pytest.fixture(scope="module")
def tokenizer():
    return networks.tokenizer()


def test_every_word_is_one_token(tokenizer):
    for word in every_word():
        assert len(tokenizer(word).input_ids) == 3, word


def test_every_sentence_fits_and_is_different(tokenizer):
    sentences = Sentences()
    ids = sentences.tokens(tokenizer)
    assert ids.shape == (len(sentences.texts), networks.TOKENS)
    assert (ids[:, -1] == tokenizer.eos_token_id).all()
    assert len(ids.unique(dim=0)) == len(set(sentences.texts))


def test_the_tokenizer_survives_its_folder(tokenizer, tmp_path):
    from transformers import CLIPTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "a purple elephant riding a skateboard is kicking, back view"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.model_max_length == networks.TOKENS


def test_a_fresh_video_unet_draws_every_frame_as_the_image_unet():
    torch.manual_seed(0)
    image, video = networks.image_unet().eval(), networks.video_unet().eval()
    networks.start_video_unet(video, image.state_dict())
    size, channels = networks.LATENT_SIZE, networks.LATENT_CHANNELS
    noisy, text = torch.randn(1, channels, 2, size, size), torch.randn(1, networks.TOKENS, networks.TEXT_WIDTH)
    timestep = torch.tensor([300])
    with torch.no_grad():
        frames = [image(noisy[:, :, i], timestep, text).sample for i in range(2)]
        torch.testing.assert_close(video(noisy, timestep, text).sample, torch.stack(frames, 2), atol=1e-4, rtol=1e-4)


def test_an_image_unet_of_other_sizes_is_refused():
    video = networks.video_unet()
    with pytest.raises(ValueError, match="does not fit"):
        networks.start_video_unet(video, {"conv_in.weight": torch.zeros(1)})


def test_what_is_shipped_is_small():
    def numbers(module):
        return sum(p.numel() for p in module.parameters())

    unets = networks.image_unet(), networks.multiview_unet(), networks.video_unet(), networks.novel_unet()
    others = networks.autoencoder(), networks.image_encoder(), *[networks.text_encoder(300)] * 2
    assert sum(map(numbers, unets)) + 2 * sum(map(numbers, others)) < 46e6  # bytes, UNets in int8


def test_the_video_schedule_ends_in_more_noise_than_16_frames_can_outvote():
    image, video = (cumulative_alphas(dict(s.config)) for s in map(networks.scheduler, ("image", "video")))
    ratio = (video[-1] / (1 - video[-1])) / (image[-1] / (1 - image[-1]))
    assert ratio < 1 / networks.FRAMES
    assert networks.scheduler("video").config.prediction_type == "v_prediction"
