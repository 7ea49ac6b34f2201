import pytest
import yaml

from dream4d.run import slug

PROMPTS = ("a red cat is waving", "a blue dog in a cape is jumping", "one <b>bold</b> rabbit & its hat", "two toys")
VARIANTS = ("ours", "no-2d", "no-3d", "hexplane", "no-grid", "no-tv")


def add_run(folder, variant, prompt, video=b"", seed=0):
    run = folder / variant / f"{slug(prompt)}-{seed}"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"prompt": prompt, "seed": seed}))
    (run / "video.mp4").write_bytes(video or f"{variant}: {prompt}".encode())
    return run


@pytest.fixture
def runs(tmp_path):
    """A folder of finished runs whose videos are a few bytes that say what they are."""
    for variant in VARIANTS:
        for prompt in PROMPTS:
            add_run(tmp_path / "runs", variant, prompt)
    return tmp_path / "runs"
