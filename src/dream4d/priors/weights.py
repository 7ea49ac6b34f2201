"""Files of weights: which ones a model's folder has, whether they are whole, and their tensors.

safetensors come first. A pickle (``.bin``, ``.pt``, ``.ckpt``) is read by torch's weights-only unpickler, which builds
tensors and containers and never calls or imports what the file names.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dream4d.priors.errors import ModelError
from dream4d.priors.int8 import SCALE, unpack

_FILE = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>fp16|int8))?(?:-(?P<shard>\d+)-of-(?P<shards>\d+))?"
    r"(?:\.(?P<variant_of_shard>fp16))?\.(?P<kind>safetensors|bin)"
)
_AGAIN = "delete it and get it again (dream4d models fetch, or copy it anew)"


@dataclass(frozen=True)
class Weights:
    """Names of the files of one set of weights, several if it is sharded. variant: `fp16`, `int8` (`priors.int8`)
    or None."""

    names: tuple[str, ...]
    variant: str | None
    safetensors: bool


def choose_weights(names: Iterable[str], *, half: bool = False) -> Weights | None:
    """The best set of weights among the files of a folder: safetensors before .bin, then full precision before fp16,
    or the other way round if `half`, and int8 last."""
    order = ["fp16", None, "int8"] if half else [None, "fp16", "int8"]
    sets: dict[tuple[bool, int], list[tuple[bool, str]]] = {}
    for name in sorted(names):
        if match := _FILE.fullmatch(name):
            variant = order.index(match["variant"] or match["variant_of_shard"])
            sets.setdefault((match["kind"] == "bin", variant), []).append((match["shard"] is not None, name))
    if not sets:
        return None
    is_bin, variant = best = min(sets)
    whole = [name for sharded, name in sets[best] if not sharded]
    files = whole[:1] or [name for _, name in sets[best]]
    return Weights(tuple(files), order[variant], not is_bin)


def find_weights(folder: Path, *, half: bool = False) -> Weights:
    """`choose_weights` of a folder. Raises ModelError where it has none, or not all shards."""
    weights = choose_weights((file.name for file in folder.glob("*")), half=half)
    if weights is None:
        raise ModelError(
            "absent", f"{folder} has no .safetensors or .bin weights: copy the model's there, or fetch it again"
        )
    match = _FILE.fullmatch(weights.names[0])
    assert match
    if match["shard"] and len(weights.names) != int(match["shards"]):
        raise ModelError(
            "corrupt", f"{folder} has {len(weights.names)} of the {int(match['shards'])} shards of its weights: get "
            "the others"
        )
    return weights


def read_json(file: Path) -> dict[str, Any]:
    """Raises ModelError where it is no JSON object."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ModelError("corrupt", f"{file} is not a JSON object: {_AGAIN}")
    return values


def check_file(file: Path) -> None:
    """Look at the header and the length of a file of weights, without reading its tensors.

    Raises ModelError for a file that is truncated or something else.
    """
    with file.open("rb") as opened:
        start = opened.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ModelError("corrupt", f"{file} is a git-lfs pointer and not the file itself: run git lfs pull there")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt"):
                return
        except SafetensorError as error:
            raise ModelError("corrupt", f"{file} is damaged or incomplete ({error}): {_AGAIN}") from None
    if start.startswith(b"PK") and not zipfile.is_zipfile(file):  # its directory is at the end
        raise ModelError("corrupt", f"{file} is incomplete: {_AGAIN}")


def unknown_globals(file: Path) -> list[str]:
    """What a pickle names beside tensors and containers, found by reading it as data; [] for the format before zip.

    Raises ModelError where it cannot be taken apart.
    """
    if not zipfile.is_zipfile(file):
        return []
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception as error:  # torch raises what its pickle reader stumbles over, of many types
        raise ModelError("corrupt", f"{file} is not a file of torch.save ({_one_line(error)}): {_AGAIN}") from None


class _Ignored:
    """Stands for every object of a pickle that is neither tensor nor container; takes anything, does nothing."""

    def __new__(cls, *_: Any) -> _Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The tensors of a single file: safetensors, a bare state dict, or one under ``state_dict`` beside other things;
    of int8 weights what they stand for.

    Training programs pickle objects of their own beside the weights: those become empty stand-ins, and the code that
    they name is neither imported nor run. Tensors are mapped from the file where its format allows.

    Raises ModelError.
    """
    check_file(file)
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return unpack(load_file(file))
    stand_ins: list[Any] = [(_Ignored, name) for name in unknown_globals(file)]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read is told below
            values = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # as above
        raise _refusal(file, error) from None
    if isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]
    tensors = {str(name): value for name, value in values.items() if isinstance(value, Tensor)} \
        if isinstance(values, dict) else {}
    if not tensors:
        raise ModelError("wrong", f"{file} holds no state dict: expected tensors by name, bare or under state_dict")
    return tensors


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model's folder, whatever its files. Raises ModelError."""
    tensors: dict[str, Tensor] = {}
    for name in find_weights(folder).names:
        tensors |= read_checkpoint(folder / name)
    return tensors


def tensor_names(folder: Path) -> list[str]:
    """Names of all tensors of a model's folder, without reading their values. Raises ModelError."""
    names: list[str] = []
    for file in (folder / name for name in find_weights(folder).names):
        check_file(file)
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as opened:
                names.extend(name for name in list(opened.keys()) if not name.endswith(SCALE))
        else:
            names.extend(read_checkpoint(file))
    return names


def check_weights(folder: Path, weights: Weights) -> None:
    """`check_file` of each file, and that pickles ask for nothing but tensors. Raises ModelError."""
    for file in (folder / name for name in weights.names):
        check_file(file)
        if not weights.safetensors and (unknown := unknown_globals(file)):
            raise _unsafe(file, unknown)


def load_module(cls: Any, folder: Path, device: torch.device | str, dtype: torch.dtype) -> Any:
    """A diffusers or transformers model from its folder, frozen and in evaluation mode.

    Raises ModelError where weights are absent, damaged, ask for code, or do not fit its config.json.
    """
    weights = find_weights(folder, half=dtype == torch.float16)
    check_weights(folder, weights)
    try:
        if weights.variant == "int8":
            model = cls.from_config(cls.load_config(folder, local_files_only=True))
            model.load_state_dict(read_folder(folder))
            return model.to(dtype).requires_grad_(False).eval().to(device)
        model, report = cls.from_pretrained(
            folder, local_files_only=True, use_safetensors=weights.safetensors, variant=weights.variant, dtype=dtype,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise ModelError("corrupt", f"{folder}: weights and config.json cannot be loaded ({_one_line(error)}): "
                         "get the folder again") from error
    if report["missing_keys"]:
        raise ModelError(
            "corrupt", f"{folder}: the weights lack {sorted(report['missing_keys'])[:3]} ... of its config.json: "
            "get the folder again"
        )
    return model.requires_grad_(False).eval().to(device)


def _refusal(file: Path, error: Exception) -> ModelError:
    refused = re.search(r"[^\n]*(GLOBAL|reduce for|Can only)[^\n]{0,99}", str(error))  # amid a page of advice
    if refused:
        return ModelError(
            "unsafe", f"{file}: torch's weights-only reader refuses it ({refused[0].strip()}), and pickled code is "
            "never run here: take a safetensors file of the model, or a diffusers port"
        )
    return ModelError("corrupt", f"{file} cannot be read ({_one_line(error)}): {_AGAIN}")


def _unsafe(file: Path, names: list[str]) -> ModelError:
    return ModelError(
        "unsafe", f"{file} is a pickle that asks for {', '.join(names[:3])}, which weights do not need and which is "
        "never run here: take the model's safetensors files, or another source"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
