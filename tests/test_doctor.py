from types import SimpleNamespace

import pytest
import torch

from dream4d import doctor
from dream4d.cli import main
from dream4d.plans import PLANS
from dream4d.presets import PRESETS


def test_the_command_tells_of_everything(capsys, tmp_path):
    assert main(["doctor", "--device", "cpu", "--out", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    for word in ("MACHINE", "CPU cores", "GiB free for", "VERSIONS", torch.__version__, "MODELS", "WHAT FITS"):
        assert word in shown
    lines = {tuple(line.split()[:2]) for line in shown.splitlines()}
    assert lines >= {(name, stage) for name in PRESETS for stage in ("static", "dynamic")}
    assert "needs a GPU" in shown


@pytest.mark.parametrize(("free", "paper"), [(140.0, "paper"), (12.0, "balanced"), (10.0, "lowmem"), (3.0, None)])
def test_presets_fit_by_plan(free, paper):
    assert {fit.plan for fit in doctor.fits("builtin", PRESETS["builtin"], free)} == {"paper"}
    static, dynamic = doctor.fits("paper", PRESETS["paper"], free)
    assert (static.stage, dynamic.stage) == ("static", "dynamic")
    assert list(static.needs) == [plan.name for plan in PLANS]
    assert static.plan == paper


def test_a_gpu_is_described_and_judged(monkeypatch, tmp_path):
    about = SimpleNamespace(name="NVIDIA Example", major=7, minor=5, total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * 2**30, 24 * 2**30))
    gpu = doctor.machine(torch.device("cuda"), tmp_path)[-1]
    assert str(gpu).startswith("NVIDIA Example, 20.0 of 24.0 GiB free: kernels are made for")
    assert gpu.good is False
    shown = doctor._plans(doctor.fits("paper", PRESETS["paper"], 20.0), torch.device("cuda"), 20.0)
    assert "fits, --memory balanced" in shown


def test_models_that_are_missing_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(doctor, "locate", lambda name: None)
    findings = {finding.what: finding for finding in doctor.models(PRESETS)}
    assert findings["video: builtin"].good
    missing = findings["video: zeroscope"]
    assert not missing.good
    assert str(missing) == "not here, for paper and fast: dream4d models fetch zeroscope"
