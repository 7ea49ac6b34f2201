"""Train the built-in priors and the judge: ``python -m dream4d.toyworld.train --out FOLDER``.

Stages, each of which builds on the ones before: ``vae`` (autoencoder), ``image`` (with the text encoder),
``multiview``, ``video`` (with a text encoder of its own), ``judge``, ``novel`` (with an image encoder). FOLDER gets
priors/ and judge/ as the package ships them, log/ with losses and checkpoints, and sheets/ of samples and loss curves.
A stage that is done is skipped, one that was stopped goes on from its checkpoint. On several GPUs:
``torchrun --nproc-per-node 2 -m dream4d.toyworld.train --out FOLDER``; each adds batches and a pool of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from dream4d.cameras import Cameras, orbit
from dream4d.distill import add_noise
from dream4d.files import atomic
from dream4d.media import contact_sheet, write_png
from dream4d.priors import int8
from dream4d.priors.mvdream import MVDream, multiview_attention
from dream4d.priors.parts import Autoencoder, cumulative_alphas
from dream4d.priors.sampling import sample
from dream4d.priors.stable_diffusion import StableDiffusion
from dream4d.priors.text_to_video import TextToVideo
from dream4d.priors.weights import read_checkpoint
from dream4d.priors.zero123 import POSE, PROJECTIONS, Zero123, embed, pose_between
from dream4d.toyworld import networks
from dream4d.toyworld.curves import loss_curves
from dream4d.toyworld.examples import (
    SIDES,
    Examples,
    Sentences,
    any_examples,
    image_examples,
    multiview_examples,
    novel_examples,
    photograph,
    pool,
    to_bytes,
    video_examples,
)
from dream4d.toyworld.grammar import MOTIONS, evaluation_combinations, sentence
from dream4d.toyworld.judge import WEIGHTS, JudgeNetwork, judge_clips, judge_loss, spoil
from dream4d.toyworld.networks import FRAMES, LATENT_CHANNELS, LATENT_SIZE, VIEWS
from dream4d.toyworld.trainer import Plan, Trainer, graphed, join_team, rank, team
from dream4d.toyworld.world import make_toys

Stage = Literal["vae", "image", "multiview", "video", "judge", "novel"]
STAGES: tuple[Stage, ...] = ("vae", "image", "multiview", "video", "judge", "novel")


@dataclass(frozen=True)
class Sizes:
    """How much each stage sees. batch: pictures (vae, image), scenes (multiview), clips (video, judge),
    pairs of a picture and a view (novel)."""

    plans: Mapping[Stage, Plan]
    pools: Mapping[Stage, int]
    chunk: int = 2048
    sheet_prompts: int = 20
    sheet_steps: int = 30


FULL = Sizes(
    plans={
        "vae": Plan(6000, 256, learning_rate=1e-3),
        "image": Plan(16000, 512),
        "multiview": Plan(12000, 128),
        "video": Plan(12000, 32, learning_rate=7e-4),
        "judge": Plan(4000, 48),
        "novel": Plan(8000, 512),
    },
    pools={"vae": 131072, "image": 393216, "multiview": 49152, "video": 32768, "judge": 0, "novel": 131072},
)
DRY = Sizes(
    plans={stage: Plan(4, 4, warm_up=2) for stage in STAGES},
    pools={"vae": 16, "image": 16, "multiview": 8, "video": 8, "judge": 0, "novel": 8},
    chunk=16, sheet_prompts=2, sheet_steps=1,
)  # fmt: skip


Finish = Callable[[], None]
"""What remains after a stage's training, for one process alone: to save the networks and to draw samples."""


@dataclass(frozen=True)
class Workshop:
    """Where things are: ``priors/<name>/<part>``, ``judge``, ``log``, ``sheets`` in `out`, and the random numbers."""

    out: Path
    device: torch.device
    generator: torch.Generator
    sizes: Sizes
    initial: Path | None = None
    compiled: bool = False

    def prior(self, name: str) -> Path:
        return self.out / "priors" / name

    def trainer(self, stage: Stage, parts: list[nn.Module]) -> Trainer:
        trainer = Trainer(stage, parts, self.sizes.plans[stage], self.out / "log", self.device)
        torch.manual_seed(self.generator.initial_seed())  # from here on each process of a team has noise of its own
        return trainer

    def pick(self, examples: Examples, batch: int) -> Examples:
        index = torch.randint(len(examples.images), (batch,), generator=self.generator).to(self.device)
        camera = None if examples.camera is None else examples.camera[index]
        return Examples(examples.images[index], examples.sentence[index], camera)

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, device=self.device)


def train(
    out: Path, stages: tuple[Stage, ...] = STAGES, *, device: str = "auto", seed: int = 0, dry_run: bool = False,
    seconds: dict[Stage, float] | None = None, initial: Path | None = None, compiled: bool = False,
) -> None:
    """Train the stages that `out` lacks.

    Args:
        out: Folder that gets priors/, judge/, log/ and sheets/.
        stages: Which, in the order in which they build on each other.
        device: `cpu`, `cuda`, or `auto`: a GPU if there is one.
        seed: Where all randomness starts.
        dry_run: A few tiny steps each, to see that everything runs.
        seconds: Limits of the training time of stages, such as `--seconds vae 120 image 300`.
        initial: The folder of an earlier training, whose networks are the starting point, the autoencoder apart.
        compiled: Compile the UNets with torch.compile: a minute or two each, then more steps a second on a GPU.
    """
    chosen = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    chosen = join_team(chosen)
    sizes = DRY if dry_run else FULL
    limits = seconds or {}
    plans = {stage: replace(plan, seconds=limits.get(stage, plan.seconds)) for stage, plan in sizes.plans.items()}
    sizes = replace(sizes, plans=plans)
    for stage in stages:
        own_seed = 1000 * seed + STAGES.index(stage)
        torch.manual_seed(own_seed)  # networks start alike in all processes; examples and noise differ
        generator = torch.Generator().manual_seed(own_seed + 100 * rank())
        shop = Workshop(out, chosen, generator, sizes, initial, compiled)
        if not _done(shop, stage):
            begin = time.monotonic()
            finish = _TRAIN[stage](shop)
            if rank() == 0:
                finish()
                print(f"{stage}: {time.monotonic() - begin:.0f} s in all", flush=True)
        if team() > 1:
            distributed.barrier()  # the next stage reads what the first process has written
    curves = loss_curves(out / "log") if rank() == 0 else None
    if curves is not None:
        write_png(out / "sheets" / "losses.png", curves)
    if team() > 1:
        distributed.destroy_process_group()


def train_vae(shop: Workshop) -> Finish:
    """L1 + .5 MSE of pixels, where toys count five times, + 2 L1 of their differences + 1e-3 KL."""
    plan = shop.sizes.plans["vae"]
    vae = networks.autoencoder()
    trainer = shop.trainer("vae", [vae])
    examples = pool(any_examples, shop.sizes.pools["vae"], shop.generator, shop.device, shop.sizes.chunk, to_bytes)

    def batch() -> Tensor:
        images = shop.pick(examples, plan.batch).images[:, 0].float() / 255
        few = len(images) // 6
        images[:few] = spoil(images[:few, None], shop.generator)[:, 0]
        return (2 * images - 1).permute(0, 3, 1, 2).contiguous()

    half = next(vae.parameters()).dtype
    noise_shape = (plan.batch, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
    run = graphed(_Reconstruct(vae).eval(), batch().to(half), shop.noise(noise_shape).to(half))

    def loss() -> dict[str, Tensor]:
        images = batch()
        made, mean, logvar = (x.float() for x in run(images.to(half), shop.noise(noise_shape).to(half)))
        difference = made - images
        # The background is whatever the corners' column is; where a picture differs from it there is a toy.
        weight = 1 + 4 * ((images - images[..., :1]).abs().sum(1, keepdim=True) > 0.05).float()
        return {
            "l1": (weight * difference.abs()).mean(),
            "mse": 0.5 * (weight * difference.square()).mean(),
            "edges": 2 * (difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()),
            "kl": 1e-3 * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(),
        }

    trainer.fit(loss)
    trainer.use_average()

    def finish() -> None:
        with torch.no_grad():
            sources = torch.cat([batch() for _ in range(4)])
            latents = torch.cat([vae.encode(part).latent_dist.mode() for part in sources.split(256)])
            vae.register_to_config(scaling_factor=float(1 / latents.std()))
            show = sources[-16:]
            both = torch.stack([show, vae.decode(vae.encode(show).latent_dist.mode()).sample])
            psnr = -10 * ((both[0] - both[1]).square().mean() / 4).log10()
        print(f"autoencoder: scaling factor {vae.config.scaling_factor:.4f}, PSNR {psnr:.2f} dB", flush=True)
        _save(vae, shop.prior("image") / "vae")
        _sheet(shop, "vae", (both / 2 + 0.5).permute(0, 1, 3, 4, 2))

    return finish


def train_image(shop: Workshop) -> Finish:
    """The image prior and the text encoder, together from scratch."""
    folder = shop.prior("image")
    words = networks.tokenizer()
    text, unet = networks.text_encoder(len(words)), networks.image_unet()
    _start(shop, unet, "priors/image/unet")
    _start(shop, text, "priors/image/text_encoder")
    _train_denoiser(shop, "image", unet, text, image_examples, words)

    def finish() -> None:
        networks.scheduler("image").save_pretrained(folder / "scheduler")
        words.save_pretrained(folder / "tokenizer")
        _save(text, folder / "text_encoder")
        int8.save(unet, folder / "unet")
        prompts = [sentence(c) for c in evaluation_combinations(shop.sizes.sheet_prompts)]
        views = [", front view", ", side view", ", back view", ""]
        prior = StableDiffusion.load(folder, device=shop.device)
        rows = [_draw(shop, prior, [p + view for p in prompts]) for view in views]
        _sheet(shop, "image", torch.stack(rows))

    return finish


def train_multiview(shop: Workshop) -> Finish:
    """The multi-view prior, from the image prior's weights; its text encoder is the image prior's."""
    folder, base = shop.prior("multiview"), shop.prior("image")
    unet = networks.multiview_unet()
    parts = StableDiffusion.load(base).parts
    unet.load_state_dict(parts.unet.state_dict(), strict=False)
    multiview_attention(unet, VIEWS)
    _start(shop, unet, "priors/multiview/unet")
    assert parts.text is not None
    text, words = parts.text.model, parts.text.tokenizer
    _train_denoiser(shop, "multiview", unet, text, multiview_examples, words, train_text=False)

    def finish() -> None:
        networks.scheduler("multiview").save_pretrained(folder / "scheduler")
        int8.save(unet, folder / "unet")
        prompts = [sentence(c) for c in evaluation_combinations(shop.sizes.sheet_prompts)][::2]
        prior = MVDream.load(folder, base, views=VIEWS, device=shop.device)
        azimuth = (20 + 360 / VIEWS * torch.arange(VIEWS)).repeat(len(prompts))
        cameras = orbit(azimuth, *torch.tensor([15.0, 2.5, 40.0]).unbind())
        images = _draw(shop, prior, [p for p in prompts for _ in range(VIEWS)], cameras)
        _sheet(shop, "multiview", images.reshape(len(prompts), VIEWS, *images.shape[1:]).transpose(0, 1))

    return finish


def train_video(shop: Workshop) -> Finish:
    """The video prior, from the image prior's weights, and its text encoder, which learns the words of motion."""
    folder, base = shop.prior("video"), shop.prior("image")
    parts = StableDiffusion.load(base).parts
    unet = networks.video_unet()
    networks.start_video_unet(unet, parts.unet.state_dict())
    assert parts.text is not None
    text = parts.text.model
    _start(shop, unet, "priors/video/unet")
    _start(shop, text, "priors/video/text_encoder")
    _train_denoiser(shop, "video", unet, text, video_examples, parts.text.tokenizer)

    def finish() -> None:
        networks.scheduler("video").save_pretrained(folder / "scheduler")
        _save(text, folder / "text_encoder")
        int8.save(unet, folder / "unet")
        shown = evaluation_combinations(shop.sizes.sheet_prompts)[: len(MOTIONS)]
        prompts = [sentence(c) + view for c in shown for view in (", front view", ", side view")]
        prior = TextToVideo.load(folder, base, frames=FRAMES, device=shop.device)
        videos = _draw(shop, prior, prompts, shape=(FRAMES, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE))
        _sheet(shop, "video", videos[:, ::2])

    return finish


def train_novel(shop: Workshop) -> Finish:
    """The novel-view prior, from the image prior's weights, with its image encoder and the layer of the camera.

    Of a pool's toys, the picture and one of the other views at a time; an eighth of the pictures are dropped.
    """
    folder, base, plan = shop.prior("novel"), shop.prior("image"), shop.sizes.plans["novel"]
    unet, encoder = networks.novel_unet(), networks.image_encoder()
    projection = nn.Linear(encoder.config.projection_dim + POSE, unet.config.cross_attention_dim)
    networks.start_novel_unet(unet, StableDiffusion.load(base).parts.unet.state_dict())
    _start(shop, unet, "priors/novel/unet")
    _start(shop, encoder, "priors/novel/image_encoder")
    _start(shop, projection, f"priors/novel/{PROJECTIONS[0]}")
    trainer = shop.trainer("novel", [unet, encoder, projection])
    autoencoder = _autoencoder(shop)
    scaling = autoencoder.vae.config.scaling_factor
    chunk = max(1, shop.sizes.chunk // (1 + SIDES))
    examples = pool(novel_examples, shop.sizes.pools["novel"], shop.generator, shop.device, chunk, to_bytes)
    assert examples.camera is not None
    camera, pictures = examples.camera, examples.images[:, 0].clone()
    with torch.no_grad():
        parts = examples.images.flatten(0, 1).split(shop.sizes.chunk)
        latents = torch.cat([autoencoder.encode(part.float() / 255).half() for part in parts])
    latents = latents.unflatten(0, (-1, 1 + SIDES))
    del examples, parts
    schedule = networks.scheduler("novel")
    alpha_bar = cumulative_alphas(dict(schedule.config)).to(shop.device)
    half = next(unet.parameters()).dtype

    def draw(size: int, below: int) -> Tensor:
        return torch.randint(below, (size,), generator=shop.generator).to(shop.device)

    def batch() -> tuple[Tensor, ...]:
        toy, view, timestep = draw(plan.batch, len(latents)), 1 + draw(plan.batch, SIDES), draw(plan.batch, 1000)
        kept = (torch.rand(plan.batch, 1, 1, generator=shop.generator) >= 0.12).to(shop.device)
        clean, reference = latents[toy, view].float(), latents[toy, 0].float() / scaling
        noise = torch.randn_like(clean)
        noisy = torch.cat([add_noise(clean, noise, alpha_bar[timestep]), reference * kept[..., None]], dim=1)
        pose = pose_between(camera[toy, view], camera[toy, 0])
        seen = torch.cat([embed(encoder, pictures[toy].float() / 255), pose], dim=-1)
        token = projection(seen.to(half))[:, None] * kept
        return noise, noisy.to(half), timestep, token

    _, *inputs = batch()
    inputs[2] = inputs[2].detach().clone().requires_grad_()
    if shop.compiled:
        unet.compile()
    run = graphed(_Denoise(unet).eval(), *inputs)

    def loss() -> dict[str, Tensor]:
        noise, *inputs = batch()
        return {"noise": F.mse_loss(run(*inputs).float(), noise)}

    trainer.fit(loss)
    trainer.use_average()

    def finish() -> None:
        schedule.save_pretrained(folder / "scheduler")
        _save(encoder, folder / "image_encoder")
        with atomic(folder / PROJECTIONS[0] / "diffusion_pytorch_model.safetensors") as file:
            tensors = {f"proj.{name}": tensor.contiguous().cpu() for name, tensor in projection.state_dict().items()}
            save_file(tensors, file, metadata={"format": "pt"})
        int8.save(unet, folder / "unet")
        _novel_sheet(shop, folder, base)

    return finish


def _novel_sheet(shop: Workshop, folder: Path, base: Path) -> None:
    """Never-trained toys: the picture, then what the prior draws of them from other sides above what is there."""
    toys = make_toys(evaluation_combinations(shop.sizes.sheet_prompts), torch.Generator().manual_seed(0))
    azimuth, elevation = (torch.tensor(values) for values in zip((0.0, 10.0), *_SHOWN, strict=True))
    rows, errors = [], []
    for index in range(min(len(toys.kind), _MOST_SHOWN)):
        truth, cameras = photograph(toys[torch.tensor([index])], azimuth, elevation, shop.device)
        prior = Zero123.load(folder, base, image=truth[0], camera=cameras[0], device=shop.device)
        drawn = _draw(shop, prior, [""] * len(_SHOWN), cameras[1:])
        errors.append((drawn - truth[1:].cpu()).square().mean())
        rows += [torch.cat([truth[:1].cpu(), drawn]), truth.cpu()]
    psnr = -10 * torch.stack(errors).mean().log10()
    print(f"novel views of never-trained toys: PSNR {psnr:.2f} dB", flush=True)
    _sheet(shop, "novel", torch.stack(rows))


_SHOWN = ((45.0, 10.0), (90.0, 10.0), (180.0, 10.0), (270.0, 30.0), (20.0, 60.0))
"""Azimuth and elevation of the views of a sheet."""
_MOST_SHOWN = 8


def train_judge(shop: Workshop) -> Finish:
    """The judge, on stills and clips of every combination, spoilt; a quarter of them through the autoencoder."""
    plan = shop.sizes.plans["judge"]
    network = JudgeNetwork()
    _start(shop, network, "judge")
    trainer = shop.trainer("judge", [network])
    autoencoder = _autoencoder(shop)
    half = next(network.parameters()).dtype

    def batch() -> tuple[Tensor, ...]:
        stills, truth, _ = judge_clips(plan.batch * 4, 2, shop.generator, shop.device)
        clips, _, motion = judge_clips(plan.batch, FRAMES, shop.generator, shop.device)
        stills, clips = spoil(stills, shop.generator), spoil(clips, shop.generator)
        with torch.no_grad():
            for part in (stills, clips):
                few = part[: len(part) // 4]
                part[: len(few)] = autoencoder.decode(autoencoder.encode(few.flatten(0, 1))).reshape(few.shape)
        pictures = (2 * torch.cat([stills[:, 0], stills[:, 1]]) - 1).permute(0, 3, 1, 2)
        return pictures.to(half), (2 * clips - 1).permute(0, 1, 4, 2, 3).to(half), truth.repeat(2, 1), motion

    pictures, clips, *_ = batch()
    run = graphed(network, pictures.contiguous(), clips.contiguous())

    def loss() -> dict[str, Tensor]:
        pictures, clips, truth, motion = batch()
        still_answers, motion_answers = run(pictures.contiguous(), clips.contiguous())
        return judge_loss(still_answers, motion_answers, truth, motion)

    trainer.fit(loss)
    trainer.use_average()

    def finish() -> None:
        target = shop.out / "judge" / WEIGHTS
        with atomic(target) as file:
            save_file({name: tensor.half().contiguous().cpu() for name, tensor in network.state_dict().items()}, file)

    return finish


_TRAIN: dict[Stage, Callable[[Workshop], Finish]] = {
    "vae": train_vae, "image": train_image, "multiview": train_multiview, "video": train_video, "judge": train_judge,
    "novel": train_novel,
}  # fmt: skip


def _train_denoiser(
    shop: Workshop, stage: Stage, unet: Any, text: Any, make: Any, words: Any, *, train_text: bool = True
) -> None:
    """Denoising of latents of a pool of examples; an eighth of the prompts are dropped."""
    plan = shop.sizes.plans[stage]
    trainer = shop.trainer(stage, [unet, text] if train_text else [unet])
    autoencoder = _autoencoder(shop)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        return autoencoder.encode(images).half()

    together = {"image": 1, "multiview": VIEWS, "video": FRAMES}[stage]
    size, chunk = shop.sizes.pools[stage], max(1, shop.sizes.chunk // together)
    examples = pool(make, size, shop.generator, shop.device, chunk, encode)
    sentences = Sentences()
    tokens = sentences.tokens(words).to(shop.device)
    video = stage == "video"
    schedule = networks.scheduler(stage)
    alpha_bar = cumulative_alphas(dict(schedule.config)).to(shop.device)
    half = next(unet.parameters()).dtype
    views = 1 if video else together
    if not train_text:
        text.to(shop.device)
        features = torch.cat([text(part).last_hidden_state for part in tokens.split(2048)]).to(half)

    def batch() -> tuple[Tensor, ...]:
        chosen = shop.pick(examples, plan.batch)
        dropped = torch.rand(plan.batch, generator=shop.generator).to(shop.device) < 0.12
        rows = torch.where(dropped, sentences.empty, chosen.sentence)
        latents = chosen.images.float().transpose(1, 2) if video else chosen.images.float().flatten(0, 1)
        timestep = torch.randint(len(alpha_bar), (plan.batch,), generator=shop.generator).to(shop.device)
        timestep, rows = timestep.repeat_interleave(views), rows.repeat_interleave(views)
        noise = torch.randn_like(latents)
        noisy = add_noise(latents, noise, alpha_bar[timestep])
        target = noise
        if schedule.config.prediction_type == "v_prediction":
            target = add_noise(noise, -latents, alpha_bar[timestep])  # v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z
        context = text(tokens[rows]).last_hidden_state if train_text else features[rows]
        more = () if chosen.camera is None else (chosen.camera.flatten(0, 1).to(half),)
        return target, noisy.to(half), timestep, context.to(half), *more

    _, *inputs = batch()
    inputs[2] = inputs[2].detach().clone().requires_grad_(train_text)
    if shop.compiled:
        unet.compile()
    run = graphed(_Denoise(unet).eval(), *inputs)

    def loss() -> dict[str, Tensor]:
        target, *inputs = batch()
        return {"noise": F.mse_loss(run(*inputs).float(), target)}

    trainer.fit(loss)
    trainer.use_average()


class _Denoise(nn.Module):
    """A UNet as a function of tensors alone."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, timestep: Tensor, context: Tensor, *camera: Tensor) -> Tensor:
        more = {"class_labels": camera[0]} if camera else {}
        result: Tensor = self.unet(noisy, timestep, context, **more).sample
        return result


class _Reconstruct(nn.Module):
    """An autoencoder as a function of tensors alone."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latent = self.vae.encode(images).latent_dist
        return self.vae.decode(latent.mean + latent.std * noise).sample, latent.mean, latent.logvar


def _done(shop: Workshop, stage: Stage) -> bool:
    last = {"vae": "priors/image/vae", "image": "priors/image/unet", "multiview": "priors/multiview/unet",
            "video": "priors/video/unet", "judge": f"judge/{WEIGHTS}",
            "novel": "priors/novel/unet"}  # fmt: skip
    return (shop.out / last[stage]).exists()


def _start(shop: Workshop, network: Any, part: str) -> None:
    """Give `network` the weights of `initial`, if there are any."""
    if shop.initial is None:
        return
    for file in (shop.initial / part).glob("*.safetensors"):
        network.load_state_dict({name: tensor.float() for name, tensor in read_checkpoint(file).items()}, strict=False)


def _autoencoder(shop: Workshop) -> Autoencoder:
    from diffusers import AutoencoderKL

    half = torch.float16 if shop.device.type == "cuda" else torch.float32
    folder = shop.prior("image") / "vae"
    vae = AutoencoderKL.from_pretrained(folder, variant="fp16", use_safetensors=True, torch_dtype=half)
    return Autoencoder(vae.to(shop.device).requires_grad_(False).eval())


def _save(network: Any, folder: Path) -> None:
    """In fp16; leaves `network` as it was."""
    deepcopy(network).half().cpu().save_pretrained(folder, variant="fp16")


def _draw(
    shop: Workshop, prior: Any, prompts: list[str], cameras: Cameras | None = None,
    shape: tuple[int, ...] = (LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE),
) -> Tensor:
    cameras = cameras or orbit(*torch.zeros(4, len(prompts)))
    generator = torch.Generator().manual_seed(0)
    return sample(prior, prompts, cameras, shape, generator=generator, steps=shop.sizes.sheet_steps).cpu()


def _sheet(shop: Workshop, name: str, images: Tensor) -> None:
    """[rows, columns, h, w, 3]"""
    write_png(shop.out / "sheets" / f"{name}.png", contact_sheet(images.float().clamp(0, 1).cpu().numpy()))


if __name__ == "__main__":
    tyro.cli(train)
