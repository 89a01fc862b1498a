"""Image files of every odd kind come out as the right bytes, or as a reason."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from compressor.training.decoding import _random_window, decode
from compressor.vision.preparation import PIXEL_LIMIT, Unreadable, image_size

QUARTERS = (
    np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], dtype=np.uint8).repeat(4, 0).repeat(4, 1)
)


def test_colour_comes_out_channels_first(tmp_path):
    Image.fromarray(QUARTERS).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png", (3, 8, 8)), QUARTERS.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a)),
        (2, lambda a: a[:, ::-1]),
    ],
    ids=["180", "90 right", "90 left", "mirrored"],
)
def test_exif_rotation_is_undone(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(QUARTERS).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "a.png", (3, 8, 8)), turn(QUARTERS).transpose(2, 0, 1))


def test_size_is_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        Image.new("RGB", (30, 20)).save(tmp_path / name, exif=exif)
        assert image_size(tmp_path / name) == (20, 30), name


def test_transparent_pixels_lie_on_white(tmp_path):
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = decode(tmp_path / "a.png", (3, 4, 4))
    assert (out[:, :2] == 0).all()
    assert (out[:, 2:] == 255).all()


def test_palette_with_transparency_lies_on_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.gif", transparency=0)
    assert (decode(tmp_path / "a.gif", (3, 4, 4)) == 255).all()


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 16, dtype=np.uint16).reshape(4, 4)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.array_equal(decode(tmp_path / name, (1, 4, 4))[0], values // 257)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_gives_both_grey_and_colour(tmp_path, mode):
    image = Image.new("L", (5, 5), 255).convert(mode) if mode != "I;16" else Image.new("I;16", (5, 5), 65535)
    image.save(tmp_path / "a.tif")
    for channels in (1, 3):
        out = decode(tmp_path / "a.tif", (channels, 5, 5))
        assert out.shape == (channels, 5, 5)
        assert out.dtype == np.uint8
        assert (out == 255).all()


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\0\0\0\0") + data + chunk(b"IEND", b"")


def truncated_png(tmp_path: Path) -> bytes:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    return (tmp_path / "whole.png").read_bytes()[:900]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"just text", "not a PNG image"),
        (b"", "not a PNG image"),
        (truncated_png, "truncated"),
        (png_header(10_000, 9_000), f"over the limit of {PIXEL_LIMIT:,}"),
        (png_header(60_000, 60_000), "pixels"),
        (png_header(64, 64), "truncated"),
        (png_header(0, 5), "."),
    ],
    ids=["text", "empty", "truncated", "bomb", "large bomb", "short PNG", "no width"],
)
def test_broken_file_gives_one_line(tmp_path, content, says):
    file = tmp_path / "a.png"
    file.write_bytes(content(tmp_path) if callable(content) else content)
    with pytest.raises(Unreadable, match=says) as caught:
        decode(file, (3, 8, 8))
    assert "\n" not in str(caught.value)


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(Unreadable, match="floating-point"):
        decode(tmp_path / "a.tif", (1, 4, 4))
    Image.fromarray(np.full((4, 4), 100_000, dtype=np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(Unreadable, match="32-bit"):
        decode(tmp_path / "b.tif", (1, 4, 4))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(Unreadable, match="there is no such file"):
        decode(tmp_path / "a.png", (3, 8, 8))


def test_middle_of_a_wide_image_is_taken(tmp_path):
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", (3, 10, 10)) == 200).all()


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**62))
def test_random_window_lies_in_the_image_and_keeps_its_bounds(width, height, seed):
    left, top, right, bottom = _random_window((width, height), seed)
    assert -1e-6 <= left < right <= width + 1e-6
    assert -1e-6 <= top < bottom <= height + 1e-6
    if (right - left, bottom - top) != (width, height):
        assert 0.08 - 1e-6 <= (right - left) * (bottom - top) / (width * height) <= 1 + 1e-6
        assert 3 / 4 - 1e-6 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-6
