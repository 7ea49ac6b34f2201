"""A picture of an object: read, cut out, and framed as the reference camera sees it (paper Sec. 3.3, "a single image").

Files are untrusted: few formats, none of which is a program; limits before anything is decoded.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dream4d.files import atomic

Array = NDArray[np.floating[Any]]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MOST_BYTES = 64 * 2**20
MOST_PIXELS = 50_000_000
WORKED_ON = 1024
"""Pixels of the longer side; larger pictures are reduced once they are read."""
TOLERANCE = 0.07
"""Largest difference of a channel within what counts as one background: the noise of a JPEG."""
FEWEST = 16
"""Pixels that an object has at least."""


@dataclass(frozen=True)
class Picture:
    """The object of a picture, alone: rgb [s, s, 3] before white and mask [s, s], both in [0, 1]. cutout: how it was
    told from its background."""

    rgb: Tensor
    mask: Tensor
    cutout: str

    def at(self, size: int) -> tuple[Tensor, Tensor]:
        """rgb [size, size, 3] and mask [size, size]."""
        resized = _resize(torch.cat([self.rgb, self.mask[..., None]], dim=-1), size)
        return resized[..., :3], resized[..., 3]

    def save(self, path: str | Path) -> None:
        """As a PNG with transparency, from which `read_picture` gets the same object."""
        from PIL import Image

        cover = self.mask[..., None].clamp(min=1e-3)
        colour = ((self.rgb - (1 - cover)) / cover).clamp(0, 1)
        pixels = torch.cat([colour, self.mask[..., None]], dim=-1).mul(255).round().byte().numpy()
        with atomic(path) as file:
            Image.fromarray(pixels, "RGBA").save(file, format="PNG")


def read_picture(
    file: str | Path, *, mask: str | Path | None = None, rembg: str | None = None, size: int = 512, fill: float = 0.8
) -> Picture:
    """The object of a picture file, centred in a square whose side is 1 / `fill` of the object's larger extent.

    The object is what is not transparent; where nothing is, what is bright in the file `mask`; without one, what the
    model `rembg` of the package of that name finds; without that, what differs from the colour at the picture's border.

    Raises ValueError for a file that is no picture or too large, a mask of another size, a fill that is no share, and
    where no object is found.
    """
    if not 0 < fill <= 1:
        raise ValueError(f"picture.fill is {fill}: expected a share of the view, more than 0 and at most 1")
    image = _open(Path(file))
    over_white, alpha, how = _cut_out(image, Path(file), mask, rembg)
    rows, columns = np.nonzero(alpha > 0.5)
    if len(rows) < FEWEST:
        raise ValueError(
            f"no object found in {file} by {how}: it has to be opaque, white in a --mask, or unlike the border"
        )
    (top, bottom), (left, right) = ((int(i.min()), int(i.max()) + 1) for i in (rows, columns))
    side = max(round(max(bottom - top, right - left) / fill), 1)
    pixels = torch.from_numpy(np.concatenate([over_white, alpha[..., None]], axis=-1)).float()
    framed = _resize(_crop(pixels, (top + bottom - side) // 2, (left + right - side) // 2, side), size)
    return Picture(framed[..., :3], framed[..., 3], how)


def read_framed(file: str | Path) -> Picture:
    """What `Picture.save` wrote, as it is."""
    image = _open(Path(file))
    over_white, alpha = _over_white(image)
    return Picture(torch.from_numpy(over_white).float(), torch.from_numpy(alpha).float(), "transparency")


def copy_picture(source: str | Path, target: str | Path) -> None:
    """A picture file as a PNG of at most `WORKED_ON` pixels a side, with nothing of the file but its pixels."""
    image = _open(Path(source))
    with atomic(target) as file:
        _reduced(image).save(file, format="PNG")


def _open(file: Path) -> Any:
    """Upright RGBA, decoded."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not file.is_file():
        raise ValueError(f"there is no picture {file}")
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size >> 20} MiB, more than {MOST_BYTES >> 20}: make it smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limits, which are not ours
            with Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise _TooLargeError
                if image.mode[0] in "IF":
                    raise ValueError(f"{file} has more than 8 bits a channel: save it with 8")
                upright = ImageOps.exif_transpose(image)
                return upright.convert("RGBA")
    except (_TooLargeError, Image.DecompressionBombError):
        raise ValueError(f"{file} has more than {MOST_PIXELS // 10**6} million pixels: make it smaller") from None
    except UnidentifiedImageError:
        raise ValueError(f"{file} is not a picture: expected {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{file} cannot be read: {error}; save it again") from None


class _TooLargeError(Exception):
    pass


def _cut_out(image: Any, file: Path, mask: str | Path | None, rembg: str | None) -> tuple[Array, Array, str]:
    """The object before white [h, w, 3], its opacity [h, w], and how it was found."""
    if image.getextrema()[3][0] < 255:
        return *_over_white(_reduced(image)), "its transparency"
    if mask is not None:
        return *_over_white(_reduced(_with_mask(image, file, Path(mask)))), f"the mask {mask}"
    if rembg is not None:
        return *_over_white(_with_rembg(_reduced(image), rembg)), f"rembg's {rembg}"
    return *_by_border(np.asarray(_reduced(image).convert("RGB")) / 255, file), "the colour of its border"


def _over_white(image: Any) -> tuple[Array, Array]:
    pixels = np.asarray(image) / 255
    alpha = pixels[..., 3]
    return pixels[..., :3] * alpha[..., None] + 1 - alpha[..., None], alpha


def _with_mask(image: Any, file: Path, mask: Path) -> Any:
    cover = _open(mask).convert("L")
    if cover.size != image.size:
        ours, theirs = (f"{width}x{height}" for width, height in (image.size, cover.size))
        raise ValueError(f"the mask {mask} is {theirs}, the picture {file} is {ours}: make them equal")
    image = image.copy()
    image.putalpha(cover)
    return image


def _with_rembg(image: Any, model: str) -> Any:
    if find_spec("rembg") is None:
        raise ValueError(f"rembg {model}: the package is missing; pip install 'dream4d[rembg]', or give a --mask")
    import rembg

    try:
        cover = rembg.remove(image.convert("RGB"), session=rembg.new_session(model), only_mask=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"rembg {model}: {error}; name another model, or give a --mask") from None
    image = image.copy()
    image.putalpha(cover.convert("L"))
    return image


def _by_border(rgb: Array, file: Path) -> tuple[Array, Array]:
    """What the border's colour, which may change linearly over the picture, does not reach from the border.

    An edge pixel is a mixture: as far from the background's colour as its opacity's share of its neighbours' distance.
    """
    height, width, _ = rgb.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    plane = np.stack([np.ones_like(x), x, y], axis=-1)
    border = np.ones((height, width), dtype=bool)
    rim = max(1, round(0.02 * min(height, width)))
    border[rim:-rim, rim:-rim] = False
    coordinates, colours = plane[border], rgb[border]
    fits = np.abs(colours - np.median(colours, axis=0)).max(axis=-1) < 4 * TOLERANCE
    for _ in range(4):  # without what of the object reaches the border
        if fits.mean() < 0.5:
            raise ValueError(f"the background of {file} has no even colour: give a --mask, or cut the object out")
        coefficients = np.linalg.lstsq(coordinates[fits], colours[fits], rcond=None)[0]
        fits = np.abs(coordinates @ coefficients - colours).max(axis=-1) < TOLERANCE
    behind = plane @ coefficients
    distance = np.abs(rgb - behind).max(axis=-1)
    inside = ~_reached(distance < TOLERANCE)
    around = F.max_pool2d(torch.from_numpy(distance * inside)[None], 3, stride=1, padding=1)[0].numpy()
    edge = F.max_pool2d(torch.from_numpy(~inside)[None].double(), 3, stride=1, padding=1)[0].numpy() > 0
    alpha = np.where(inside, np.where(edge, distance / np.maximum(around, 1e-6), 1.0), 0.0)
    return np.clip(rgb + (1 - alpha)[..., None] * (1 - behind), 0, 1) * inside[..., None] + ~inside[..., None], alpha


def _reached(open_: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of the open pixels [h, w], those with an open way to the border; by whole rows and columns at a time."""
    free = np.pad(open_, 1, constant_values=True)
    reached = np.pad(np.zeros_like(open_), 1, constant_values=True)
    while True:
        before = reached.sum()
        for _ in range(2):
            free, reached = free.T, reached.T
            runs = np.cumsum(~free)  # of open pixels; one that goes on in the next row passes the border
            hit = np.bincount(runs, weights=reached.ravel()) > 0
            reached = free & hit[runs].reshape(free.shape)
        if reached.sum() == before:
            return reached[1:-1, 1:-1]


def _reduced(image: Any) -> Any:
    image = image.copy()
    image.thumbnail((WORKED_ON, WORKED_ON))
    return image


def _crop(pixels: Tensor, top: int, left: int, side: int) -> Tensor:
    """[h, w, 4] -> [side, side, 4], white and empty outside."""
    height, width, _ = pixels.shape
    outside = pixels.new_tensor([1.0, 1.0, 1.0, 0.0]).expand(side, side, 4).clone()
    rows, columns = (slice(max(first, 0), min(first + side, end)) for first, end in ((top, height), (left, width)))
    outside[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = pixels[rows, columns]
    return outside


def _resize(pixels: Tensor, size: int) -> Tensor:
    """[s, s, c] -> [size, size, c]"""
    if pixels.shape[:2] == (size, size):
        return pixels
    resized = F.interpolate(
        pixels.permute(2, 0, 1)[None], (size, size), mode="bicubic", antialias=True, align_corners=False
    )
    return resized[0].permute(1, 2, 0).clamp(0, 1)
