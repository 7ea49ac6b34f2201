"""Memory plans: how much of a step is computed at a time, which of them fits, and what to do when memory runs out.

All plans take the same step. A smaller one keeps less for the backward pass and computes it again: rays by
`render.render`'s budget of samples, images by the autoencoder's chunks; and it asks the UNet for guidance's two
predictions one after the other. Gradients differ by roundings.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from dream4d.presets import suggest
from dream4d.render import BUDGET
from dream4d.settings import DynamicSettings, PictureSettings, StaticSettings
from dream4d.state import State, StepReport

GIB = 2**30
Size = tuple[int, int]
"""Height and width in pixels."""


class Frugal(Protocol):
    """A prior that can be told how much to compute at a time."""

    def limit(self, *, images: int | None, split: bool) -> None: ...


@dataclass(frozen=True)
class Plan:
    """samples: the budget of `render.render`. images: at a time in the autoencoder, all if None. split: guidance's two
    predictions from two calls of the UNet."""

    name: str
    samples: int
    images: int | None
    split: bool
    about: str

    def apply(self, priors: Iterable[Frugal]) -> None:
        for prior in priors:
            prior.limit(images=self.images, split=self.split)


PLANS = (
    Plan("paper", BUDGET, None, False, "everything at once, the fastest"),
    Plan("balanced", BUDGET, 4, False, "the autoencoder in parts, of which the backward pass runs each again"),
    Plan("lowmem", 2**21, 4, True, "all in small parts, which the backward pass computes again"),
    Plan("minimal", 2**20, 2, True, "all in the smallest parts that pay"),
)
"""From the fastest to the smallest."""


def plan_named(name: str) -> Plan:
    """Raises ValueError, with the nearest right name, for an unknown one."""
    for plan in PLANS:
        if plan.name == name:
            return plan
    raise ValueError(f"there is no memory plan {name!r}; {suggest(name, ['auto', *(plan.name for plan in PLANS)])}")


# What a step needs, in bytes; measured on an H100 by benchmarks/guidance.py and step.py.
ENCODE = 2500
"""A pixel of an image through the autoencoder's encoder, forward and backward, fp16: 4.8 GiB for 8 of 512x512."""
DECODE = 1600
"""A pixel decoded without gradients, fp16: 6.4 GiB for 24 frames of 320x576."""
UNET = 19_000
"""A latent pixel of one prediction of a UNet without gradients, fp16: 2.4 GiB for two of 24 frames of 40x72."""
SAMPLE = {"static": 210, "dynamic": 360}
"""A sample along a ray whose gradients are kept. Measured on an H100: 2.5 GiB for 12 million of the static stage, 2.6
for 7.3 million of the dynamic one."""
FEATURE = {"static": 12, "dynamic": 20}
"""What a sample takes more for each feature of a HexPlane. 4 and 12 are kept, counted on a CPU; the rest is two more
arrays of the backward pass, an estimate."""
PLACE, LOOK = 16, 100
"""A sample of which only its place is kept, and the same while all are looked at without gradients. Estimates."""
SHARE = {"static": 0.09, "dynamic": 0.052}
"""Of the samples along all rays, those in occupied cells. Measured for a soft blob."""
SCENE = 0.5 * GIB
"""Fields with gradients, moments and temporaries, and the libraries' workspaces. Estimate."""
WEIGHTS = {"image": 1.61, "multiview": 1.62, "video": 2.63, "text": 0.64, "autoencoder": 0.16}
"""GiB of the paper's models in fp16: 866, 869, 1411, 341 and 84 million parameters."""
SPARE = 0.92
"""Part of the free memory that a plan may need: allocators leave gaps."""


def static_need(
    plan: Plan, settings: StaticSettings, sizes: Sequence[Size], *, downsampling: int = 8, features: int = 0
) -> float:
    """Bytes of a step of the static stage beside the models' weights: the larger of its first and its last step.

    sizes: of the priors' images. downsampling: of their latents. features: of the scene's HexPlane, if it is on one.
    """
    sample = SAMPLE["static"] + FEATURE["static"] * features
    needs = []
    for step in (0, max(settings.steps - 1, 0)):
        images, side = settings.images(step), settings.resolution(step)
        rays = images * side**2
        if isinstance(settings, PictureSettings):
            rays += settings.reference_resolution(step) ** 2
        samples = round(SHARE["static"] * rays * settings.samples_per_ray)
        needs.append(_need(plan, images, sizes, samples, sample, downsampling, decoded=0))
    return max(needs)


def dynamic_need(
    plan: Plan, settings: DynamicSettings, *, frames: int, size: Size, downsampling: int = 8, features: int = 0
) -> float:
    """Bytes of a step of the dynamic stage beside the models' weights. size: of the prior's frames, of which a clip has
    `frames`. features: as for `static_need`."""
    sample = SAMPLE["dynamic"] + FEATURE["dynamic"] * features
    images, last = settings.clips * frames, max(settings.steps - 1, 0)
    rays = max(settings.height(step) * settings.width(step) for step in (0, last))
    samples = round(SHARE["dynamic"] * images * rays * settings.samples_per_ray)
    decoded = settings.clips * min(frames, settings.frames_pixels or frames) if settings.weight_pixels else 0
    return _need(plan, images, [size], samples, sample, downsampling, decoded=decoded)


def _need(
    plan: Plan, images: int, sizes: Sequence[Size], samples: int, sample: int, downsampling: int, *, decoded: int
) -> float:
    """Images of all `sizes` are encoded, so many are decoded. sample: bytes of one whose gradients are kept."""
    at_once = images if plan.images is None else min(plan.images, images)
    pixels = [height * width for height, width in dict.fromkeys(sizes)]
    largest = max(pixels, default=0)
    again = samples > plan.samples
    kept: float = samples * (PLACE if again else sample)
    # the UNets' graphs hold what happens in them
    kept += images * sum(height * width for height, width in sizes) / downsampling**2 * UNET * (1 if plan.split else 2)
    one_after_the_other = [
        min(decoded, at_once) * largest * DECODE, samples * LOOK if again else 0, plan.samples * sample if again else 0,
    ]
    if plan.images is None:  # the encoder's activations wait while the others run
        kept += images * sum(pixels) * ENCODE
    else:
        one_after_the_other.append(at_once * largest * ENCODE)
    return SCENE + kept + max(one_after_the_other)


def choose(needs: Callable[[Plan], float], free: float) -> Plan:
    """The fastest plan that fits into `free` bytes, or the smallest one: it may fit all the same."""
    return next((plan for plan in PLANS if needs(plan) <= SPARE * free), PLANS[-1])


def free_memory(device: torch.device) -> float:
    """Bytes that this process can still get of a GPU; infinite for a CPU, whose memory is not planned."""
    if device.type != "cuda":
        return float("inf")
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + unused)


def plan_for(
    stage: str, needs: Callable[[Plan], float], device: torch.device, name: str, tell: Callable[[str], None]
) -> Plan:
    """The plan `name`, or if that is `auto` the one that fits into what is free of a GPU, whose user is told of it.

    Raises ValueError for an unknown name.
    """
    free = free_memory(device)
    plan = choose(needs, free) if name == "auto" else plan_named(name)
    if device.type == "cuda":
        amounts = f"about {needs(plan) / GIB:.1f} of the {free / GIB:.1f} GiB that the models leave free"
        tell(f"{stage} stage: memory plan {plan.name} ({plan.about}), {amounts}")
    return plan


def with_plans(
    state: State, plan: Plan, start: Callable[[Plan], Iterator[StepReport]], tell: Callable[[str], None],
    plans: Sequence[Plan] = PLANS,
) -> Iterator[StepReport]:
    """The steps that `start(plan)` takes from `state`; where memory runs out, those of the next smaller plan.

    The step that failed is taken again with the same random numbers, so that the stage goes on as if it had been run
    by the smaller plan from there. tell: is told of the change.

    Raises ValueError, which says what else takes memory away, where the smallest plan does not fit.
    """
    smaller = list(plans[plans.index(plan) + 1 :])
    while True:
        random, grid = state.generator.get_state(), state.occupancy.state_dict()  # no step changes these in place
        steps = start(plan)
        try:
            for report in steps:
                yield report
                random, grid = state.generator.get_state(), state.occupancy.state_dict()
            return
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        del steps  # and with it all that the step held
        state.generator.set_state(random)
        state.occupancy.values, state.occupancy.occupied = grid["values"], grid["occupied"]
        state.optimizer.zero_grad()
        _free_caches()
        if not smaller:
            raise ValueError(
                f"out of memory at step {state.step} with the smallest memory plan, {plan.name}: close other programs "
                "that use the GPU, or lower the resolution, the images or samples_per_ray"
            )
        tell(f"out of memory at step {state.step} with memory plan {plan.name}; going on with {smaller[0].name}")
        plan = smaller.pop(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error of torch or of a library below it says, or one on whose account it was raised: a
    graph that cannot be finished says no more than that."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    said = ("CUDA error: out of memory", "ALLOC_FAILED", "CUDA out of memory")
    if isinstance(error, RuntimeError) and any(words in str(error) for words in said):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and out_of_memory(before)


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """Raises ValueError where `what` is done inside and memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ValueError(
            f"out of memory while {what}: close other programs that use the GPU, or take smaller models; "
            "dream4d doctor says what fits"
        ) from None


def _free_caches() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
