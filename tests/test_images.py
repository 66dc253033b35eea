import io
import os
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import paint
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from segmv3 import images
from segmv3.errors import ConfigError, DataError, OutputError, ResourceError, Segmv3Warning
from segmv3.images import is_image, read_ids, read_image, write_png

PICTURE = paint(0, (24, 32), 4)[0]


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".webp"])
def test_lossless_formats_return_the_stored_pixels(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", Image.fromarray(PICTURE), **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(read_image(path), PICTURE)


GREY = np.repeat((np.arange(24 * 32, dtype=np.uint32) % 256).astype(np.uint8).reshape(24, 32)[..., None], 3, axis=2)
WHITE = np.where(GREY < 128, 0, 255).astype(np.uint8)


def stored(mode: str, pixels: np.ndarray) -> Image.Image:
    """RGB as a picture of another mode that holds the very same colours, made by hand."""
    grey, full = pixels[..., 0], np.full(pixels.shape[:2], 255, np.uint8)
    if mode == "P":
        image = Image.fromarray(255 - grey, "P")
        image.putpalette([255 - i for i in range(256) for _ in range(3)])
        return image
    planes = {"L": grey, "LA": np.dstack([grey, full]), "RGBA": np.dstack([pixels, full // 2])}
    planes |= {"1": grey > 0, "CMYK": np.dstack([255 - pixels, 0 * full]), "I;16": grey.astype(np.uint16) * 257}
    return Image.fromarray(planes[mode], mode if mode == "CMYK" else None)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, suffix) for mode in ("L", "LA", "P", "RGBA", "1", "I;16") for suffix in (".png", ".tiff")]
    + [("CMYK", ".tiff"), ("CMYK", ".jpg")],
)
def test_other_modes_become_rgb(tmp_path, mode, suffix):
    pixels = {"RGBA": PICTURE, "CMYK": PICTURE, "1": WHITE}.get(mode, GREY)
    path = save(tmp_path / f"a{suffix}", stored(mode, pixels), **({"quality": 100} if suffix == ".jpg" else {}))
    found = read_image(path).astype(int)
    assert found.shape == pixels.shape
    assert np.abs(found - pixels).mean() < (4 if suffix == ".jpg" else 1e-9)


def test_ycbcr_becomes_rgb(tmp_path):
    path = save(tmp_path / "a.tiff", Image.fromarray(PICTURE).convert("YCbCr"))
    assert np.abs(read_image(path).astype(int) - PICTURE).mean() < 2


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_colours_of_16_bits_keep_their_upper_half_and_dark_ones_are_refused(tmp_path, suffix):
    cv2 = pytest.importorskip("cv2")
    bgr = PICTURE[..., ::-1].astype(np.uint16)
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), bgr * 257)
    assert np.array_equal(read_image(path), PICTURE)
    for wide in (bgr * 16, bgr[..., 0] * 16, bgr[..., 0]):
        cv2.imwrite(str(path), wide)
        with pytest.raises(DataError, match=r"a\.\w+ holds 16-bit values up to about [\d,]+, nearly black"):
            read_image(path)
    cv2.imwrite(str(path), bgr[..., 0] * 0)
    assert not read_image(path).any()


@pytest.mark.parametrize(("order", "white"), [("big", 1), ("little", 1), ("little", 0)])
def test_16_bit_grey_of_any_byte_order_and_sign(tmp_path, order, white):
    start, expected = b"MM\0*\0\0\0\x08" if order == "big" else b"II*\0\x08\0\0\0", GREY if white else 255 - GREY
    values = {256: 32, 257: 24, 258: 16, 259: 1, 262: white, 273: 122, 277: 1, 278: 24, 279: 1536}
    data = start + len(values).to_bytes(2, order)
    for tag, value in values.items():
        data += b"".join(n.to_bytes(size, order) for n, size in ((tag, 2), (4, 2), (1, 4), (value, 4)))
    grey = GREY[..., 0].astype(">u2" if order == "big" else "<u2") * 257
    (tmp_path / "a.tif").write_bytes(data + bytes(4) + grey.astype(grey.dtype.newbyteorder(order)).tobytes())
    assert np.array_equal(read_image(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("scale", [1 / 255, 1])
def test_pixels_of_unknown_range_are_refused(tmp_path, scale):
    said = "which are not read; store it as 8-bit RGB"
    for kind, pixels in (("floating-point", (PICTURE[..., 0] * scale).astype("f4")), ("32-bit", PICTURE[..., 0] * 1)):
        image = Image.fromarray(pixels if kind != "32-bit" else pixels.astype("i4"))
        with pytest.raises(DataError, match=f"a.tiff holds {kind}.*{said}"):
            read_image(save(tmp_path / "a.tiff", image))
    with pytest.raises(DataError, match=f"a.tiff holds LAB pixels, {said}"):
        read_image(save(tmp_path / "a.tiff", Image.new("LAB", (4, 4))))


@pytest.mark.parametrize(("suffix", "what"), [(".tiff", "pages"), (".webp", "frames"), (".png", "frames")])
def test_the_first_picture_of_many_is_read_with_a_word(tmp_path, suffix, what, monkeypatch):
    monkeypatch.setattr(images, "_said", set())
    first, second = Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)
    path = save(
        tmp_path / f"a{suffix}",
        first,
        save_all=True,
        append_images=[second],
        **{"lossless": True} if "w" in suffix else {},
    )
    with pytest.warns(Segmv3Warning, match=rf"^data: .*a{suffix} holds 2 {what}; the first is read"):
        assert np.array_equal(read_image(path), PICTURE)
    assert np.array_equal(read_image(path), PICTURE)  # once is enough


def test_profiles_and_texts_of_any_size_are_not_looked_at(tmp_path):
    rng = np.random.default_rng(0)
    for image in (Image.fromarray(PICTURE), Image.fromarray(PICTURE).convert("RGBA")):
        info = PngImagePlugin.PngInfo()
        info.add_text("Comment", "x" * 3_000_000, zip=True)
        path = save(tmp_path / "a.png", image, icc_profile=rng.bytes(1_500_000), pnginfo=info)
        assert np.array_equal(read_image(path), PICTURE)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "p.png")
    (tmp_path / "z.png").symlink_to("/dev/zero")
    (tmp_path / "n.png").symlink_to(tmp_path / "n.png")
    for name, why in (("p", "is a pipe or a device"), ("z", "is a pipe or a device"), ("n", "cannot be read")):
        with pytest.raises(DataError, match=f"{name}.png {why}"):
            read_image(tmp_path / f"{name}.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"large.png holds [\d,]+ bytes: over the limit"):
        read_image(tmp_path / "large.png")


@pytest.mark.parametrize("target", ["_plain_png", "_rgb", "_png_chunks"])
def test_no_memory_is_not_the_files_fault(tmp_path, monkeypatch, target):
    path = save(tmp_path / "a.png", Image.fromarray(PICTURE).convert("RGB" if target == "_plain_png" else "P"))

    def none_left(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images, target, none_left)
    with pytest.raises(ResourceError, match=r"environment: out of memory while .*a.png was read"):
        read_image(path)


def test_the_pixel_limit_is_set_by_one_variable(monkeypatch):
    monkeypatch.setenv("SEGMV3_MAX_PIXELS", "400000000")
    assert images._pixel_limit() == 400_000_000
    monkeypatch.setenv("SEGMV3_MAX_PIXELS", "many")
    with pytest.raises(ConfigError, match="SEGMV3_MAX_PIXELS is 'many'; it must be a number of pixels"):
        images._pixel_limit()


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
    assert np.array_equal(read_image(path), np.array(ImageOps.exif_transpose(Image.open(path))))
    assert np.array_equal(read_image(path), PICTURE) == (turn == 1)


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


@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp", "bmp", "tiff"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 32 * 24 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    path = save(tmp_path / f"bomb.{suffix}", Image.fromarray(PICTURE))
    for read in (read_image, read_ids):
        with pytest.raises(DataError, match=rf"bomb.{suffix} is 32x24: over the limit of 767 pixels \(SEGMV3_MAX"):
            read(path)


@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": False}, {"exif": b"Exif\0\0"}])
def test_the_size_of_a_webp_is_read_from_its_header(tmp_path, options):
    data = save(tmp_path / "a.webp", Image.new("RGB", (301, 77)), **options).read_bytes()
    assert images._webp_size(data) == (301, 77)


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
        assert np.array_equal(read_image(path), np.array(Image.open(path).convert("RGB")))
        assert isinstance(images.decoded(path.read_bytes(), path, color=True), np.ndarray)
        assert read_image(path).flags.writeable
        assert isinstance(images.decoded(path.read_bytes(), path, color=False), np.ndarray) == (len(shape) == 2)
        if len(shape) == 2:
            assert np.array_equal(read_ids(path), pixels)
        for end in (0, 8, 20, 40, len(data) // 2, len(data) - 13, len(data) - 8, len(data) - 1):
            path.write_bytes(data[:end])
            with pytest.raises(DataError):
                read_image(path)
        for place in (18, 30, 42, len(data) - 14):  # a bit flipped in the header, in the pixels or in a checksum
            broken = bytearray(data)
            broken[place] ^= 1
            path.write_bytes(broken)
            with pytest.raises(DataError, match="is damaged"):
                read_image(path)


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
        assert isinstance(images.decoded(path.read_bytes(), path, color=True), Image.Image)
    turned = Image.new("RGB", (4, 4)).getexif()
    turned[274] = 6
    Image.new("RGB", (4, 4)).save(path, exif=turned)
    assert isinstance(images.decoded(path.read_bytes(), path, color=True), Image.Image)


@pytest.mark.parametrize(("suffix", "package"), [("avif", "PIL._avif"), ("heic", "pillow_heif")])
def test_photographs_of_phones_are_read_upright_or_refused(tmp_path, suffix, package):
    decoder = pytest.importorskip(package)
    if suffix == "heic":
        decoder.register_heif_opener()
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:30], pixels[30:, :50], pixels[30:, 50:] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
    path = tmp_path / f"photo.{suffix}"
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        Image.fromarray(pixels).save(tmp_path / "p.jpg", quality=95, exif=exif.tobytes())
        Image.fromarray(pixels).save(path, quality=95, exif=exif.tobytes())
        upright = read_image(tmp_path / "p.jpg").astype(int)
        shown = read_image(path)
        assert shown.shape == upright.shape and np.abs(shown - upright).mean() < 4, turn
    data = path.read_bytes()
    assert is_image(data[:64])
    for damaged in (data[: len(data) * 2 // 3], data[:40] + bytes(400)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"photo\.\w+ (is damaged|cannot be opened as an image) \("):
            read_image(path)


def test_a_video_is_no_picture_and_a_missing_decoder_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0mp42" + bytes(99))
    with pytest.raises(DataError, match="cannot be opened as an image"):
        read_image(path)
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1" + bytes(99))
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    with pytest.raises(ResourceError, match=r'a\.heic is an HEIC: pip install "segmv3\[heic\]"$'):
        read_image(path)
