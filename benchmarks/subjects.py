"""Personalised image models of the toy world: does the word for a subject draw this subject, and all else what it did?

For each of several subjects of one kind and colour, which differ by their markings alone: photos, the LoRA that learns
them, and pictures of "an orange sks cat" and "an orange cat" with and without it; with --scene also a scene, seen from
all sides and, if it moves, throughout. Who is on a picture tells the nearest of all
subjects' exact drawings (`toyworld.subjects.differences`), no network; whether "a blue dog" still is one, the judge.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from report import RESULTS, ROOT, print_table, provenance, write_json
from torch import Tensor

from dream4d import loading, recipes
from dream4d.cameras import VIEW_WORDS, orbit
from dream4d.evaluate.footage import STILLS, photograph
from dream4d.media import contact_sheet, read_photos, write_png
from dream4d.presets import BUILTIN, Preset, for_subject, merge
from dream4d.priors.lora import fuse, read_lora
from dream4d.priors.sampling import sample
from dream4d.priors.stable_diffusion import StableDiffusion
from dream4d.scene import Scene
from dream4d.toyworld.grammar import COLOURS, KINDS, Combination, sentence
from dream4d.toyworld.judge import Judge
from dream4d.toyworld.networks import IMAGE_SIZE, LATENT_CHANNELS, LATENT_SIZE
from dream4d.toyworld.subjects import differences, make_subjects, photographs

VIEWS = ("", *(f", {words}" for words in VIEW_WORDS[:3]))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="cat")
    parser.add_argument("--colour", choices=COLOURS, default="orange")
    parser.add_argument("--subjects", type=int, default=21, help="chance is 1 in so many")
    parser.add_argument("--learn", type=int, default=2, help="subjects that get a LoRA")
    parser.add_argument("--pictures", type=int, default=16, help="of each prompt, a quarter of them for each view")
    parser.add_argument("--scene", help='also make one of each learned subject, which does this: "is waving"')
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings, e.g. rank=4")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "subjects")
    parser.add_argument("--json", type=Path, default=RESULTS / "subjects.json")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(argv)
    numbers = yaml.safe_load("\n".join(pair.replace("=", ": ", 1) for pair in options.set) or "{}")
    settings = merge(replace(BUILTIN, device=options.device), {"personalize": numbers})
    generator = torch.Generator().manual_seed(0)
    subjects = make_subjects([Combination(options.kind, options.colour, None)] * options.subjects, generator)
    plain = sentence(Combination(options.kind, options.colour, None))
    named = plain.replace(options.kind, f"{settings.personalize.token} {options.kind}")
    others = [sentence(Combination(KINDS[i % 7], COLOURS[i % 8], None)) for i in range(options.pictures)]

    rows, results = [], []
    for i in range(options.learn):
        folder = options.out / str(i)
        if not (folder / "photos").is_dir():
            for number, photo in enumerate(photographs(subjects[torch.tensor([i])], 5, generator)):
                write_png(folder / "photos" / f"{number}.png", photo)
        photos = torch.from_numpy(read_photos(folder / "photos", IMAGE_SIZE))
        lora = recipes.personalize(folder / "photos", named, settings, folder / "lora")
        before, after = load(settings.device), load(settings.device, lora)
        row = {"photos": whose(photos, subjects, i)}
        shown = [photos[torch.arange(8) % len(photos)]]
        for label, prompt, prior in (
            ("sks before", named, before), ("sks", named, after), ("class before", plain, before),
            ("class", plain, after),
        ):
            away, scale = away_from(plain, settings) if prompt == named else ("", 3.0)
            images = draw(prior, [prompt + VIEWS[k % 4] for k in range(options.pictures)], away, scale)
            row[label] = whose(images, subjects, i)
            shown.append(images[:8])
        then, now = draw(before, others), draw(after, others)
        row |= {"others before": kept(then, others), "others": kept(now, others)}
        row["change of others"] = (now - then).square().mean().sqrt().item()
        if options.scene is not None:
            made = folder / "scene"
            recipes.subject_to_4d(f"{named} {options.scene}", lora, settings, made)
            stills = photograph(Scene.load(recipes.find_scene(made)), STILLS).rgb.cpu()
            row["scene"] = whose(stills, subjects, i)
        results.append(row)
        labels = ["photos", f"{named}, before", named, f"{plain}, before", plain]
        write_png(folder / "sheet.png", contact_sheet(torch.stack(shown).clamp(0, 1), rows=labels))
        cells = (f"{v[0]:.2f} {v[1]:.3f}" if isinstance(v, tuple) else f"{v:.3f}" for v in row.values())
        rows.append([str(i), *cells])
    print_table(["subject", *results[0]], rows)
    write_json(options.json, {
        **provenance(settings.device), "settings": numbers, "scene": options.scene, "chance": 1 / options.subjects,
        "subjects": results,
    })
    return 0


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


def whose(images: Tensor, subjects: object, i: int) -> tuple[float, float]:
    """Share of pictures whose nearest subject is the i-th, and their mean difference from it."""
    far = differences(images, subjects)
    return (far.argmin(1) == i).float().mean().item(), far[:, i].mean().item()


def kept(images: Tensor, sentences: Sequence[str]) -> float:
    """Share of pictures in which the judge reads kind and colour of their sentences."""
    reading = Judge.load().read(images)
    read = zip(reading.kind.tolist(), reading.colour.tolist(), strict=True)
    said = [sentence(Combination(KINDS[kind], COLOURS[colour], None)) for kind, colour in read]
    return sum(map(str.__eq__, said, sentences)) / len(said)


if __name__ == "__main__":
    raise SystemExit(main())
