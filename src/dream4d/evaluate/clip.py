"""CLIP as a judge of real models' scenes: does a picture fit its sentence, and a frame the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dream4d.priors.errors import ModelError
from dream4d.priors.weights import load_module, read_json

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training pictures


class Clip:
    """A frozen CLIP model; its features have length 1."""

    def __init__(self, model: Any, tokenizer: Any):
        self._model, self._tokenizer = model, tokenizer
        self.size: int = model.config.vision_config.image_size

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu") -> Clip:
        """From a folder, or from a repository of the hub that is in this machine's cache.

        Raises ModelError where it is not there, damaged or another kind of model.
        """
        from transformers import CLIPModel, CLIPTokenizer

        folder = _find(name)
        if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
            raise ModelError("corrupt", f"{folder} lacks a tokenizer (vocab.json, merges.txt): get it again")
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(load_module(CLIPModel, folder, device, torch.float32), tokenizer)

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        """[1, d]; a longer prompt is cut at what the model can read."""
        most = self._model.config.text_config.max_position_embeddings
        words = self._tokenizer([prompt], truncation=True, max_length=most, return_tensors="pt").to(self._model.device)
        return F.normalize(self._model.get_text_features(**words).pooler_output, dim=-1)

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """[n, h, w, 3] in [0, 1] -> [n, d]"""
        pictures = images.permute(0, 3, 1, 2).to(self._model.device)
        scaled = F.interpolate(pictures, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values, device=scaled.device)[:, None, None] for values in (_MEAN, _STD))
        return F.normalize(self._model.get_image_features((scaled - mean) / std).pooler_output, dim=-1)


def _find(name: str) -> Path:
    """The folder of a CLIP model. Raises ModelError."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(name).expanduser()
    if not folder.exists():
        try:
            cached = try_to_load_from_cache(name, "config.json")
        except HFValidationError:  # no name of a repository
            cached = None
        if not isinstance(cached, str):
            raise ModelError(
                "absent", f"--clip {name}: there is no such folder, and the cache does not have that model; name the "
                "folder of a CLIP model, or get one: hf download openai/clip-vit-large-patch14"
            )
        folder = Path(cached).parent
    config = folder / "config.json"
    kind = read_json(config).get("model_type") if config.is_file() else None
    if kind != "clip":
        raise ModelError("wrong", f"--clip {name}: its config.json says {kind}, expected clip; name a CLIP model")
    return folder
