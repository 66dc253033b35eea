"""Prediction: results for every input, names that never meet, and nothing of the user's touched."""

import contextlib
import hashlib
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import stopped
from PIL import Image

import segmv3
from segmv3.commands.predict import Predict, _at_once
from segmv3.errors import ConfigError, DataError, ModelError, OutputError, PartialVideoError, ResourceError, VideoError
from segmv3.images import UInt8Array, read_ids, read_image, write_png
from segmv3.labels import Classes
from segmv3.media.draw import colorize, legend, overlay, with_legend
from segmv3.prediction import PartialResultError, frames_at_once, listing, predict_source, results, sources
from segmv3.prediction.results import KINDS

PICTURES = ("overlay", "labels", "color")
CLASSES = Classes(("road", "car", "sky"), ((128, 64, 128), (0, 0, 142), (70, 130, 180)))


def predict(image: UInt8Array) -> UInt8Array:
    """A net's stand-in: where red leads there is a car, else the upper half is sky and the lower road."""
    labels = np.zeros(image.shape[:2], np.uint8)
    labels[: len(labels) // 2] = 2
    labels[image[..., 0].astype(int) > image[..., 2].astype(int) + 60] = 1
    return labels


def must_not_run(image: UInt8Array) -> UInt8Array:
    raise AssertionError("predicted although the job had to be refused before")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scene(index: int = 0, height: int = 48, width: int = 64) -> UInt8Array:
    image = np.full((height, width, 3), 90, np.uint8)
    image[8:24, 2 * index : 2 * index + 16] = (220, 20, 60)
    return image


def put(*names: str) -> None:
    for index, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(index)).save(name)


def contents(folder: Path) -> dict[str, str]:
    """{path: hash} of everything below a folder, but for the names of the classes (tests/test_results.py)."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "classes.json")
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def refusal(kind: type[Exception], source: str, output: str = "out", **options: object) -> str:
    """The one line of a job that must be refused before anything is predicted or written."""
    before = contents(Path())
    folders = {path for path in Path().rglob("*") if path.is_dir()}
    with pytest.raises(kind) as caught:
        predict_source(source, must_not_run, CLASSES, Path(output), **options)  # type: ignore[arg-type]
    assert contents(Path()) == before
    assert {path for path in Path().rglob("*") if path.is_dir()} == folders
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- images ----


def test_an_image_in_every_kind(here: Path) -> None:
    put("in/a.png")
    before = contents(Path("in"))
    written = predict_source("in/a.png", predict, CLASSES, Path("new/out"), save=PICTURES)
    assert written == [Path(f"new/out/a_{kind}.png") for kind in PICTURES]
    assert sorted(contents(Path("new/out"))) == ["a_color.png", "a_labels.png", "a_overlay.png"]
    image = read_image(Path("in/a.png"))
    labels = predict(image)
    np.testing.assert_array_equal(read_ids(Path("new/out/a_labels.png")), labels)
    assert Image.open("new/out/a_labels.png").mode == "L"
    np.testing.assert_array_equal(read_image(Path("new/out/a_color.png")), colorize(labels, CLASSES))
    np.testing.assert_array_equal(
        read_image(Path("new/out/a_overlay.png")),
        with_legend(overlay(image, labels, CLASSES), CLASSES, labels),
    )
    assert contents(Path("in")) == before


def test_a_folder_keeps_its_folders_and_reports_progress(here: Path) -> None:
    put("in/x/a.png", "in/y/a.png", "in/b.jpg", "in/b.png")
    steps: list[tuple[int, int | None]] = []
    predict_source("in", predict, CLASSES, Path("out"), save=["labels"], progress=lambda *step: steps.append(step))
    assert sorted(contents(Path("out"))) == [
        "b.jpg_labels.png",
        "b.png_labels.png",
        "x/a_labels.png",
        "y/a_labels.png",
    ]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for name in ("x/a", "y/a"):
        labels = read_ids(Path(f"out/{name}_labels.png"))
        np.testing.assert_array_equal(labels, predict(read_image(Path(f"in/{name}.png"))))


def test_a_second_run_does_not_take_results_for_images(here: Path) -> None:
    put("a.png")
    for overwrite in (False, True):
        assert predict_source(".", predict, CLASSES, Path("out"), overwrite=overwrite) == [Path("out/a_overlay.png")]
    assert sorted(contents(Path())) == ["a.png", "out/a_overlay.png"]
    assert refusal(OutputError, ".", ".").startswith("output: . is the folder the images are read from, and ")


def test_overlay_is_the_default_and_kinds_are_checked(here: Path) -> None:
    put("a.png")
    assert predict_source("a.png", predict, CLASSES, Path("o")) == [Path("o/a_overlay.png")]
    told = refusal(ConfigError, "a.png", save=["overlay", "maks", "png"])
    assert told == "config: cannot save 'maks', 'png'; choose from " + ", ".join(KINDS)
    assert refusal(ConfigError, "a.png", save=[]) == "config: nothing to save; choose from " + ", ".join(KINDS)


def test_results_of_a_former_run_are_not_replaced_unless_asked(here: Path) -> None:
    put("in/a.png", "in/b.png", "in/c.png")
    predict_source("in/b.png", predict, CLASSES, Path("out"))
    hint = "choose another --output or add --overwrite"
    assert refusal(OutputError, "in") == f"output: out/b_overlay.png exists; {hint}"
    assert refusal(OutputError, "in", save=["overlay", "labels"]) == (f"output: out/b_overlay.png exists; {hint}")
    predict_source("in/c.png", predict, CLASSES, Path("out"))
    assert refusal(OutputError, "in") == f"output: out/b_overlay.png and 1 more exist; {hint}"
    Path("out/b_overlay.png").write_bytes(b"old")
    assert len(predict_source("in", predict, CLASSES, Path("out"), overwrite=True)) == 3
    assert read_image(Path("out/b_overlay.png")).shape[1] == 64


def test_an_input_is_never_replaced(here: Path) -> None:
    put("in/a.png", "in/a_labels.png")
    for overwrite in (False, True):
        told = refusal(OutputError, "in/*.png", "in", save=["labels"], overwrite=overwrite)
        assert told == "output: in/a_labels.png is one of the inputs; choose another --output"


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_an_input_is_not_replaced_through_a_link_either(here: Path) -> None:
    put("in/a.png", "in/a_overlay.png")
    Path("out").symlink_to("in")
    assert "is one of the inputs" in refusal(OutputError, "in/*.png", "out", overwrite=True)
    assert "is the folder the images are read from" in refusal(OutputError, "in", "out", overwrite=True)


def test_an_output_that_cannot_be_a_folder(here: Path) -> None:
    put("a.png")
    Path("out").write_text("a file")
    assert refusal(OutputError, "a.png").startswith("output: out cannot be written (")


def test_a_missing_source_writes_nothing(here: Path) -> None:
    assert refusal(DataError, "no.png").startswith("data: no.png does not exist (")


def test_a_damaged_image_among_others_is_told_at_the_end(here: Path) -> None:
    put("in/a.png", "in/b.png", "in/c.png", "in/d.png")
    data = Path("in/b.png").read_bytes()
    Path("in/b.png").write_bytes(data[: len(data) // 2])
    Path("in/c.png").write_text("<html>")
    steps: list[tuple[int, int | None]] = []
    with pytest.raises(PartialResultError) as caught:
        predict_source("in", predict, CLASSES, Path("out"), progress=lambda *step: steps.append(step))
    assert caught.value.exit_code == 3
    told = str(caught.value)
    assert told.startswith("predict: 2 of 4 images could not be read (first: in/b.png is damaged (")
    assert told.endswith("; the results of the others are in out") and "\n" not in told
    assert sorted(contents(Path("out"))) == ["a_overlay.png", "d_overlay.png"]
    assert steps[-1] == (4, 4)


def test_when_no_image_can_be_read(here: Path) -> None:
    Path("in").mkdir()
    Path("in/a.png").touch()
    Path("in/b.png").touch()
    with pytest.raises(DataError) as caught:
        predict_source("in", predict, CLASSES, Path("out"))
    assert str(caught.value).startswith("data: none of the 2 images could be read (first: in/a.png cannot be")
    with pytest.raises(DataError, match=r"^data: in/a\.png cannot be opened as an image"):
        predict_source("in/a.png", predict, CLASSES, Path("out"))
    assert contents(Path("out")) == {}


def test_ctrl_c_keeps_what_is_done(here: Path) -> None:
    put("in/a.png", "in/b.png", "in/c.png")
    with pytest.raises(KeyboardInterrupt):
        predict_source("in", after(2, predict, KeyboardInterrupt), CLASSES, Path("out"))
    assert sorted(contents(Path("out"))) == ["a_overlay.png", "b_overlay.png"]


def after(
    count: int, inner: Callable[[UInt8Array], UInt8Array], exception: type[BaseException]
) -> Callable[[UInt8Array], UInt8Array]:
    """`inner`, that raises instead of its call number `count` (from 0)."""
    calls = iter(range(1_000_000))

    def call(image: UInt8Array) -> UInt8Array:
        if next(calls) == count:
            raise exception
        return inner(image)

    return call


# ---- overlapping ----

SOON = 20  # seconds after which a test that would hang fails instead


def names(count: int) -> list[str]:
    return [f"in/{index:03d}.png" for index in range(count)]


def test_images_are_read_and_written_while_others_are_predicted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(*names(6))
    read: list[Path] = []
    changed = threading.Condition()

    def reading(path: Path) -> UInt8Array:
        with changed:
            read.append(path)
            changed.notify_all()
        return read_image(path)

    calls = iter(range(100))

    def predicting(image: UInt8Array) -> UInt8Array:
        index = next(calls)
        with changed:  # image index + 1 is read, and the result of index - 1 written, while this one is predicted
            assert changed.wait_for(lambda: len(read) >= min(index + 2, 6), SOON)
            assert len(read) <= index + 3
            assert changed.wait_for(lambda: index == 0 or Path(f"out/{index - 1:03d}_labels.png").exists(), SOON)
        return predict(image)

    def writing(path: Path, pixels: UInt8Array) -> None:
        write_png(path, pixels)
        with changed:
            changed.notify_all()

    monkeypatch.setattr(listing, "read_image", reading)
    monkeypatch.setattr(results, "write_png", writing)
    written = predict_source("in", predicting, CLASSES, Path("out"), save=["labels"])
    assert written == [Path(f"out/{index:03d}_labels.png") for index in range(6)]


def test_results_are_told_in_order_though_written_in_another(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(*names(4))
    second = threading.Event()
    order: list[str] = []

    def writing(path: Path, pixels: UInt8Array) -> None:
        if path.name.startswith("000"):
            assert second.wait(SOON)
        order.append(path.name[:3])
        write_png(path, pixels)
        second.set()

    def progress(done: int, total: int | None) -> None:
        steps.append(done)
        assert {f"{index:03d}" for index in range(done)} <= set(order)

    steps: list[int] = []
    monkeypatch.setattr(results, "write_png", writing)
    written = predict_source("in", predict, CLASSES, Path("out"), save=["labels"], progress=progress)
    assert order[:2] == ["001", "000"] and steps == [1, 2, 3, 4]
    assert [path.name[:3] for path in written] == ["000", "001", "002", "003"]


def test_a_file_that_cannot_be_written_costs_no_other(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(*names(5))

    def writing(path: Path, pixels: UInt8Array) -> None:
        if path.name.startswith("003"):
            raise OutputError(f"{path} cannot be written (a test)")
        write_png(path, pixels)

    monkeypatch.setattr(results, "write_png", writing)
    with pytest.raises(PartialResultError) as caught:
        predict_source("in", predict, CLASSES, Path("out"))
    assert str(caught.value) == (
        "predict: 1 of 5 images could not be written (first: out/003_overlay.png cannot be written (a test)); "
        "the results of the others are in out"
    )
    assert sorted(contents(Path("out"))) == [f"{index:03d}_overlay.png" for index in (0, 1, 2, 4)]


def test_a_full_disk_ends_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(*names(12))
    calls = []

    def writing(path: Path, pixels: UInt8Array) -> None:
        if path.name.startswith("003"):
            raise ResourceError("the disk is full")
        write_png(path, pixels)

    def predicting(image: UInt8Array) -> UInt8Array:
        calls.append(image)
        return predict(image)

    monkeypatch.setattr(results, "write_png", writing)
    with pytest.raises(ResourceError, match="the disk is full"):
        predict_source("in", predicting, CLASSES, Path("out"))
    done = sorted(contents(Path("out")))
    assert done[:3] == [f"{index:03d}_overlay.png" for index in range(3)] and len(done) <= 4
    assert len(calls) <= 7


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_link_that_leads_to_itself_costs_no_other(here: Path) -> None:
    put("in/a.png")
    Path("in/n.png").symlink_to(here / "in/n.png")
    with pytest.raises(PartialResultError, match=r"1 of 2 images could not be read \(first: in/n.png cannot be read"):
        predict_source("in", predict, CLASSES, Path("out"))
    assert sorted(contents(Path("out"))) == ["a_overlay.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are short or UTF-8")
def test_names_that_are_too_long_or_not_utf_8(here: Path) -> None:
    long, odd = "a" * 251, os.fsdecode(b"stra\xdfe")
    put("in/b.png")
    for name in (long, odd):
        Path(f"in/{name}.png").write_bytes(Path("in/b.png").read_bytes())
    with pytest.raises(PartialResultError, match=r"1 of 3 images could not be written \(first: out/aaa.* too long\)"):
        predict_source("in", predict, CLASSES, Path("out"), save=["labels"])
    assert sorted(contents(Path("out"))) == ["b_labels.png", f"{odd}_labels.png"]
    with pytest.raises(OutputError, match="too long"):
        predict_source(f"in/{long}.png", predict, CLASSES, Path("out"))


STOPPED = """
import signal, sys, time
import numpy as np
from segmv3.cli import _on_signal
from segmv3.errors import Interrupted
from segmv3.labels import Classes
from segmv3.prediction import predict_source
from pathlib import Path

def predict(image):
    time.sleep(0.02)
    return np.zeros(image.shape[:2], np.uint8)

signal.signal(signal.SIGTERM, _on_signal)
signal.signal(signal.SIGHUP, _on_signal)
classes = Classes(("road",), ((128, 64, 128),))
try:
    predict_source(sys.argv[1], predict, classes, Path("out"), save=["overlay", "labels"],
                   progress=lambda done, total: print(done, flush=True))
except Interrupted as error:
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143), (1, 129)])
def test_a_signal_leaves_complete_images(here: Path, number: int, code: int) -> None:
    put(*names(400))
    exit_code, told, errors = stopped([sys.executable, "-c", STOPPED, "in"], number, 5)
    assert (exit_code, errors) == (code, "")
    done = sorted(contents(Path("out")))
    count = len(done) // 2
    assert told <= count <= told + 4
    assert done == sorted(f"{index:03d}_{kind}.png" for index in range(count) for kind in ("labels", "overlay"))
    for name in done:
        read_image(Path("out") / name)


# ---- video ----

av = pytest.importorskip("av")
from segmv3.media.encoding import VideoWriter  # noqa: E402 (below the check for av)
from segmv3.media.video import VideoReader  # noqa: E402


def drive(path: str, count: int = 12, size: tuple[int, int] = (48, 64)) -> Path:
    with VideoWriter(path, 20, size) as video:
        for index in range(count):
            video.write(scene(index, *size))
    return Path(path)


def frames_of(path: Path) -> list[UInt8Array]:
    with VideoReader(path) as video:
        assert video.fps == pytest.approx(20)
        return list(video)


def test_a_video_in_every_kind(here: Path) -> None:
    source = drive("d.mp4", 12, (48, 160))
    original = source.read_bytes()
    steps: list[tuple[int, int | None]] = []
    written = predict_source(
        "d.mp4", predict, CLASSES, Path("out"), save=PICTURES, progress=lambda *step: steps.append(step)
    )
    assert written == [Path("out/d_overlay.webm"), Path("out/d_labels"), Path("out/d_color.webm")]
    assert steps == [(index, 12) for index in range(1, 13)]
    inputs, labels = frames_of(source), sorted(Path("out/d_labels").iterdir())
    assert [path.name for path in labels] == [f"{index:06d}.png" for index in range(12)]
    overlays, colors = frames_of(Path("out/d_overlay.webm")), frames_of(Path("out/d_color.webm"))
    assert len(inputs) == len(overlays) == len(colors) == 12
    strip = legend(CLASSES, 160)
    assert overlays[0].shape == (48 + len(strip) + len(strip) % 2, 160, 3)
    for index, frame in enumerate(inputs):
        ids = read_ids(labels[index])
        np.testing.assert_array_equal(ids, predict(frame))
        assert np.abs(colors[index].astype(int) - colorize(ids, CLASSES)).mean() < 8
        assert np.abs(overlays[index][:48].astype(int) - overlay(frame, ids, CLASSES)).mean() < 8
        assert np.abs(overlays[index][48 : 48 + len(strip)].astype(int) - strip).mean() < 12
    assert source.read_bytes() == original


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_cut_video_gives_a_complete_result_and_then_the_error(here: Path, at_once: int) -> None:
    with av.open("d.mp4", "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        random = np.random.default_rng(0)
        for _ in range(100):
            noise = random.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode(None))
    data = Path("d.mp4").read_bytes()
    Path("d.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(PartialVideoError) as caught:
        predict_source("d.mp4", predict, CLASSES, Path("out"), save=["overlay", "labels"], at_once=at_once)
    count = len(frames_of(Path("out/d_overlay.webm")))
    assert 30 <= count <= 52
    assert str(caught.value) == (
        f"video: only {count} of the announced 100 frames could be read; result holds {count} frames "
        "(d.mp4 is cut or damaged)"
    )
    assert len(list(Path("out/d_labels").iterdir())) == count
    assert sorted(path.name for path in Path("out").iterdir()) == ["classes.json", "d_labels", "d_overlay.webm"]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("at_once", [1, 3])
def test_an_interrupted_video_plays(here: Path, exception: type[BaseException], at_once: int) -> None:
    drive("d.mp4")
    stopped_early = after(5, predict, exception)
    with pytest.raises(exception):
        predict_source("d.mp4", stopped_early, CLASSES, Path("out"), save=["color", "overlay"], at_once=at_once)
    assert len(frames_of(Path("out/d_color.webm"))) == len(frames_of(Path("out/d_overlay.webm"))) == 5
    assert len(list(Path("out").iterdir())) == 2


def test_frames_that_are_labelled_at_a_time_keep_their_order(here: Path) -> None:
    drive("d.mp4", 12)
    predict_source("d.mp4", predict, CLASSES, Path("one"), save=["overlay", "labels"])
    together, threads = threading.Barrier(2, timeout=SOON), set()

    def in_pairs(image: UInt8Array) -> UInt8Array:
        threads.add(threading.get_ident())
        time.sleep(0.02 * (together.wait() == 0))  # which of the two ends first changes
        return predict(image)

    sizes = []

    def two(frames: Any) -> int:
        sizes.append(frames.size)
        return 2

    predict_source("d.mp4", in_pairs, CLASSES, Path("two"), save=["overlay", "labels"], at_once=two)
    assert sizes == [(48, 64)]
    assert len(threads) == 2 and threading.get_ident() not in threads
    assert contents(Path("one/d_labels")) == contents(Path("two/d_labels"))
    for one, other in zip(frames_of(Path("one/d_overlay.webm")), frames_of(Path("two/d_overlay.webm")), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("size", "threads", "count"),
    [((512, 1024), 1, 1), ((512, 1024), 2, 2), ((512, 1024), 6, 3), ((512, 1024), 16, 4), ((2160, 3840), 4, 1)],
)
def test_how_many_frames_are_labelled_at_a_time(size: tuple[int, int], threads: int, count: int) -> None:
    class Opened:
        fps, sound = 25.0, None

    Opened.size = size  # type: ignore[attr-defined]
    assert frames_at_once(Opened(), threads) == count  # type: ignore[arg-type]


def test_what_the_command_labels_at_a_time() -> None:
    class Opened:
        size, fps, sound = (48, 64), 25.0, None

    def chosen(**options: Any) -> int:
        return _at_once(Predict(source="d.mp4", device="cpu", **options), Opened())

    threads = torch.get_num_threads()
    try:
        assert (chosen(threads=2), chosen(threads=1)) == (2, 1)
        assert chosen(threads=2, steady=True) == chosen(threads=2, budget_ms=50.0) == 1
        with pytest.raises(ModelError, match="--threads is 0; it must be at least 1"):
            chosen(threads=0)
    finally:
        torch.set_num_threads(threads)


def test_an_overlay_of_one_s_own_is_drawn_into_videos(here: Path) -> None:
    class Dark(results.Overlay):
        name = "dark"

        def draw(self, shot: Any, job: Any) -> UInt8Array:
            return super().draw(shot, job) // 4

    drive("d.mp4", 3)
    predict_source("d.mp4", predict, CLASSES, Path("out"), save=["overlay", Dark()])
    dark, plain = (frames_of(Path(f"out/d_{name}.webm"))[1][:48] for name in ("dark", "overlay"))
    assert abs(plain.mean() / 4 - dark.mean()) < 3


def test_a_frame_that_cannot_be_drawn_ends_the_video_before_it(here: Path) -> None:
    drive("d.mp4", 30)
    calls = iter(range(100))

    def one_too_small(image: UInt8Array) -> UInt8Array:
        labels = predict(image)
        return labels[1:] if next(calls) == 7 else labels

    with pytest.raises(ValueError, match="image 48x64, labels 47x64"):
        predict_source("d.mp4", one_too_small, CLASSES, Path("out"), save=["overlay"])
    assert len(frames_of(Path("out/d_overlay.webm"))) == 7
    assert next(calls) <= 12


def test_frames_are_read_and_written_while_others_are_predicted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive("d.mp4", 12)
    changed = threading.Condition()
    counts = {"read": 0, "written": 0}

    def count(what: str) -> None:
        with changed:
            counts[what] += 1
            changed.notify_all()

    class Reader(VideoReader):
        def timed(self) -> Iterator[tuple[UInt8Array, Fraction]]:
            for frame in super().timed():
                count("read")
                yield frame

    class Writer(VideoWriter):
        def write(self, frame: UInt8Array, time: Fraction | None = None) -> None:
            super().write(frame, time)
            count("written")

    calls = iter(range(100))

    def predicting(image: UInt8Array) -> UInt8Array:
        index = next(calls)
        with changed:
            assert changed.wait_for(lambda: counts["read"] >= min(index + 2, 12), SOON)
            assert counts["read"] <= index + 3
            assert changed.wait_for(lambda: counts["written"] >= index, SOON)
        return predict(image)

    monkeypatch.setattr(sources, "VideoReader", Reader)
    monkeypatch.setattr(results, "VideoWriter", Writer)
    predict_source("d.mp4", predicting, CLASSES, Path("out"))
    assert counts == {"read": 12, "written": 12}
    assert len(frames_of(Path("out/d_overlay.webm"))) == 12


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143), (1, 129)])
def test_a_signal_leaves_a_video_that_plays(here: Path, number: int, code: int) -> None:
    drive("d.mp4", 400)
    exit_code, told, errors = stopped([sys.executable, "-c", STOPPED, "d.mp4"], number, 5)
    assert (exit_code, errors) == (code, "")
    assert sorted(path.name for path in Path("out").iterdir()) == ["classes.json", "d_labels", "d_overlay.webm"]
    count = len(frames_of(Path("out/d_overlay.webm")))
    assert told <= count <= told + 4
    assert len(contents(Path("out/d_labels"))) == count


def test_a_video_is_refused_before_anything_is_written(here: Path) -> None:
    Path("bad.mp4").write_text("no video")
    assert refusal(VideoError, "bad.mp4").startswith("video: bad.mp4 cannot be opened as a video (")
    drive("d.mp4", 3)
    predict_source("d.mp4", predict, CLASSES, Path("out"), save=["overlay", "labels"])
    hint = "choose another --output or add --overwrite"
    assert refusal(OutputError, "d.mp4") == f"output: out/d_overlay.webm exists; {hint}"
    assert refusal(OutputError, "d.mp4", save=["labels"]) == f"output: out/d_labels exists; {hint}"
    Path("in").mkdir()
    drive("in/e_overlay.webm", 1)
    drive("in/e.mp4", 1)
    assert refusal(OutputError, "in/e.mp4", "in").startswith("output: in/e_overlay.webm exists; ")
    Path("in/d_overlay.webm").symlink_to(here / "d.mp4")
    told = refusal(OutputError, "d.mp4", "in", overwrite=True)
    assert told == "output: in/d_overlay.webm is one of the inputs; choose another --output"


def test_overwriting_a_longer_run_leaves_none_of_its_frames(here: Path) -> None:
    drive("d.mp4", 9)
    predict_source("d.mp4", predict, CLASSES, Path("out"), save=["labels"])
    Path("out/d_labels/notes.txt").write_text("mine")
    write_png(Path("out/d_labels/000000.png"), np.full((2, 2), 9, np.uint8))
    Path("d.mp4").unlink()
    drive("d.mp4", 4)
    predict_source("d.mp4", predict, CLASSES, Path("out"), save=["labels"], overwrite=True)
    assert sorted(contents(Path("out/d_labels"))) == [*(f"{i:06d}.png" for i in range(4)), "notes.txt"]
    assert read_ids(Path("out/d_labels/000000.png")).shape == (48, 64)


def test_the_net_is_opened_when_nothing_is_left_to_refuse(here: Path) -> None:
    opened: list[str] = []

    def classes() -> Classes:
        assert not Path("out").exists()
        opened.append("net")
        return CLASSES

    put("a.png")
    with pytest.raises(DataError):
        predict_source("b.png", must_not_run, classes, Path("out"))
    assert opened == []
    predict_source("a.png", predict, classes, Path("out"))
    with pytest.raises(OutputError, match="a_overlay.png exists"):
        predict_source("a.png", must_not_run, classes, Path("out"))
    assert opened == ["net"]


def test_sources_of_ones_own(here: Path) -> None:
    class Pictures:
        names = ("x/a", "b")
        paths = ()

        def pictures(self) -> Iterator[UInt8Array | DataError]:
            yield scene(0)
            yield DataError("b is lost")

    with pytest.raises(PartialResultError, match=r"1 of 2 images could not be read \(first: b is lost\)"):
        predict_source(Pictures(), predict, CLASSES, Path("out"), save=["labels"])
    assert list(contents(Path("out"))) == ["x/a_labels.png"]

    class Drive:
        name = "mine"
        paths = ()
        size = (48, 64)
        fps = 20.0
        sound = announced_frames = None

        @contextlib.contextmanager
        def open(self) -> Iterator["Drive"]:
            yield self

        def timed(self) -> Iterator[tuple[UInt8Array, Fraction]]:
            yield from ((scene(index), Fraction(index, 20)) for index in range(7))

    assert predict_source(Drive(), predict, CLASSES, Path("out")) == [Path("out/mine_overlay.webm")]
    assert len(frames_of(Path("out/mine_overlay.webm"))) == 7


@pytest.mark.parametrize(("video", "suffix", "codec"), [("mp4", ".mp4", "h264"), ("av1", ".mp4", "libdav1d")])
def test_other_kinds_of_video(here: Path, video: str, suffix: str, codec: str) -> None:
    drive("d.mp4", 6, (96, 128))
    assert predict_source("d.mp4", predict, CLASSES, Path("out"), video=video) == [Path(f"out/d_overlay{suffix}")]
    with av.open(f"out/d_overlay{suffix}") as container:
        assert container.streams.video[0].codec_context.name == codec
    assert len(frames_of(Path(f"out/d_overlay{suffix}"))) == 6
    told = refusal(ConfigError, "d.mp4", video="avi")
    assert told == "config: cannot write videos as 'avi'; choose from webm, mp4, av1"


# ---- the demos ----

DEMOS = Path(__file__).parents[1] / "demo"


class FakePredictor:
    """Stands in for `segmv3.runtime.Predictor`."""

    classes = CLASSES

    def __call__(self, image: UInt8Array) -> UInt8Array:
        return predict(image)


def run_demo(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> int:
    """Run a demo as a script, with a net's stand-in for any weights; its exit code."""
    monkeypatch.setitem(vars(segmv3), "load", lambda weights: FakePredictor())  # torch is not imported
    monkeypatch.setattr(sys, "argv", [name, "best.safetensors", *arguments])
    try:
        runpy.run_path(str(DEMOS / name), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_image_demo(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    put("a.png")
    assert run_demo(monkeypatch, "image.py", "a.png", "out.png") == 0
    expected = overlay(scene(), predict(scene()), CLASSES)
    np.testing.assert_array_equal(read_image(Path("out.png")), expected)
    assert capsys.readouterr().out == " 50.0%  road\n  8.3%  car\n 41.7%  sky\n"
    assert run_demo(monkeypatch, "image.py", "a.png", "out.png") == 2
    assert capsys.readouterr().err == "output: out.png exists; choose another name\n"
    assert run_demo(monkeypatch, "image.py", "b.png", "new.png") == 2
    assert capsys.readouterr().err == "data: b.png does not exist\n"
    assert sorted(contents(Path())) == ["a.png", "out.png"]


def test_the_video_demo(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    drive("d.mp4", 6)
    assert run_demo(monkeypatch, "video.py", "d.mp4", "out.webm") == 0
    for shown, frame in zip(frames_of(Path("out.webm")), frames_of(Path("d.mp4")), strict=True):
        assert np.abs(shown.astype(int) - overlay(frame, predict(frame), CLASSES)).mean() < 8
    capsys.readouterr()
    assert run_demo(monkeypatch, "video.py", "d.mp4", "out.webm") == 2
    assert capsys.readouterr().err == "output: out.webm exists; choose another name\n"
    assert run_demo(monkeypatch, "video.py", "e.mp4", "new.webm") == 2
    assert capsys.readouterr().err == "video: e.mp4 does not exist\n"
    assert sorted(contents(Path())) == ["d.mp4", "out.webm"]
