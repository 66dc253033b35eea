import io
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import paint
from PIL import Image, PngImagePlugin

from segmv3 import images
from segmv3.errors import DataError, OutputError
from segmv3.images import read_ids, read_image, write_png

PICTURE = paint(0, (24, 32), 4)[0]


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".webp"])
def test_lossless_formats_return_the_stored_pixels(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", Image.fromarray(PICTURE), **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(read_image(path), PICTURE)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    converted = Image.fromarray(PICTURE).convert(mode)
    path = save(tmp_path / ("a.tiff" if mode == "CMYK" else "a.png"), converted)
    expected = np.array(converted.convert("RGB"))
    assert np.array_equal(read_image(path), expected)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    path = save(tmp_path / "a.png", Image.fromarray(ramp))
    pixels = read_image(path)
    assert np.array_equal(pixels[..., 0].reshape(-1), np.arange(256))


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    path = save(tmp_path / "a.png", Image.fromarray(PICTURE), exif=exif)
    turned = {1: PICTURE, 3: PICTURE[::-1, ::-1], 6: np.rot90(PICTURE, -1), 8: np.rot90(PICTURE)}.get(turn)
    pixels = read_image(path)
    if turned is not None:
        assert np.array_equal(pixels, turned)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_cut_file_is_refused_with_its_path(tmp_path, kind):
    buffer = io.BytesIO()
    Image.fromarray(paint(1, (120, 160), 5)[0]).save(buffer, kind)
    whole = buffer.getvalue()
    path = tmp_path / f"a.{kind.lower()}"
    for share in (0.05, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=r"a\.\w+ "):
            read_image(path)


def test_flipped_bits_and_zeroed_ends_of_a_png_are_noticed(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(paint(1, (60, 80), 5)[0]))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(DataError, match="a.png"):
            read_image(path)
    for kept in (0.5, 0.9, 0.99):
        cut = int(len(whole) * kept)
        path.write_bytes(whole[:cut] + bytes(len(whole) - cut))
        with pytest.raises(DataError, match="a.png"):
            read_image(path)


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "page.png").write_text("<html>")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    whole = save(tmp_path / "blank.png", Image.fromarray(PICTURE)).read_bytes()
    (tmp_path / "blank.png").write_bytes(whole[:33] + whole[-12:])  # a head and an end without pixels
    for name in ("page.png", "empty.png", "folder.png", "missing.png", "blank.png"):
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = save(tmp_path / "bomb.png", Image.new("1", (14000, 14000)))
    with pytest.raises(DataError, match="bomb.png"):
        read_image(path)


def test_ids_are_read_as_stored(tmp_path):
    ids = np.arange(24, dtype=np.uint8).reshape(4, 6)
    palette = Image.fromarray(ids, "P")
    palette.putpalette([255 - i for i in range(256) for _ in range(3)])
    assert np.array_equal(read_ids(save(tmp_path / "p.png", palette)), ids)
    assert np.array_equal(read_ids(save(tmp_path / "l.png", Image.fromarray(ids))), ids)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_masks_of_a_few_bits_are_read_as_the_ids_they_hold(tmp_path, depth):
    ids = np.arange(16, dtype=np.uint8).reshape(2, 8) % 2**depth
    bits = np.unpackbits(ids[..., None], axis=2)[..., -depth:].reshape(2, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    head = (8).to_bytes(4, "big") + (2).to_bytes(4, "big") + bytes([depth, 0, 0, 0, 0])
    path = tmp_path / "mask.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert np.array_equal(read_ids(path), ids)


def test_labels_that_are_no_ids_are_refused_for_what_they_are(tmp_path):
    def says(name: str, image: Image.Image, **options: object) -> str:
        with pytest.raises(DataError, match=name) as caught:
            read_ids(save(tmp_path / name, image, **options))
        return str(caught.value)

    colors, wide = Image.fromarray(PICTURE), Image.fromarray(np.full((4, 4), 26001, np.uint16))
    assert says("label.png", colors).endswith("label.png is a colour image; labels must be 8-bit single-channel ids")
    assert says("a_gtFine_color.png", colors).endswith("ids (is it a gtFine_color file?)")
    assert "16 bits or more, as instance ids are stored; labels must be 8-bit" in says("label.png", wide)
    assert says("a_gtFine_instanceIds.png", wide).endswith("(is it a gtFine_instanceIds file?)")
    assert "an alpha channel" in says("label.png", colors.convert("LA"))
    says_jpeg = says("label.jpg", colors.convert("L"))
    assert says_jpeg.endswith("label.jpg is a JPEG; compression changes ids: store it as PNG")
    assert "is a JPEG" in says("label.tif", colors.convert("L"), compression="jpeg")


def test_a_png_is_complete_or_absent(tmp_path):
    write_png(tmp_path / "a.png", PICTURE)
    assert np.array_equal(read_image(tmp_path / "a.png"), PICTURE)
    with pytest.raises(OutputError, match="b.png"):
        write_png(tmp_path / "missing" / "b.png", PICTURE)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_path_may_be_text(tmp_path):
    """As the README's first example has it."""
    import segmv3

    write_png(tmp_path / "a.png", np.full((2, 3, 3), 7, np.uint8))
    assert (segmv3.read_image(str(tmp_path / "a.png")) == 7).all()
    with pytest.raises(DataError, match="nothing.png does not exist"):
        segmv3.read_image(str(tmp_path / "nothing.png"))


@pytest.fixture(params=["libspng", "OpenCV"])
def decoder(request, monkeypatch):
    if request.param == "OpenCV":
        monkeypatch.setitem(sys.modules, "pyspng", None)
    images.png_library.cache_clear()
    yield request.param
    images.png_library.cache_clear()


def test_plain_png_files_are_decoded_as_pillow_does(decoder, tmp_path):
    assert images.png_library() == decoder
    rng = np.random.default_rng(0)
    for number, (shape, more) in enumerate((((9, 7, 3), {}), ((9, 7), {}), ((9, 7, 3), {"gamma": 0.45}), ((1, 1), {}))):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        info = PngImagePlugin.PngInfo()
        if more:
            info.add(b"gAMA", (45455).to_bytes(4, "big"))
        Image.fromarray(pixels).save(path, pnginfo=info)
        data = path.read_bytes()
        assert images._plain_png(data, color=True) is not None
        assert np.array_equal(read_image(path), np.array(Image.open(path).convert("RGB")))
        assert read_image(path).flags.writeable
        if len(shape) == 2:
            assert np.array_equal(images._plain_png(data, color=False), pixels)
            assert np.array_equal(read_ids(path), pixels)
        else:
            assert images._plain_png(data, color=False) is None
        for end in (0, 8, 20, 40, len(data) // 2, len(data) - 13, len(data) - 8):
            assert images._plain_png(data[:end], color=True) is None
        for place in (18, 30, 42, len(data) - 14):  # a bit flipped in the header, in the pixels or in a checksum
            broken = bytearray(data)
            broken[place] ^= 1
            assert images._plain_png(bytes(broken), color=True) is None


def test_pixels_that_are_no_picture_under_right_checksums_are_damage(decoder, tmp_path):
    header = (8).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", b"no deflate stream"), (b"IEND", b"")):
        data += len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(DataError, match="x.png is damaged"):
        read_image(tmp_path / "x.png")


def test_unusual_png_files_are_left_to_pillow(tmp_path):
    path = tmp_path / "x.png"
    for image in (Image.new("P", (4, 4)), Image.new("RGBA", (4, 4)), Image.new("I;16", (4, 4)), Image.new("1", (4, 4))):
        image.save(path)
        assert images._plain_png(path.read_bytes(), color=True) is None
    turned = Image.new("RGB", (4, 4)).getexif()
    turned[274] = 6
    Image.new("RGB", (4, 4)).save(path, exif=turned)
    assert images._plain_png(path.read_bytes(), color=True) is None
