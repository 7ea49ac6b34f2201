import pytest
import torch
from safetensors.torch import save_file

from dream4d.toyworld.grammar import MOTIONS
from dream4d.toyworld.judge import STANDING, WEIGHTS, Judge, JudgeNetwork, judge_clips, judge_loss, spoil
from dream4d.toyworld.networks import FRAMES

CPU = torch.device("cpu")


def test_a_missing_judge_is_named(tmp_path):
    with pytest.raises(ValueError, match="--stages judge"):
        Judge.load(tmp_path)


def test_it_reads_any_size_and_survives_its_file(tmp_path):
    torch.manual_seed(0)
    network = JudgeNetwork()
    save_file({name: tensor.half() for name, tensor in network.state_dict().items()}, tmp_path / WEIGHTS)
    judge = Judge.load(tmp_path)
    reading = judge.read(torch.rand(3, 40, 50, 3))
    assert reading.kind.shape == reading.colour.shape == reading.prop.shape == (3,)
    assert ((reading.azimuth > -180.01) & (reading.azimuth < 180.01)).all()
    motion = judge.read_motion(torch.rand(2, FRAMES, 32, 32, 3))
    assert motion.shape == (2,)
    assert (motion <= STANDING).all()


def test_it_learns_from_its_own_examples():
    """A few steps on one batch bring every loss down, so that none is cut off from the network."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, truth, motion = judge_clips(4, FRAMES, generator, CPU)
    assert images.shape == (4, FRAMES, 64, 64, 3)
    assert (motion <= len(MOTIONS)).all()
    network = JudgeNetwork()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    clips = (2 * images - 1).permute(0, 1, 4, 2, 3)
    history = []
    for _ in range(12):
        losses = judge_loss(*network(clips[:, 0], clips), truth, motion)
        history.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    for name in history[0]:
        assert history[-1][name] < history[0][name], name


def test_spoiling_treats_the_frames_of_a_clip_alike():
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(2, 1, 64, 64, 3, generator=generator).expand(2, 5, -1, -1, -1)
    spoilt = spoil(clip, generator)
    assert spoilt.shape == clip.shape
    assert spoilt.min() >= 0
    assert spoilt.max() <= 1
    assert (spoilt - clip).abs().mean() > 0.01
    assert (spoilt[:, 0] - spoilt[:, 1]).abs().mean() < 0.06  # only the noise differs
