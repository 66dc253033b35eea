"""Sources: what a name stands for, what results are called, and one line for everything that is not there."""

import os
import sys
from pathlib import Path

import pytest

from segmv3.errors import DataError, ResourceError, Segmv3Warning
from segmv3.prediction import listing, sources
from segmv3.prediction.listing import IMAGE_SUFFIXES
from segmv3.prediction.sources import ImageSource, VideoSource, find_source

KNOWN = listing.listed(IMAGE_SUFFIXES)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; nothing is decoded, so that empty files will do for images."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def images(source: str, **options: Path) -> dict[str, str]:
    """{path: name} of a source of images."""
    found = find_source(source, **options)
    assert isinstance(found, ImageSource)
    assert len(found.paths) == len(found.names) == len(set(found.names))
    return {path.as_posix(): name for path, name in zip(found.paths, found.names, strict=True)}


def complaint(source: str) -> str:
    with pytest.raises(DataError) as caught:
        find_source(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_image(here: Path) -> None:
    put("a b/strasse ü.JPG")
    assert images("a b/strasse ü.JPG") == {"a b/strasse ü.JPG": "strasse ü"}


@pytest.mark.parametrize(
    "name", ["drive.mp4", "CLIP.MTS", "phone.3g2", "a.gif", "raw.h264", "Drive.MOV", "x.webm", "x.mkv", "x.avi"]
)
def test_one_video(here: Path, name: str) -> None:
    put(name)
    assert find_source(name) == VideoSource(Path(name))
    assert VideoSource(Path(name)).name == Path(name).stem


def test_a_folder_is_searched_with_its_subfolders_sorted_and_without_dot_files(here: Path) -> None:
    put("in/b.png", "in/a.jpg", "in/sub/a.jpg", "in/._a.jpg", "in/.hidden/c.png", "in/notes.md", "in/Z.tiff")
    with pytest.warns(Segmv3Warning, match=r"^data: in: left out 1 hidden; only"):
        assert images("in") == {"in/Z.tiff": "Z", "in/a.jpg": "a", "in/b.png": "b", "in/sub/a.jpg": "sub/a"}


def test_equal_stems_side_by_side_keep_their_suffixes(here: Path) -> None:
    put("in/a.jpg", "in/a.png", "in/a.jpg.png", "in/B.jpg", "in/b.webp", "in/c.png")
    assert images("in") == {
        "in/B.jpg": "B.jpg",
        "in/a.jpg": "a.jpg",
        "in/a.jpg.png": "a.jpg.png",
        "in/a.png": "a.png",
        "in/b.webp": "b.webp",
        "in/c.png": "c",
    }


def test_the_output_folder_is_not_searched(here: Path) -> None:
    put("a.png", "out/a_overlay.png", "sub/out/b.png")
    assert images(".", leave_out=Path("out")) == {"a.png": "a", "sub/out/b.png": "sub/out/b"}
    assert images("out", leave_out=Path("out")) == {"out/a_overlay.png": "a_overlay"}


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_are_followed_once_and_keep_their_own_names(here: Path) -> None:
    put("elsewhere/x.png", "elsewhere/deep/y.png")
    Path("in").mkdir()
    Path("in/city").symlink_to(here / "elsewhere")
    Path("in/z.png").symlink_to(here / "elsewhere/x.png")
    Path("elsewhere/back").symlink_to(here / "in")
    assert images("in") == {"in/city/deep/y.png": "city/deep/y", "in/city/x.png": "city/x", "in/z.png": "z"}


def test_a_pattern(here: Path) -> None:
    put("d/one/a.png", "d/two/a.png", "d/two/b.txt", "d/.c.png")
    assert images("d/*/*") == {"d/one/a.png": "one/a", "d/two/a.png": "two/a"}
    assert images("d/**/*.png") == images("d/*/*.png")
    assert images(str(here / "d/two/?.png")) == {(here / "d/two/a.png").as_posix(): "a"}


def test_a_pattern_may_match_one_video(here: Path) -> None:
    put("rec_0001.mp4")
    assert find_source("rec_*.mp4") == VideoSource(Path("rec_0001.mp4"))


def test_a_name_with_brackets_is_a_name_first(here: Path) -> None:
    put("a[1].png", "a1.png")
    assert images("a[1].png") == {"a[1].png": "a[1]"}


def test_a_list(here: Path) -> None:
    put("a.png", "lists/near/b.jpg", "other/a.png")
    text = "\ufeff# comment\n\n a.png \r\nnear/b.jpg\n" + f"{here}/other/a.png\na.png\n"
    Path("lists/l.txt").write_text(text, encoding="utf-8")
    assert images("lists/l.txt") == {
        "a.png": "a",
        "lists/near/b.jpg": "lists/near/b",
        (here / "other/a.png").as_posix(): "other/a",
    }


def test_names_never_leave_the_output_folder(here: Path) -> None:
    put("x/a.png", "y/a.png")
    Path("x/l.txt").write_text("../y/a.png\na.png\n")
    assert images("x/l.txt") == {"x/../y/a.png": "y/a", "x/a.png": "x/a"}


def test_left_out_pictures_and_videos_are_announced(here: Path) -> None:
    put("in/a.png", "in/b.jxl", "in/c.jxl", "in/d.mp4", "in/readme.md")
    Path("in/notes").symlink_to("nowhere")
    said = r"^data: in: left out 2 \.jxl, 1 \.mp4, 1 link to nowhere; only \..*, and a video must be named alone$"
    with pytest.warns(Segmv3Warning, match=said):
        assert images("in") == {"in/a.png": "a"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_in_a_folder_are_left_out_and_links_to_nowhere_are_for_the_reader(here: Path) -> None:
    put("in/a.png")
    os.mkfifo("in/p.png")
    Path("in/z.png").symlink_to("/dev/zero")
    Path("in/n.png").symlink_to(here / "in/n.png")
    with pytest.warns(Segmv3Warning, match=r"^data: in: left out 2 no regular file; only "):
        assert images("in") == {"in/a.png": "a", "in/n.png": "n"}
    with pytest.warns(Segmv3Warning, match="left out"):
        assert images("in/[!n].png") == {"in/a.png": "a"}
    assert complaint("in/n.png") == "data: in/n.png is a link to nowhere"


def test_photographs_as_browsers_save_them_are_taken(here: Path) -> None:
    put("in/a.jfif", "in/B.JPE", "in/c.jif")
    assert images("in") == {"in/B.JPE": "B", "in/a.jfif": "a", "in/c.jif": "c"}


def test_brackets_that_are_in_the_names_of_files_are_taken_literally(here: Path) -> None:
    put("drive [front]/0.png", "drive [front]/1.png", "b/x[1] y/2.png", "drive f/3.png", "c[1]/n.txt", "c1/4.png")
    front = {"drive [front]/0.png": "0", "drive [front]/1.png": "1"}
    assert images("drive [front]/*.png") == front
    assert images(f"{here}/drive [front]/*.png") == {f"{here}/{path}": name for path, name in front.items()}
    assert images("drive [front]/[1].png") == {"drive [front]/1.png": "1"}
    assert images("drive [f]/?.png") == {"drive f/3.png": "3"}
    assert images("*/x[1]*/*.png") == {"b/x[1] y/2.png": "2"}
    assert images("c[1]/*.png") == {"c1/4.png": "4"}
    assert images("**/x[1] y/*.png") == {"b/x[1] y/2.png": "2"}


def test_a_list_of_any_names(here: Path) -> None:
    put("a.png", "ü.png")
    Path("w.txt").write_bytes("ü.png\r\n".encode("utf-16"))
    assert images("w.txt") == {"ü.png": "ü"}
    if sys.platform == "linux":
        name = os.fsdecode(b"stra\xdfe.png")
        put(name)
        Path("l.txt").write_bytes(b"stra\xdfe.png\n")
        assert images("l.txt") == {name: os.fsdecode(b"stra\xdfe")}
    Path("l.txt").write_text("a" * 5000)
    assert len(complaint("l.txt")) < 500


def test_nothing_there(here: Path) -> None:
    assert complaint("a.png") == f"data: a.png does not exist ({here} is empty)"
    put("in/b.png", "in/c.png", "in/d.png", "in/e.png", "in/f.png", "in/g.png")
    assert complaint("in/a.png").endswith(f"({here}/in holds b.png, c.png, d.png, e.png and 2 more)")
    assert complaint("no/such/a.png").endswith(f"({here} holds in)")
    assert complaint("~/no-such-folder-here").startswith("data: ~/no-such-folder-here does not exist (")
    assert complaint("  ").startswith(f"data: no source was named; supported are images ({KNOWN}), ")
    assert complaint("sftp://me:secret@a.b/c.jpg").startswith(
        f"data: sftp://a.b/c.jpg is no address that is read; supported are images ({KNOWN}), "
    )


def test_nothing_to_use(here: Path) -> None:
    put("in/a.mp4", "in/b.mp4", "in/c.txt", "in/d")
    looked = f"(looked for {KNOWN}; found 2 .mp4, "
    assert complaint("in") == f"data: in holds no images {looked}1 .txt, 1 without suffix)"
    assert complaint("in/*.mp4") == f"data: in/*.mp4 matches no images {looked.removesuffix(', ')})"
    assert complaint("in/*.jpg").endswith("; found nothing)")
    put("paper.pdf")
    told = complaint("paper.pdf")
    assert told.startswith("data: paper.pdf is of a type that cannot be read; supported are images (")
    assert ".mp4" in told and ".txt" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"a.png\n\nmissing.png\n", "l.txt line 3: missing.png does not exist in {here} or {here}"),
        (b"/no/a.png\n", "l.txt line 1: /no/a.png does not exist"),
        (
            b"a.png\nv.mp4\n",
            f"l.txt line 2: v.mp4 is not an image ({KNOWN})",
        ),
        (b"# nothing\n\n", "l.txt names no images; it should hold one image path a line"),
    ],
)
def test_a_list_that_cannot_be_used(here: Path, text: bytes, told: str) -> None:
    put("a.png", "v.mp4")
    Path("l.txt").write_bytes(text)
    assert complaint("l.txt") == "data: " + told.format(here=here)


def test_a_list_that_is_no_text(here: Path) -> None:
    Path("l.txt").write_bytes(b"\xff\xfe\x00\xd8")
    assert complaint("l.txt").startswith("data: l.txt cannot be read as a text file of image paths (")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(here: Path) -> None:
    os.mkfifo("p.png")
    assert complaint("p.png").startswith("data: p.png is neither a file nor a folder; supported are ")


def test_a_numbered_sequence(here: Path) -> None:
    put("f_0009.png", "f_0010.png", "f_10.png", "f_0010.png.txt", "g 1.jpg", "g 2.jpg", "g 10.jpg")
    assert images("f_%04d.png") == {"f_0009.png": "f_0009", "f_0010.png": "f_0010"}
    with pytest.warns(Segmv3Warning, match=r"^data: g %d\.jpg: 7 of the numbers 1 to 10 have no file$"):
        assert list(images("g %d.jpg")) == ["g 1.jpg", "g 2.jpg", "g 10.jpg"]
    assert complaint("h_%03d.png").startswith(f"data: h_%03d.png matches no images (looked for {KNOWN}; ")
    put("n_%04d.png")
    assert images("n_%04d.png") == {"n_%04d.png": "n_%04d"}  # a name first


def test_a_name_that_exists_is_no_camera_and_no_screen(here: Path) -> None:
    put("0/a.png", "screen/b.png")
    assert images("0") == {"0/a.png": "a"} and images("screen") == {"screen/b.png": "b"}
    for text, name in (
        ("1", "camera1"),
        ("/dev/video77", "video77"),
        ("rtsp://h:1/a/b.sdp?x=1", "b"),
        ("udp://@h:1", "h"),
    ):
        assert find_source(text).name == name  # type: ignore[union-attr]


def test_photographs_that_need_a_decoder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("in/a.heic", "in/b.png")
    for module in (listing, sources):
        monkeypatch.setattr(module, "IMAGE_SUFFIXES", frozenset({".png"}))
    with pytest.warns(Segmv3Warning, match=r'left out 1 \.heic; only \.png are taken; pip install "segmv3\[heic\]"$'):
        assert images("in") == {"in/b.png": "b"}
    with pytest.raises(
        ResourceError, match=r'in/a\.heic needs a decoder that is not installed: pip install "segmv3\[heic'
    ):
        find_source("in/a.heic")
