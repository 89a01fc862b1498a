"""Images in every format under every name: only the format that a name stands for is opened, and nothing is started."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from compressor.training.batching import fit_shape
from compressor.training.data import open_data
from compressor.vision.preparation import (
    FORMATS,
    Preparation,
    Unreadable,
    is_framed,
    middle,
    normalised,
    pixels,
    resized,
)

_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.startfile")
_started: list[str] = []
_watching = False


def _hook(event: str, arguments: object) -> None:
    if _watching and event in _STARTS:
        _started.append(event)


sys.addaudithook(_hook)


@pytest.fixture
def started() -> Iterator[list[str]]:
    """What was started while the test ran."""
    global _watching
    _started.clear()
    _watching = True
    yield _started
    _watching = False


def saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)).convert(mode)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


_POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(%pipe%touch ran) (w) file\nshowpage\n"
)
_WRITTEN = {
    "eps": (_POSTSCRIPT, ".eps"),
    "eps in dos clothes": (b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + bytes(22) + _POSTSCRIPT, ".eps"),
    "ps": (b"%!PS\n(%pipe%touch ran) (w) file\nshowpage\n", ".ps"),
    "psd": (
        b"8BPS\x00\x01" + bytes(6) + b"\x00\x03\x00\x00\x00\x20\x00\x00\x00\x20\x00\x08\x00\x03" + bytes(400),
        ".psd",
    ),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', ".svg"),
    "svg with a script": (b"<?xml version='1.0'?><svg><script>touch ran</script></svg>", ".svg"),
    "mvg": (b"push graphic-context\nfill 'url(https://x\"|touch ran\")'\npop graphic-context\n", ".mvg"),
    "wmf": (
        b"\xd7\xcd\xc6\x9a\x00\x00"
        + bytes(4)
        + b"\x20\x00\x20\x00\x48\x00"
        + bytes(6)
        + b"\x01\x00\x09\x00"
        + bytes(200),
        ".wmf",
    ),
    "emf": (b"\x01\x00\x00\x00" + bytes(36) + b" EMF" + bytes(200), ".emf"),
    "fits": (
        b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80) + b"END".ljust(2720),
        ".fits",
    ),
    "xpm": (b'/* XPM */\nstatic char *x[] = {\n"2 1 2 1",\n"a c #000000",\n"b c #ffffff",\n"ab"};\n', ".xpm"),
    "fli": (b"\x00\x01\x00\x00\x11\xaf\x01\x00\x20\x00\x20\x00\x08\x00\x03\x00" + bytes(200), ".fli"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(200), ".h5"),
    "grib": (b"GRIB\x00\x00\x00\x01" + bytes(200), ".grib"),
    "bufr": (b"BUFR" + bytes(200), ".bufr"),
    "dcx": (b"\xb1\x68\xde\x3a" + bytes(200), ".dcx"),
    "sun raster": (b"\x59\xa6\x6a\x95" + bytes(200), ".ras"),
    "photo cd": (bytes(2048) + b"PCD_IPI" + bytes(4096), ".pcd"),
    "script": (b"#!/bin/sh\ntouch ran\n", ".sh"),
    "html": (b"<html><img src=x onerror=alert(1)></html>", ".html"),
    "video": (b"\x00\x00\x00\x18ftypisom" + bytes(300), ".mp4"),
    "jpeg 2000": (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(200), ".jp2"),
    "playlist": (b"#EXTM3U\nconcat:http://127.0.0.1/x|file:///etc/passwd\n", ".m3u8"),
}
_SAVED = {
    "pdf": ("PDF", ".pdf", {}),
    "icns": ("ICNS", ".icns", {}),
    "ico": ("ICO", ".ico", {}),
    "tga": ("TGA", ".tga", {}),
    "pcx": ("PCX", ".pcx", {}),
    "sgi": ("SGI", ".sgi", {}),
    "dds": ("DDS", ".dds", {}),
    "dib": ("DIB", ".dib", {}),
    "jpeg": ("JPEG", ".jpg", {}),
    "several jpegs": ("MPO", ".jpg", {"save_all": True, "append_images": [Image.new("RGB", (32, 32))]}),
    "png": ("PNG", ".png", {}),
    "gif": ("GIF", ".gif", {}),
    "bmp": ("BMP", ".bmp", {}),
    "ppm": ("PPM", ".ppm", {}),
    **{
        f"tiff, {compression}": ("TIFF", ".tif", {"compression": compression})
        for compression in ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate", "jpeg", "lzma", "zstd")
    },
    "webp": ("WEBP", ".webp", {}),
}


def polyglots() -> dict[str, tuple[bytes, str, str | None]]:
    """Name -> content, the extension that is its own, and the format that Pillow knows it by, if we open that."""
    found: dict[str, tuple[bytes, str, str | None]] = {name: (*each, None) for name, each in _WRITTEN.items()}
    for name, (kind, extension, options) in _SAVED.items():
        if (kind != "WEBP" or features.check("webp")) and (kind != "TIFF" or features.check("libtiff")):
            try:
                found[name] = saved(kind, **options), extension, FORMATS.get(extension)
            except (OSError, ValueError, RuntimeError):  # a compression that this libtiff lacks
                continue
    for mode, compression in (("1", "group3"), ("1", "group4"), ("CMYK", "raw")):
        found[f"tiff, {compression}, {mode}"] = saved("TIFF", mode, compression=compression), ".tif", "TIFF"
    jpeg, png = saved("JPEG"), saved("PNG")
    found["jpeg before eps"] = jpeg + _POSTSCRIPT, ".jpg", "JPEG"
    found["png before a zip of eps"] = png + b"PK\x03\x04" + _POSTSCRIPT, ".png", "PNG"
    found["eps that holds a jpeg"] = _POSTSCRIPT + jpeg, ".eps", None
    return found


POLYGLOTS = polyglots()
_NAMES = (".jpg", ".png", ".bmp", ".webp", ".gif", ".tif", ".ppm", ".JPEG")


def test_there_are_many_polyglots():
    assert len(POLYGLOTS) >= 40


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", POLYGLOTS)
def test_a_file_is_opened_by_the_format_of_its_name_alone(kind, tmp_path, started):
    content, own, opens = POLYGLOTS[kind]
    for extension in {*_NAMES, own}:
        file = tmp_path / f"x{extension}"
        file.write_bytes(content)
        if opens is not None and FORMATS.get(extension.lower()) == opens:
            assert pixels(file, (3, 32, 32), Preparation.usual(32, 32)).shape == (3, 32, 32)
        else:
            with pytest.raises(Unreadable) as caught:
                pixels(file, (3, 32, 32), Preparation.usual(32, 32))
            assert str(caught.value).isprintable() and str(file) not in str(caught.value)
        file.unlink()
    assert not started and not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_polyglots_in_a_folder_are_left_out_and_named(tmp_path, started):
    for split in ("train", "test"):
        place = tmp_path / split / "cat"
        place.mkdir(parents=True)
        for number in range(3):
            (place / f"good{number}.png").write_bytes(saved("PNG"))
        for number, (content, own, opens) in enumerate(POLYGLOTS.values()):
            if opens != "JPEG":
                (place / f"bad{number}.jpg").write_bytes(content)
            (place / f"own{number}{own}").write_bytes(content if own not in FORMATS else saved("PNG"))
    data = open_data(f"folder:{tmp_path}")
    named = {Path(path).name for path, _ in data.problems}
    wrong = {f"bad{n}.jpg" for n, (_, _, opens) in enumerate(POLYGLOTS.values()) if opens != "JPEG"}
    mistaken = {f"own{n}{own}" for n, (_, own, _) in enumerate(POLYGLOTS.values()) if FORMATS.get(own, "PNG") != "PNG"}
    assert wrong | mistaken == named and not started
    assert any("not named as images" in note for note in data.notes)


def test_the_reason_says_what_the_file_is_instead(tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved("PNG"))
    with pytest.raises(Unreadable, match="not a JPEG image as its name says, but PNG: rename it"):
        pixels(tmp_path / "a.jpg", (3, 8, 8), Preparation.usual(8, 8))
    (tmp_path / "a.xyz").write_bytes(saved("PNG"))
    with pytest.raises(Unreadable, match="not named as an image"):
        pixels(tmp_path / "a.xyz", (3, 8, 8), Preparation.usual(8, 8))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "folder.jpg", "device.jpg"):
        with pytest.raises(Unreadable, match="not a regular file"):
            pixels(tmp_path / name, (3, 8, 8), Preparation.usual(8, 8))


# The description.

SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))
PREPARATIONS = st.builds(
    Preparation,
    st.just((0.5,)),
    st.just((0.25,)),
    crop_pct=st.sampled_from((1.0, 0.875, 0.3)),
    frame=st.integers(0, 5),
    interpolation=st.sampled_from(("bilinear", "bicubic")),
)


def picture(size: tuple[int, int], mode: str, noise: int) -> Image.Image:
    """Slopes that differ by channel, and noise."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]] / np.array(size[::-1])[:, None, None]
    slopes = 60 + 120 * np.stack([x, y, (x + y) / 2], axis=2)
    values = slopes + np.random.default_rng(size).integers(-noise, noise + 1, slopes.shape)
    return Image.fromarray(values.astype(np.uint8)).convert(mode)


@given(SIZES, SIZES, PREPARATIONS, st.sampled_from((("RGB", 3), ("L", 3), ("RGB", 1), ("L", 1))))
def test_a_batch_in_memory_is_prepared_as_one_image_is(size, target, preparation, kinds):
    """Pillow for a file and torch for images in memory differ by rounding at most."""
    mode, channels = kinds
    image = picture(size, mode, noise=60 if preparation.interpolation == "bilinear" else 10)  # without overshoot
    one = resized(image.convert("L" if channels == 1 else "RGB"), target, preparation)
    stored = torch.from_numpy(np.asarray(image).copy()).reshape(size[1], size[0], -1).permute(2, 0, 1)[None]
    batch = fit_shape(stored, (channels, target[1], target[0]), preparation)[0]
    expected = np.asarray(one, np.float32).reshape(target[1], target[0], -1).transpose(2, 0, 1)
    expected = np.broadcast_to(expected, batch.shape)
    assert np.abs(batch.numpy() - expected).max() <= 2
    assert np.abs(batch.numpy() - expected).mean() <= 0.5
    if size == target or is_framed(size, target, preparation):
        assert np.array_equal(batch.numpy(), expected)


@given(SIZES, SIZES, st.floats(0.05, 1))
def test_the_window_lies_in_the_middle_and_has_the_targets_proportions(size, target, share):
    left, top, right, bottom = middle(size, target, share)
    assert left >= -1e-9 and top >= -1e-9 and right <= size[0] + 1e-9 and bottom <= size[1] + 1e-9
    assert left == pytest.approx(size[0] - right, abs=1e-6) and top == pytest.approx(size[1] - bottom, abs=1e-6)
    assert (right - left) * target[1] == pytest.approx((bottom - top) * target[0])
    assert max((right - left) / size[0], (bottom - top) / size[1]) == pytest.approx(share)


@given(PREPARATIONS)
def test_the_description_goes_through_json(preparation):
    import json
    from dataclasses import asdict

    held = json.loads(json.dumps({**asdict(preparation), "name": "input"}))
    assert Preparation.from_json(held) == preparation


@pytest.mark.parametrize(
    "change",
    [
        {"mean": None}, {"mean": "half"}, {"mean": [float("nan")]}, {"mean": []}, {"mean": [1.5]}, {"std": [0]},
        {"std": [1, 2]}, {"std": [-1]}, {"crop_pct": 0}, {"crop_pct": "all"}, {"crop_pct": 2}, {"frame": -1},
        {"frame": 10**9}, {"interpolation": "nearest"}, {"interpolation": ["bilinear"]}, {"orientation": "ignore"},
        {"background": "black"}, {"grey": None}, {"antialias": False},
    ],
)  # fmt: skip
def test_a_damaged_description_is_one_line(change):
    with pytest.raises(ValueError) as caught:
        Preparation.from_json({"mean": [0.5], "std": [0.5], **change})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="damaged"):
        Preparation.from_json({"std": [0.5]})


def test_usual_images_lose_their_margin_from_96_pixels_on():
    assert [Preparation.usual(*size).crop_pct for size in ((95, 300), (96, 96), (224, 224))] == [1.0, 0.875, 0.875]


def test_normalised_is_the_formula():
    values = np.arange(12, dtype=np.uint8).reshape(3, 2, 2) * 20
    preparation = Preparation((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    out = normalised(values, preparation)
    assert out.dtype == np.float32
    for channel in range(3):
        expected = (values[channel] / 255 - preparation.mean[channel]) / preparation.std[channel]
        assert np.allclose(out[channel], expected, atol=1e-6)
