"""Personalised image models of the toy world: does the word for a subject draw this subject, and all else what it did?

For each of five subjects, each one of many toys of its kind and colour that differ by their markings alone: photos, the
LoRA that learns them, pictures of "an orange sks cat" and "an orange cat" with and without it, and three scenes: what
the sentence says, the same with a prop, and the same without personalisation. Who is on a picture tells the nearest of
all subjects' exact drawings (`toyworld.subjects.differences`), no network; the rest the judge.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from pictures import SHOWN, nested
from report import RESULTS, ROOT, print_table, provenance, write_json
from torch import Tensor

from dream4d import loading, recipes
from dream4d.cameras import VIEW_WORDS, orbit
from dream4d.evaluate.ablate import Job, measured, run_all
from dream4d.evaluate.footage import STILLS, photograph
from dream4d.media import caption, contact_sheet, read_photos, stack, write_png
from dream4d.presets import BUILTIN, Preset, for_subject, merge
from dream4d.priors.lora import fuse, read_lora
from dream4d.priors.sampling import sample
from dream4d.priors.stable_diffusion import StableDiffusion
from dream4d.run import slug
from dream4d.scene import Scene
from dream4d.toyworld.grammar import COLOURS, KINDS, Combination, sentence
from dream4d.toyworld.judge import Judge
from dream4d.toyworld.networks import IMAGE_SIZE, LATENT_CHANNELS, LATENT_SIZE
from dream4d.toyworld.subjects import Subjects, differences, make_subjects, photographs, portraits

WHO = (
    Combination("cat", "orange", "top hat", "waving"), Combination("dog", "blue", "scarf", "jumping"),
    Combination("rabbit", "pink", "skateboard", "dancing"), Combination("bear", "green", "cape", "kicking"),
    Combination("elephant", "yellow", "balloon", "nodding"),
)  # fmt: skip
"""The subjects, and what their scenes show."""
CROWD = 21
"""Toys of a subject's kind and colour, itself among them: chance is 1 in so many."""
SCENES = ("scene", "with a prop", "not personalised")
TIMES = (0.0, 0.2, 0.4, 0.6, 0.8)
VIEWS = ("", *(f", {words}" for words in VIEW_WORDS[:3]))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--who", nargs="*", choices=[who.kind for who in WHO], default=[who.kind for who in WHO])
    parser.add_argument("--pictures", type=int, default=16, help="of each prompt, a quarter of them for each view")
    parser.add_argument("--scenes", nargs="*", choices=SCENES, default=SCENES, help="none: pictures alone")
    parser.add_argument("--set", nargs="*", default=[], metavar="STAGE.NAME=VALUE", help="e.g. personalize.rank=4")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "subjects")
    parser.add_argument("--json", type=Path, default=RESULTS / "subjects.json")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(argv)
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.workers)
    torch.set_num_threads(threads)
    settings = merge(BUILTIN, {"device": options.device} | nested(options.set))
    chosen = [who for who in WHO if who.kind in options.who]
    tests = [Test(who, settings, options.out / str(who.kind), options.pictures) for who in chosen]
    with workers(options.workers, threads) as pool:
        learned = list(pool.map(learn, tests))
    made = {(test.out, scene): (test, scene) for test in tests for scene in options.scenes}
    outcomes = run_all([job(*each) for each in made.values()], workers=options.workers, threads=threads)
    rows, failed, sheets = [], 0, []
    for outcome in outcomes:
        if outcome.row is None:
            print(f"{outcome.job.folder}: {outcome.error}")
            made.pop((outcome.job.folder.parent, outcome.job.variant))
            failed += 1
    with workers(options.workers, threads) as pool:
        seen = dict(zip(made, pool.map(look, *zip(*made.values(), strict=True)), strict=True)) if made else {}
    for test, (row, sheet) in zip(tests, learned, strict=True):
        strips = []
        for scene in options.scenes:
            if (test.out, scene) in seen:
                numbers, strip = seen[test.out, scene]
                row |= {f"{scene}: {name}": value for name, value in numbers.items()}
                strips.append(strip)
        rows.append({"prompt": test.prompt("scene"), **row})
        sheets.append(caption(sheet, test.named))
        if strips:
            labels = [f"{azimuth:.0f} deg" if not time else f"time {time}" for time, azimuth in SHOWN]
            sheet = contact_sheet(torch.stack(strips), labels, options.scenes)
            sheets.append(caption(sheet, test.prompt("with a prop")))
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "prompt"]
    total: dict[str, Any] = {name: mean([row[name] for row in rows if name in row]) for name in names}
    kinds = [str(test.who.kind) for test in tests]
    print_table(["", *kinds, "all"], [
        [name, *(f"{row[name]:.3f}" if name in row else "-" for row in [*rows, total])] for name in names
    ])  # fmt: skip
    write_png(options.out / "overview.png", stack(sheets))
    write_json(options.json, {
        **provenance(settings.device), "set": options.set, "chance": 1 / CROWD, "all": total, "subjects": rows,
    })
    print(options.out / "overview.png")
    return int(failed > 0)


def workers(count: int, threads: int) -> ProcessPoolExecutor:
    context = get_context("spawn")  # CUDA does not survive a fork
    return ProcessPoolExecutor(count, context, initializer=torch.set_num_threads, initargs=(threads,))


@dataclass(frozen=True)
class Test:
    """One subject, by what its scenes show, and where all that is made of it is."""

    who: Combination
    settings: Preset
    out: Path
    pictures: int

    @property
    def named(self) -> str:
        return sentence(Combination(self.who.kind, self.who.colour, None), self.settings.personalize.token)

    @property
    def plain(self) -> str:
        return sentence(Combination(self.who.kind, self.who.colour, None))

    def shown(self, scene: str) -> Combination:
        return self.who if scene == "with a prop" else replace(self.who, prop=None)

    def prompt(self, scene: str) -> str:
        return sentence(self.shown(scene), self.settings.personalize.token)

    @property
    def lora(self) -> Path:
        return self.out / "lora"

    def crowd(self, scene: str | None = None) -> tuple[Subjects, torch.Generator]:
        """All who answer to `plain`, the subject first, in a scene or as they are, and what is left of the random
        numbers."""
        shown = Combination(self.who.kind, self.who.colour, None) if scene is None else self.shown(scene)
        generator = torch.Generator().manual_seed(0)
        return make_subjects([shown] * CROWD, generator), generator


def learn(test: Test) -> tuple[dict[str, float], Tensor]:
    """Photos, the LoRA, and pictures with and without it: numbers and a sheet."""
    (subjects, generator), settings, folder = test.crowd(), test.settings, test.out / "photos"
    crowd = portraits(subjects)
    if not folder.is_dir():
        for number, photo in enumerate(photographs(subjects[torch.tensor([0])], 5, generator)):
            write_png(folder / f"{number}.png", photo)
    lora = recipes.personalize(folder, test.named, settings, test.lora)
    before, after = load(settings.device), load(settings.device, lora)
    photos = torch.from_numpy(read_photos(folder, IMAGE_SIZE))
    row = dict(zip(("photos", "photos: difference"), whose(photos, crowd), strict=True))
    shown = [photos[torch.arange(8) % len(photos)]]
    for label, prompt, prior in (
        ("sks before", test.named, before), ("sks", test.named, after), ("class before", test.plain, before),
        ("class", test.plain, after),
    ):
        away, scale = away_from(test.plain, settings) if prompt == test.named else ("", 3.0)
        images = draw(prior, [prompt + VIEWS[k % 4] for k in range(test.pictures)], away, scale)
        row[label], row[f"{label}: difference"] = whose(images, crowd)
        shown.append(images[:8])
    others = [sentence(Combination(KINDS[i % 7], COLOURS[i % 8], None)) for i in range(test.pictures)]
    then, now = draw(before, others), draw(after, others)
    row |= {"others before": kept(then, others), "others": kept(now, others)}
    row["change of others"] = (now - then).square().mean().sqrt().item()
    labels = ["photos", "before", test.named, "before", test.plain]
    sheet = torch.as_tensor(contact_sheet(torch.stack(shown).clamp(0, 1), rows=labels))
    return row, sheet


def job(test: Test, scene: str) -> Job:
    recipe = recipes.text_to_4d if scene == "not personalised" else partial(recipes.subject_to_4d, subject=test.lora)
    settings = test.settings
    return Job(scene, test.prompt(scene), settings.seed, test.out / slug(scene), settings, recipe=recipe)


def look(test: Test, scene: str) -> tuple[dict[str, float], Tensor]:
    """Who is on a finished scene's views, all around and throughout, what the judge reads, and a strip of the sheet."""
    folder = test.out / slug(scene)
    made = Scene.load(folder / "scene.safetensors").to(loading.pick_device(test.settings.device))
    crowd = portraits(test.crowd(scene)[0], times=TIMES)
    right, far = whose(photograph(made, STILLS).rgb.cpu(), crowd)
    names = ("kind", "prop", "motion_right", "motion_agreement", "amount", "static_psnr")
    metrics = measured(folder, test.settings.device)["metrics"]
    numbers = {"who": right, "difference": far} | {name: metrics[name] for name in names if name in metrics}
    return numbers, photograph(made, SHOWN, size=96, grey=0.9).rgb.cpu().clamp(0, 1)


def load(device: str, lora: Path | None = None) -> StableDiffusion:
    prior = StableDiffusion.load(loading.BUILTIN_PRIORS / "image", device=loading.pick_device(device))
    if lora is not None:
        fuse(read_lora(lora), unet=prior.parts.unet, text_encoder=prior.parts.text.model)
    return prior


def away_from(plain: str, settings: Preset) -> tuple[str, float]:
    """What the static stage leads a personalised model away from, and by what scale."""
    negative = plain if settings.personalize.away_from_class else settings.negative
    return negative, for_subject(settings).static.guidance_2d


def draw(prior: StableDiffusion, prompts: Sequence[str], negative: str = "", scale: float = 3.0) -> Tensor:
    """[len(prompts), 64, 64, 3], always from the same noise."""
    camera = orbit(*torch.tensor([[0.0], [0.0], [3.0], [40.0]]))
    shape = (LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
    generator = torch.Generator().manual_seed(7)
    return sample(prior, prompts, camera, shape, generator=generator, negative=negative, scale=scale).cpu()


def whose(images: Tensor, crowd: Tensor) -> tuple[float, float]:
    """Share of pictures whose nearest subject is the first, and their mean difference from it."""
    far = differences(images, crowd)
    first = (far.argmin(1) == 0) & (far[:, 0] < 1)  # all are equally far from a picture of nothing
    return first.float().mean().item(), far[:, 0].mean().item()


def kept(images: Tensor, sentences: Sequence[str]) -> float:
    """Share of pictures in which the judge reads kind and colour of their sentences."""
    reading = Judge.load().read(images)
    read = zip(reading.kind.tolist(), reading.colour.tolist(), strict=True)
    said = [sentence(Combination(KINDS[kind], COLOURS[colour], None)) for kind, colour in read]
    return sum(map(str.__eq__, said, sentences)) / len(said)


if __name__ == "__main__":
    raise SystemExit(main())
