"""The training itself, for a few tiny steps on the packaged image prior."""

from dataclasses import replace

import pytest
import torch

from dream4d.cameras import orbit
from dream4d.loading import BUILTIN_PRIORS
from dream4d.priors.zero123 import Zero123
from dream4d.toyworld import train
from dream4d.toyworld.networks import image_unet, novel_unet, start_novel_unet

pytestmark = pytest.mark.skipif(not BUILTIN_PRIORS.exists(), reason="this checkout has no trained priors")


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    (tmp_path / "priors").mkdir()
    (tmp_path / "priors" / "image").symlink_to(BUILTIN_PRIORS / "image")
    monkeypatch.setattr(train, "_SHOWN", train._SHOWN[:2])
    return tmp_path


@pytest.mark.slow
def test_the_novel_view_stage_leaves_a_prior_that_loads(workshop, capsys):
    train.train(workshop, ("novel",), device="cpu", dry_run=True)
    assert "novel views of never-trained toys: PSNR" in capsys.readouterr().out
    assert (workshop / "sheets" / "novel.png").exists()
    camera = orbit(torch.zeros(1), torch.tensor([10.0]), torch.tensor(3.8), torch.tensor(20.0))
    folder, base = workshop / "priors" / "novel", BUILTIN_PRIORS / "image"
    prior = Zero123.load(folder, base, image=torch.ones(64, 64, 3), camera=camera)
    assert prior.resolution == (64, 64)
    train.train(workshop, ("novel",), device="cpu", dry_run=True)
    assert "in all" not in capsys.readouterr().out, "what is done is not done again"


@pytest.mark.slow
def test_a_stopped_novel_view_stage_goes_on(workshop, monkeypatch):
    half = replace(train.DRY, plans={**train.DRY.plans, "novel": replace(train.DRY.plans["novel"], steps=2)})
    with monkeypatch.context() as patch:
        patch.setattr(train, "DRY", half)
        patch.setattr(train, "_novel_sheet", lambda *_: None)
        train.train(workshop, ("novel",), device="cpu", dry_run=True)
    (workshop / "priors" / "novel" / "unet" / "config.json").unlink()
    (workshop / "priors" / "novel" / "unet").rename(workshop / "half")
    train.train(workshop, ("novel",), device="cpu", dry_run=True)
    assert (workshop / "log" / "novel.jsonl").read_text().count('"plan"') == 2
    assert '"step": 4' in (workshop / "log" / "novel.jsonl").read_text()


def test_it_starts_as_the_image_prior_that_does_not_see_the_picture():
    torch.manual_seed(0)
    image, novel = image_unet().eval(), novel_unet().eval()
    start_novel_unet(novel, image.state_dict())
    noisy, token = torch.randn(1, 8, 16, 16), torch.randn(1, 1, 128)
    with torch.no_grad():
        both = torch.cat([noisy, torch.randn_like(noisy)], dim=1)
        torch.testing.assert_close(novel(both, 7, token).sample, image(noisy, 7, token).sample, rtol=1e-4, atol=1e-5)
