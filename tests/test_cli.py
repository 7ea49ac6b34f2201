import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import dream4d.evaluate
from dream4d.cli import main
from dream4d.presets import BUILTIN
from dream4d.schedules import Constant, Linear


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What `main` asks of the recipes, which do nothing here; the built-in models know the word cat."""
    made = []

    def fake(name):
        def function(*arguments, **options):
            made.append((name, arguments, options))
            return tmp_path / "video.mp4"

        return function

    names = (
        "text_to_4d", "image_to_4d", "subject_to_4d", "mesh_to_4d", "personalize", "static_scene", "animate",
        "render_video", "render_sheet",
    )  # fmt: skip
    recipes = SimpleNamespace(**{name: fake(name) for name in names}, prompt_of=lambda source: "a cat")
    monkeypatch.setitem(sys.modules, "dream4d.recipes", recipes)
    monkeypatch.setattr(dream4d, "recipes", recipes, raising=False)
    grammar = SimpleNamespace(
        unknown_words=lambda prompt: [w for w in prompt.split() if w not in ("a", "cat")],
        known_words=lambda: {"animal": ["cat", "dog"]},
        name_in=lambda prompt: "bob" if "bob" in prompt else None,
    )
    toyworld = SimpleNamespace(grammar=grammar)
    monkeypatch.setitem(sys.modules, "dream4d.toyworld", toyworld)
    monkeypatch.setitem(sys.modules, "dream4d.toyworld.grammar", grammar)
    monkeypatch.setattr(dream4d, "toyworld", toyworld, raising=False)
    return made


def last_settings(calls):
    return calls[-1][1][1]


def test_help_names_every_command_and_loads_nothing_heavy():
    code = (
        "import sys\nfrom dream4d.cli import main\n"
        "for argv in (['--help'], ['generate', '--help'], ['render', '--help'], ['evaluate', '--help']):\n"
        "    try:\n        main(argv)\n    except SystemExit as stop:\n        assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'numba', 'av', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout
    for word in ("generate", "static", "animate", "render", "--static.steps", "--priors.image", "--channels"):
        assert word in shown


def test_the_plainest_command(calls, capsys, tmp_path):
    assert main(["generate", "a cat"]) == 0
    name, (prompt, settings, out), options = calls[0]
    assert (name, prompt, str(out)) == ("text_to_4d", "a cat", os.path.join("runs", "a-cat"))
    assert options == {"overwrite": False}
    assert settings == BUILTIN
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "video.mp4")
    assert printed.err == ""


def test_preset_then_yaml_then_options(calls, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("prompt: a cat\npreset: paper\nseed: 4\nstatic:\n  steps: 30\n  resolution: 64\n")
    assert main(["generate", "--config", str(file), "--static.steps", "50", "--dynamic.weight-tv", "3"]) == 0
    settings = last_settings(calls)
    assert (settings.seed, settings.static.steps, settings.dynamic.weight_tv) == (4, 50, 3.0)
    assert settings.static.resolution == Constant(64)
    assert settings.static.guidance_2d == 100
    assert main(["generate", f"--config={file}", "--preset=builtin"]) == 0
    assert last_settings(calls).static.guidance_2d == 10


def test_schedules_and_flags_on_the_command_line(calls):
    low_high = "0.9 to 0.1 over 9 .. 0.9"
    options = ["--static.timesteps_3d", low_high, "--priors.precision", "half", "--overwrite"]
    assert main(["static", "a cat", *options]) == 0
    settings = last_settings(calls)
    assert settings.static.timesteps_3d.low == Linear(0.9, 0.1, steps=9)
    assert settings.priors.precision == "half"
    assert calls[-1][2] == {"overwrite": True}


def test_a_picture_with_its_mask_and_elevation(calls, tmp_path):
    argv = ["generate", "a cat", "--image", "photos/mine.jpg", "--mask", "mask.png", "--elevation", "12.5"]
    assert main(argv) == 0
    name, (prompt, image, settings, out), options = calls[-1]
    assert (name, prompt, image) == ("image_to_4d", "a cat", Path("photos/mine.jpg"))
    assert (settings, out.name) == (BUILTIN, "a-cat-mine")
    assert options == {"mask": Path("mask.png"), "elevation": 12.5, "overwrite": False}
    file = tmp_path / "config.yaml"
    file.write_text("command: generate\nprompt: a cat\nimage: mine.jpg\nelevation: 7\npicture: {steps: 9}\n")
    assert main(["generate", "--config", str(file)]) == 0
    assert calls[-1][1][1] == Path("mine.jpg")
    assert calls[-1][1][2].picture.steps == 9
    assert calls[-1][2] == {"mask": None, "elevation": 7.0, "overwrite": False}


def test_an_ablation_goes_with_any_preset_and_wins_over_other_options(calls, tmp_path):
    out = tmp_path / "run"
    argv = ["generate", "a cat", "--preset", "fast", "--ablation", "no-tv", "--dynamic.weight-tv", "5"]
    assert main([*argv, "--out", str(out)]) == 0
    _, (_, settings, folder), _ = calls[-1]
    assert (settings.dynamic.weight_tv, settings.dynamic.steps, folder) == (0, 3500, out)
    assert main(["generate", "a cat", "--ablation", "hexplane"]) == 0
    _, (_, settings, folder), _ = calls[-1]
    assert (settings.scene.field, folder.name) == ("hexplane", "a-cat-hexplane")


def test_a_subject_is_photos_or_a_lora_and_its_word_is_known(calls, capsys, tmp_path):
    assert main(["generate", "a sks cat", "--subject", "photos", "--subject-prompt", "a sks"]) == 0
    assert calls[-1][0] == "subject_to_4d"
    assert calls[-1][1][:2] == ("a sks cat", Path("photos"))
    assert calls[-1][2] == {"subject_prompt": "a sks", "overwrite": False}
    assert main(["static", "a sks cat", "--subject", "photos"]) == 0
    assert calls[-1][0] == "subject_to_4d"
    assert calls[-1][2] == {"subject_prompt": None, "moves": False, "overwrite": False}
    assert main(["personalize", "photos", "--prompt", "a sks cat", "--out", "x.safetensors"]) == 0
    name, (photos, prompt, settings, out), options = calls[-1]
    assert (name, photos, prompt, out) == ("personalize", Path("photos"), "a sks cat", Path("x.safetensors"))
    assert options == {"class_prompt": None, "overwrite": False}
    assert settings == BUILTIN
    assert capsys.readouterr().err == ""
    file = tmp_path / "job.yaml"
    file.write_text("command: personalize\nphotos: there\nprompt: a sks cat\npersonalize: {rank: 3}\n")
    assert main(["personalize", "--config", str(file)]) == 0
    assert calls[-1][1][0] == Path("there")
    assert last_personal(calls).rank == 3


def last_personal(calls):
    return calls[-1][1][2].personalize


def test_animate_takes_the_prompt_of_its_source(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["animate", "runs/a-cat"]) == 0
    name, (source, prompt, _, out), _ = calls[0]
    assert (name, str(source), prompt) == ("animate", os.path.join("runs", "a-cat"), "a cat")
    assert out.name == "a-cat-animated"


def test_generate_takes_a_mesh(calls, tmp_path):
    assert main(["generate", "a cat", "--mesh", "cat.glb", "--mesh-turn", "90", "--reconstruct.steps", "7"]) == 0
    name, (prompt, file, settings, out), options = calls[-1]
    assert (name, prompt, str(file), out.name) == ("mesh_to_4d", "a cat", "cat.glb", "a-cat")
    assert settings.reconstruct.steps == 7
    assert options == {"up": "auto", "turn": 90, "overwrite": False}
    file = tmp_path / "config.yaml"
    file.write_text("command: generate\nprompt: a cat\nmesh: cat.ply\nmesh_up: y\nmesh_turn: 5\n")
    assert main(["generate", "--config", str(file)]) == 0
    assert str(calls[-1][1][1]) == "cat.ply"
    assert calls[-1][2] == {"up": "y", "turn": 5, "overwrite": False}


def test_render_options(calls, tmp_path):
    argv = ["render", str(tmp_path), "--views", "orbit", "--channels", "rgb", "depth", "--size", "9", "--out", "o.mp4"]
    assert main(argv) == 0
    assert calls[0][1][1].name == "o.mp4"
    assert calls[0][2]["views"] == ("orbit",)
    assert calls[0][2]["channels"] == ("rgb", "depth")
    assert calls[0][2]["size"] == 9


def test_render_makes_a_contact_sheet_of_a_png(calls, tmp_path):
    assert main(["render", str(tmp_path), "--out", "look.PNG", "--background", "white"]) == 0
    name, (_, out), options = calls[-1]
    assert (name, str(out), options["background"]) == ("render_sheet", "look.PNG", "white")


@pytest.fixture
def evaluations(monkeypatch):
    made = []

    def evaluate(sources, **options):
        made.append((sources, options))
        if not sources:
            raise ValueError("say which runs to evaluate")
        return {"rows": [{"run": str(source)} for source in sources]}

    fake = SimpleNamespace(evaluate=evaluate, table=lambda document: f"a table of {len(document['rows'])}")
    monkeypatch.setitem(sys.modules, "dream4d.evaluate.runs", fake)
    monkeypatch.setattr(dream4d.evaluate, "runs", fake, raising=False)
    return made


def test_evaluate_prints_a_table_or_one_json_document(evaluations, capsys):
    assert main(["evaluate", "runs/a", "runs/b"]) == 0
    assert capsys.readouterr().out == "a table of 2\n"
    assert evaluations[0] == ((Path("runs/a"), Path("runs/b")), {"judge": None, "clip": None, "device": "auto"})
    assert main(["evaluate", "runs/a", "--json", "--clip", "models/clip", "--judge", "mine", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": [{"run": os.path.join("runs", "a")}]}
    assert evaluations[1][1] == {"judge": Path("mine"), "clip": "models/clip", "device": "cpu"}


def test_evaluate_needs_runs_and_knows_its_options(evaluations, capsys):
    assert main(["evaluate"]) == 2
    assert capsys.readouterr().err == "error: say which runs to evaluate\n"
    assert main(["evaluate", "runs/a", "--jsno"]) == 2
    assert "unknown option --jsno; did you mean --json?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["models"]])
def test_who_reads_no_further_stops_it_quietly(arguments):
    command = [sys.executable, "-c", f"from dream4d.cli import main; raise SystemExit(main({arguments}))"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_unknown_words_are_a_warning(calls, capsys):
    assert main(["generate", "a cat yodels"]) == 0
    assert "do not know yodels. They know animal: cat, dog" in capsys.readouterr().err
    assert main(["generate", "a bob cat"]) == 0
    assert capsys.readouterr().err == "note: the built-in models take bob for a toy with markings of its own\n"
    own = ["--priors.image", "x", "--priors.multiview", "x", "--priors.video", "x"]
    assert main(["generate", "a cat yodels", *own]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["genrate"], "there is no command 'genrate'; did you mean generate?"),
        (["generate", ""], "the prompt is empty"),
        (["generate", "   "], "the prompt is empty"),
        (["generate"], "the prompt is empty"),
        (["generate", "a", "cat"], "put the prompt in quotes"),
        (["generate", "a cat", "--preset", "papr"], "there is no preset 'papr'; did you mean paper?"),
        (["generate", "a cat", "--ablation", "no-gird"], "there is no ablation 'no-gird'; did you mean no-grid?"),
        (["generate", "a cat", "--static.stpes", "3"], "unknown option --static.stpes; did you mean --static.steps?"),
        (["generate", "a cat", "--stpes=3"], "did you mean --static.steps?"),
        (["generate", "a cat", "--mehs", "cat.glb"], "unknown option --mehs; did you mean --mesh?"),
        (["generate", "a cat", "--mesh", "cat.glb", "--mesh-up", "x"], "invalid choice 'x' for argument '--mesh-up'"),
        (["generate", "a cat", "--mask", "m.png"], "give it, too, by --image FILE"),
        (["generate", "a cat", "--imagee", "m.png"], "unknown option --imagee; did you mean --image?"),
        (["generate", "a cat", "--config", "absent.yaml"], "cannot read absent.yaml: No such file"),
        (["generate", "a cat", "--subjct", "x"], "did you mean --subject?"),
        (["personalize", "--prompt", "a sks cat"], "Missing from dream4d personalize: PATH"),
        (["render", "runs", "--sise", "3"], "unknown option --sise; did you mean --size?"),
        (["generate", "a cat", "--static.steps", "many"], "parsing --static.steps: invalid literal for int()"),
        (["render"], "Missing from dream4d render: PATH"),
        (["render", "runs", "--channels", "smell"], "invalid choice 'smell' for argument '--channels'"),
        (["render", "runs", "--size", "0"], "--size is 0, expected a positive number"),
        (["study", "serve", "absent"], "there are no finished runs in absent"),
        (["study", "results", "absent"], "there are no votes in absent"),
        (["study", "results", "absent", "--json", "--csv"], "--json and --csv are both given"),
        (["study", "server", "absent"], "invalid choice 'server'"),
        (["study", "serve", "absent", "--prot", "1"], "did you mean --port?"),
    ],
)
def test_bad_input_is_one_line_and_code_2(calls, capsys, argv, message):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert calls == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("static: {stpes: 3}", "unknown key static.stpes; did you mean static.steps?"),
        ("[1, 2]", "expected `key: value` lines"),
        ("a: b: c", "is not YAML"),
        ("command: animate", "is for `dream4d animate`"),
        ("prompt: 3", "prompt: expected text, not 3"),
        ("elevation: low", "elevation: expected a number, not 'low'"),
    ],
)
def test_bad_yaml_is_one_line_and_code_2(calls, capsys, tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    assert main(["generate", "a cat", "--config", str(tmp_path / "c.yaml")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_study_serves_and_counts(monkeypatch, capsys, tmp_path):
    from dream4d.evaluate.study import server
    from dream4d.evaluate.study.votes import Votes

    served = []
    monkeypatch.setattr(server, "serve", lambda study, votes, **options: served.append((study, votes, options)))
    for variant in ("ours", "plain"):
        for prompt in ("a cat", "a dog"):
            run = tmp_path / variant / prompt
            run.mkdir(parents=True)
            (run / "config.yaml").write_text(f"prompt: {prompt}\n")
            (run / "video.mp4").write_bytes(b"video")
    options = ["--compare", "text=ours,plain", "--questions", "text", "--prompts", "1", "--checks", "0", "--port", "9"]
    assert main(["study", "serve", str(tmp_path), *options]) == 0
    study, votes, address = served[0]
    assert study.comparisons == {"text": ("ours", "plain")}
    assert len(study.trials("someone")) == 1
    assert votes == tmp_path / "votes.db"
    assert address == {"host": "127.0.0.1", "port": 9, "names": ()}
    rater = Votes(votes, create=True).add_rater(1)
    assert main(["study", "results", str(tmp_path)]) == 0
    assert "0 raters voted" in capsys.readouterr().out
    assert main(["study", "results", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"table": [], "raters": [], "votes": []}
    assert main(["study", "results", str(tmp_path), "--csv"]) == 0
    assert capsys.readouterr().out.startswith("rater,number,question,prompt")
    assert main(["study", "forget", str(tmp_path), "--rater", rater]) == 2
    assert "there is no rater" in capsys.readouterr().err


def test_debug_shows_where_an_error_came_from(calls):
    with pytest.raises(ValueError, match="the prompt is empty"):
        main(["generate", "", "--debug"])


def test_ctrl_c_says_how_to_go_on(calls, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["dream4d.recipes"], "text_to_4d", stop)
    assert main(["generate", "a cat"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
