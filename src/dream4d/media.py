"""Pictures and videos: reading, writing, laying out, colouring, and the label that says they are synthetic.

Images are arrays or CPU tensors [..., height, width, 3] of floats in [0, 1].
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dream4d.files import atomic

Array = NDArray[np.floating[Any]]

# The paper's discussion asks that results be "labeled as synthetic content"; this is IPTC's term for it, in XMP.
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia\
</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""
_XMP_BOX = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")  # XMP specification part 3, MPEG-4

# Dark to light to dark over the hues, from far to near.
_DEPTH_COLOURS = np.array([
    [0.16, 0.09, 0.28], [0.23, 0.32, 0.78], [0.15, 0.63, 0.89], [0.18, 0.85, 0.62],
    [0.62, 0.93, 0.29], [0.96, 0.78, 0.21], [0.92, 0.40, 0.12], [0.55, 0.06, 0.05],
])


PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif")
"""Ends of the names of files that `read_photos` takes for photos; it refuses those that Pillow cannot read, as the last
two without a plugin, and leaves out none."""


def read_photos(folder: str | Path, size: int) -> Array:
    """Every photo of a folder by name, [n, size, size, 3]. See `read_photo`.

    Raises ValueError where there is none, and for one that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of photos")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PHOTOS and file.name[0] != ".")
    if not files:
        raise ValueError(f"{folder} has no photos: put 4 to 6 of the subject there ({', '.join(PHOTOS[:4])})")
    return np.stack([read_photo(file, size) for file in files])


def read_photo(file: Path, size: int) -> Array:
    """Upright as its EXIF says, over white where it is transparent, the square in its middle, scaled:
    [size, size, 3]. Raises ValueError where it cannot be read."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    remedy = "convert it to PNG or JPEG, or move it away"
    try:
        with Image.open(file) as opened:
            photo = ImageOps.exif_transpose(opened).convert("RGBA")
    except UnidentifiedImageError:
        raise ValueError(f"{file} is not a picture that can be read: {remedy}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read ({error}): {remedy}") from None
    white = Image.new("RGBA", photo.size, "white")
    square = ImageOps.fit(Image.alpha_composite(white, photo).convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(square, dtype=np.float32) / 255


def write_png(path: str | Path, image: ArrayLike) -> None:
    """One labelled picture [h, w, 3]; the file appears complete or not at all."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    label = PngInfo()
    label.add_itxt("XML:com.adobe.xmp", _XMP)
    with atomic(path) as file:
        Image.fromarray(_bytes(image)).save(file, format="PNG", pnginfo=label)


def write_video(path: str | Path, frames: ArrayLike, fps: float) -> None:
    """A labelled H.264 MP4 of `frames` [t, h, w, 3]; odd sides grow by one repeated row or column, as yuv420p needs.

    Raises ValueError for arrays of another shape and for a rate that is not positive.
    """
    import av

    video = _bytes(frames)
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(f"a video is [frames, height, width, 3], this is {list(video.shape)}")
    if fps <= 0:
        raise ValueError(f"fps is {fps}, expected a positive number")
    _, height, width, _ = video.shape
    video = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with atomic(path) as file:
        with av.open(str(file), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width = video.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "16", "preset": "medium"}
            for frame in video:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        _append_label(file)


def contact_sheet(
    images: ArrayLike, columns: Sequence[str] | None = None, rows: Sequence[str] | None = None, *, gap: int = 2
) -> Array:
    """Images [rows, columns, h, w, 3] as one image on white, `gap` pixels apart; labels stand above columns and at the
    left of rows."""
    grid = np.asarray(images)
    down, across, height, width, _ = grid.shape
    top = 0 if columns is None else 14
    left = 0 if rows is None else 8 + 6 * max(map(len, rows))
    sheet = np.ones((top + down * (height + gap) + gap, left + across * (width + gap) + gap, 3))
    at = {(row, column): (top + gap + row * (height + gap), left + gap + column * (width + gap))
          for row in range(down) for column in range(across)}  # fmt: skip
    for (row, column), (y, x) in at.items():
        sheet[y : y + height, x : x + width] = grid[row, column]
    if top:
        sheet[:top] = _text([(at[0, i][1], 1, label) for i, label in enumerate(columns or ())], sheet[:top])
    if left:
        middles = [at[i, 0][0] + height // 2 - 6 for i in range(down)]
        labels = [(4, y, label) for y, label in zip(middles, rows or (), strict=True)]
        sheet[:, :left] = np.minimum(sheet[:, :left], _text(labels, sheet[:, :left]))
    return sheet


def stack(sheets: Sequence[ArrayLike]) -> Array:
    """Sheets [h, w, 3] of different sizes below each other, on white."""
    arrays = [np.asarray(sheet) for sheet in sheets]
    width = max(sheet.shape[1] for sheet in arrays)
    return np.concatenate([
        np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0)), constant_values=1.0) for sheet in arrays
    ])


def caption(image: ArrayLike, text: str, height: int = 16) -> Array:
    """The image [h, w, 3] under a white strip of so many pixels, with `text` on it."""
    picture = np.asarray(image)
    return np.concatenate([_text([(3, 3, text)], np.ones((height, picture.shape[1], 3))), picture])


def parse_colour(text: str) -> tuple[float, float, float] | None:
    """RGB in [0, 1] of a name or a #rrggbb; None for `scene`, the scene's own background.

    Raises ValueError for anything else.
    """
    from PIL import ImageColor

    if text == "scene":
        return None
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise ValueError(f"background {text!r} is no colour: expected scene, a name like white, or #rrggbb") from None
    return red / 255, green / 255, blue / 255


def colour_depth(depth: ArrayLike, opacity: ArrayLike, near: float, far: float) -> Array:
    """Depth maps [..., h, w] as colours, red at `near` to indigo at `far`, over white where nothing is."""
    nearness = np.clip((far - np.asarray(depth)) / (far - near), 0, 1) * (len(_DEPTH_COLOURS) - 1)
    positions = np.arange(len(_DEPTH_COLOURS))
    colours = np.stack([np.interp(nearness, positions, channel) for channel in _DEPTH_COLOURS.T], axis=-1)
    return _over_white(colours, opacity)


def colour_displacement(displacement: ArrayLike, opacity: ArrayLike, largest: float | None = None) -> Array:
    """Displacement maps [..., h, w, 3] as colours: x, y, z shift red, green, blue away from grey, which is rest.

    largest: the displacement of full colour; by default the largest of all, so that a clip is one scale.
    """
    vectors = np.asarray(displacement)
    scale = largest or max(float(np.abs(vectors).max(initial=0)), 1e-6)
    return _over_white(np.clip(0.5 + vectors / (2 * scale), 0, 1), opacity)


def _over_white(colours: Array, opacity: ArrayLike) -> Array:
    cover = np.clip(np.asarray(opacity), 0, 1)[..., None]
    blended: Array = colours * cover + (1 - cover)
    return blended


def _bytes(images: ArrayLike) -> NDArray[np.uint8]:
    return (np.clip(np.nan_to_num(np.asarray(images, dtype=np.float32)), 0, 1) * 255 + 0.5).astype(np.uint8)


def _text(labels: list[tuple[int, int, str]], like: Array) -> Array:
    """Labels (x, y, text) on white, of the size of `like`."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (like.shape[1], like.shape[0]), "white")
    for x, y, label in labels:
        ImageDraw.Draw(strip).text((x, y), label, fill="black")
    return np.asarray(strip) / 255


def _append_label(file: Path) -> None:
    """The XMP packet as a last `uuid` box, which players skip."""
    packet = _XMP.encode()
    with file.open("ab") as mp4:
        mp4.write(struct.pack(">I4s16s", 24 + len(packet), b"uuid", _XMP_BOX) + packet)
