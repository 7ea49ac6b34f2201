import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dream4d import picture
from dream4d.picture import copy_picture, read_framed, read_picture

BACK, RED = (200, 220, 240), (190, 30, 20)


def scene(width=80, height=60, box=(30, 10, 50, 50), back=BACK):
    """A red box, x from 30 to 50 and y from 10 to 50, with a hole of the background's colour in it."""
    pixels = np.full((height, width, 3), back, dtype=np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = RED
    pixels[28:32, 38:42] = back
    return Image.fromarray(pixels)


def mask_of(box=(30, 10, 50, 50), size=(80, 60)):
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


def save(image, path, **options):
    image.save(path, **options)
    return path


def assert_is_the_box(found, *, hole=True):
    """40 high in a square of 50, half as wide, in the middle; red inside, white and empty outside."""
    opaque = (found.mask > 0.5).nonzero()
    low, high = opaque.amin(0), opaque.amax(0)
    size = len(found.mask)
    assert ((low + high + 1) / 2 - size / 2).abs().max() <= 0.02 * size
    extent = (high - low + 1) / size
    torch.testing.assert_close(extent, torch.tensor([0.8, 0.4]), atol=0.02, rtol=0)
    red = torch.tensor(RED) / 255
    assert (found.rgb[size // 4, size // 2] - red).abs().max() < 0.03
    assert found.rgb[1, 1].min() > 0.99
    assert found.mask[1, 1] == 0
    assert found.mask[size // 2, size // 2] > 0.9 or not hole


def test_the_border_tells_the_object_and_keeps_what_it_encloses(tmp_path):
    found = read_picture(save(scene(), tmp_path / "a.png"), size=100)
    assert_is_the_box(found)
    assert found.cutout == "the colour of its border"


def test_a_background_may_change_evenly_and_be_noisy(tmp_path):
    pixels = np.asarray(scene()).astype(float)
    ramp = np.linspace(1, 0.7, 60)[:, None, None]
    lit = Image.fromarray(np.where(pixels == BACK, pixels * ramp, pixels).astype(np.uint8))
    assert_is_the_box(read_picture(save(lit, tmp_path / "a.jpg", quality=95), size=100))


def test_transparency_comes_first_then_the_mask(tmp_path):
    busy = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    busy.paste(RED, (30, 10, 50, 50))
    mask = save(mask_of(), tmp_path / "mask.png")
    found = read_picture(save(busy, tmp_path / "busy.png"), mask=mask, size=100)
    assert_is_the_box(found)
    assert "mask.png" in found.cutout
    busy.putalpha(mask_of())
    other = save(mask_of((0, 0, 5, 5)), tmp_path / "other.png")
    found = read_picture(save(busy, tmp_path / "alpha.png"), mask=other, size=100)
    assert_is_the_box(found)
    assert found.cutout == "its transparency"


def test_a_photograph_is_turned_upright(tmp_path):
    sideways = scene().transpose(Image.Transpose.ROTATE_90)
    exif = sideways.getexif()
    exif[0x0112] = 6  # the camera was turned
    assert_is_the_box(read_picture(save(sideways, tmp_path / "a.jpg", exif=exif, quality=95), size=100))


def test_edges_are_free_of_the_old_background(tmp_path):
    """Half-covered edge pixels of a dark object before black would leave a dark rim before white."""
    large = scene(800, 600, (305, 105, 505, 505), (0, 0, 0)).resize((80, 60), Image.Resampling.BOX)
    found = read_picture(save(large, tmp_path / "a.png"), size=51)
    edge = (found.mask > 0.2) & (found.mask < 0.8)
    assert edge.sum() > 50
    expected = 1 + found.mask[..., None] * (torch.tensor(RED) / 255 - 1)
    assert (found.rgb - expected)[edge].abs().max() < 0.1


def test_the_saved_cutout_is_the_object(tmp_path):
    found = read_picture(save(scene(), tmp_path / "a.png"), size=64)
    found.save(tmp_path / "cutout.png")
    again = read_framed(tmp_path / "cutout.png")
    assert (again.rgb - found.rgb).abs().max() < 0.01
    assert (again.mask - found.mask).abs().max() < 0.01
    rgb, mask = again.at(16)
    assert rgb.shape == (16, 16, 3)
    assert mask.shape == (16, 16)
    assert mask.mean() == pytest.approx(0.32, abs=0.02)


def test_the_copy_has_pixels_and_nothing_else(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    source = save(scene(), tmp_path / "a.jpg", exif=exif)
    copy_picture(source, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as copy:
        assert copy.size == (80, 60)
        assert not copy.getexif()
    assert b"where I live" not in (tmp_path / "b.png").read_bytes()


def test_what_is_no_picture_of_an_object_is_one_line(tmp_path, monkeypatch):
    def refused(message, file, **options):
        with pytest.raises(ValueError, match=message) as error:
            read_picture(file, **options)
        assert "\n" not in str(error.value)

    good = save(scene(), tmp_path / "a.png")
    refused("there is no picture", tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("not a picture")
    refused(r"text\.png is not a picture: expected PNG, JPEG", tmp_path / "text.png")
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    refused("is not a picture", tmp_path / "program.eps")
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:150])
    refused("cannot be read", tmp_path / "half.png")
    save(Image.new("I;16", (9, 9)), tmp_path / "deep.png")
    refused("more than 8 bits", tmp_path / "deep.png")
    refused("no object found .* by the colour of its border", save(scene(box=(0, 0, 0, 0)), tmp_path / "empty.png"))
    refused(r"no object found .* by the mask", good, mask=save(Image.new("L", (80, 60)), tmp_path / "black.png"))
    turned = save(mask_of(size=(60, 80)), tmp_path / "turned.png")
    refused("the mask .* is 60x80, the picture .* is 80x60", good, mask=turned)
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    refused("has no even colour: give a --mask", save(Image.fromarray(noise), tmp_path / "noise.png"))
    monkeypatch.setattr(picture, "find_spec", lambda _: None)
    refused("the package is missing; pip install", good, rembg="u2net")
    refused(r"picture\.fill is 0: expected a share", good, fill=0)
    clear = scene()
    clear.putalpha(0)
    refused("no object found .* by its transparency", save(clear, tmp_path / "clear.png"))
    monkeypatch.setattr(picture, "MOST_PIXELS", 4799)
    refused("million pixels: make it smaller", good)
    monkeypatch.setattr(picture, "MOST_BYTES", 10)
    refused("MiB, more than", good)


def test_a_bomb_is_not_decoded(tmp_path):
    """A header that claims 4 billion pixels."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    header = bytearray(file.getvalue())
    header[16:24] = (65535).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(header)
    with pytest.raises(ValueError, match="million pixels: make it smaller"):
        read_picture(tmp_path / "bomb.png")
