import pytest
import torch
from tiny_models import EMBEDDING, save_clip, save_image_model

from dream4d.evaluate.clip import Clip
from dream4d.priors.errors import ModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_features_are_unit_vectors_of_any_size_of_picture(folder):
    clip = Clip.load(str(folder))
    images = torch.rand(3, 40, 50, 3, generator=torch.Generator().manual_seed(0))
    features = clip.images(images), clip.text("a cat")
    assert [list(f.shape) for f in features] == [[3, EMBEDDING], [1, EMBEDDING]]
    for feature in features:
        assert torch.allclose(feature.norm(dim=1), torch.ones(len(feature)))
    assert clip.size == 24
    assert not torch.allclose(clip.text("a cat"), clip.text("a dog"))
    assert clip.text("a cat " * 99).shape == (1, EMBEDDING), "longer than the model can read"


def test_features_are_those_of_the_model_itself(folder):
    """Of pictures of its own size, normalised as CLIP's were."""
    from transformers import CLIPImageProcessor, CLIPModel

    images = torch.rand(2, 24, 24, 3, generator=torch.Generator().manual_seed(0))
    same = {"do_resize": False, "do_center_crop": False, "do_rescale": False}
    pixels = CLIPImageProcessor(**same)(list(images.numpy()), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(folder).eval().get_image_features(pixels).pooler_output
    found = Clip.load(str(folder)).images(images)
    assert torch.allclose(found, torch.nn.functional.normalize(expected, dim=1), atol=1e-5)


def test_a_model_that_is_not_here_is_named(tmp_path):
    for name in ("openai/clip-vit-large-patch14", "no/such/thing at all"):
        with pytest.raises(ModelError, match=r"--clip .* there is no such folder, .* hf download") as error:
            Clip.load(name)
        assert error.value.problem == "absent"


def test_another_model_is_refused(tmp_path):
    other = save_image_model(tmp_path / "other") / "text_encoder"
    for folder, kind in ((other, "clip_text_model"), (tmp_path, "None")):
        with pytest.raises(ModelError, match=f"says {kind}, expected clip") as error:
            Clip.load(str(folder))
        assert error.value.problem == "wrong"


def test_a_model_without_words_is_corrupt(tmp_path):
    folder = save_clip(tmp_path)
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="lacks a tokenizer") as error:
        Clip.load(str(folder))
    assert error.value.problem == "corrupt"
