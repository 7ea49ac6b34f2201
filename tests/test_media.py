import av
import numpy as np
import pytest
import torch
from PIL import Image

from dream4d.media import (
    colour_depth,
    colour_displacement,
    contact_sheet,
    parse_colour,
    read_photos,
    write_png,
    write_video,
)

LABEL = "digitalsourcetype/trainedAlgorithmicMedia"


def moving_bar(frames, height, width):
    video = np.full((frames, height, width, 3), 0.2, dtype=np.float32)
    for index in range(frames):
        video[index, :, index * width // frames : (index + 1) * width // frames] = (0.9, 0.3, 0.1)
    return video


@pytest.mark.parametrize(("height", "width"), [(32, 48), (31, 47)])
def test_a_video_reads_back(tmp_path, height, width):
    video = moving_bar(6, height, width)
    write_video(tmp_path / "v.mp4", torch.from_numpy(video), fps=12)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12
    assert np.stack(frames).shape == (6, height + height % 2, width + width % 2, 3)
    assert np.abs(np.stack(frames)[:, :height, :width] / 255 - video).mean() < 0.05


def test_videos_and_pictures_say_that_they_are_synthetic(tmp_path):
    write_video(tmp_path / "v.mp4", moving_bar(2, 16, 16), fps=8)
    data = (tmp_path / "v.mp4").read_bytes()
    start = data.rindex(bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")) - 8
    assert data[start + 4 : start + 8] == b"uuid"
    assert int.from_bytes(data[start : start + 4], "big") == len(data) - start
    assert LABEL.encode() in data[start:]
    write_png(tmp_path / "p.png", np.zeros((4, 4, 3)))
    with Image.open(tmp_path / "p.png") as picture:
        assert LABEL in picture.text["XML:com.adobe.xmp"]


def test_a_picture_reads_back_rounded_and_clipped(tmp_path):
    write_png(tmp_path / "p.png", [[[0.0, 0.5, 1.0], [-1.0, 2.0, float("nan")]]])
    with Image.open(tmp_path / "p.png") as picture:
        assert np.asarray(picture).tolist() == [[[0, 128, 255], [0, 255, 0]]]


@pytest.mark.parametrize(("shape", "fps"), [((4, 4, 3), 8), ((0, 4, 4, 3), 8), ((2, 4, 4, 1), 8), ((2, 4, 4, 3), 0)])
def test_a_video_that_cannot_be_leaves_no_file(tmp_path, shape, fps):
    with pytest.raises(ValueError, match=r"a video is|fps is"):
        write_video(tmp_path / "v.mp4", np.zeros(shape), fps)
    assert list(tmp_path.iterdir()) == []


def test_contact_sheet_places_images_in_reading_order():
    images = np.linspace(0, 0.5, 6).reshape(2, 3, 1, 1, 1) * np.ones((4, 5, 3))
    sheet = contact_sheet(images, gap=1)
    assert sheet.shape == (2 * 5 + 1, 3 * 6 + 1, 3)
    assert sheet[1, 1, 0] == 0
    assert sheet[6, 13, 0] == 0.5
    labelled = contact_sheet(images, ["a", "b", "c"], gap=1)
    assert labelled[14:].tolist() == sheet.tolist()
    assert labelled[:14].min() < 0.5


def test_depth_runs_from_red_to_blue_over_white():
    colours = colour_depth([[2.0, 4.0, 3.0]], [[1.0, 1.0, 0.0]], near=2, far=4)
    near, far, nothing = colours[0]
    assert near[0] > near[2]
    assert far[2] > far[0]
    assert nothing.tolist() == [1, 1, 1]


def test_displacement_is_grey_at_rest_and_coloured_by_direction():
    opacity = [[1.0, 1.0, 1.0]]
    rest, right, down = colour_displacement([[[0.0, 0, 0], [0.2, 0, 0], [0, 0, -0.2]]], opacity)[0]
    assert rest.tolist() == [0.5, 0.5, 0.5]
    assert right.tolist() == [1, 0.5, 0.5]
    assert down.tolist() == [0.5, 0.5, 0]
    assert np.isfinite(colour_displacement(np.zeros((1, 3, 3)), opacity)).all()


def test_backgrounds_are_names_or_hexadecimal():
    assert parse_colour("scene") is None
    assert parse_colour("white") == (1, 1, 1)
    assert parse_colour("#ff0080") == (1, 0, 128 / 255)
    with pytest.raises(ValueError, match="'purplish' is no colour"):
        parse_colour("purplish")


def test_photos_are_upright_square_and_over_white(tmp_path):
    wide = np.zeros((8, 24, 4), dtype=np.uint8)
    wide[:, 8:16] = (255, 0, 0, 255)  # the square in the middle
    wide[:4, 8:16, 3] = 0
    Image.fromarray(wide).save(tmp_path / "a.png")
    turned = Image.fromarray(np.uint8([[[255, 0, 0]] * 8 + [[0, 0, 255]] * 8] * 16))  # red is left
    exif = turned.getexif()
    exif[0x0112] = 6  # it becomes the top when the picture is turned clockwise, as this says
    turned.save(tmp_path / "b.JPG", exif=exif, quality=100)
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "._b.jpg").write_bytes(b"left by a Mac")
    transparent, upright = read_photos(tmp_path, 8)
    np.testing.assert_allclose(transparent[[0, 7], 4], [[1, 1, 1], [1, 0, 0]])
    np.testing.assert_allclose(upright[[0, 7], 4], [[1, 0, 0], [0, 0, 1]], atol=0.1)


def test_photos_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="is not a folder of photos"):
        read_photos(tmp_path / "absent", 8)
    with pytest.raises(ValueError, match="has no photos: put 4 to 6"):
        read_photos(tmp_path, 8)
    (tmp_path / "a.jpg").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"a\.jpg is not a picture that can be read"):
        read_photos(tmp_path, 8)
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:800])
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read \(.*\): convert it"):
        read_photos(tmp_path, 8)
