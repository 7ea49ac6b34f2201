import gc
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dream4d.toyworld.curves import loss_curves
from dream4d.toyworld.trainer import Plan, Trainer

PLAN = Plan(steps=60, batch=16, learning_rate=0.05, warm_up=5)


def make(folder, plan=PLAN):
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    return network, Trainer("line", [network], plan, folder, torch.device("cpu"))


def loss_of(network, trainer):
    def loss():
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(trainer.step))
        return {"fit": F.mse_loss(network(x), x[:, :2] - 0.5)}

    return loss


def test_it_learns_logs_and_averages(tmp_path):
    network, trainer = make(tmp_path)
    loss = loss_of(network, trainer)
    before = loss()["fit"].item()
    trainer.fit(loss, log_every=20)
    trainer.use_average()
    assert loss()["fit"].item() < before / 10
    lines = [json.loads(line) for line in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert lines[0]["plan"]["steps"] == 60
    assert [line["step"] for line in lines[1:]] == [20, 40, 60]
    assert loss_curves(tmp_path).shape[-1] == 3


def test_a_stopped_training_goes_on_as_if_never_stopped(tmp_path):
    network, trainer = make(tmp_path / "whole")
    trainer.fit(loss_of(network, trainer))
    half_way, stopped = make(tmp_path / "parts")

    class StopError(Exception):
        pass

    inner = loss_of(half_way, stopped)

    def interrupted():
        if stopped.step == 30:
            stopped._save()
            raise StopError
        return inner()

    with pytest.raises(StopError):
        stopped.fit(interrupted)
    again, resumed = make(tmp_path / "parts")
    resumed.fit(loss_of(again, resumed))
    assert resumed.step == 60
    for a, b in zip(trainer.averages, resumed.averages, strict=True):
        torch.testing.assert_close(a, b)


def test_the_rate_warms_up_and_decays_by_steps_or_by_time():
    plan = replace(PLAN, steps=1000, seconds=100.0, warm_up=10)
    assert abs(plan.rate(0, 0.0) - 0.005) < 1e-9
    assert abs(plan.rate(400, 40.0) - 0.05) < 1e-9
    assert abs(plan.rate(750, 10.0) - 0.025) < 1e-9
    assert abs(plan.rate(20, 75.0) - 0.025) < 1e-9
    assert plan.rate(1000, 0.0) <= 0.05 * 0.0101


def test_a_time_limit_ends_training(tmp_path):
    network, trainer = make(tmp_path, replace(PLAN, seconds=1e-9))
    trainer.fit(loss_of(network, trainer))
    assert trainer.step == 1


def _train_in_a_team(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    _train_member(rank, folder)  # its network is gone when it returns: gloo's threads must end before the process
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _train_member(rank, folder):
    network, trainer = make(folder)
    generator = torch.Generator().manual_seed(rank)

    def loss():
        x = torch.randn(8, 3, generator=generator)
        return {"fit": F.mse_loss(network(x), x[:, :2] - 0.5)}

    trainer.fit(loss)
    torch.save([p.detach() for p in network.parameters()], folder / f"{rank}.pt")


def test_a_team_takes_the_steps_of_one_process_with_all_of_its_examples(tmp_path):
    torch.multiprocessing.spawn(_train_in_a_team, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone, trainer = make(tmp_path / "alone")
    generators = [torch.Generator().manual_seed(rank) for rank in range(2)]

    def loss():
        x = torch.cat([torch.randn(8, 3, generator=generator) for generator in generators])
        return {"fit": F.mse_loss(alone(x), x[:, :2] - 0.5)}

    trainer.fit(loss)
    for a, b, whole in zip(first, second, alone.parameters(), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, whole, rtol=1e-4, atol=1e-5)
    lines = (tmp_path / "line.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["processes"] == 2
    assert len(lines) == 3, "only the first process writes the log"
