"""Personalising an image model: it learns a word for one subject from a few photos (paper Sec. 3.3), by DreamBooth (its
ref. [30]; Ruiz et al., 2023) on a LoRA (Hu et al., 2021). The static stage then takes it in place of the general model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import AdamW

from dream4d.cameras import VIEW_WORDS, orbit
from dream4d.distill import add_noise, encode
from dream4d.priors.adapters import ATTENTION, ATTENTION_OF_TEXT, Adapter, adapt
from dream4d.priors.parts import Parts
from dream4d.priors.sampling import sample_latents
from dream4d.priors.stable_diffusion import StableDiffusion
from dream4d.settings import PersonalizeSettings
from dream4d.state import StepReport, load_moments, moments_of

TOGETHER = 8
"""Pictures that are drawn at a time."""


@dataclass
class PersonalState:
    """A frozen `prior` and the LoRAs of its parts, by the path of a layer, after `step` steps. All randomness comes
    from `generator`, which lives on the CPU: the same state takes the same steps."""

    prior: StableDiffusion
    unet: dict[str, Adapter]
    text_encoder: dict[str, Adapter]
    optimizer: AdamW
    generator: torch.Generator
    step: int = 0

    def to_tensors(self) -> dict[str, Tensor]:
        """A copy of everything that changes, flat, for safetensors."""
        tensors = {f"lora.{name}": value for name, value in self._parameters().items()}
        tensors |= moments_of(self.optimizer)
        tensors |= {"generator": self.generator.get_state(), "step": torch.tensor(self.step)}
        return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `to_tensors` gave for a state that was started in the same way."""
        for name, parameter in self._parameters().items():
            parameter.data.copy_(tensors[f"lora.{name}"])
        load_moments(self.optimizer, tensors)
        self.generator.set_state(tensors["generator"])
        self.step = int(tensors["step"])

    def _parameters(self) -> dict[str, Tensor]:
        parts = {"unet": self.unet, "text_encoder": self.text_encoder}
        return {
            f"{part}.{layer}.{name}": parameter for part, adapters in parts.items()
            for layer, adapter in adapters.items() for name, parameter in adapter.named_parameters()
        }


def start_personal(prior: StableDiffusion, settings: PersonalizeSettings, *, seed: int) -> PersonalState:
    """The state before the first step, in which `prior` predicts what it did. It was loaded with quick=False."""
    parts, generator = prior.parts, torch.Generator().manual_seed(seed)
    assert parts.text is not None
    unet = adapt(parts.unet, ATTENTION, settings.rank, generator)
    text = adapt(parts.text.model, ATTENTION_OF_TEXT, settings.rank, generator) if settings.text_encoder else {}
    groups = [
        {"params": [p for adapter in adapters.values() for p in adapter.parameters()], "kind": kind}
        for kind, adapters in (("unet", unet), ("text", text)) if adapters
    ]
    return PersonalState(prior, unet, text, AdamW(groups, weight_decay=0.01, fused=True), generator)


def fit_personal(
    state: PersonalState, *, photos: Tensor, prompt: str, pictures: Tensor, class_prompt: str,
    settings: PersonalizeSettings,
) -> Iterator[StepReport]:
    """Train the LoRAs of `state` until step `settings.steps`; yields after each step, when `state` may be saved.

    photos [n, h, w, 3] show what `prompt` says; pictures, latents [m, ...] of `draw_class`, what `class_prompt` says;
    with m = 0 there is no prior preservation.
    """
    prior, generator, n = state.prior, state.generator, settings.photos
    text = prior.parts.text
    assert text is not None
    encoded = torch.cat([encode(prior, photo[None].to(prior.alpha_bar.device)) for photo in photos]).detach()
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    while (step := state.step) < settings.steps:
        rates = {"unet": settings.learning_rate(step), "text": settings.learning_rate_text(step)}
        for group in state.optimizer.param_groups:
            group["lr"] = rates[group["kind"]]
        latents, prompts = encoded[torch.randint(len(encoded), (n,), generator=generator)], [prompt] * n
        if len(pictures):
            chosen = torch.randint(len(pictures), (n,), generator=generator)
            latents = torch.cat([latents, pictures[chosen].to(latents)])
            prompts += [class_prompts(class_prompt)[i % CLASS_PROMPTS] for i in chosen.tolist()]
        features = text.encode(prompts) if state.text_encoder else text(prompts)

        errors = denoising_error(prior.parts, latents, features, generator)
        losses = {"subject": errors[:n].mean()}
        loss = losses["subject"]
        if len(pictures):
            losses["class"] = errors[n:].mean()
            loss = loss + settings.weight_prior * losses["class"]  # DreamBooth, its equation 2

        state.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        state.optimizer.step()
        state.step += 1
        yield StepReport(step, {name: value.detach() for name, value in losses.items()})


def denoising_error(parts: Parts, latents: Tensor, text: Tensor, generator: torch.Generator) -> Tensor:
    """The mean square of the UNet's error at a random timestep of each latent, in what it predicts, eps or v: [b]."""
    timestep = torch.randint(len(parts.alpha_bar), (len(latents),), generator=generator).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    alpha_bar, dtype = parts.alpha_bar[timestep], parts.unet.dtype
    predicted = parts.unet(add_noise(latents, noise, alpha_bar).to(dtype), timestep, text.to(dtype)).sample.float()
    # v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z
    target = noise if parts.prediction_type == "epsilon" else add_noise(noise, -latents, alpha_bar)
    errors: Tensor = (predicted - target).square().flatten(1).mean(dim=1)
    return errors


CLASS_PROMPTS = 1 + len(VIEW_WORDS)


def class_prompts(class_prompt: str) -> list[str]:
    """As it is, and with the words of each view, which the static stage says and the model shall not unlearn."""
    return [class_prompt, *(f"{class_prompt}, {words}" for words in VIEW_WORDS)]


def draw_class(state: PersonalState, class_prompt: str, settings: PersonalizeSettings, *, seed: int) -> Tensor:
    """Latents [settings.class_images, ...] of what the model draws of the class (prior preservation); the prompt of
    latent i is `class_prompts`[i % CLASS_PROMPTS]. To be called before training."""
    prompts = class_prompts(class_prompt)
    return draw(state, [prompts[i % CLASS_PROMPTS] for i in range(settings.class_images)], settings, seed=seed)


def draw(state: PersonalState, prompts: Sequence[str], settings: PersonalizeSettings, *, seed: int) -> Tensor:
    """Latents [len(prompts), ...] by DDIM, as the model is now; from the same noise for the same seed."""
    prior, generator = state.prior, torch.Generator().manual_seed(seed)
    if state.text_encoder and prior.parts.text is not None:
        prior.parts.text.forget()
    shape = (prior.parts.unet.config.in_channels, *(side // prior.parts.autoencoder.downsampling
                                                    for side in prior.resolution))  # fmt: skip
    camera = orbit(*torch.tensor([[0.0], [0.0], [3.0], [40.0]]))  # a model of images does not look at it
    drawn = [prior.alpha_bar.new_zeros(0, *shape)]
    for first in range(0, len(prompts), TOGETHER):
        some = prompts[first : first + TOGETHER]
        drawn.append(sample_latents(
            prior, some, camera, shape, generator=generator, steps=settings.sampling_steps,
            scale=settings.sampling_guidance,
        ))
    return torch.cat(drawn)


def without_token(prompt: str, token: str) -> str:
    """What the prompt says of the class: "a sks dog" -> "a dog".

    Raises ValueError where the prompt does not have the token as a word.
    """
    words = prompt.split()
    rest = [word for word in words if word.strip(",.;:!?").lower() != token.lower()]
    if len(rest) == len(words):
        raise ValueError(
            f'the prompt {prompt!r} does not say {token!r}: name the subject as in "a {token} dog", or give the word '
            "that means it by --personalize.token"
        )
    return " ".join(rest)


def subject_of(prompt: str, token: str) -> str:
    """What photos of the subject show, if nobody says: from the article to the word after the token, "a red sks dog is
    waving" -> "a red sks dog". A model that has learned "a sks dog" may take "a red sks dog" for any red one."""
    words = [word.strip(",.;:!?") for word in prompt.split()]
    place = next((i for i, word in enumerate(words) if word.lower() == token.lower()), None)
    if place is None:
        return f"a {token}"
    articles = [i for i in range(place) if words[i].lower() in ("a", "an", "the")]
    said = words[articles[-1] : place + 2] if articles else ["a", *words[place : place + 2]]
    return " ".join(said)
