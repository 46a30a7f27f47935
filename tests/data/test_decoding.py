"""Images of every kind, against values worked out by hand."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hf_robust_transfer.data import to_rgb

SHADES = np.arange(256, dtype=np.uint16).reshape(16, 16)


def read_again(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    again = Image.open(file)
    again.load()
    return again


def pixels(image):
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    return np.asarray(rgb)


def png(width, height, depth, colour, rows, extra=b""):
    """A PNG file by hand, for what Pillow does not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + head + extra + data + chunk(b"IEND", b"")))


def trns(*values):
    data = struct.pack(f">{len(values)}H", *values)
    return struct.pack(">I", len(data)) + b"tRNS" + data + struct.pack(">I", zlib.crc32(b"tRNS" + data))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_grey_of_16_bits_is_scaled(kind):
    wide = read_again(Image.fromarray(SHADES * 257), kind)
    assert np.array_equal(pixels(wide), np.stack([SHADES] * 3, -1))
    dark = read_again(Image.fromarray(SHADES), kind)  # a 16-bit image that is nearly black
    assert pixels(dark).max() == 1


def test_big_endian_tiff_is_scaled():
    image = Image.frombytes("I;16B", (16, 16), (SHADES * 257).astype(">u2").tobytes())
    assert np.array_equal(pixels(read_again(image, "TIFF"))[..., 0], SHADES)


def test_grey_of_16_bits_may_count_from_white():
    assert np.array_equal(
        pixels(read_again(Image.fromarray(SHADES * 257), "TIFF", tiffinfo={262: 0}))[..., 0], 255 - SHADES
    )


def test_colours_of_16_bits_keep_their_upper_byte():
    image = png(2, 1, 16, 2, [struct.pack(">6H", 65535, 0, 0x1234, 0x8000, 0x8000, 0x8000)])
    assert pixels(image).tolist() == [[[255, 0, 18], [128, 128, 128]]]


def test_floating_values_from_0_to_1_are_scaled():
    image = read_again(Image.fromarray((SHADES / 255).astype(np.float32)), "TIFF")
    assert np.array_equal(pixels(image)[..., 0], SHADES)


@pytest.mark.parametrize(
    "wrong", [SHADES.astype(np.float32), -SHADES / 255.0, SHADES / 255 + np.nan, SHADES / np.inf - np.inf]
)
def test_floating_values_of_another_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"between 0 and 1: convert it|not finite"):
        to_rgb(read_again(Image.fromarray(wrong.astype(np.float32)), "TIFF"))


def test_integers_of_32_bits_are_those_of_8_or_refused():
    assert np.array_equal(pixels(read_again(Image.fromarray(SHADES.astype(np.int32)), "TIFF"))[..., 0], SHADES)
    with pytest.raises(ValueError, match="not between 0 and 255"):
        to_rgb(read_again(Image.fromarray(SHADES.astype(np.int32) * 2), "TIFF"))
    with pytest.raises(ValueError, match="not between 0 and 255"):
        to_rgb(read_again(Image.fromarray(SHADES.astype(np.int32) - 1), "TIFF"))


def over_white(colour, alpha):
    return [round(alpha / 255 * value + 255 - alpha) for value in colour]


@pytest.mark.parametrize("alpha", [0, 1, 128, 255])
def test_what_is_transparent_lies_on_white(alpha):
    expected = over_white((200, 100, 0), alpha)
    colour = read_again(Image.new("RGBA", (2, 2), (200, 100, 0, alpha)), "PNG")
    assert np.abs(pixels(colour)[0, 0] - np.array(expected)).max() <= 1
    grey = read_again(Image.new("LA", (2, 2), (50, alpha)), "PNG")
    assert np.abs(pixels(grey)[0, 0].astype(int) - over_white((50,), alpha)[0]).max() <= 1
    webp = read_again(Image.new("RGBA", (2, 2), (200, 100, 0, alpha)), "WEBP", lossless=True)
    assert np.abs(pixels(webp)[0, 0] - np.array(expected)).max() <= 1


def test_a_transparent_colour_of_a_palette_lies_on_white():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for kind in ("PNG", "GIF"):
        assert pixels(read_again(image, kind, transparency=1))[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    partly = read_again(image, "PNG", transparency=bytes([255, 0, 128]))
    assert pixels(partly)[1].tolist() == [over_white((70, 80, 90), 128), [255, 255, 255]]
    assert pixels(read_again(image, "PNG"))[0].tolist() == [[10, 20, 30], [40, 50, 60]]


def test_one_transparent_colour_of_other_pngs_lies_on_white():
    assert pixels(png(2, 1, 16, 0, [struct.pack(">2H", 0x8000, 0x1234)], trns(0x1234)))[0, :, 0].tolist() == [128, 255]
    assert pixels(png(2, 1, 8, 0, [bytes([7, 9])], trns(9)))[0, :, 0].tolist() == [7, 255]
    assert pixels(png(2, 1, 1, 0, [bytes([0b01000000])], trns(0)))[0, :, 0].tolist() == [255, 255]
    assert pixels(png(2, 1, 8, 2, [bytes([1, 2, 3, 4, 5, 6])], trns(1, 2, 3))).tolist() == [[[255] * 3, [4, 5, 6]]]


def test_cmyk_is_turned_into_colours():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        assert np.abs(pixels(read_again(image, kind))[0, 0].astype(int) - [255, 0, 0]).max() <= 2


def test_one_bit_is_black_and_white():
    image = Image.fromarray((SHADES > 100).astype(np.uint8) * 255).convert("1")
    assert np.array_equal(pixels(read_again(image, "PNG"))[..., 0], (SHADES > 100) * 255)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    image = read_again(frames[0], kind, save_all=True, append_images=frames[1:])
    assert image.n_frames == 3 and np.abs(pixels(image)[0, 0].astype(int) - [255, 0, 0]).max() <= 2


def test_modes_that_cannot_be_converted_are_refused():
    with pytest.raises(ValueError, match="conversion"):
        to_rgb(Image.new("La", (2, 2)))
