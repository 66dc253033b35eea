"""Against a real server on this machine that can be told to misbehave."""

import contextlib
import hashlib
import resource
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import locked_elsewhere

from segmv3 import files
from segmv3.errors import CheckpointError, DataError, OutputError, ResourceError
from segmv3.weights import download
from segmv3.weights.download import Published, fetch

FILE = np.random.default_rng(0).bytes(1_000_000)
DIGEST = hashlib.sha256(FILE).hexdigest()


@dataclass
class Server:
    """Serves FILE at any path; `behave` may answer a request itself and then returns True."""

    url: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)
    served: int = 0
    behave: Callable[[BaseHTTPRequestHandler, int], bool] = lambda handler, number: False


def answer(
    handler: BaseHTTPRequestHandler,
    body: bytes,
    status: int = 200,
    upto: int | None = None,
    kind: str = "application/octet-stream",
    **headers: str,
) -> bool:
    """Send a response; with `upto` announce the whole and stop there."""
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), "Content-Type": kind, **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body[:upto])
    handler.server.state.served += len(body[:upto])
    return True


def answer_range(handler: BaseHTTPRequestHandler, upto: int | None = None, **headers: str) -> bool:
    """As a good server does: the rest that was asked for, unless the file changed since."""
    asked, known = handler.headers["Range"], handler.headers["If-Range"]
    if not asked or (known and known != '"v1"'):
        return answer(handler, FILE, upto=upto, ETag='"v1"', **headers)
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    if start >= len(FILE):
        return answer(handler, b"", 416, Content_Range=f"bytes */{len(FILE)}")
    span = f"bytes {start}-{len(FILE) - 1}/{len(FILE)}"
    return answer(handler, FILE[start:], 206, upto=upto, Content_Range=span, ETag='"v1"', **headers)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        state = self.server.state
        state.requests.append({"path": self.path, **self.headers})
        with contextlib.suppress(ConnectionError):
            state.behave(self, len(state.requests)) or answer_range(self)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("SEGMV3_CACHE", str(tmp_path / "cache"))
    for name in ("SEGMV3_MIRROR", "SEGMV3_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.state = Server(f"http://127.0.0.1:{listening.server_port}")
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield listening.state
        listening.shutdown()
        thread.join()


def published(server: Server, sha256: str = DIGEST, path: str = "/zoo/net-abc.pth") -> Published:
    return Published("zoo/net", server.url + path, sha256, "Apache-2.0", "the zoo's page", "72.3 %")


def left(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache" / "weights").iterdir() if p.name != ".lock")


def place(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights" / f"{DIGEST[:8]}-net-abc.pth"


def failure(server: Server, sha256: str = DIGEST, **options: object) -> str:
    with pytest.raises(CheckpointError) as error:
        fetch(published(server, sha256), say=lambda line: None, **options)
    assert "\n" not in str(error.value) and error.value.exit_code == 2
    return str(error.value)


def test_a_file_is_fetched_once_and_progress_is_told(server, tmp_path):
    told = []
    path = fetch(published(server), progress=lambda done, total: told.append((done, total)))
    assert path == place(tmp_path) and path.read_bytes() == FILE
    assert told[-1] == (len(FILE), len(FILE)) and [done for done, _ in told] == sorted(done for done, _ in told)
    assert fetch(published(server)) == fetch(published(server), offline=True) == path
    assert len(server.requests) == 1 and left(tmp_path) == [path.name]


def test_a_published_prefix_of_the_digest_suffices(server, tmp_path):
    assert fetch(published(server, DIGEST[:8])).read_bytes() == FILE
    with pytest.raises(ValueError, match="is no SHA-256"):
        published(server, "1234567")


def test_a_cut_connection_is_continued(server, tmp_path):
    server.behave = lambda handler, number: answer_range(handler, upto=300_000) if number <= 3 else False
    said = []
    assert fetch(published(server), say=said.append).read_bytes() == FILE
    assert server.served == len(FILE)  # not a byte twice
    assert [r.get("Range") for r in server.requests] == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert server.requests[1]["If-Range"] == '"v1"'
    assert len(said) == 3 and "the connection was cut; trying again" in said[0]


def test_the_next_run_continues_where_the_last_one_gave_up(server, tmp_path):
    server.behave = lambda handler, number: answer_range(handler, upto=150_000)
    assert "the connection was cut" in failure(server)
    assert len(server.requests) == 5 and left(tmp_path) == [f"{place(tmp_path).name}.part"]
    server.behave = lambda handler, number: False
    assert fetch(published(server)).read_bytes() == FILE
    assert server.served == len(FILE) and left(tmp_path) == [place(tmp_path).name]


def test_an_interrupted_run_keeps_its_part(server, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(published(server), progress=stop)
    (part,) = (path for path in place(tmp_path).parent.iterdir() if path.suffix == ".part")
    have = part.stat().st_size
    assert fetch(published(server)).read_bytes() == FILE
    assert have > 0 and server.requests[1]["Range"] == f"bytes={have}-"


def test_a_server_without_ranges_or_with_a_new_version_starts_again(server, tmp_path):
    server.behave = lambda handler, number: answer(handler, FILE, upto=300_000 if number == 1 else None)
    assert fetch(published(server), say=str).read_bytes() == FILE
    old = place(tmp_path).with_name(place(tmp_path).name + ".part")
    for number, part in enumerate((FILE, b"x" * len(FILE), b"x" * (len(FILE) + 9))):  # complete, foreign, too long
        place(tmp_path).unlink()
        old.write_bytes(part)
        server.requests.clear()
        server.behave = lambda handler, number: False
        assert fetch(published(server), say=str).read_bytes() == FILE and len(server.requests) == (0, 2, 2)[number]
    place(tmp_path).unlink()
    old.write_bytes(FILE[:10])
    wrong = {"status": 206, "Content_Range": "bytes 5-9/10"}
    server.behave = lambda handler, number: number == 1 and answer(handler, FILE[5:], **wrong)
    server.requests.clear()
    assert fetch(published(server), say=str).read_bytes() == FILE  # a part that was not asked for is not used


def test_a_wrong_file_is_not_kept(server, tmp_path):
    flipped = bytes([FILE[0] ^ 1]) + FILE[1:]
    for body in (flipped, b"\x80\x02another file", FILE[:-1], FILE + b"."):
        server.behave = lambda handler, number, body=body: answer(handler, body)
        line = failure(server, DIGEST[:8])
        assert hashlib.sha256(body).hexdigest() in line and f"expected {DIGEST[:8]}" in line and server.url in line
        assert left(tmp_path) == []


def test_a_damaged_part_does_not_survive(server, tmp_path):
    part = place(tmp_path).with_name(place(tmp_path).name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\0" * 1000)  # what a power cut can leave
    assert "is not the published file" in failure(server)
    assert fetch(published(server)).read_bytes() == FILE


def test_a_damaged_file_in_the_cache_is_replaced(server, tmp_path):
    path, said = fetch(published(server)), []
    path.write_bytes(FILE[:-1])
    assert "is damaged in the cache" in failure(server, offline=True)
    assert fetch(published(server), say=said.append).read_bytes() == FILE
    assert len(said) == 1 and str(path) in said[0]


def test_a_web_page_is_called_a_web_page(server, tmp_path):
    for body, kind in ((b"<!DOCTYPE html>", "application/octet-stream"), (b"Please log in", "text/html; charset=x")):
        server.behave = lambda handler, number, body=body, kind=kind: answer(handler, body, kind=kind)
        assert "sent a web page instead of the file" in failure(server)
        assert left(tmp_path) == []


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (500, 5), (503, 5), (429, 5)])
def test_a_refusal_is_told_and_only_a_passing_one_is_repeated(status, tries, server, tmp_path):
    server.behave = lambda handler, number: answer(handler, b"<html>", status)
    line = failure(server)
    assert f"HTTP {status}" in line and "SEGMV3_MIRROR" in line and "segmv3 weights import" in line
    assert len(server.requests) == tries
    server.behave = lambda handler, number: answer(handler, b"", status) if number == tries + 1 and tries > 1 else False
    assert fetch(published(server), say=str).read_bytes() == FILE


def test_redirects_lead_to_the_web_and_nowhere_else(server, tmp_path):
    def send_on(target):
        return lambda handler, number: handler.path.startswith("/zoo") and answer(handler, b"", 302, Location=target)

    for target, says in (("file:///etc/passwd", "not allowed"), ("ftp://127.0.0.1/net.pth", "sends on to ftp")):
        server.behave = send_on(target)
        assert says in failure(server)
    server.behave = send_on(f"{server.url}/zoo/net-abc.pth")
    assert "HTTP 302" in failure(server)  # in circles
    server.behave = send_on(f"{server.url}/elsewhere")
    assert fetch(published(server)).read_bytes() == FILE


def test_a_file_that_is_too_large_is_not_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_MAX_BYTES", 900_000)
    assert "larger than 0 MB" in failure(server)
    assert left(tmp_path) == []

    def unannounced(handler, number):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(FILE)
        return True

    server.behave = unannounced
    assert "larger than" in failure(server) and left(tmp_path) == []
    monkeypatch.undo()
    monkeypatch.setenv("SEGMV3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    told = []
    assert fetch(published(server), progress=lambda *p: told.append(p)).read_bytes() == FILE
    assert told[-1] == (len(FILE), None)


def test_no_network_is_one_line(server, tmp_path):
    item = Published("zoo/net", "http://127.0.0.1:9/net.pth", DIGEST, "", "", "")
    with pytest.raises(CheckpointError, match="http://127.0.0.1:9/net.pth cannot be fetched .Connection refused.; set"):
        fetch(item)
    item = Published("zoo/net", "https://no-such-host.invalid/net.pth", DIGEST, "", "", "")
    with pytest.raises(CheckpointError, match="the host name is not known"):
        fetch(item)


def test_a_silent_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.1)
    monkeypatch.setattr(download, "_TRIES", 2)
    release = threading.Event()
    server.behave = lambda handler, number: release.wait(5)
    assert "no answer for" in failure(server)
    release.set()
    assert len(server.requests) == 2


def test_offline_says_where_the_file_should_lie(server, tmp_path, monkeypatch):
    assert f"at {place(tmp_path)}" in failure(server, offline=True)
    monkeypatch.setenv("SEGMV3_OFFLINE", "1")
    assert "is not in the cache" in failure(server)
    assert not server.requests and not (tmp_path / "cache").exists()
    place(tmp_path).parent.mkdir(parents=True)
    place(tmp_path).write_bytes(FILE)
    assert fetch(published(server)) == place(tmp_path)
    monkeypatch.setenv("SEGMV3_OFFLINE", "0")
    place(tmp_path).unlink()
    assert fetch(published(server)) == place(tmp_path)


def test_a_mirror_replaces_the_original_host(server, tmp_path, monkeypatch):
    item = Published("zoo/net", "https://no-such-host.invalid/zoo/net-abc.pth?download=1", DIGEST, "", "", "")
    monkeypatch.setenv("SEGMV3_MIRROR", f"{server.url}/mirror/")
    assert fetch(item).read_bytes() == FILE and server.requests[0]["path"] == "/mirror/net-abc.pth"
    place(tmp_path).unlink()
    disk = tmp_path / "a disk"
    disk.mkdir()
    monkeypatch.setenv("SEGMV3_MIRROR", f"file://{disk}")
    with pytest.raises(CheckpointError, match="cannot be fetched .No such file"):
        fetch(item)
    (disk / "net-abc.pth").write_bytes(FILE)
    assert fetch(item).read_bytes() == FILE and len(server.requests) == 1
    for wrong in ("ftp://127.0.0.1", "/srv/mirror", "http://[", "http://host:port"):
        place(tmp_path).unlink(missing_ok=True)
        monkeypatch.setenv("SEGMV3_MIRROR", wrong)
        with pytest.raises(CheckpointError):
            fetch(item)


def test_the_cache_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.delenv("SEGMV3_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "segmv3"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / ".cache" / "segmv3"
    monkeypatch.setenv("SEGMV3_CACHE", "~/mine")
    assert files.cache_folder() == tmp_path / "mine"


def test_a_download_waits_for_another_and_uses_what_it_brought(server, tmp_path):
    path, said = fetch(published(server)), []
    path.unlink()
    with locked_elsewhere(path.parent / ".lock") as other:

        def brings(line):
            said.append(line)
            path.write_bytes(FILE)
            other.kill()

        assert fetch(published(server), say=brings).read_bytes() == FILE
    assert len(server.requests) == 1 and len(said) == 1 and "waiting for another download" in said[0]


def test_a_full_disk_keeps_what_arrived(server, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, limits[1]))
    try:
        with pytest.raises(ResourceError, match="the disk is full") as error:
            fetch(published(server))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.exit_code == 4 and len(server.requests) == 1
    assert fetch(published(server)).read_bytes() == FILE
    assert server.requests[1]["Range"] == "bytes=600000-"


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="cache"):
        fetch(published(server))


def test_the_digest_of_a_file_and_of_one_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")  # FIPS 180-4, its first example
    with pytest.raises(DataError, match=r"/b cannot be read \(No such file or directory\)$"):
        files.sha256(tmp_path / "b")
    with pytest.raises(CheckpointError, match="cannot be read"):  # what finetune goes on without
        files.sha256(tmp_path / "b", CheckpointError)
