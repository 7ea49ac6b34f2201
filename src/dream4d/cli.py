"""The command ``dream4d``: reads arguments and YAML, and calls one function of `recipes` for each subcommand."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro

from dream4d import __version__
from dream4d.notation import format_schedule, parse_schedule
from dream4d.presets import BUILTIN, SCHEDULES, Preset, ablate, merge, preset, suggest, to_mapping
from dream4d.run import flatten, read_yaml, slug

Prompt = tyro.conf.Positional[str]
_UNSET = cast(Any, tyro.MISSING)


@dataclass(frozen=True)
class Options:
    """Where the run goes and what it starts from."""

    preset: str = "builtin"
    """`builtin` (the packaged models of a toy world, any machine), `paper` (its models and numbers, a GPU) or `fast`
    (its models, a third of the steps)."""
    config: Path | None = None
    """YAML file with settings, such as the config.yaml of another run; options of the command line win."""
    out: Path | None = None
    """Folder of the run, or for `personalize` a NAME.safetensors; by default runs/ and the prompt. The same
    command again goes on where it stopped."""
    overwrite: bool = False
    """Drop the run that is in the folder."""
    ablation: str | None = None
    """What the paper compares itself with, in place of a part of the method, whatever the other options say: `no-2d`,
    `no-3d` (without the image or the multi-view model), `hexplane` (one field of space and time, all of it trained by
    the video model), `no-grid` (a deformation by positional encoding) or `no-tv` (without total variation)."""
    settings: Annotated[Preset, tyro.conf.arg(name="")] = BUILTIN

    def job(self) -> Preset:
        """The settings, less what the ablation takes away."""
        return self.settings if self.ablation is None else ablate(self.settings, self.ablation)

    def folder(self, prompt: str) -> Path:
        """Where the run goes."""
        name = slug(prompt) if self.ablation is None else f"{slug(prompt)}-{self.ablation}"
        return self.out or Path("runs") / name


@dataclass(frozen=True)
class Generate:
    """Turn a sentence, or a model and a sentence, into a moving 3D scene."""

    prompt: Prompt = ""
    """What is there and what it does, e.g. "a red cat wearing a top hat is waving"."""
    mesh: Path | None = None
    """A model to set in motion in place of what the first stage makes: GLB, glTF, OBJ or PLY, with textures or colours.
    """
    mesh_up: Literal["auto", "y", "z"] = "auto"
    """The axis that is up in it; by default z in PLY and y in the others."""
    mesh_turn: float = 0.0
    """Degrees by which to turn it, counter-clockwise seen from above, where it does not face the front: +z where y is
    up, -y where z is."""
    subject: Path | None = None
    """Folder of 4 to 6 photos of a subject, which the prompt calls sks: "a sks cat is waving"; or the LoRA, a
    .safetensors or its folder, that has learned it."""
    subject_prompt: str | None = None
    """What the photos show; by default "a sks" and the next word of the prompt."""
    image: Path | None = None
    """A picture of the object from its front, from which the scene is made: PNG, JPEG, WebP or BMP. The object is cut
    out by the picture's transparency, by --mask, by rembg (--picture.rembg) or by the colour of its border."""
    mask: Path | None = None
    """A picture of the same size as the image, white where the object is."""
    elevation: float = 0.0
    """How far above the object's middle the image was taken from, in degrees; 90 is straight above."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)


@dataclass(frozen=True)
class Static:
    """Only the first stage: turn a sentence into a 3D scene that stands still."""

    prompt: Prompt = ""
    """What is there, e.g. "a red cat wearing a top hat"."""
    subject: Path | None = None
    """As in `generate`: photos of a subject that the prompt calls sks, or the LoRA that has learned it."""
    subject_prompt: str | None = None
    """What the photos show; by default "a sks" and the next word of the prompt."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)


@dataclass(frozen=True)
class Animate:
    """Only the second stage: set a finished scene in motion."""

    source: tyro.conf.Positional[Path] = _UNSET
    """Folder of a run, or a scene.safetensors."""
    prompt: Prompt = ""
    """What it does; by default the prompt of the source's run."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)


@dataclass(frozen=True)
class Personalize:
    """Teach an image model one subject from a few photos: a LoRA for `generate --subject`."""

    photos: tyro.conf.Positional[Path] = _UNSET
    """Folder of 4 to 6 photos of the subject, from different sides."""
    prompt: str = ""
    """What they show, with the word that shall mean the subject: "a sks dog"."""
    class_prompt: str | None = None
    """What any such thing is called; by default the prompt without that word."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)


@dataclass(frozen=True)
class Render:
    """Make a video or a contact sheet of a finished scene."""

    source: tyro.conf.Positional[Path] = _UNSET
    """Folder of a run, or a scene.safetensors."""
    out: Path | None = None
    """The video; by default video.mp4 of the run, or the scene's name with .mp4. A name with .png gets a contact sheet
    of eight sides and six times instead."""
    views: tuple[Literal["fixed", "orbit"], ...] = ("fixed", "orbit")
    """Cameras, side by side: three that stand still, one that goes around."""
    channels: tuple[Literal["rgb", "depth", "displacement"], ...] = ("rgb",)
    """What is shown, one below the other."""
    size: int = 256
    """Height and width of each view in pixels."""
    frames: int = 48
    """Frames; they show the scene's whole time once."""
    fps: float = 16.0
    """Frames a second."""
    elevation: float = 15.0
    """Elevation of the cameras in degrees."""
    samples_per_ray: int = 256
    """Samples along the longest ray through the scene."""
    background: str = "scene"
    """What is behind the object: `scene`, its own background, or a colour such as white or #e8eef5."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if there is one."""


@dataclass(frozen=True)
class Models:
    """List the pretrained models of the paper, or get them."""

    action: tyro.conf.Positional[Literal["list", "fetch"]] = "list"
    """`list` tells what each preset needs, its size and licence, and whether it is here; `fetch` gets and checks it."""
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """What to fetch: models of the list, presets, or repositories of the hub, owner/name or owner/name@commit."""
    full: bool = False
    """Fetch full precision where half would be smaller."""


@dataclass(frozen=True)
class Doctor:
    """Say what this machine has, which models are here, and which presets will fit."""

    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if there is one."""
    out: Path = Path("runs")
    """Where runs shall go; its disk is looked at."""


@dataclass(frozen=True)
class Study:
    """Let people compare the videos of several variants, as in the paper's study, or tell how they voted."""

    action: tyro.conf.Positional[Literal["serve", "results", "forget"]] = _UNSET
    """`serve` asks people in their browsers until Ctrl-C; `results` prints Table 1 of the paper from their votes;
    `forget` deletes one person's."""
    folder: tyro.conf.Positional[Path] = _UNSET
    """Has a folder for each variant, with its finished runs in it."""
    votes: Path | None = None
    """The file of votes; by default votes.db in the folder."""
    questions: tuple[Literal["text", "motion", "visual"], ...] = ("text", "motion", "visual")
    """serve: what is asked: text alignment, motion quality, visual quality and 3D consistency."""
    compare: tuple[str, ...] = ()
    """serve: what a question compares, such as text=ours,no-2d; by default the paper's comparisons, as far as there are
    runs. The first variant should be the best one: attention checks are made of its videos."""
    prompts: int = 10
    """serve: prompts that each person sees by each question."""
    checks: int = 3
    """serve: attention checks among the questions."""
    host: str = "127.0.0.1"
    """serve: the address to listen on; 0.0.0.0 also lets other machines and phones of the network in."""
    port: int = 8000
    """serve: the port to listen on."""
    names: tuple[str, ...] = ()
    """serve: further names of this machine that browsers may use."""
    misses: int = 0
    """results: attention checks that a person may miss; the votes of those who miss more are left out."""
    json: bool = False
    """results: print table, people and votes as JSON."""
    csv: bool = False
    """results: print every vote as a line of CSV."""
    rater: str = ""
    """forget: the code of whose votes to delete."""


@dataclass(frozen=True)
class Evaluate:
    """Measure finished runs: text alignment, 3D consistency, motion, and what became of the static scene."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of runs, or scene.safetensors files; of several there are means with 95 % intervals."""
    json: bool = False
    """Print one JSON document instead of a table."""
    clip: str | None = None
    """Folder or hub id of a CLIP model; adds its scores of sentences and frames, for sentences of any kind."""
    judge: Path | None = None
    """Folder of a judge of the toy world, for all runs whose sentence is of it; by default the package's, for runs of
    the built-in models."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if there is one."""


@dataclass(frozen=True)
class Ablate:
    """Make and measure many sentences by every variant of the method: Table 1 of the paper, by a program."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Sentences, each in quotes; by default some of the toy world's on which no built-in model was trained."""
    count: int = 20
    """How many sentences where none are named."""
    seeds: int = 2
    """Runs of each sentence by each variant, with seeds from --seed on."""
    variants: tuple[str, ...] = ("ours", "no-2d", "no-3d", "hexplane", "no-grid", "no-tv")
    """What is compared; see --ablation of generate."""
    workers: int = 0
    """Processes at a time, spread over the GPUs; 0: one for each GPU, or one."""
    threads: int = 0
    """CPU threads of each process; 0: the cores are divided among them."""
    json: bool = False
    """Print the numbers as JSON in place of tables."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)


@dataclass(frozen=True)
class Report:
    """Write finished runs as one HTML page: videos, sheets, losses, metrics and settings."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of finished runs."""
    out: Path = Path("report.html")
    """The page; it needs no other file."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if there is one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code: 0, 2 for input that cannot be used, 130 when stopped by Ctrl-C, 141 when
    nobody reads on what it prints."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        try:
            _run([argument for argument in arguments if argument != "--debug"])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        with suppress(BrokenPipeError):
            sys.stdout.close()  # or Python would try again to write at its end, and say so
        return 141
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def generate(command: Generate) -> None:
    from dream4d import recipes

    prompt, settings = _checked_prompt(command.prompt, command.options, command.subject), command.options.job()
    given = {"--mesh": command.mesh, "--subject": command.subject, "--image": command.image}
    if len(named := [name for name, value in given.items() if value is not None]) > 1:
        raise ValueError(f"{' and '.join(named)} are given: the scene can be made from one of them")
    if command.image is None and (command.mask or command.elevation):
        raise ValueError("--mask and --elevation tell more of a picture: give it, too, by --image FILE")
    overwrite = command.options.overwrite
    out = command.options.folder(prompt if command.image is None else f"{prompt} {command.image.stem}")
    if command.image is not None:
        return _announce(recipes.image_to_4d(
            prompt, command.image, settings, out, mask=command.mask, elevation=command.elevation, overwrite=overwrite
        ))
    if command.mesh is not None:
        return _announce(recipes.mesh_to_4d(
            prompt, command.mesh, settings, out, up=command.mesh_up, turn=command.mesh_turn, overwrite=overwrite
        ))
    if command.subject is not None:
        return _announce(recipes.subject_to_4d(
            prompt, command.subject, settings, out, subject_prompt=command.subject_prompt, overwrite=overwrite
        ))
    return _announce(recipes.text_to_4d(prompt, settings, out, overwrite=overwrite))


def static(command: Static) -> None:
    from dream4d import recipes

    prompt, settings = _checked_prompt(command.prompt, command.options, command.subject), command.options.job()
    out, overwrite = command.options.folder(prompt), command.options.overwrite
    if command.subject is not None:
        return _announce(recipes.subject_to_4d(
            prompt, command.subject, settings, out, subject_prompt=command.subject_prompt, moves=False,
            overwrite=overwrite,
        ))
    return _announce(recipes.static_scene(prompt, settings, out, overwrite=overwrite))


def animate(command: Animate) -> None:
    from dream4d import recipes

    prompt = _checked_prompt(command.prompt or recipes.prompt_of(command.source), command.options)
    out = command.options.folder(prompt)
    if command.options.out is None and out.resolve() == command.source.resolve():
        out = out.with_name(f"{out.name}-animated")
    settings = command.options.job()
    _announce(recipes.animate(command.source, prompt, settings, out, overwrite=command.options.overwrite))


def personalize(command: Personalize) -> None:
    from dream4d import recipes

    prompt = _checked_prompt(command.prompt, command.options, command.photos)
    _announce(recipes.personalize(
        command.photos, prompt, command.options.job(), command.options.folder(prompt),
        class_prompt=command.class_prompt, overwrite=command.options.overwrite,
    ))


def render(command: Render) -> None:
    from dream4d import recipes

    for name in ("size", "frames", "fps", "samples_per_ray"):
        if getattr(command, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(command, name)}, expected a positive number")
    if command.out is not None and command.out.suffix.lower() == ".png":
        return _announce(recipes.render_sheet(
            command.source, command.out, size=command.size, samples_per_ray=command.samples_per_ray,
            background=command.background, device=command.device,
        ))
    return _announce(recipes.render_video(
        command.source, command.out, views=command.views, channels=command.channels, size=command.size,
        frames=command.frames, fps=command.fps, elevation=command.elevation,
        samples_per_ray=command.samples_per_ray, background=command.background, device=command.device,
    ))


def models(command: Models) -> None:
    from dream4d import models

    if command.action == "fetch":
        return models.fetch_all(command.names, full=command.full)
    return print(models.listing())


def doctor(command: Doctor) -> None:
    from dream4d import doctor

    print(doctor.report(command.device, command.out))


def ablate_all(command: Ablate) -> None:
    from dream4d.evaluate import table1
    from dream4d.evaluate.ablate import ablation, figure, values_of
    from dream4d.toyworld import grammar

    options, out = command.options, command.options.out or Path("runs/ablation")
    if options.ablation or options.overwrite:
        raise ValueError("ablate goes through the variants and drops no run: leave --ablation and --overwrite out")
    prompts = [_checked_prompt(prompt, options) for prompt in command.prompts]
    prompts = prompts or [grammar.sentence(each) for each in grammar.evaluation_combinations(command.count)]
    done, failed = ablation(
        prompts, options.settings, out, variants=command.variants, seeds=command.seeds, workers=command.workers,
        threads=command.threads,
    )
    if not done:
        raise ValueError(f"no run was finished; see {failed[0].job.log}")
    numbers, tables = table1.write(values_of(done), out)
    print((numbers if command.json else tables).read_text("utf-8").rstrip())
    print(f"{numbers}, {tables}, {figure(done, out / 'figure.png')}", file=sys.stderr)
    if failed:
        raise ValueError(f"{len(failed)} of {len(failed) + len(done)} runs failed, the same command tries them again")


def report(command: Report) -> None:
    from dream4d.evaluate.report import report as write

    _announce(write(command.runs, command.out, device=command.device))


def study(command: Study) -> None:
    from dream4d.evaluate.study import design, results, server
    from dream4d.evaluate.study.votes import Votes

    votes = command.votes or command.folder / "votes.db"
    if command.action == "forget":
        return print(f"deleted {Votes(votes).forget(command.rater)} votes of {command.rater}")
    if command.action == "results":
        if command.json and command.csv:
            raise ValueError("--json and --csv are both given: choose one")
        form = "json" if command.json else "csv" if command.csv else "table"
        return print(results.results(votes, misses=command.misses, form=form))
    study = design.read_study(
        command.folder, questions=command.questions, compare=command.compare, prompts=command.prompts,
        checks=command.checks,
    )
    return server.serve(study, votes, host=command.host, port=command.port, names=command.names)


def evaluate(command: Evaluate) -> None:
    from dream4d.evaluate import runs

    found = runs.evaluate(command.runs, judge=command.judge, clip=command.clip, device=command.device)
    print(json.dumps(found, indent=1, allow_nan=False) if command.json else runs.table(found))


_COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "generate": (Generate, generate), "static": (Static, static), "animate": (Animate, animate),
    "personalize": (Personalize, personalize),
    "render": (Render, render), "models": (Models, models),
    "doctor": (Doctor, doctor), "evaluate": (Evaluate, evaluate), "report": (Report, report),
    "ablate": (Ablate, ablate_all), "study": (Study, study),
}
_WITHOUT_SETTINGS = (Render, Models, Doctor, Evaluate, Report, Study)


def _run(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        return print(_usage())
    if name == "--version":
        return print(f"dream4d {__version__}")
    if name not in _COMMANDS:
        raise ValueError(f"there is no command {name!r}; {suggest(name, _COMMANDS)}")
    kind, function = _COMMANDS[name]
    default = kind() if kind in _WITHOUT_SETTINGS else _from_yaml(name, kind, arguments[1:])
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            command, unknown = tyro.cli(
                kind, prog=f"dream4d {name}", args=arguments[1:], default=default, return_unknown_args=True,
                registry=_schedules(), config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ValueError(f"{_unboxed(complaint.getvalue())}; see dream4d {name} --help") from None
    _refuse(unknown, default)
    return function(command)


def _unboxed(text: str) -> str:
    """What tyro's box says between its title and the next rule, on one line; some terminals get a box without sides."""
    lines = [line.strip(" │") for line in text.splitlines()[1:]]
    parts = [list(part) for is_rule, part in groupby(lines, lambda line: not line.strip("─-")) if not is_rule]
    return " ".join(" ".join(parts[0]).split()).rstrip(".") if parts else "the options cannot be read"


def _usage() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:{width}}  {kind.__doc__}" for name, (kind, _) in _COMMANDS.items()]
    return "\n".join([
        "usage: dream4d COMMAND [options]", "", *lines, "",
        "dream4d COMMAND --help lists the options of a command; --debug shows where an error came from.",
        "Start with: dream4d generate \"a red cat wearing a top hat is waving\"",
    ])


def _from_yaml(name: str, kind: type[Any], arguments: list[str]) -> Any:
    """The command as preset and YAML file say; they are read before the other options, whose defaults they are."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    early.add_argument("--config")
    known, _ = early.parse_known_args(arguments)
    values = read_yaml(known.config) if known.config else {}
    if (meant := values.pop("command", name)) != name:
        raise ValueError(f"{known.config} is for `dream4d {meant}`, not for `dream4d {name}`")
    in_file = str(values.pop("preset", "builtin"))
    chosen = known.preset or in_file
    own = {key: _own(kind, key, values.pop(key)) for key in _own_options(kind) if key in values}
    settings = merge(preset(chosen), values)
    config = Path(known.config) if known.config else None
    return kind(**own, options=Options(preset=chosen, config=config, settings=settings))


def _own(kind: type[Any], key: str, value: Any) -> Any:
    """What a YAML file says for an option that is no setting of the preset."""
    wanted = str(kind.__annotations__[key])
    if wanted in _SIMPLE:
        types, words, make = _SIMPLE[wanted]
        if isinstance(value, types) and (wanted == "bool" or not isinstance(value, bool)):
            return make(value)
        raise ValueError(f"{key}: expected {words}, not {value!r}")
    if "tuple" in wanted and isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    if "tuple" in wanted or not isinstance(value, str):
        raise ValueError(f"{key}: expected {'a list of texts' if 'tuple' in wanted else 'text'}, not {value!r}")
    return Path(value) if "Path" in wanted else value


_SIMPLE: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "bool": (bool, "true or false", bool), "int": (int, "a whole number", int),
    "float": ((int, float), "a number", float),
}  # fmt: skip


def _refuse(unknown: list[str], command: Any) -> None:
    options = [argument.partition("=")[0] for argument in unknown if argument.startswith("-")]
    if options:
        raise ValueError(f"unknown option {options[0]}; {suggest(options[0], _option_names(command))}")
    if unknown:
        raise ValueError(f"unexpected {unknown[0]!r}: put the prompt in quotes")


def _option_names(command: Any) -> list[str]:
    if isinstance(command, _WITHOUT_SETTINGS):
        positional = {"source", "runs", "action", "names" if isinstance(command, Models) else "folder"}
        names = [name for name in type(command).__annotations__ if name not in positional]
    else:
        own = [name for name in Options.__annotations__ if name != "settings"] + _own_options(type(command))
        names = [*own, *flatten(to_mapping(command.options.settings))]
    return ["--" + name.replace("_", "-") for name in names]


def _own_options(kind: type[Any]) -> list[str]:
    """Of a command with settings: what its jobs have beside those."""
    return [name for name in kind.__annotations__ if name != "options"]


def _checked_prompt(prompt: str, options: Options, subject: Path | None = None) -> str:
    prompt = " ".join(prompt.split())
    if not prompt:
        raise ValueError('the prompt is empty: say what is there, e.g. "a red cat wearing a top hat is waving"')
    priors = options.job().priors
    if "builtin" in (priors.image, priors.multiview, priors.video):
        from dream4d.toyworld import grammar

        taught = [] if subject is None else [options.job().personalize.token.lower()]
        if (name := grammar.name_in(prompt)) and name not in taught:
            print(f"note: the built-in models take {name} for a toy with markings of its own", file=sys.stderr)
        if unknown := [word for word in grammar.unknown_words(prompt) if word not in (*taught, name)]:
            known = "; ".join(f"{kind}: {', '.join(words)}" for kind, words in grammar.known_words().items())
            print(f"warning: the built-in models do not know {', '.join(unknown)}. They know {known}", file=sys.stderr)
    return prompt


def _schedules() -> tyro.constructors.ConstructorRegistry:
    """Teaches tyro the notation of schedules."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def schedule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        if info.type not in SCHEDULES:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1, metavar="SCHEDULE", instance_from_str=lambda arguments: parse_schedule(arguments[0]),
            is_instance=callable, str_from_instance=lambda value: [format_schedule(value)],
        )

    return registry


def _announce(file: Path) -> None:
    print(file)
