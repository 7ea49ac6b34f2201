import json
import os
import subprocess
import sys

import pytest
import torch
import yaml

from dream4d.files import atomic
from dream4d.run import Run, read_config, slug

CONFIG = {"command": "static", "prompt": "a cat", "device": "cpu", "static": {"steps": 3}}



def steps_logged(run):
    return [json.loads(line)["step"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_atomic_leaves_nothing_half_written(tmp_path):
    target = tmp_path / "folder" / "file.txt"
    with atomic(target) as file:
        file.write_text("old")
    with pytest.raises(IsADirectoryError), atomic(target) as file:  # noqa: PT012
        file.write_text("half")
        tmp_path.read_text()
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]


def test_a_run_writes_its_job_and_takes_it_up_again(tmp_path):
    with Run(tmp_path / "run", CONFIG):
        pass
    with Run(tmp_path / "run", CONFIG | {"device": "cuda"}) as run:  # another device is the same job
        assert read_config(run.folder) == CONFIG
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == CONFIG


def test_another_job_is_refused_until_overwrite(tmp_path):
    other = CONFIG | {"static": {"steps": 5}}
    with Run(tmp_path, CONFIG) as run:
        run.scene.write_text("precious")
        (run.folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"static\.steps 3 \(now 5\).*--overwrite"):
        Run(tmp_path, other)
    assert run.scene.exists()
    with Run(tmp_path, other, overwrite=True) as run:
        assert not run.scene.exists()
        assert (tmp_path / "notes.txt").exists()
        assert read_config(tmp_path) == other


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_someone_else_is_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"not a run but has thesis\.txt"):
        Run(tmp_path, CONFIG, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*choose another --out"):
        Run(tmp_path / "file", CONFIG)
    with pytest.raises(ValueError, match="cannot write to"):
        Run("/proc/dream4d", CONFIG)


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_a_folder_in_use_is_refused(tmp_path):
    with Run(tmp_path, CONFIG):
        code = f"from dream4d.run import Run\nRun({str(tmp_path)!r}, {CONFIG!r})"
        other = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    assert "another process is at work" in other.stderr


def test_the_latest_two_checkpoints_are_kept(tmp_path):
    with Run(tmp_path, CONFIG) as run:
        assert run.load_checkpoint("static") is None
        for step in (1, 2, 10):
            run.save_checkpoint("static", step, {"step": torch.tensor(step)})
        run.save_checkpoint("dynamic", 1, {"step": torch.tensor(-1)})
        assert int(run.load_checkpoint("static")["step"]) == 10
        names = sorted(p.name for p in (run.folder / "checkpoints").iterdir())
    assert names == ["dynamic-000001.safetensors", "static-000002.safetensors", "static-000010.safetensors"]


def test_metrics_go_back_to_the_checkpoint(tmp_path):
    with Run(tmp_path, CONFIG) as run:
        for step in range(5):
            run.log("static", step, loss=0.5)
        run.save_checkpoint("static", 3, {"step": torch.tensor(3)})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "static", "st')  # killed here
    with Run(tmp_path, CONFIG) as run:
        run.load_checkpoint("static")
        assert steps_logged(run) == [0, 1, 2]
        run.log("static", 3, loss=0.5)
        assert steps_logged(run) == [0, 1, 2, 3]


def test_what_a_killed_process_left_is_removed(tmp_path):
    with Run(tmp_path, CONFIG):
        (tmp_path / ".tmp-1-video.mp4").write_text("half")
    with Run(tmp_path, CONFIG):
        assert not (tmp_path / ".tmp-1-video.mp4").exists()


@pytest.mark.parametrize(
    ("prompt", "name"),
    [("A red cat, waving!", "a-red-cat-waving"), ("../..", "run"), ("ein Bär", "ein-bär"), ("x" * 99, "x" * 60)],
)
def test_slug(prompt, name):
    assert slug(prompt) == name
