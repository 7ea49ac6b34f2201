"""Whole jobs: from a prompt or a scene to a run folder with a moving scene and its video.

Each loads the priors of one stage at a time, trains, writes previews and checkpoints, and goes on where it stopped when
it is called again with the same arguments.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dream4d.dynamic import fit_dynamic, start_dynamic
from dream4d.files import atomic
from dream4d.film import AROUND, ELEVATION, RGB, THROUGHOUT, Channel, Extent, Occupancy, View, film, still_sheet
from dream4d.loading import (
    check,
    how_to_load,
    image_folder,
    image_prior,
    multiview_prior,
    novel_prior,
    pick_device,
    picture_prior,
    prompts_of,
    video_prior,
)
from dream4d.media import contact_sheet, parse_colour, read_photos, write_png, write_video
from dream4d.mesh import Mesh
from dream4d.meshfile import Up, read_mesh
from dream4d.occupancy import OccupancyGrid
from dream4d.personalize import (
    PersonalState,
    draw,
    draw_class,
    fit_personal,
    start_personal,
    subject_of,
    without_token,
)
from dream4d.picture import Picture, copy_picture, read_framed, read_picture
from dream4d.plans import Frugal, Plan, dynamic_need, fitting, plan_for, static_need, with_plans
from dream4d.presets import Preset, for_mesh, for_subject, to_mapping
from dream4d.priors.adapters import lora_file, write_lora
from dream4d.priors.deepfloyd import DeepFloyd
from dream4d.priors.lora import Lora, read_lora
from dream4d.priors.parts import ImagePrior, Shared
from dream4d.priors.stable_diffusion import StableDiffusion
from dream4d.priors.text_to_video import TextToVideo
from dream4d.progress import track
from dream4d.reconstruct import fit_mesh, similarity
from dream4d.run import Run, read_config
from dream4d.scene import Scene
from dream4d.settings import StaticSettings
from dream4d.state import State, StepReport
from dream4d.static import fit_picture, fit_static, start_static


def text_to_4d(
    prompt: str, settings: Preset, out: str | Path, *, static: Path | None = None, overwrite: bool = False
) -> Path:
    """Both stages (paper Sec. 3.1 and 3.2). Returns the video.

    static: what the first stage gave a run with the same settings of it; taken in its place if that file is there.
    Raises ValueError for settings that cannot work, for missing priors and for a folder that cannot be used.
    """
    check(settings, "image", "multiview", "video")
    with Run(out, _job("generate", prompt, settings), overwrite=overwrite) as run:
        if not run.scene.exists():
            if static is not None and static.is_file() and not run.static_scene.exists():
                with atomic(run.static_scene) as copy:
                    shutil.copyfile(static, copy)
            _static_stage(run, run.static_scene, prompt, settings)
            _dynamic_stage(run, run.static_scene, prompt, settings)
        return _video(run, settings)


def subject_to_4d(
    prompt: str, subject: str | Path, settings: Preset, out: str | Path, *, subject_prompt: str | None = None,
    moves: bool = True, overwrite: bool = False,
) -> Path:
    """Both stages, or the static one alone, with a personalised image model (paper Sec. 3.3). Returns the video.

    subject: a folder of photos, from which the model learns in the run's ``subject/``, or a LoRA that knows the
    subject. subject_prompt: what the photos show, by default what `prompt` says of the subject, see `subject_of`.
    moves: go on to the dynamic stage.

    Only the image model learns the subject; what the others are told is `personalize.multiview` and `.video`.
    Raises ValueError as `text_to_4d` does, and as `personalize` does.
    """
    check(settings, "image", "multiview")
    if moves:
        check(settings, "video")
    image_folder(settings)
    plain = without_token(prompt, settings.personalize.token)
    known = Path(subject) if Path(subject).suffix == ".safetensors" else lora_file(Path(subject))
    lora = None if known is None else read_lora(known)
    subject_prompt = subject_prompt or subject_of(prompt, settings.personalize.token)
    kind = without_token(subject_prompt, settings.personalize.token)
    if lora is None:
        _check_subject(subject, subject_prompt, settings)
    command = "generate" if moves else "static"
    job = _job(command, prompt, settings, subject=str(subject), subject_prompt=subject_prompt)
    with Run(out, job, overwrite=overwrite) as run:
        if not run.scene.exists():
            lora = lora or read_lora(personalize(subject, subject_prompt, settings, run.subject))
            target, own = run.static_scene if moves else run.scene, for_subject(settings)
            _static_stage(
                run, target, prompt, own, lora=lora,
                multiview_prompt=plain if settings.personalize.multiview == "class" else None,
                image_negative=kind if settings.personalize.away_from_class else None,
            )
            if moves:
                _dynamic_stage(run, target, plain if settings.personalize.video == "class" else prompt, own)
        return _video(run, settings)


def personalize(
    photos: str | Path, prompt: str, settings: Preset, out: str | Path, *, class_prompt: str | None = None,
    overwrite: bool = False,
) -> Path:
    """A LoRA of the image model that knows the subject of a folder of photos as `prompt` says (paper Sec. 3.3).

    class_prompt: what `prompt` says of any such thing, by default without the subject's word. out: the run's folder; or
    the file, whose run is then in the folder of its name without ``.safetensors``. Returns the file.

    Raises ValueError as `text_to_4d` does, and for photos that are missing or cannot be read.
    """
    check(settings, "image")
    image_folder(settings)
    class_prompt = class_prompt or without_token(prompt, settings.personalize.token)
    _check_subject(photos, prompt, settings)
    out = Path(out)
    named = out.suffix == ".safetensors"
    job = _job("personalize", prompt, settings, photos=str(photos), class_prompt=class_prompt)
    with Run(out.with_suffix("") if named else out, job, overwrite=overwrite) as run:
        target = out if named else run.lora
        if overwrite or not target.exists():
            state = _personal_stage(run, photos, prompt, class_prompt, settings)
            write_lora(target, unet=state.unet, text_encoder=state.text_encoder)
        return target


def image_to_4d(
    prompt: str, image: str | Path, settings: Preset, out: str | Path, *, mask: str | Path | None = None,
    elevation: float = 0.0, overwrite: bool = False,
) -> Path:
    """Both stages, the first of them from a picture of the object (paper Sec. 3.3). Returns the video.

    mask: a picture of the same size, white where the object is; see `picture.read_picture`. elevation: of the camera
    that took the picture from the object's front, in degrees. The run keeps its own copy and goes on from that.
    Raises ValueError as `text_to_4d` and `read_picture` do.
    """
    check(settings, "novel", "picture", "video")
    if not -90 < elevation < 90:
        raise ValueError(f"elevation is {elevation}: expected degrees above the horizon, between -90 and 90")
    picture = None
    if overwrite or not (Path(out) / "cutout.png").is_file():
        picture = read_picture(image, mask=mask, rembg=settings.picture.rembg, fill=settings.picture.fill)
    given: dict[str, Any] = {"image": str(image)} | ({} if mask is None else {"mask": str(mask)})
    with Run(out, _job("generate", prompt, settings, **given, elevation=elevation), overwrite=overwrite) as run:
        if picture is not None:
            _tell(f"the object was found by {picture.cutout}: look at {run.cutout}")
            copy_picture(image, run.picture)
            picture.save(run.cutout)
        if not run.scene.exists():
            _picture_stage(run, run.static_scene, prompt, read_framed(run.cutout), elevation, settings)
            _dynamic_stage(run, run.static_scene, prompt, settings)
        return _video(run, settings)


def static_scene(prompt: str, settings: Preset, out: str | Path, *, overwrite: bool = False) -> Path:
    """The static stage alone (paper Sec. 3.1). Returns the video. Raises ValueError as `text_to_4d` does."""
    check(settings, "image", "multiview")
    with Run(out, _job("static", prompt, settings), overwrite=overwrite) as run:
        if not run.scene.exists():
            _static_stage(run, run.scene, prompt, settings)
        return _video(run, settings)


def mesh_to_4d(
    prompt: str, file: str | Path, settings: Preset, out: str | Path, *, up: Up = "auto", turn: float = 0.0,
    overwrite: bool = False,
) -> Path:
    """A given model as the static scene, then the dynamic stage (paper Sec. 3.2). Returns the video.

    up, turn: see `meshfile.read_mesh`. Raises ValueError as that and `text_to_4d` do.
    """
    check(settings, "video")
    chosen = settings.reconstruct
    mesh = read_mesh(file, up=up, turn=turn, size=chosen.size, middle=chosen.middle)
    job = _job("generate", prompt, settings, mesh=str(file), mesh_up=up, mesh_turn=turn)
    with Run(out, job, overwrite=overwrite) as run:
        if not run.scene.exists():
            _mesh_stage(run, run.static_scene, mesh, settings)
            _dynamic_stage(run, run.static_scene, prompt, for_mesh(settings), density=chosen.density)
        return _video(run, settings, chosen.samples_per_ray)


def animate(source: str | Path, prompt: str, settings: Preset, out: str | Path, *, overwrite: bool = False) -> Path:
    """The dynamic stage (paper Sec. 3.2) on the scene of a finished run or file. Returns the video.

    A scene that moves already gets a new motion. Raises ValueError as `text_to_4d` does.
    """
    check(settings, "video")
    scene = find_scene(source)
    if Path(out).resolve() == scene.parent.resolve():
        raise ValueError(f"{out} is the run to animate: choose another --out")
    if (field := Scene.load(scene).shape.field) != settings.scene.field:
        raise ValueError(f"{source} is a scene of field {field}: it can only be animated with --scene.field {field}")
    with Run(out, _job("animate", prompt, settings, source=str(source)), overwrite=overwrite) as run:
        if not run.scene.exists():
            _dynamic_stage(run, scene, prompt, settings)
        return _video(run, settings)


def render_video(
    source: str | Path, out: str | Path | None = None, *, views: Sequence[View] = ("fixed", "orbit"),
    channels: Sequence[Channel] = ("rgb",), size: int = 256, frames: int = 48, fps: float = 16.0,
    elevation: float = ELEVATION, samples_per_ray: int = 256, background: str = "scene", device: str = "auto",
) -> Path:
    """A video of the scene of a finished run or file, see `film.film`. Returns where it is."""
    behind = parse_colour(background)
    scene_file = find_scene(source)
    default = Path(source) / "video.mp4" if Path(source).is_dir() else scene_file.with_suffix(".mp4")
    target = default if out is None else Path(out)
    scene = Scene.load(scene_file).to(pick_device(device))
    images = film(
        scene, Extent(scene).at, views=views, channels=channels, size=size, frames=frames,
        samples_per_ray=samples_per_ray, elevation=elevation, background=behind,
    )
    write_video(target, images, fps)
    return target


def render_sheet(
    source: str | Path, out: str | Path, *, size: int = 128, samples_per_ray: int = 256, background: str = "scene",
    device: str = "auto",
) -> Path:
    """A contact sheet of the scene of a finished run or file from eight sides, at six times if it moves."""
    behind = parse_colour(background)
    scene = Scene.load(find_scene(source)).to(pick_device(device))
    write_png(out, _sheet(scene, Extent(scene).at, size, samples_per_ray, behind))
    return Path(out)


def _sheet(scene: Scene, occupancy: Occupancy, size: int, samples_per_ray: int, background: RGB | None) -> Any:
    return still_sheet(
        scene, occupancy, times=THROUGHOUT if scene.moves else (0.0,), azimuths=AROUND, size=size,
        samples_per_ray=samples_per_ray, background=background,
    )


def find_scene(source: str | Path) -> Path:
    """The scene file of a run folder, or the file itself. Raises ValueError where there is none."""
    source = Path(source)
    if source.is_dir():
        read_config(source)
        if not (source / "scene.safetensors").is_file():
            raise ValueError(f"{source} has no scene.safetensors: that run is not finished, start its command again")
        return source / "scene.safetensors"
    if not source.is_file():
        raise ValueError(f"there is no run and no scene file {source}")
    return source


def prompt_of(source: str | Path) -> str:
    """The prompt of a run, without the word of a subject, which its image model alone knows; empty for a lone scene
    file."""
    config = read_config(source) if Path(source).is_dir() else {}
    prompt = str(config.get("prompt", ""))
    return without_token(prompt, str(config["personalize"]["token"])) if "subject" in config else prompt


def _static_stage(
    run: Run, target: Path, prompt: str, settings: Preset, *, lora: Lora | None = None,
    multiview_prompt: str | None = None, image_negative: str | None = None,
) -> None:
    if target.exists():
        return
    device, state = pick_device(settings.device), _start_static(run, settings)
    shared: Shared = {}
    with fitting("loading the models of the static stage"):
        image = image_prior(settings, device, shared, lora)
        everywhere = settings.personalize.multiview == "lora"
        multiview = multiview_prior(settings, device, shared, lora if everywhere else None)
        priors = [prior for prior in (image, multiview) if prior is not None]
        _encode_prompts(priors, prompt, settings, *filter(None, [multiview_prompt, image_negative]))

    def fit(plan: Plan) -> Iterator[StepReport]:
        _apply(plan, settings, priors)
        return fit_static(
            state, image_prior=image, multiview_prior=multiview, prompt=prompt, negative=settings.negative,
            image_negative=image_negative, multiview_prompt=multiview_prompt, settings=settings.static,
            budget=plan.samples,
        )

    _grow(run, target, state, settings, settings.static, priors, fit)


def _picture_stage(
    run: Run, target: Path, prompt: str, picture: Picture, elevation: float, settings: Preset
) -> None:
    if target.exists():
        return
    device, state = pick_device(settings.device), _start_static(run, settings)
    shared: Shared = {}
    with fitting("loading the models of the static stage"):
        image = picture_prior(prompt, settings, device, shared)
        novel = novel_prior(picture, elevation, settings, device, shared)
        priors = [prior for prior in (image, novel) if prior is not None]
        _encode_prompts(priors, prompt, settings)

    def fit(plan: Plan) -> Iterator[StepReport]:
        _apply(plan, settings, priors)
        return fit_picture(
            state, picture=picture, elevation=elevation, image_prior=image, novel_prior=novel, prompt=prompt,
            negative=settings.negative, settings=settings.picture, budget=plan.samples,
        )

    _grow(run, target, state, settings, settings.picture, priors, fit)


def _start_static(run: Run, settings: Preset) -> State:
    """A new scene's state, or what a stopped run had of it."""
    device = pick_device(settings.device)
    torch.manual_seed(settings.seed)
    state = start_static(Scene(settings.scene).to(device), seed=settings.seed, occupancy=OccupancyGrid().to(device))
    _resume(run, "static", state)
    return state


def _grow(
    run: Run, target: Path, state: State, settings: Preset, stage: StaticSettings,
    priors: Sequence[ImagePrior | DeepFloyd], fit: Callable[[Plan], Iterator[StepReport]],
) -> None:
    """What every static stage does once its models are loaded."""
    device, scene = pick_device(settings.device), state.scene

    def need(plan: Plan) -> float:
        downsampling = _downsampling(priors)
        sizes = [_latent_size(prior, downsampling) for prior in priors]
        return static_need(plan, stage, sizes, downsampling=downsampling, features=_plane_features(scene))

    reports = with_plans(state, plan_for("static", need, device, settings.memory, _tell), fit, _tell)

    sheet = _preview(state, settings, stage.samples_per_ray, parse_colour(settings.output.background))
    _train(run, "static", state, reports, stage.steps, settings, sheet)
    scene.save(target)


def _mesh_stage(run: Run, target: Path, mesh: Mesh, settings: Preset) -> None:
    if target.exists():
        return
    chosen = settings.reconstruct
    if chosen.log2_size is not None:
        settings = replace(settings, scene=replace(settings.scene, log2_size=chosen.log2_size))
    state = _start_static(run, settings)
    scene, behind = state.scene, parse_colour(settings.output.background) or (1.0, 1.0, 1.0)
    reports = fit_mesh(state, mesh, background=behind, settings=chosen)
    sheet = _preview(state, settings, chosen.samples_per_ray, behind)
    _train(run, "static", state, reports, chosen.steps, settings, sheet)
    psnr = similarity(
        scene, Extent(scene).at, mesh, size=min(settings.output.size, 128), samples_per_ray=chosen.samples_per_ray,
        light=chosen.light,
    )
    run.log("static", chosen.steps, psnr=psnr)
    _tell(f"the scene is like the model to {psnr:.1f} dB, in views that it was not fitted to")
    scene.save(target)


def _dynamic_stage(run: Run, source: Path, prompt: str, settings: Preset, *, density: float = 1.0) -> None:
    """density: see `fit_dynamic`."""
    device = pick_device(settings.device)
    torch.manual_seed(settings.seed)
    scene = Scene.load(source)
    scene.add_motion(settings.deformation)
    state = start_dynamic(scene.to(device), seed=settings.seed, occupancy=OccupancyGrid().to(device))
    _resume(run, "dynamic", state)
    with fitting("loading the video model"):
        video = video_prior(settings, device)
        _encode_prompts([video], prompt, settings)

    def need(plan: Plan) -> float:
        return dynamic_need(
            plan, settings.dynamic, frames=video.frames, size=video.resolution, downsampling=_downsampling([video]),
            features=_plane_features(scene),
        )

    def fit(plan: Plan) -> Iterator[StepReport]:
        _apply(plan, settings, [video])
        return fit_dynamic(
            state, video_prior=video, prompt=prompt, negative=settings.negative, settings=settings.dynamic,
            density=density, budget=plan.samples,
        )

    reports = with_plans(state, plan_for("dynamic", need, device, settings.memory, _tell), fit, _tell)

    sheet = _preview(
        state, settings, settings.dynamic.samples_per_ray, parse_colour(settings.output.background), times=THROUGHOUT,
        azimuths=(20.0, 110.0),
    )
    _train(run, "dynamic", state, reports, settings.dynamic.steps, settings, sheet)
    scene.save(run.scene)


def _preview(
    state: State, settings: Preset, samples_per_ray: int, background: RGB | None, *,
    times: Sequence[float] = (0.0,), azimuths: Sequence[float] = (0.0, 90.0, 180.0, 270.0),
) -> Callable[[], Any]:
    """Makes a sheet of the scene as it is by then."""
    return lambda: still_sheet(
        state.scene, lambda time: state.occupancy, times=times, azimuths=azimuths, size=min(settings.output.size, 128),
        samples_per_ray=samples_per_ray, background=background,
    )


def _personal_stage(
    run: Run, folder: str | Path, prompt: str, class_prompt: str, settings: Preset
) -> PersonalState:
    own, device = settings.personalize, pick_device(settings.device)
    loading = how_to_load(settings, "image", device)
    if loading["dtype"] == torch.float16:
        loading["dtype"] = torch.bfloat16  # in whose range no gradient is lost
    side = own.resolution
    with fitting("loading the image model"):
        prior = StableDiffusion.load(
            image_folder(settings), **loading, resolution=None if side is None else (side, side), quick=False
        )
    photos = torch.from_numpy(read_photos(folder, min(prior.resolution)))
    state = start_personal(prior, own, seed=settings.seed)

    def drawn(*prompts: str) -> list[Any]:
        latents = [draw(state, [words] * own.samples, own, seed=settings.seed) for words in prompts]
        return [prior.decode(row).cpu().numpy() for row in latents]

    seen = photos[torch.arange(own.samples) % len(photos)].numpy()
    rows = ("photos", f"before: {class_prompt}", f"now: {class_prompt}", f"before: {prompt}", f"now: {prompt}")
    before = drawn(class_prompt, prompt) if settings.output.preview_every else []
    if (drawn_before := run.load_checkpoint("class")) is None:
        pictures = draw_class(state, class_prompt, own, seed=settings.seed + 1).cpu()
        run.save_checkpoint("class", len(pictures), {"latents": pictures.contiguous()})
    else:
        pictures = drawn_before["latents"]

    def sheet() -> Any:
        now = drawn(class_prompt, prompt)
        return contact_sheet([seen, before[0], now[0], before[1], now[1]], rows=rows)

    _resume(run, "personalize", state)
    reports = fit_personal(
        state, photos=photos, prompt=prompt, pictures=pictures, class_prompt=class_prompt, settings=own
    )
    with fitting("learning the subject"):
        _train(run, "personalize", state, reports, own.steps, settings, sheet)
    return state


def _check_subject(photos: str | Path, prompt: str, settings: Preset) -> None:
    """What of a job that personalises can be refused before any work."""
    for name in ("steps", "photos", "rank", "sampling_steps", "samples"):
        if (value := getattr(settings.personalize, name)) < 1:
            raise ValueError(f"--personalize.{name.replace('_', '-')} is {value}, expected at least 1")
    without_token(prompt, settings.personalize.token)
    if len(read_photos(photos, 8)) == 1:
        _tell(f"warning: {photos} has a single photo, whose background and pose will be learned too: 4 to 6 are better")


def _downsampling(priors: Iterable[ImagePrior | DeepFloyd | TextToVideo]) -> int:
    autoencoders = [prior.parts.autoencoder for prior in priors if not isinstance(prior, DeepFloyd)]
    return min((autoencoder.downsampling for autoencoder in autoencoders), default=8)


def _latent_size(prior: ImagePrior | DeepFloyd, downsampling: int) -> tuple[int, int]:
    """The size of the images of whose latents a UNet sees as much; for pixels an upper bound, nothing encodes them."""
    height, width = prior.resolution
    return (height * downsampling, width * downsampling) if isinstance(prior, DeepFloyd) else (height, width)


def _plane_features(scene: Scene) -> int:
    return 0 if scene.hexplane is None else scene.hexplane.width


def _encode_prompts(
    priors: Iterable[ImagePrior | DeepFloyd | TextToVideo], prompt: str, settings: Preset, *more: str
) -> None:
    """All that a stage may say to its models, at once, so that their text encoders leave memory."""
    texts = [prior.text if isinstance(prior, DeepFloyd) else prior.parts.text for prior in priors]
    for encoder in {id(text): text for text in texts if text is not None}.values():
        encoder.prepare([*prompts_of(prompt, settings), *more])


def _apply(plan: Plan, settings: Preset, priors: Iterable[Frugal]) -> None:
    chunk = settings.priors.chunk
    (plan if chunk is None else replace(plan, images=chunk)).apply(priors)


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _train(
    run: Run, stage: str, state: State | PersonalState, reports: Iterable[StepReport], steps: int, settings: Preset,
    sheet: Callable[[], Any],
) -> None:
    """Go through `reports` to the end, writing metrics, previews and checkpoints on the way."""
    output, saved = settings.output, time.monotonic()
    for report in track(reports, stage, steps, done=state.step):
        due = state.step == steps or time.monotonic() - saved >= output.checkpoint_seconds
        if due or report.step % output.log_every == 0:
            losses = report.floats()
            if not all(map(math.isfinite, losses.values())):
                raise ValueError(f"the {stage} stage diverged at step {report.step}: {losses}; lower its guidance or "
                                 "its learning rate")
            run.log(stage, report.step, **losses)
        if output.preview_every and state.step % output.preview_every == 0:
            write_png(run.preview(stage, state.step), sheet())
        if due:
            run.save_checkpoint(stage, state.step, state.to_tensors())
            saved = time.monotonic()


def _resume(run: Run, stage: str, state: State | PersonalState) -> None:
    tensors = run.load_checkpoint(stage)
    if tensors is not None:
        state.load_tensors(tensors)


def _video(run: Run, settings: Preset, samples_per_ray: int | None = None) -> Path:
    """samples_per_ray: the static stage's from text if None."""
    if run.video.exists():
        return run.video
    output, samples = settings.output, samples_per_ray or settings.static.samples_per_ray
    behind = parse_colour(output.background)
    scene = Scene.load(run.scene).to(pick_device(settings.device))
    occupancy = Extent(scene).at
    write_png(run.sheet, _sheet(scene, occupancy, min(output.size, 128), samples, behind))
    frames = film(
        scene, occupancy, views=("fixed", "orbit"), channels=("rgb",), size=output.size, frames=output.frames,
        samples_per_ray=samples, background=behind,
    )
    write_video(run.video, frames, output.fps)
    return run.video


def _job(command: str, prompt: str, settings: Preset, **more: Any) -> dict[str, Any]:
    return {"command": command, "prompt": prompt, **more, **to_mapping(settings)}


