"""Live sources and addresses: the newest frame, lost and found again, and one line for everything else."""

import io
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import LIMIT, serving, stopped
from PIL import Image

from segmv3.cli import main
from segmv3.errors import ConfigError, DataError, PartialVideoError, ResourceError, Segmv3Warning, VideoError
from segmv3.images import UInt8Array
from segmv3.labels import Classes
from segmv3.media import addresses, live
from segmv3.media.encoding import VideoWriter
from segmv3.media.live import LiveReader
from segmv3.media.video import VideoReader
from segmv3.prediction import predict_source
from segmv3.prediction.sources import HeldImage, OpenedSource, find_source

av = pytest.importorskip("av")

CLASSES = Classes(("road", "sky"), ((128, 64, 128), (70, 130, 180)))
COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


def predict(image: UInt8Array) -> UInt8Array:
    return np.zeros(image.shape[:2], np.uint8)


def plain(index: int, height: int = 48, width: int = 64) -> UInt8Array:
    return np.full((height, width, 3), COLORS[index % 3], np.uint8)


def jpeg(pixels: UInt8Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _quick_and_without_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(live, "PAUSES", (0.01, 0.01, 0.02, 0.03, 0.04))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    before = set(threading.enumerate())
    yield
    ends = time.monotonic() + 10  # one that was left to itself ends once its server does
    for thread in set(threading.enumerate()) - before:
        ours = thread.name.startswith("segmv3") and not thread.name.startswith("segmv3-decode")  # which stay
        if ours:
            thread.join(max(0, ends - time.monotonic()))
            assert not thread.is_alive(), f"{thread.name} is left"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(act: Callable[[], object]) -> list[str]:
    """The warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(each.message) for each in caught]


# ---- the newest frame ----


def test_the_newest_frame_is_taken_and_the_others_counted() -> None:
    go, done, over = threading.Event(), threading.Event(), threading.Event()

    def feed() -> Iterator[Callable[[], UInt8Array]]:
        yield partial(plain, 0)
        assert go.wait(20)
        yield from (partial(plain, index) for index in (0, 1, 2))
        done.set()
        assert over.wait(20)
        yield partial(plain, 1)

    def run() -> None:
        with LiveReader("cam", feed) as reader:
            frames = reader.timed()
            assert (next(frames)[0] == plain(0)).all()
            go.set()
            assert done.wait(20)
            newest, time = next(frames)
            assert (newest == plain(2)).all() and time > 0
            assert (reader.frames_read, reader.frames_dropped) == (2, 2)
            over.set()

    (line,) = said(run)
    assert line.startswith("video: cam: 2 of 4 frames were labelled in ")
    assert line.endswith(" s, 2 dropped: only the newest is taken")


def test_a_run_begins_with_the_frame_that_is_newest_then() -> None:
    done, over = threading.Event(), threading.Event()

    def feed() -> Iterator[Callable[[], UInt8Array]]:
        yield from (partial(plain, index) for index in (0, 1, 2))
        done.set()
        assert over.wait(20)

    def run() -> None:
        with LiveReader("cam", feed) as reader:
            assert done.wait(20)  # while the net is opened
            frame, time = next(reader.timed())
            assert (frame == plain(2)).all() and (time, reader.frames_dropped) == (0, 0)
            over.set()

    said(run)


def test_a_change_of_size_is_survived_and_said_once() -> None:
    opened = threading.Event()

    def feed() -> Iterator[Callable[[], UInt8Array]]:
        yield partial(plain, 0)
        assert opened.wait(20)  # the size is that of the frame which the reader took first
        for index in range(10**6):
            yield partial(plain, index, 24, 32)
            time.sleep(0.002)

    def run() -> None:
        with LiveReader("cam", feed) as reader:
            opened.set()
            frames = reader.timed()
            assert [next(frames)[0].shape for _ in range(5)] == [(48, 64, 3)] * 5

    first, last = said(run)
    assert first == "video: cam: the frames are 32x24 from now on; they are scaled to 64x48"
    assert last.startswith("video: cam: 5 of ")


def test_a_lost_source_is_opened_again_and_given_up_after_five_tries() -> None:
    calls: list[int] = []

    def feed() -> Iterator[Callable[[], UInt8Array]]:
        calls.append(1)
        if len(calls) in (1, 4):
            yield partial(plain, 0)
        raise OSError("unplugged")

    def run() -> None:
        with LiveReader("cam", feed) as reader, pytest.raises(PartialVideoError) as caught:
            for _ in reader.timed():
                pass
        assert caught.value.exit_code == 3
        assert str(caught.value) == "video: cam gives no pictures (unplugged; 5 tries); result holds 2 frames"

    lines = said(run)
    assert lines[:-1] == ["video: cam: no picture comes (unplugged); it is opened again"] * 2
    assert len(calls) == 4 + 5


def test_a_missing_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def __init__(self, device: object) -> None:
            pass

        def isOpened(self) -> bool:
            return False

        def release(self) -> None:
            pass

    monkeypatch.setattr(live.cv2, "VideoCapture", Missing)
    source = find_source("97")
    assert isinstance(source, OpenedSource) and source.name == "camera97"
    with pytest.warns(Segmv3Warning, match="camera 97: no picture comes"), pytest.raises(PartialVideoError) as caught:
        source.open()
    assert str(caught.value).startswith("video: camera 97 gives no pictures (") and "; 5 tries)" in str(caught.value)


def test_a_camera(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Camera:
        def __init__(self, device: object) -> None:
            self.count = 0

        def isOpened(self) -> bool:
            return True

        def read(self) -> tuple[bool, UInt8Array]:
            self.count += 1
            time.sleep(0.005)
            return True, plain(0)[..., ::-1]  # BGR

        def release(self) -> None:
            released.append(1)

    released: list[int] = []
    monkeypatch.setattr(live.cv2, "VideoCapture", Camera)
    monkeypatch.setattr(live.sys, "platform", "other")  # there need be no device
    calls = iter(range(100))

    def predicting(image: UInt8Array) -> UInt8Array:
        assert (image[0, 0] == COLORS[0]).all()
        if next(calls) == 8:
            raise KeyboardInterrupt
        time.sleep(0.02)
        return predict(image)

    def run() -> None:
        with pytest.raises(KeyboardInterrupt):
            predict_source("0", predicting, CLASSES, Path("out"), save=["overlay", "labels"])

    (line,) = said(run)
    assert line.startswith("video: camera 0: 9 of ") and " dropped: " in line
    assert released == [1]
    with VideoReader("out/camera0_overlay.webm") as video:
        assert len(list(video)) == 8
    assert len(list(Path("out/camera0_labels").iterdir())) == 8


def test_the_screen_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_screen() -> None:
        raise OSError("X connection failed: error 5")

    monkeypatch.setattr("PIL.ImageGrab.grab", no_screen)
    source = find_source("screen")
    assert isinstance(source, OpenedSource)
    with pytest.raises(ResourceError, match=r"^environment: the screen cannot be read here \(X connection failed"):
        source.open()
    monkeypatch.setattr("PIL.ImageGrab.grab", lambda: Image.fromarray(plain(1)).convert("RGBA"))

    def run() -> None:
        with source.open() as frames:
            assert (next(frames.timed())[0] == plain(1)).all()

    assert len(said(run)) == 1


# ---- addresses ----


class Handler(BaseHTTPRequestHandler):
    """Pictures, videos, streams and what else servers give."""

    clip: bytes = b""
    folder: Path
    over: threading.Event
    mjpeg: Callable[[], Iterator[bytes]]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/photo":
            self.give(jpeg(plain(0)), "application/octet-stream")
        elif path == "/clip.mp4":
            self.give(self.clip, "video/mp4")
        elif path == "/cut.mp4":
            self.give(self.clip[: len(self.clip) // 2], "video/mp4", len(self.clip))
        elif path == "/page.mp4":
            self.give(b"<!DOCTYPE html><title>Sign in</title>", "text/html")
        elif path == "/text.mp4":
            self.give(b"no video at all" * 100, "video/mp4")
        elif path == "/list.mp4":
            self.give(b"ffconcat version 1.0\nfile /etc/passwd\n", "video/mp4")
        elif "silent" in path:
            self.over.wait(60)
        elif path.startswith("/hls/"):
            self.give((self.folder / path[5:]).read_bytes(), "application/octet-stream")
        elif path == "/cam":
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            try:
                for data in type(self).mjpeg():
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                    self.wfile.write(head.encode() + data + b"\r\n")
            except OSError:
                pass
        else:
            self.send_error(404)

    def give(self, data: bytes, kind: str, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length or len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("served") / "clip.mp4"
    with VideoWriter(path, 20, (48, 64)) as video:
        for index in range(12):
            video.write(plain(index // 4))
    Handler.clip = path.read_bytes()
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(http):
        yield f"http://127.0.0.1:{http.server_address[1]}"


def test_a_picture_at_an_address(here: Path, server: str) -> None:
    assert isinstance(find_source(f"{server}/photo"), HeldImage)
    assert predict_source(f"{server}/photo?size=1", predict, CLASSES, Path("out")) == [Path("out/photo_overlay.png")]


def test_a_video_at_an_address_is_whole(here: Path, server: str) -> None:
    steps: list[int] = []
    written = predict_source(
        f"{server}/clip.mp4",
        predict,
        CLASSES,
        Path("out"),
        save=["labels"],
        progress=lambda done, _: steps.append(done),
    )
    assert written == [Path("out/clip_labels")] and steps[-1] == len(list(Path("out/clip_labels").iterdir())) == 12


def test_a_playlist_with_an_end_is_a_recording(here: Path, server: str) -> None:
    Handler.folder = here
    with av.open("list.m3u8", "w", format="hls") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(15):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plain(index), format="rgb24")))
        container.mux(stream.encode(None))
    predict_source(f"{server}/hls/list.m3u8", predict, CLASSES, Path("out"), save=["labels"])
    assert len(list(Path("out/list_labels").iterdir())) == 15


def test_a_download_that_breaks_off(here: Path, server: str) -> None:
    with pytest.raises((PartialVideoError, VideoError)) as caught:
        predict_source(f"{server}/cut.mp4", predict, CLASSES, Path("out"))
    assert str(caught.value).startswith("video: ") and f"{server}/cut.mp4" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("none.mp4", "data: {}/none.mp4 answers 404 (Not Found)"),
        ("page.mp4", "data: {}/page.mp4 is a web page; name the address of the picture or video itself"),
        (
            "text.mp4",
            "video: {}/text.mp4 cannot be opened as a video (Invalid data found when processing input); it is",
        ),
        ("list.mp4", "video: {}/list.mp4 cannot be opened as a video ("),
    ],
)
def test_addresses_that_cannot_be_used(here: Path, server: str, path: str, told: str) -> None:
    with pytest.raises((DataError, VideoError)) as caught:
        predict_source(f"{server}/{path}", predict, CLASSES, Path("out"))
    assert str(caught.value).startswith(told.format(server)) and caught.value.exit_code == 2
    assert "\n" not in str(caught.value) and not Path("out").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http://[", "data: http://[ is no address ("),
        ("http://a b/c.jpg", "data: http://a b/c.jpg cannot be reached ("),
        ("http://127.0.0.1:99999/c.jpg", "data: http://127.0.0.1:99999/c.jpg cannot be reached ("),
        ("http://", "data: http:// cannot be reached ("),
        ("ftp://h/c.jpg", "data: ftp://h/c.jpg is no address that is read; supported are "),
    ],
)
def test_what_is_no_address(text: str, told: str) -> None:
    with pytest.raises(DataError) as caught:
        find_source(text)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_nobody_answers_and_no_password_is_shown(server: str) -> None:
    closed = "http://me:secret@127.0.0.1:9/x.jpg"
    with pytest.raises(DataError) as caught:
        find_source(closed)
    assert str(caught.value) == "data: http://127.0.0.1:9/x.jpg cannot be reached (Connection refused)"
    source = find_source("rtsp://me:secret@127.0.0.1:9/x")
    assert isinstance(source, OpenedSource) and source.name == "x"
    with pytest.warns(Segmv3Warning) as heard, pytest.raises(PartialVideoError) as lost:
        source.open()
    assert "secret" not in str(lost.value) + str(heard[0].message)
    assert str(lost.value) == "video: rtsp://127.0.0.1:9/x gives no pictures (Connection refused; 5 tries)"


def test_a_certificate_that_nobody_signed(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(tmp_path / "c.pem"),
    ]
    try:
        subprocess.run([*made, "-days", "1", "-subj", "/CN=localhost"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", key)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    with serving(http), pytest.raises(DataError, match=r"is not trusted \(self-signed certificate\)$"):
        find_source(f"https://localhost:{http.server_address[1]}/photo")


def test_a_camera_in_the_net_is_lost_found_and_lost(here: Path, server: str) -> None:
    connections: list[int] = []

    def mjpeg() -> Iterator[bytes]:
        connections.append(1)
        if len(connections) > 4:  # two looks, and two connections
            return
        for index in range(60):
            yield jpeg(plain(index) if len(connections) < 4 else plain(index, 96, 128))
            time.sleep(0.01)

    Handler.mjpeg = staticmethod(mjpeg)

    def run() -> None:
        with pytest.raises(PartialVideoError) as caught:
            predict_source(f"{server}/cam", predict, CLASSES, Path("out"))
        lost.append(str(caught.value))

    lost: list[str] = []
    lines = said(run)
    assert lost[0].startswith(f"video: {server}/cam gives no pictures (") and "; result holds " in lost[0]
    assert any(line.endswith("the frames are 128x96 from now on; they are scaled to 64x48") for line in lines), lines
    assert " dropped: only the newest is taken" in lines[-1]
    with VideoReader("out/cam_overlay.webm") as video:
        count = len(list(video))
    assert f"result holds {count:,} frames" in lost[0] and count > 20


def test_a_stalled_stream_is_noticed(here: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def mjpeg() -> Iterator[bytes]:
        for index in range(30):
            yield jpeg(plain(index))
        over.wait(20)

    over = threading.Event()
    Handler.mjpeg = staticmethod(mjpeg)
    monkeypatch.setattr(addresses, "PATIENCE", 0.3)
    monkeypatch.setattr(live, "PAUSES", ())

    def run() -> None:
        with (
            LiveReader("cam", live.StreamFeed(f"{server}/cam")) as reader,
            pytest.raises(PartialVideoError) as caught,
        ):
            for _ in reader.timed():
                pass
        assert "(nothing came for " in str(caught.value)

    said(run)
    over.set()


def transport_stream(path: str, frames: int) -> bytes:
    with av.open(path, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plain(index), format="rgb24")))
        container.mux(stream.encode(None))
    return Path(path).read_bytes()


def stalled_feed() -> Iterator[Callable[[], UInt8Array]]:
    for index in range(20):
        yield partial(plain, index)
        time.sleep(0.01)
    time.sleep(2.5)  # in a driver: nothing ends this wait


STALLS: dict[str, Callable[[str], str | OpenedSource]] = {
    "a camera": lambda server: OpenedSource("camera", lambda: LiveReader("camera", stalled_feed)),
    "a camera in the net": lambda server: f"{server}/cam",
    "a recording": lambda server: f"{server}/hls/list.m3u8",
    "an address that does not answer": lambda server: f"{server}/hls/silent.m3u8",
    "a video through a pipe": lambda server: "-",
    "frames through a pipe": lambda server: find_source("-", raw=(64, 48)),  # type: ignore[dict-item,return-value]
    "a pipe that has only begun": lambda server: "-",
}


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize("kind", STALLS)
def test_ctrl_c_is_obeyed_while_nothing_comes(
    kind: str, here: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "PATIENCE", 60)
    over, ended, done, pressed = threading.Event(), threading.Event(), list[int](), list[float]()
    whole = transport_stream("part.ts", 40)

    def stalls() -> Iterator[bytes]:
        yield from (jpeg(plain(index)) for index in range(300))
        over.wait(60)

    Handler.mjpeg, Handler.folder, Handler.over = staticmethod(stalls), here, over
    entries = "#EXTINF:1.6,\npart.ts\n#EXTINF:1.6,\nsilent.ts\n#EXT-X-ENDLIST\n"
    Path("list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n{entries}")
    end, other = os.pipe()
    os.write(
        other,
        {"frames through a pipe": bytes(48 * 64 * 3 * 5 + 9), "a pipe that has only begun": whole[:400]}.get(
            kind, whole
        ),
    )
    monkeypatch.setattr(sys, "stdin", os.fdopen(end))
    begins = kind in ("an address that does not answer", "a pipe that has only begun")

    def press() -> None:
        late = time.monotonic() + 20
        while not (done or begins) and time.monotonic() < late and not ended.wait(0.02):
            pass
        if not ended.wait(0.3):
            pressed.append(time.monotonic())
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        ended.wait(20)
        over.set()  # what has not obeyed by now comes to its end
        os.close(other)

    def run() -> None:
        with pytest.raises(KeyboardInterrupt):
            source = STALLS[kind](server)
            predict_source(
                source, predict, CLASSES, Path("out"), save=["color", "csv"], progress=lambda n, _: done.append(n)
            )

    finger = threading.Thread(target=press, daemon=True)
    finger.start()
    try:
        said(run)
        assert time.monotonic() - pressed[0] < 2
    finally:
        ended.set()
        finger.join(LIMIT)
    if begins:
        assert not Path("out").exists()
        return
    with VideoReader(next(Path("out").glob("*.webm"))) as video:
        assert len(list(video)) >= done[-1]
    assert len(next(Path("out").glob("*.csv")).read_text().splitlines()) > done[-1]
    for thread in threading.enumerate():
        if thread.name == "segmv3 camera":  # it is left to itself
            thread.join(LIMIT)


# ---- standard input ----


def piped(data: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "piped").write_bytes(data)
    monkeypatch.setattr(sys, "stdin", (tmp_path / "piped").open())


def test_what_is_piped_in(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("webm", "mp4"):
        with VideoWriter(f"v.{suffix}", 20, (48, 64)) as video:
            for index in range(9):
                video.write(plain(index // 3))
        piped(Path(f"v.{suffix}").read_bytes(), monkeypatch, tmp_path)
        assert predict_source("-", predict, CLASSES, Path(suffix), save=["labels"]) == [Path(f"{suffix}/stdin_labels")]
        assert len(list(Path(f"{suffix}/stdin_labels").iterdir())) == 9
    piped(jpeg(plain(0)), monkeypatch, tmp_path)
    assert predict_source("-", predict, CLASSES, Path("out")) == [Path("out/stdin_overlay.png")]
    frames = b"".join(plain(index, 48, 66).tobytes() for index in range(5))
    piped(frames, monkeypatch, tmp_path)
    predict_source(find_source("-", raw=(66, 48)), predict, CLASSES, Path("raw"))
    with VideoReader("raw/stdin_overlay.webm") as read:
        shown = list(read)
    assert len(shown) == 5 and shown[0].shape[1] == 66
    piped(frames[:-10], monkeypatch, tmp_path)
    with pytest.raises(PartialVideoError, match=r"ends within a frame of 66x48; result holds 4 frames$"):
        predict_source(find_source("-", raw=(66, 48)), predict, CLASSES, Path("cut"))
    told = "^config: --raw is width and height, at least 1, of frames on standard input; name - as the source$"
    for name, raw in (("v.mp4", (66, 48)), ("-", (0, 48)), ("-", (-66, -48))):
        with pytest.raises(ConfigError, match=told):
            find_source(name, raw=raw)
    told = r"^config: --fps is .*; it is the rate of --raw, 0\.5 to 480 \(videos have their own, images none\)$"
    for name, raw, fps in (
        *(("v.mp4", None, 30), ("frame_%04d.png", None, 30), ("-", None, 30)),
        *(("-", (66, 48), fps) for fps in (0, 0.4, 481, -25, float("nan"), float("inf"))),
    ):
        with pytest.raises(ConfigError, match=told):
            find_source(name, raw=raw, fps=fps)
    for data, told in ((b"", "data: standard input holds nothing"), (b"text" * 99, "video: standard input cannot be")):
        piped(data, monkeypatch, tmp_path)
        with pytest.raises((DataError, VideoError)) as caught:
            predict_source("-", predict, CLASSES, Path("none"))
        assert str(caught.value).startswith(told)


@pytest.mark.parametrize("fps", [0.5, 12.5, 29.97, 480])
def test_bare_frames_come_at_the_rate_that_is_named(
    fps: float, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(b"".join(plain(index).tobytes() for index in range(5)), monkeypatch, tmp_path)
    source = find_source("-", raw=(64, 48), fps=fps)
    predict_source(source, predict, CLASSES, Path("out"), save=["overlay", "csv"], video="mp4")
    with VideoReader("out/stdin_overlay.mp4") as read:
        times = [time for _, time in read.timed()]
        assert read.fps == pytest.approx(fps, rel=1e-3)
    wanted = [index / fps for index in range(5)]
    assert times == pytest.approx(wanted, abs=1e-3)
    (table,) = Path("out").glob("*.csv")
    said = [float(line.split(",")[2]) for line in table.read_text().splitlines()[1:]]
    assert said == pytest.approx(wanted, abs=1e-5)


def test_sound_that_comes_once_is_told(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with av.open("v.ts", "w") as container:
        stream, tone = container.add_stream("mpeg2video", rate=25), container.add_stream("aac", rate=48000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 48000
        for index in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plain(index), format="rgb24")))
            container.mux(tone.encode(silence))
        container.mux(stream.encode(None))
        container.mux(tone.encode(None))
    piped(Path("v.ts").read_bytes(), monkeypatch, tmp_path)
    told = r"^video: the sound of standard input is left out \(it is heard only once\)$"
    with pytest.warns(Segmv3Warning, match=told):
        predict_source("-", predict, CLASSES, Path("out"), video="mp4")


# ---- the whole command ----

STOPPED = """
import sys, time
from pathlib import Path
import numpy as np
from segmv3.labels import Classes
from segmv3.prediction import predict_source

def predict(image):
    time.sleep(0.03)
    return np.zeros(image.shape[:2], np.uint8)

try:
    predict_source(sys.argv[1], predict, Classes(("road",), ((128, 64, 128),)), Path("out"),
                   progress=lambda done, total: print(done, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_ctrl_c_ends_a_live_run_with_a_video_that_plays(here: Path, server: str) -> None:
    def mjpeg() -> Iterator[bytes]:
        while True:
            yield jpeg(plain(0))
            time.sleep(0.01)

    Handler.mjpeg = staticmethod(mjpeg)
    code, told, errors = stopped([sys.executable, "-c", STOPPED, f"{server}/cam"], signal.SIGINT, 8)
    assert code == 130 and " dropped: only the newest is taken" in errors and "Traceback" not in errors
    with VideoReader("out/cam_overlay.webm") as video:
        assert len(list(video)) >= told
    assert [path.name for path in Path("out").iterdir()] == ["cam_overlay.webm"]


@pytest.mark.filterwarnings("default::segmv3.errors.Segmv3Warning")
def test_the_command_refuses_a_source_before_it_opens_the_net(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "127", "--weights", "none", "--output", "out"]) == 3
    assert "camera 127 gives no pictures (" in capsys.readouterr().err
    assert not Path("out").exists()


def test_results_never_go_where_images_are_searched(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(plain(0)).save("a.png")
    for more in ([], ["--budget-ms", "50"]):
        assert main(["predict", ".", "--weights", "none", "--output", ".", *more]) == 2
        assert "is the folder the images are read from" in capsys.readouterr().err
