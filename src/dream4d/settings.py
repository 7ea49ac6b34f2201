"""What can be set: every field is an option of the command line and a key in YAML, and its docstring is its help.

The defaults are the paper's (its supplement, sections 2 and 3). Nothing here is heavy to import.
"""
# ruff: noqa: RUF009 - schedules are frozen values

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dream4d.schedules import Constant, Count, Interval, Levels, Linear, Milestones, Schedule, Stairs, Switch


@dataclass(frozen=True)
class SceneShape:
    """Sizes of the canonical field and the background; the defaults are the paper's (supp. 2)."""

    field: Literal["grid", "hexplane"] = "grid"
    """The paper's canonical scene on a feature grid, which a deformation moves; or that of its ablation, a HexPlane,
    of which the second stage trains everything."""
    levels: int = 16
    """Levels of the 3D feature grid."""
    features: int = 2
    """Features of each level."""
    base: int = 16
    """Cells of the coarsest level along an axis."""
    growth: float = 1.447269
    """Ratio of a level's cells to those of the level before, along an axis."""
    log2_size: int = 19
    """Binary logarithm of the most rows that a level stores."""
    plane_levels: int = 4
    """Levels of a HexPlane, each with twice the rows of the one before."""
    plane_size: int = 512
    """Rows of the finest level's planes along an axis of space."""
    plane_times: int = 24
    """Rows of its planes along the axis of time."""
    plane_features: int = 8
    """Features of each plane."""
    hidden: int = 64
    """Width of the MLPs' hidden layers."""
    blob_scale: float = 10.0
    """Initial density before softplus at the centre."""
    blob_radius: float = 0.5
    """Radius at which the initial density before softplus is zero, in scene units."""


@dataclass(frozen=True)
class DeformationShape:
    """Sizes of the deformation field; the defaults are the paper's (supp. 2)."""

    encoding: Literal["grid", "positional"] = "grid"
    """The paper's 4D feature grid, or the positional encoding of its ablation."""
    levels: int = 12
    """Levels of the 4D feature grid."""
    features: int = 2
    """Features of each level."""
    base: int = 4
    """Cells of the coarsest level along an axis."""
    growth: float = 1.447269
    """Ratio of a level's cells to those of the level before, along an axis."""
    log2_size: int = 19
    """Binary logarithm of the most rows that a level stores."""
    frequencies: int = 6
    """Octaves of the positional encoding; `dynamic.levels` switches them on as it does the grid's levels."""
    hidden: int = 64
    """Width of the MLP's hidden layers."""
    layers: int = 4
    """Hidden layers of the MLP."""
    at_rest: bool = False
    """Measure the displacement from that at time 0, so that time 0 shows the static scene exactly."""


@dataclass(frozen=True)
class PriorSettings:
    """The diffusion models: `builtin`; a model or hub id that `dream4d models` has fetched; a local folder in diffusers
    layout; an original checkpoint file; or `none` for an ablation."""

    image: str = "builtin"
    """Image model, seen by the static stage (the paper: Stable Diffusion 2.1)."""
    multiview: str = "builtin"
    """Multi-view model, seen by the static stage (the paper: MVDream)."""
    video: str = "builtin"
    """Video model, seen by the dynamic stage (the paper: Zeroscope)."""
    novel: str = "builtin"
    """Novel-view model, seen by the static stage from a picture (the paper: zero123-xl)."""
    picture: str | None = None
    """Image model of the static stage from a picture (the paper: DeepFloyd IF); the image model if None."""
    base: str | None = None
    """Folder with the vae, text_encoder and tokenizer of models that lack them; by default the image model's. The
    built-in models always share their own."""
    video_frames: int = 24
    """Frames of a clip of the video model."""
    video_resolution: tuple[int, int] | None = (320, 576)
    """Height and width of its frames; what its configuration says if None."""
    precision: Literal["auto", "half", "bf16", "full"] = "auto"
    """Of the models: fp16, bf16, fp32, or what suits the device, fp16 on a GPU."""
    chunk: int | None = None
    """Images that the autoencoder takes at a time, to save memory; as the memory plan says if None."""


@dataclass(frozen=True)
class StaticSettings:
    """How the static stage trains; the defaults are the paper's."""

    steps: int = 10_000
    """Steps of the optimiser."""
    views: int = 4
    """Images of one scene, evenly spaced in azimuth, that the multi-view prior sees together."""
    images: Count = Switch(8, 4, at=5000)
    """Images rendered a step, a multiple of `views`."""
    resolution: Count = Switch(64, 256, at=5000)
    """Height and width of the rendered images in pixels."""
    samples_per_ray: int = 512
    """Samples along the longest ray through the scene."""
    elevation: tuple[float, float] = (0.0, 30.0)
    """Lowest and highest camera elevation in degrees."""
    fov_y: tuple[float, float] = (15.0, 60.0)
    """Narrowest and widest vertical field of view in degrees."""
    flat_background: float = 0.5
    """Probability of a random flat colour, one for all images of the step, in place of the background network."""
    weight_2d: float = 1.0
    """Weight of the image prior's loss; the paper takes 1 or 1.2, see its supplement, Table 1."""
    guidance_2d: float = 100.0
    """Scale of the image prior's classifier-free guidance."""
    timesteps_2d: Interval = Interval(Constant(0.2), Constant(0.6))
    """Interval of the image prior's timesteps, as fractions of their number."""
    images_2d: int | None = None
    """At most so many images of a step, chosen at random, go to the image prior; all if None."""
    max_azimuth_2d: float = 180.0
    """Images from azimuths farther than this from the front, in degrees, do not go to the image prior."""
    weight_3d: Schedule = Constant(1.0)
    """Weight of the multi-view prior's loss."""
    guidance_3d: float = 50.0
    """Scale of the multi-view prior's classifier-free guidance."""
    timesteps_3d: Interval = Interval(Linear(0.98, 0.02, steps=8000), Linear(0.98, 0.5, steps=8000))
    """Interval of the multi-view prior's timesteps, as fractions of their number."""
    std_rescale: float = 0.5
    """How far the guided estimate's standard deviation moves toward the unguided one's, 0 to 1."""
    weight_entropy: Schedule = Constant(0.0)
    """Weight of the mean entropy of the pixels' opacities, against haze; the paper has none."""
    learning_rate_grid: Schedule = Constant(0.01)
    """Learning rate of the feature grid."""
    learning_rate_mlp: Schedule = Constant(0.001)
    """Learning rate of the MLPs."""
    occupancy_every: int = 16
    """Steps between updates of the occupancy grid."""


@dataclass(frozen=True)
class ReconstructSettings:
    """How the static stage takes over a model that is given as a mesh; the paper has no such stage."""

    steps: int = 3000
    """Steps of the optimiser."""
    rays: int = 8192
    """Rays a step."""
    samples_per_ray: int = 512
    """Samples along the longest ray through the scene."""
    size: float = 0.36
    """Root mean square distance of the model's surface from its middle, in scene units; less for long ones."""
    middle: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where the middle of its surface stands, in scene units."""
    log2_size: int | None = None
    """Of the scene's feature grid, in place of `scene.log2_size` if not None: a model may be finer than what a text
    gives."""
    at_rest: bool = True
    """`deformation.at_rest` of its motion, so that time 0 shows the model as it is."""
    density: float = 1.0
    """Factor of its density while its motion is learned: what hides all behind its skin moves less."""
    kept_mean: float | None = None
    """In place of `dynamic.kept_mean` if not None: a video model that never saw the model would change it."""
    levels: Count | None = None
    """In place of `dynamic.levels` if not None."""
    light: float = 0.0
    """How much darker the model is drawn where it faces away from a light above its front, 0 to 1. What has no colours
    needs some to be seen as a shape."""
    weight_opacity: float = 0.5
    """Weight of the squared error of the opacity beside that of the colour."""
    weight_depth: float = 0.05
    """Weight of the error of the depth, in scene units, where the model is."""
    weight_empty: float = 1.0
    """Weight of the opacity of a sample at random places that the model leaves empty: no specks in the air."""
    learning_rate_grid: Schedule = Milestones(0.01, at=(2000, 2500))
    """Learning rate of the feature grid."""
    learning_rate_mlp: Schedule = Milestones(0.003, at=(2000, 2500))
    """Learning rate of the MLPs."""
    occupancy_every: int = 16
    """Steps between updates of the occupancy grid."""


@dataclass(frozen=True)
class PictureSettings(StaticSettings):
    """How the static stage trains from a picture (paper Sec. 3.3), in place of what it does from a text alone; `views`
    is 1, and `std_rescale` and `flat_background` have no use: each view is predicted on its own, before white."""

    steps: int = 2000
    """Steps of the optimiser."""
    views: int = 1
    """Images that share a camera's elevation; 1, since none is predicted together with others."""
    images: Count = Stairs((12, 8, 4), at=(200, 300))
    """Images rendered a step, beside the reference view."""
    resolution: Count = Stairs((64, 128, 256), at=(200, 300))
    """Height and width of the rendered images in pixels."""
    elevation: tuple[float, float] = (-10.0, 80.0)
    """Lowest and highest camera elevation in degrees."""
    fov_y: tuple[float, float] = (20.0, 20.0)
    """Narrowest and widest vertical field of view in degrees."""
    weight_2d: float = 0.1
    """Weight of the image prior's loss."""
    guidance_2d: float = 20.0
    """Scale of the image prior's classifier-free guidance."""
    timesteps_2d: Interval = Interval(Constant(0.02), Constant(0.5))
    """Interval of the image prior's timesteps, as fractions of their number."""
    weight_3d: Schedule = Constant(0.1)
    """Weight of the novel-view prior's loss."""
    guidance_3d: float = 3.0
    """Scale of the novel-view prior's classifier-free guidance."""
    timesteps_3d: Interval = Interval(Linear(0.4, 0.2, steps=200), Linear(0.85, 0.5, steps=200))
    """Interval of the novel-view prior's timesteps, as fractions of their number."""
    weight_entropy: Schedule = Constant(0.1)
    """Weight of the mean entropy of the pixels' opacities, against haze."""
    learning_rate_mlp: Schedule = Constant(0.01)
    """Learning rate of the MLPs."""
    distance: float = 3.8
    """Distance of all cameras from the origin, in scene units."""
    reference_fov_y: float = 20.0
    """Vertical field of view of the reference view in degrees."""
    reference_resolution: Count = Stairs((128, 256, 512), at=(200, 300))
    """Height and width of the reference view in pixels."""
    weight_picture: float = 500.0
    """Weight of the reference view's mean squared error in colour."""
    weight_mask: float = 50.0
    """Weight of its mean squared error from the mask."""
    weight_sparsity: float = 0.1
    """Weight of the sparsity of the random views' opacities."""
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """What the scene's own background becomes, RGB: before that the video model sees the object."""
    fill: float = 0.8
    """Share of the reference view's height and width that the larger side of the object takes."""
    rembg: str | None = None
    """Model of the package rembg that cuts the object out where the picture has no transparency and there is no mask,
    e.g. isnet-general-use; rembg downloads it. The colour at the border tells where the object is if None."""


@dataclass(frozen=True)
class DynamicSettings:
    """How the dynamic stage trains; the defaults are the paper's, for Zeroscope."""

    steps: int = 10_000
    """Steps of the optimiser."""
    clips: int = 1
    """Videos rendered a step, each from a fixed camera of its own."""
    height: Count = Constant(80)
    """Height of the rendered frames in pixels."""
    width: Count = Constant(144)
    """Width of the rendered frames in pixels."""
    samples_per_ray: int = 512
    """Samples along the longest ray through the scene."""
    clip_length: tuple[float, float] = (0.8, 1.0)
    """Shortest and longest clip, as a share of the scene's whole time."""
    azimuth: tuple[float, float] = (-150.0, 150.0)
    """Smallest and largest camera azimuth in degrees; 0 sees the front."""
    elevation: tuple[float, float] = (0.0, 45.0)
    """Lowest and highest camera elevation in degrees."""
    fov_y: tuple[float, float] = (15.0, 60.0)
    """Narrowest and widest vertical field of view in degrees."""
    guidance: float = 100.0
    """Scale of the classifier-free guidance."""
    timesteps: Interval = Interval(Linear(0.99, 0.2, steps=10_000), Linear(0.99, 0.5, steps=10_000))
    """Interval of the video prior's timesteps, as fractions of their number."""
    weight_video: float = 1.0
    """Weight of the video prior's loss."""
    weight_pixels: float = 0.1
    """Weight of the loss in decoded RGB beside that of the latents, lambda_dec."""
    frames_pixels: int | None = None
    """At most so many frames of a clip, chosen at random, are decoded for that loss; all if None. Its mean stays."""
    kept_mean: float = 0.0
    """How far the video model is not asked for what a clip shows on average, 0 to 1, but only for what changes: against
    hiding what it never saw, such as a subject's markings."""
    weight_tv: float = 1000.0
    """Weight of the total variation of the displacement, lambda_TV, the scene being a cube of side 1."""
    weight_planes: float = 1000.0
    """Weight of the total variation of a HexPlane's planes, which has no displacement."""
    levels: Count = Levels(4, every=500, most=12)
    """Levels of the deformation's feature grid that are switched on."""
    learning_rate: Schedule = Milestones(1e-3, at=(8000, 9000))
    """Learning rate of the deformation's grid and MLP."""
    learning_rate_fields: Schedule = Milestones(1e-3, at=(8000, 9000))
    """Learning rate of a HexPlane's planes of space, of its MLPs and of the background."""
    learning_rate_time: Schedule = Milestones(1e-2, at=(8000, 9000))
    """Learning rate of its planes of time."""
    occupancy_every: int = 16
    """Steps between updates of the occupancy grid."""
    occupancy_times: int = 12
    """Times over which a cell of the occupancy grid takes its largest density."""


@dataclass(frozen=True)
class PersonalizeSettings:
    """How the image model learns a subject from photos: DreamBooth with a LoRA. The paper gives no numbers; the
    defaults are for Stable Diffusion."""

    token: str = "sks"
    """The word that names the subject in prompts; a rare one."""
    steps: int = 1000
    """Steps of the optimiser."""
    photos: int = 1
    """Photos a step, and as many pictures of its class."""
    rank: int = 16
    """Rank of the LoRA's updates."""
    learning_rate: Schedule = Constant(1e-4)
    """Learning rate of the UNet's LoRA."""
    text_encoder: bool = False
    """Train a LoRA of the text encoder as well."""
    learning_rate_text: Schedule = Constant(1e-5)
    """Learning rate of the text encoder's LoRA."""
    weight_prior: float = 1.0
    """Weight of the loss that keeps what the model knows of the subject's class (prior preservation)."""
    class_images: int = 100
    """Pictures of the class that the model draws for that loss; 0 leaves it out."""
    sampling_steps: int = 30
    """Steps of drawing them, and the pictures of the sample sheets."""
    sampling_guidance: float = 7.5
    """Scale of their classifier-free guidance."""
    samples: int = 4
    """Pictures of each prompt on the sample sheets."""
    resolution: int | None = None
    """Height and width to which photos are cropped and scaled; the model's own if None."""
    weight_2d: float | None = None
    """Weight of a personalised image prior's loss in the static stage; `static.weight_2d` if None."""
    guidance_2d: float | None = None
    """Scale of its classifier-free guidance there; `static.guidance_2d` if None."""
    away_from_class: bool = False
    """Lead it away from the subject's class, "a dog", in place of the negative prompt: what sets this dog apart is then
    drawn more strongly, and not what any dog has."""
    multiview: Literal["class", "word", "lora"] = "class"
    """What the multi-view model is told, which never saw the subject: its class alone; its word as well, for a model
    that knows such words as those of things with markings of their own; or the word, with the LoRA of the image model
    in the multi-view model, too, which helps where that began as the image model."""
    video: Literal["class", "word"] = "class"
    """The same of the video model."""
    at_rest: bool = False
    """`deformation.at_rest` of the subject's motion."""
    kept_mean: float | None = None
    """In place of `dynamic.kept_mean` if not None: a video model that never saw the subject would hide its markings."""
    levels: Count | None = None
    """In place of `dynamic.levels` if not None."""


@dataclass(frozen=True)
class OutputSettings:
    """What is written while a run goes on, and its video at the end."""

    checkpoint_seconds: float = 60.0
    """At most so much work is lost when a run is stopped."""
    preview_every: int = 500
    """Steps between contact sheets in previews/; 0 for none."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    size: int = 256
    """Height and width of each view of the video; contact sheets stop at 128."""
    frames: int = 48
    """Frames of the video, which shows the scene's whole time once."""
    fps: float = 16.0
    """Frames a second."""
    background: str = "scene"
    """What is behind the object in the video and the contact sheets: `scene`, a colour's name, or #rrggbb."""
