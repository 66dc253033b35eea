"""Videos: as many frames out as in, right colours, and a playable file whatever happens in between."""

import builtins
import errno
import os
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import stopped
from hypothesis import given, settings
from hypothesis import strategies as st

from segmv3.errors import OutputError, PartialVideoError, ResourceError, Segmv3Warning, VideoError
from segmv3.images import UInt8Array
from segmv3.media import encoding
from segmv3.media import video as video_module
from segmv3.media.encoding import VideoWriter, _to_yuv420
from segmv3.media.frames import _to_sdr
from segmv3.media.video import VideoReader, _Clock

av = pytest.importorskip("av")

RED, GREY = (220, 20, 60), (40, 40, 40)


def square(index: int, height: int = 48, width: int = 64) -> UInt8Array:
    """Grey with a red square of 16 pixels that moves right by 2 pixels a frame."""
    frame = np.full((height, width, 3), GREY, np.uint8)
    left = 2 * index % (width - 16)
    frame[8:24, left : left + 16] = RED
    return frame


def write(path: Path, count: int, height: int = 48, width: int = 64, fps: float = 25.0) -> Path:
    with VideoWriter(path, fps, (height, width)) as video:
        for index in range(count):
            video.write(square(index, height, width))
    return path


def encode(path: Path, times: list[int], *, rate: int = 25, noise: bool = True, **options: str) -> Path:
    """A foreign MPEG-4 video made by PyAV alone, one frame at each of `times` (in units of 1 / rate s)."""
    random = np.random.default_rng(0)
    muxing = {"movflags": "faststart"} if path.suffix == ".mp4" else {}  # the index first, so cuts can be read
    with av.open(str(path), "w", options=muxing) as container:
        stream = container.add_stream("mpeg4", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index, time in enumerate(times):
            pixels = random.integers(0, 255, (48, 64, 3), dtype=np.uint8) if noise else square(index)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path: Path) -> list[UInt8Array]:
    with VideoReader(path) as video:
        return list(video)


# ---- writing and reading back ----


@pytest.mark.parametrize("name", ["v.webm", "v.mp4", "ü 日本.WEBM"])
def test_every_frame_comes_back_in_order_and_colour(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, 20)
    with VideoReader(path) as video:
        assert video.size == (48, 64)
        assert video.fps == pytest.approx(25)
        frames = list(video)
        assert video.frames_read == 20
    assert len(frames) == 20
    for index, frame in enumerate(frames):
        assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8 and frame.flags.c_contiguous
        left = 2 * index % 48
        red = np.abs(frame[12:20, left + 4 : left + 12].astype(int) - RED)
        assert red.mean() < 6 and red.max() < 40  # the codec may spoil a pixel of a frame
        assert np.abs(frame[34:46].astype(int) - GREY).max() < 12
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(os.name == "nt", reason="no colons in names on Windows")
def test_a_colon_is_no_protocol_and_a_percent_sign_no_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(read(write(Path("rec12:30 %03d.webm"), 3))) == 3
    assert os.listdir() == ["rec12:30 %03d.webm"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("suffix", "codec", "name"), [(".webm", None, "vp9"), (".mp4", None, "h264"), (".mp4", "AV1", "libdav1d")]
)
def test_the_suffix_chooses_the_codec_and_colours_are_told(
    tmp_path: Path, suffix: str, codec: str | None, name: str
) -> None:
    with VideoWriter(tmp_path / f"v{suffix}", 25, (64, 96), codec=codec) as video:
        for index in range(12):
            video.write(square(index, 64, 96))
    with av.open(str(video.path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == (name, "yuv420p")
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited
    frames = read(video.path)
    assert len(frames) == 12
    for index, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - square(index, 64, 96)).mean() < 6


def test_what_is_taken_where_an_encoder_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        known = {codec: {} if codec == name else table for codec, table in encoding._ENCODERS.items()}
        monkeypatch.setattr(encoding, "_ENCODERS", known)

    missing("H.264")
    with pytest.warns(
        Segmv3Warning, match=r"^video: no encoder for H\.264 opens here; v\.mp4 becomes AV1 \(libsvtav1\)$"
    ):
        path = write(tmp_path / "v.mp4", 3, 64, 64)
    assert len(read(path)) == 3
    missing("AV1")
    with (
        pytest.warns(Segmv3Warning, match=r"v\.mp4 becomes VP9 \(libvpx-vp9\)$"),
        VideoWriter(path, 9, (2, 2), overwrite=True),
    ):
        pass
    missing("VP9")
    with pytest.raises(ResourceError, match=r"no encoder here for \.webm \(looked for VP9, AV1\); reinstall av$"):
        VideoWriter(tmp_path / "v.webm", 9, (64, 64))
    assert list(tmp_path.iterdir()) == [path]


def with_sound(path: Path, seconds: int, codec: str = "aac", sound_seconds: int | None = None) -> Path:
    """A video that begins late in its file, with a tone."""
    with av.open(str(path), "w") as container:
        stream, tone = container.add_stream("mpeg4", rate=10), container.add_stream(codec, rate=48000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(10 * seconds):
            frame = av.VideoFrame.from_ndarray(square(index), format="rgb24")
            frame.pts, frame.time_base = index + 5, Fraction(1, 10)
            container.mux(stream.encode(frame))
        wave = np.sin(np.arange(1024) * 2 * np.pi * 440 / 48000).astype(np.float32)[None]
        for index in range(48000 * (sound_seconds or seconds) // 1024):
            sound = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 48000, 1024 * index + 24000, Fraction(1, 48000)
            container.mux(tone.encode(sound))
        container.mux(stream.encode(None))
        container.mux(tone.encode(None))
    return path


@pytest.mark.parametrize(
    ("source", "target"), [("v.mp4", "w.mp4"), ("v.mov", "w.mp4"), ("v.ts", "w.mp4"), ("v.mkv", "w.webm")]
)
@pytest.mark.parametrize("sound_seconds", [1, 3, 5])
def test_sound_is_copied(tmp_path: Path, source: str, target: str, sound_seconds: int) -> None:
    codec = "libopus" if target == "w.webm" else "aac"
    path = with_sound(tmp_path / source, 3, codec, sound_seconds)
    with VideoReader(path) as video, VideoWriter(tmp_path / target, 10, video.size, sound=video.sound) as copy:
        for frame, time in video.timed():
            copy.write(frame, time)
    assert len(read(tmp_path / target)) == 30
    with av.open(str(tmp_path / target)) as container:
        assert container.streams.audio[0].codec_context.name.startswith(codec.removeprefix("lib"))
        frames = list(container.decode(audio=0))
    assert frames[0].time == pytest.approx(0, abs=0.05)
    assert frames[-1].time + frames[-1].samples / 48000 == pytest.approx(min(sound_seconds, 3), abs=0.1)


def test_sound_that_a_container_does_not_hold_is_told(tmp_path: Path) -> None:
    with VideoReader(with_sound(tmp_path / "v.mp4", 1)) as video:
        said = r"^video: the sound of .*v\.mp4 is left out \(\.webm holds opus or vorbis, not aac\); an MP4 keeps it$"
        with (
            pytest.warns(Segmv3Warning, match=said),
            VideoWriter(tmp_path / "w.webm", 10, video.size, sound=video.sound),
        ):
            pass
    assert VideoReader(write(tmp_path / "w.webm", 2)).sound is None


@pytest.mark.parametrize("size", [(47, 63), (48, 63), (1, 1), (7, 30)])
def test_odd_sizes_are_padded_by_their_edge(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    rows = np.linspace(40, 200, height).astype(np.uint8)
    picture = np.repeat(np.repeat(rows[:, None, None], width, axis=1), 3, axis=2)
    with VideoWriter(tmp_path / "v.webm", 10, size) as video:
        for _ in range(5):
            video.write(picture)
    frames = read(tmp_path / "v.webm")
    assert len(frames) == 5
    assert frames[0].shape == (height + height % 2, width + width % 2, 3)
    expected = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    assert np.abs(frames[-1].astype(int) - expected).mean() < 6


@pytest.mark.parametrize("fps", [30000 / 1001, 12.5, 480.0, 1000.0, 0.5, 1 / 60])
def test_the_frame_rate_is_not_rounded_to_a_whole_number(tmp_path: Path, fps: float) -> None:
    with VideoReader(write(tmp_path / "v.mp4", 4, fps=fps)) as video:
        assert video.fps == pytest.approx(fps, rel=1e-5)


def test_views_and_turned_arrays_can_be_written(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.webm", 10, (64, 48)) as video:
        video.write(np.rot90(square(0)))
    assert read(tmp_path / "v.webm")[0].shape == (64, 48, 3)


@pytest.mark.parametrize("frame", [np.zeros((48, 62, 3), np.uint8), np.zeros((48, 64, 3)), np.zeros((48, 64))])
def test_a_frame_of_another_size_or_type_is_not_dropped_in_silence(tmp_path: Path, frame: np.ndarray) -> None:
    with (
        VideoWriter(tmp_path / "v.webm", 10, (48, 64)) as video,
        pytest.raises(ValueError, match="announced"),
    ):
        video.write(frame)
    assert list(tmp_path.iterdir()) == []


# ---- interruptions and failures while writing ----


@pytest.mark.parametrize("suffix", [".webm", ".mp4"])
@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_exception_leaves_a_playable_result(tmp_path: Path, suffix: str, exception: type[BaseException]) -> None:
    path = tmp_path / f"v{suffix}"
    with pytest.raises(exception), VideoWriter(path, 25, (48, 64)) as video:
        for index in range(7):
            assert not path.exists()
            video.write(square(index))
        raise exception
    assert len(read(path)) == 7
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize("sound", [0, 1, 9])
@pytest.mark.parametrize(("suffix", "codec"), [(".webm", "VP9"), (".mp4", "H.264"), (".mp4", "AV1")])
def test_ctrl_c_and_a_hard_kill(tmp_path: Path, suffix: str, codec: str, sound: int) -> None:
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from segmv3.media.encoding import VideoWriter\n"
        "from segmv3.media.sound import Sound\n"
        "sound = Sound(Path(sys.argv[2]), sys.argv[3], 0) if len(sys.argv) > 2 else None\n"
        f"with VideoWriter(sys.argv[1], 25, (64, 64), codec='{codec}', sound=sound) as video:\n"
        "    while True:\n"
        "        video.write(np.zeros((64, 64, 3), np.uint8))\n"
        "        print(video.frames_written, flush=True)\n"
    )
    name, heard = "libopus" if suffix == ".webm" else "aac", list[str]()
    if sound:
        (tmp_path / "in").mkdir()
        heard = [str(with_sound(tmp_path / "in/s.mkv", 1, name, sound)), name.removeprefix("lib")]
    for number, left in ((signal.SIGINT, f"v{suffix}"), (signal.SIGKILL, f".v.*.partial{suffix}")):
        command = [sys.executable, "-c", script, str(tmp_path / f"v{suffix}"), *heard]
        _, written, _ = stopped(command, number, 60)
        (path,) = tmp_path.glob(left)
        assert read_what_there_is(path) >= (written if number == signal.SIGINT else written - 2 - bool(sound))
        path.unlink()


def read_what_there_is(path: Path) -> int:
    with VideoReader(path) as video:
        try:
            return sum(1 for _ in video)
        except PartialVideoError:
            return video.frames_read


def test_an_existing_file_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "v.webm"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError) as caught:
        VideoWriter(path, 25, (48, 64))
    assert str(caught.value) == f"output: {path} exists; choose another name"
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]
    with VideoWriter(path, 25, (48, 64), overwrite=True) as video:
        video.write(square(0))
        assert path.read_bytes() == b"precious"  # until the new one is complete
    assert len(read(path)) == 1


def test_no_frames_no_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.webm", 25, (48, 64)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no/v\.webm cannot be written \(No such file or directory\)$"):
        VideoWriter(tmp_path / "no/v.webm", 25, (48, 64))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/v\.webm cannot be written \(Not a directory\)$"):
        VideoWriter(tmp_path / "file/v.webm", 25, (48, 64))
    with pytest.raises(OutputError, match=r"v\.avi is of a type that cannot be written; name it \.webm or"):
        VideoWriter(tmp_path / "v.avi", 25, (48, 64))


@pytest.mark.skipif(os.name == "nt", reason="needs resource limits")
@pytest.mark.parametrize("suffix", [".webm", ".mp4"])
def test_a_full_disk_is_one_line_that_says_what_is_left(tmp_path: Path, suffix: str) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    random = np.random.default_rng(0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # every longer file fails with EFBIG
    try:
        with pytest.raises(ResourceError) as caught, VideoWriter(tmp_path / f"v{suffix}", 25, (240, 320)) as video:
            for _ in range(200):
                video.write(random.integers(0, 255, (240, 320, 3), dtype=np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (partial,) = tmp_path.iterdir()
    held = read_what_there_is(partial)
    assert str(caught.value) == (
        f"environment: the disk is full: {tmp_path}/v{suffix} cannot be finished; "
        f"{held} of {video.frames_written} frames are in {partial.name}"
    )
    assert caught.value.exit_code == 4
    assert video.frames_written - 2 <= held <= video.frames_written


def test_two_writers_of_one_name_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "v.webm"
    with VideoWriter(path, 25, (48, 64)) as first, VideoWriter(path, 25, (48, 64)) as second:
        for index in range(6):
            first.write(square(index))
            if index % 2:
                second.write(square(index))
    assert len(read(path)) == 6  # the one that was left last
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_that_are_no_utf_8_or_too_long(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"stra\xdfe" + b"x" * 240 + b".webm")
    assert len(read(write(path, 3))) == 3
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match=r"y\.webm cannot be written \(File name too long\)$"):
        VideoWriter(tmp_path / ("y" * 255 + ".webm"), 25, (48, 64))


# ---- foreign and broken input ----


@pytest.mark.parametrize("suffix", [".mp4", *(pytest.param(each, marks=pytest.mark.slow) for each in (".mkv", ".avi"))])
def test_a_cut_video_gives_what_it_has_and_then_says_so(tmp_path: Path, suffix: str) -> None:
    whole = encode(tmp_path / f"whole{suffix}", list(range(100)))
    assert len(read(whole)) == 100
    data = whole.read_bytes()
    counts = []
    for percent in range(15, 100, 10):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(data[: len(data) * percent // 100])
        with VideoReader(cut) as video:
            frames = []
            with pytest.raises(PartialVideoError) as caught:
                for frame in video:
                    frames.append(frame)  # noqa: PERF402 (what came before the error counts)
        assert len(frames) == video.frames_read
        counts.append(len(frames))
        announced = "" if suffix == ".mkv" else f"only {len(frames)} of the announced 100 frames could be read; "
        assert str(caught.value) == f"video: {announced}result holds {len(frames)} frames ({cut} is cut or damaged)"
        assert caught.value.exit_code == 3
    assert counts == sorted(set(counts)) and counts[0] >= 1 and counts[-1] >= 85


def test_a_damaged_stretch_is_skipped_and_told(tmp_path: Path) -> None:
    data = bytearray(encode(tmp_path / "v.mp4", list(range(100))).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8000] = bytes(8000)
    (tmp_path / "v.mp4").write_bytes(data)
    with VideoReader(tmp_path / "v.mp4") as video:
        with pytest.raises(PartialVideoError, match=r"^video: .*result holds \d+ frames"):
            for _ in video:
                pass
        assert 50 < video.frames_read <= 100


def test_a_trimmed_mp4_is_not_called_damaged(tmp_path: Path) -> None:
    """A trim without encoding keeps frames before the first shown one and hides them by an edit list."""
    encode(tmp_path / "v.mp4", list(range(100)))
    with av.open(str(tmp_path / "v.mp4")) as source, av.open(str(tmp_path / "trim.mp4"), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        second = int(1 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - second, packet.dts - second, copy
                target.mux(packet)
    with VideoReader(tmp_path / "trim.mp4") as video:
        assert video.announced_frames == 75
        assert len(list(video)) == 75


ORIENTATIONS = {  # the display matrix's a, b, c, d, and what a player makes of a stored frame
    (1, 0, 0, 1): lambda f: f,
    (0, 1, -1, 0): lambda f: np.rot90(f, -1),  # the camera was held sideways: turned clockwise
    (-1, 0, 0, -1): lambda f: np.rot90(f, 2),
    (0, -1, 1, 0): lambda f: np.rot90(f, 1),
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda f: f.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda f: np.rot90(f, 2).transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_frames_are_turned_and_mirrored_as_the_file_asks(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    data = encode(tmp_path / "v.mp4", [0, 1], noise=False).read_bytes()
    one = [value << 16 for value in (1, 0, 0, 0, 1, 0, 0, 0, 1 << 14)]
    a, b, c, d = (value << 16 for value in matrix)
    told = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    header = data.index(b"tkhd")
    at = data.index(struct.pack(">9i", *one), header)
    (tmp_path / "v.mp4").write_bytes(data[:at] + told + data[at + 36 :])
    shown = ORIENTATIONS[matrix](square(0))
    with VideoReader(tmp_path / "v.mp4") as video:
        frame = next(iter(video))
        assert video.size == shown.shape[:2] == frame.shape[:2]
    assert np.abs(frame.astype(int) - shown).mean() < 5


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(64, 45), 91), (Fraction(8, 9), 57), (Fraction(1), 64)])
def test_pixels_become_square(tmp_path: Path, aspect: Fraction, width: int) -> None:
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        container.mux(stream.encode(av.VideoFrame.from_ndarray(square(0), format="rgb24")))
        container.mux(stream.encode(None))
    with VideoReader(tmp_path / "v.mp4") as video:
        (frame,) = video
    assert video.size == (48, width) and frame.shape == (48, width, 3)
    assert (frame[16, :, 0] > 130).sum() == pytest.approx(16 * width / 64, abs=2)  # the square is as wide as shown


def test_of_several_streams_the_one_ffmpeg_takes(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        streams = [container.add_stream("mpeg4", rate=10) for _ in range(3)]
        for stream, (width, height) in zip(streams, [(32, 32), (64, 48), (48, 48)], strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = 0
        for stream in streams:
            picture = av.VideoFrame.from_ndarray(square(0, stream.height, stream.width), format="rgb24")
            container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    text = r"v\.mkv holds 3 video streams: 1 \(64x48\) is read, 0 \(32x32\), 2 \(48x48\) left out$"
    with pytest.warns(Segmv3Warning, match=text), VideoReader(tmp_path / "v.mkv") as video:
        assert video.size == (48, 64)


@pytest.mark.parametrize("rate", [1000, 480])
def test_a_high_frame_rate_is_kept(tmp_path: Path, rate: int) -> None:
    with VideoReader(encode(tmp_path / "v.mp4", list(range(10)), rate=rate)) as video:
        assert video.fps == rate
        assert [time for _, time in video.timed()] == [Fraction(index, rate) for index in range(10)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("first", [0, 130])
def test_times_are_kept(tmp_path: Path, suffix: str, first: int) -> None:
    ticks = [*range(10), *range(100, 150, 5), *range(150, 160)]
    path = encode(tmp_path / f"v{suffix}", [first + tick for tick in ticks])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with VideoReader(path) as video, VideoWriter(tmp_path / "w.webm", video.fps, video.size) as copy:
            for frame, time in video.timed():
                copy.write(frame, time)
        with VideoReader(tmp_path / "w.webm") as video:
            times = [float(time) for _, time in video.timed()]
    assert times == pytest.approx([tick / 25 for tick in ticks], abs=0.002)


def test_times_that_repeat_begin_anew_or_are_missing() -> None:
    def times(said: list[float | None], *, restarts: bool = False) -> list[float]:
        clock = _Clock(Fraction(1, 10), restarts)
        return [float(clock.at(None if each is None else Fraction(each))) for each in said]

    assert times([5, 5.5, 5.75]) == [0, 0.5, 0.75]
    assert times([None, None, None]) == [0, 0.1, 0.2]
    assert times([1, None, 1.5]) == [0, 0.1, 0.5]
    assert times([0, 0, 0.5]) == [0, 0.001, 0.5]
    assert times([100, 100.5, 0, 0.5]) == [0, 0.5, 0.6, 1.1]
    assert times([0, 3600, 3600.5]) == [0, 3600, 3600.5]
    assert times([0, 3600, 3600.5], restarts=True) == [0, 0.1, 0.6]


def test_empty_chunks_of_an_avi_repeat_the_frame_before(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.avi", [*range(4), *range(12, 20)], rate=10, noise=False)  # FFmpeg writes 8 empty ones
    data = path.read_bytes()
    index = data.rindex(b"idx1")
    length = int.from_bytes(data[index + 4 : index + 8], "little") + 32
    empty = struct.pack("<4sIII", b"00dc", 0, 0, 0)
    data = data[: index + 4] + struct.pack("<I", length) + data[index + 8 :] + 2 * empty  # and two at the end
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    with VideoReader(path) as video:
        frames, times = zip(*video.timed(), strict=True)
    shown = [*range(4), *[3] * 8, *range(4, 12), 11, 11]
    assert times == tuple(Fraction(index, 10) for index in range(22))
    for index, frame in zip(shown, frames, strict=True):
        assert np.abs(frame.astype(int) - square(index)).mean() < 6


def test_frames_of_an_avi_that_are_stored_out_of_order(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.avi", list(range(20)), noise=False, bf="2")
    with VideoReader(path) as video:
        frames, times = zip(*video.timed(), strict=True)
    assert times == tuple(Fraction(index, 25) for index in range(20))
    for index, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - square(index)).mean() < 6


def test_lengths_that_nobody_knew_are_no_damage(tmp_path: Path) -> None:
    data = bytearray(encode(tmp_path / "v.avi", list(range(12))).read_bytes())
    for at in (4, data.index(b"movi") - 4):  # as where the file went through a pipe
        data[at : at + 4] = b"\xff" * 4
    (tmp_path / "v.avi").write_bytes(data[: data.rindex(b"idx1")])
    assert len(read(tmp_path / "v.avi")) == 12


@pytest.mark.parametrize("announced", [3, 12, 500])
def test_a_wrong_count_is_no_damage(tmp_path: Path, announced: int) -> None:
    path = encode(tmp_path / "v.avi", list(range(12)))
    data = path.read_bytes()
    for chunk, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = data.index(chunk) + offset
        assert int.from_bytes(data[at : at + 4], "little") == 12
        data = data[:at] + struct.pack("<I", announced) + data[at + 4 :]
    path.write_bytes(data)
    assert len(read(path)) == 12


def test_memory_that_runs_out_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")

    path = write(tmp_path / "v.webm", 3)
    with VideoReader(path) as video:
        decoder = SimpleNamespace(
            demux=lambda stream: iter([SimpleNamespace(size=1, dts=0)]), format=video._container.format
        )
        monkeypatch.setattr(video, "_stream", SimpleNamespace(decode=full))
        with monkeypatch.context() as patched, pytest.raises(MemoryError):
            patched.setattr(video, "_container", decoder)
            next(video._decode())
    monkeypatch.setattr(av, "open", full)
    with pytest.raises(MemoryError):
        VideoReader(path)
    with pytest.raises(MemoryError):
        VideoWriter(tmp_path / "w.webm", 25, (48, 64))
    assert list(tmp_path.iterdir()) == [path]


def test_a_frame_over_the_limit_of_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "v.webm", 1)
    monkeypatch.setattr(video_module, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match=r"v\.webm has frames of 64x48: over the limit of 3,071 pixels$"):
        VideoReader(path)


def test_a_steady_video_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(write(tmp_path / "v.webm", 12, fps=23.976))) == 12


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("<html>not found</html>")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    if os.name != "nt":
        os.mkfifo(tmp_path / "pipe.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    for name, told in {
        "none.mp4": "does not exist",
        "folder.mp4": "is a folder, not a video",
        **({} if os.name == "nt" else {"pipe.mp4": "is a pipe or a device, not a file"}),
        "text.mp4": "cannot be opened as a video (Invalid data found when processing input); ",
        "empty.mp4": "cannot be opened as a video (Invalid data found when processing input); ",
        "sound.mp4": "has no video stream (found: audio)",
    }.items():
        with pytest.raises(VideoError) as caught:
            VideoReader(tmp_path / name)
        assert str(caught.value).startswith(f"video: {tmp_path / name} {told}")
        assert caught.value.exit_code == 2


def test_without_the_package_av(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "v.webm", 1)
    real = builtins.__import__

    def without_av(name: str, *rest: object) -> object:
        if name == "av":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_av)
    for opening in (lambda: VideoReader(path), lambda: VideoWriter(tmp_path / "w.webm", 25, (48, 64))):
        with pytest.raises(ResourceError) as caught:
            opening()
        assert str(caught.value) == ('environment: video needs the package av: pip install "segmv3[video]"')


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    import tracemalloc

    path = write(tmp_path / "v.webm", 120, 240, 320)
    with VideoReader(path) as video:
        tracemalloc.start()
        frames = iter(video)
        for _ in range(20):
            next(frames)
        early = tracemalloc.get_traced_memory()[1]
        for _ in frames:
            pass
        late = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert late - early < 2 * 240 * 320 * 3  # less than two frames over a hundred


# ---- colours ----


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_conversion_for_the_encoder_is_that_of_bt_709(height: int, width: int, seed: int) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tall, wide = height + height % 2, width + width % 2
    planes = np.zeros((tall * 3 // 2, wide), np.uint8)
    _to_yuv420(frame, [planes[:tall], *planes[tall:].reshape(2, tall // 2, wide // 2)])
    red, green, blue = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").transpose(2, 0, 1) / 255
    grey = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    np.testing.assert_allclose(planes[:tall], 16 + 219 * grey, atol=1)
    for plane, color, reach in zip(planes[tall:].reshape(2, -1), (blue, red), (1.8556, 1.5748), strict=True):
        difference = ((color - grey) / reach).reshape(tall // 2, 2, wide // 2, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(plane, (128 + 224 * difference).ravel(), atol=1.5)


def pq(light: float) -> float:
    """SMPTE ST 2084: cd/m2 -> 0..1."""
    power = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light: float) -> float:
    """ARIB STD-B67, for a grey on a screen of 1000 cd/m2."""
    scene = (light / 1000) ** (1 / 1.2)
    return (3 * scene) ** 0.5 if scene <= 1 / 12 else 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073


@pytest.mark.parametrize(("transfer", "encoded"), [(16, pq), (18, hlg)])
def test_hdr_becomes_what_a_screen_shows(tmp_path: Path, transfer: int, encoded: Callable[[float], float]) -> None:
    for grey in (0, 10, 124, 200, 255):
        value = grey / 255
        light = 203 * (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
        code = np.full((2, 3, 3), round(65535 * encoded(light)), np.uint16)
        np.testing.assert_allclose(_to_sdr(code, transfer), grey, atol=1)
    assert (_to_sdr(np.full((1, 1, 3), 65535, np.uint16), transfer) == 255).all()


def test_hdr_colours_come_from_bt_2020(tmp_path: Path) -> None:
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # ITU-R BT.2087
    linear = np.where(np.array(RED) > 10, ((np.array(RED) / 255 + 0.055) / 1.055) ** 2.4, 0)
    codes = [round(1023 * pq(203 * part)) for part in to_2020 @ linear]
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gbrp10le"
        stream.codec_context.color_trc = 16
        pixels = np.broadcast_to(np.array(codes, np.uint16), (48, 64, 3)).copy()
        frame = av.VideoFrame.from_ndarray(pixels, format="gbrp10le")
        frame.color_trc = 16
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (shown,) = read(path)
    assert np.abs(shown.astype(int) - RED).max() <= 3


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("matrix", "red", "blue"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (9, 0.2627, 0.0593)])
def test_the_colours_of_a_file_are_obeyed(tmp_path: Path, matrix: int, red: float, blue: float, full: bool) -> None:
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1 + full
        planes = np.repeat(np.array([100, 90, 200], np.uint8), [48, 12, 12])[:, None].repeat(64, 1)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.colorspace, frame.color_range = matrix, 1 + full
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    grey, cb, cr = (100 / 255, -38 / 255, 72 / 255) if full else (84 / 219, -38 / 224, 72 / 224)
    r, b = grey + 2 * (1 - red) * cr, grey + 2 * (1 - blue) * cb
    shown = np.array([r, (grey - red * r - blue * b) / (1 - red - blue), b]) * 255
    assert np.abs(read(path)[0][24, 32] - shown).max() < 3
