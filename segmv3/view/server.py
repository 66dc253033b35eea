"""The page of `segmv3 view`, served to this machine alone.

It listens on the loopback at a port that the system chooses, under a path that nobody can guess. It answers only
requests that name this host, so that no other page in the same browser can read it. There is only GET:
it takes nothing.
"""

import json
import secrets
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import cv2

from segmv3.errors import OutputError, Segmv3Error
from segmv3.images import UInt8Array
from segmv3.view.views import Gallery, LayerKind, Live
from segmv3.waiting import PATIENCE, giving_up

_STATIC = {"": "index.html", "view.css": "view.css", "view.js": "view.js"}
_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css", "js": "text/javascript"}
_POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'"


class Server(ThreadingHTTPServer):
    """Serves one gallery or live view.

    Attributes:
        url: what to open in a browser.
    """

    daemon_threads = True

    def __init__(self, shown: Gallery | Live, port: int = 0) -> None:
        """Listen.

        Args:
            shown: what the page shows.
            port: 0 lets the system choose.

        Raises:
            OutputError: the port is in use.
        """
        self.one_at_a_time = threading.Lock()  # a page asks for all layers at once, and they are made together
        self.reader: int | None = None  # the thread that makes them
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise OutputError(
                f"port {port} cannot be used ({error.strerror}); leave --port out, or name another"
            ) from None
        self.shown = shown
        self.token = secrets.token_urlsafe(12)
        self.url = f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def server_close(self) -> None:
        """Stop, and let no thread read any more: what it reads from is closed next."""
        super().server_close()
        with giving_up(self.reader):
            self.one_at_a_time.acquire(timeout=PATIENCE)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that turns away in the middle of an answer is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = cast(Server, self.server)
        host, path = self.headers.get("Host", ""), urlsplit(self.path)
        hosts = {f"{name}:{server.server_port}" for name in ("127.0.0.1", "localhost")}
        _, token, *rest = unquote(path.path).split("/")
        if host not in hosts or not secrets.compare_digest(token.encode(), server.token.encode()):
            self._send(404, b"not found", "text/plain")
            return
        query = {name: values[0] for name, values in parse_qs(path.query).items()}
        try:
            with server.one_at_a_time if rest[:1] in (["item"], ["frame"]) else nullcontext():
                server.reader = threading.get_ident()
                content, kind = _answer(server.shown, rest, query)
        except Segmv3Error as error:
            self._send(409, str(error).encode(), "text/plain; charset=utf-8")
        except (LookupError, ValueError):
            self._send(404, b"not found", "text/plain")
        else:
            self._send(200, content, kind)

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing: the terminal belongs to the command."""


def _answer(shown: Gallery | Live, path: list[str], query: dict[str, str]) -> tuple[bytes, str]:
    """What a path of the page gives, and its type.

    Raises:
        LookupError, ValueError: there is no such thing.
    """
    if len(path) == 1 and path[0] in _STATIC:
        name = _STATIC[path[0]]
        return files("segmv3.view").joinpath("static", name).read_bytes(), _TYPES[name.rpartition(".")[2]]
    if path == ["about"]:
        return json.dumps(_about(shown)).encode(), "application/json"
    if isinstance(shown, Live):
        if path != ["frame"]:
            raise LookupError
        return _frame(shown, int(query["after"])), "application/octet-stream"
    place, index, *layer = path
    if place != "item" or not 0 <= int(index) < len(shown.names):
        raise LookupError
    if layer == ["facts"]:
        return json.dumps(shown.facts(int(index))).encode(), "application/json"
    if layer == ["draw"]:
        shown.draws(int(index))
        return b"", "text/plain"
    kind = shown.layers[layer[0]]
    return _ENCODERS[kind](shown.layer(int(index), layer[0])), "image/jpeg" if kind == "picture" else "image/png"


def _about(shown: Gallery | Live) -> dict[str, Any]:
    classes = [
        {"name": name, "color": color} for name, color in zip(shown.classes.names, shown.classes.colors, strict=True)
    ]
    facts = {"title": shown.title, "classes": classes, "live": isinstance(shown, Live)}
    if isinstance(shown, Live):
        return facts | {"layers": {"image": "picture", "labels": "ids", "confidence": "confidence"}, "names": []}
    return facts | {"layers": dict(shown.layers), "names": list(shown.names)}


def _frame(live: Live, after: int) -> bytes:
    """A JSON header with its length in four bytes before it, then the layers one after the other; empty at the end."""
    frame = live.after(after)
    if frame is None:
        return b""
    layers = (_jpeg(frame.image), _png(frame.labels), _png(frame.confidence))
    header = {"number": frame.number, "time": frame.time, "milliseconds": frame.milliseconds}
    text = json.dumps(header | {"sizes": [len(layer) for layer in layers]}).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *layers])


def _jpeg(pixels: UInt8Array) -> bytes:
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def _png(values: UInt8Array) -> bytes:
    return cv2.imencode(".png", values, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


_ENCODERS: dict[LayerKind, Callable[[UInt8Array], bytes]] = {"picture": _jpeg, "ids": _png, "confidence": _png}
