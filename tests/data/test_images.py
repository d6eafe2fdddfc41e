"""Pictures of every kind that people have: something sensible, or one line before decoding."""

import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from edgedistill.data.images import read_picture

COLOUR = (200, 100, 50)


def stored(image, kind="PNG", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def plain(mode="RGB", colour=COLOUR):
    return Image.new("RGB", (20, 20), colour).convert(mode)


def header(width, height, depth=8, colour=2):
    """A PNG that claims a size and holds one row."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + start
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "close"),
    [
        (stored(plain()), 0),
        (stored(plain("RGBA")), 0),
        (stored(plain("P")), 30),
        (stored(plain("CMYK"), "JPEG", quality=100), 4),
        (stored(plain("CMYK"), "TIFF"), 1),
        (stored(plain("YCbCr"), "JPEG", quality=100), 4),
        (stored(plain(), "WEBP", lossless=True), 0),
        (stored(plain(), "BMP"), 0),
        (stored(plain(), "GIF"), 0),
        (stored(plain(), "TIFF", compression="tiff_lzw"), 0),
        (stored(plain(), "JPEG", quality=100, progressive=True), 3),
    ],
)
def test_modes_and_formats(data, close):
    got = read_picture(data, 3, 16, 16).float()
    assert (got - torch.tensor(COLOUR)[:, None, None]).abs().max() <= close


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind):
    frames = [plain(colour=c) for c in ((255, 0, 0), (0, 255, 0))]
    data = stored(frames[0], kind, save_all=True, append_images=frames[1:], duration=10)
    got = read_picture(data, 3, 16, 16).float().mean((1, 2))
    assert got[0] > 240
    assert got[1] < 15


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_upper_bits_of_sixteen(kind):
    values = np.full((20, 20), 0xABCD, dtype=np.uint16)
    assert bool((read_picture(stored(Image.fromarray(values), kind), 1, 16, 16) == 0xAB).all())
    got = read_picture(stored(Image.fromarray(values), kind), 3, 16, 16)
    assert got.shape == (3, 16, 16)
    assert bool((got == 0xAB).all())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_white_is_white_in_every_mode(mode, channels):
    data = stored(Image.new("RGB", (20, 20), "white").convert(mode))
    assert bool((read_picture(data, channels, 16, 16) == 255).all())


def test_a_transparent_palette_lies_on_white():
    image = Image.new("P", (20, 20), 0)
    image.putpalette([255, 0, 0] + [0, 0, 0] * 255)
    data = stored(image, transparency=0)
    assert bool((read_picture(data, 3, 16, 16) == 255).all())


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_turn_of_exif(turn, kind):
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, 20, 10))
    turned, back = image, image.getexif()
    for method in {
        2: [0],
        3: [3],
        4: [1],
        5: [5],
        6: [2],
        7: [6],
        8: [4],
    }.get(turn, []):
        turned = turned.transpose(method)
    back[0x0112] = turn
    got = read_picture(stored(turned, kind, exif=back), 1, 20, 40)
    assert (got[0].float() - torch.tensor(np.array(image)).float()).abs().mean() < 8


@pytest.mark.parametrize("size", [1, 8, 15])
def test_a_picture_as_small_as_it_is_asked_for_is_one(size):
    image = Image.fromarray(np.arange(size * size, dtype=np.uint8).reshape(size, size))
    got = read_picture(stored(image), 1, size, size)
    assert got[0].tolist() == np.asarray(image).tolist()
    with pytest.raises(ValueError, match=f"{size} x {size} pixels$"):
        read_picture(stored(image), 1, size + 1, size + 1)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (header(13_300, 13_300), "13300 x 13300 pixels, over 64 million"),
        (header(2**31 - 1, 2**31 - 1), "pixels, over 64 million|."),
        (header(60_000, 2_000, 16, 6), "60000 x 2000 pixels, over 64 million"),
        (header(30_000, 4), "30000 x 4 pixels$"),
        (stored(Image.new("F", (20, 20)), "TIFF"), "numbers without a scale: mode F"),
        (stored(Image.fromarray(np.zeros((20, 20), np.int32)), "TIFF"), "mode I;"),
        (stored(Image.new("RGB", (15, 99))), "15 x 99 pixels$"),
        (header(20, 20), "."),
        (b"", "no JPEG, PNG"),
        (b"GIF89a", "."),
        (b"<svg/>", "no JPEG, PNG"),
        (b"\0\0\0\x18ftypheic", "no JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n", "no JPEG, PNG"),
    ],
)
def test_one_line_before_anything_is_decoded(data, what):
    tracemalloc.start()
    with pytest.raises(ValueError, match=what) as caught:
        read_picture(data, 3, 16, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_damage_anywhere_is_a_value_error_or_a_picture(kind):
    draw = np.random.default_rng(0)
    noise = Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    exif = noise.getexif()
    exif[0x0112] = 6
    good = stored(noise, kind, **({"exif": exif} if kind not in ("BMP", "GIF") else {}))
    for _ in range(150):
        data = np.frombuffer(good, np.uint8).copy()
        places = draw.integers(
            0, min(len(data), draw.choice([40, len(data)])), draw.integers(1, 9)
        )
        data[places] = draw.integers(0, 256, len(places))
        with contextlib.suppress(ValueError):
            cut = data.tobytes()[: draw.choice([len(data), len(data) // 2])]
            assert read_picture(cut, 3, 16, 16).shape == (3, 16, 16)
