"""Pictures and videos at addresses. Nothing here is called but for an address that the user named as the source."""

import math
import ssl
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from segmv3.errors import DataError, VideoError, shortened
from segmv3.files import write_error
from segmv3.images import is_image
from segmv3.media.containers import import_av, reason
from segmv3.screen import download_bar
from segmv3.waiting import in_thread

WEB = ("http", "https")
STREAMS = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp")
_PROTOCOLS = ",".join((*WEB, *STREAMS, "tls", "httpproxy", "crypto", "data"))  # what comes from the net reads no files
_CHUNK = 1 << 18  # bytes
PATIENCE = 10  # seconds without a byte
_PLAYLISTS = (b"#EXTM3U", b"<MPD", b"<?xml")
_PAGES = (b"<!doctype", b"<html", b"<head", b"<body")


def _bare(address: str) -> str:
    """An address without a password."""
    scheme, rest = address.split("://", 1)
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def shown(address: str) -> str:
    """An address for messages: without a password, and not longer than a line."""
    return shortened(_bare(address), 200)


def name_of(address: str) -> str:
    """How results of an address are named: by the last part of its path, else by its host."""
    parts = urlsplit(address)
    last = Path(unquote(parts.path)).stem or parts.hostname or parts.scheme
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in last)[:100].lstrip(".") or "stream"


@dataclass(frozen=True)
class Answer:
    """What a web server gives for an address.

    Attributes:
        image: the whole file, where it is a picture.
        endless: whether it is a stream: a playlist, or without an end that is known.
        multipart: whether it is a row of pictures, as cameras send it.
    """

    image: bytes | None
    endless: bool
    multipart: bool


def ask(address: str, most: int) -> Answer:
    """Look at what a web server gives.

    Args:
        address: begins with http:// or https://.
        most: largest picture that is taken, in bytes.

    Raises:
        DataError: nothing is there, or a web page; or the certificate is not trusted.
    """
    response, head = in_thread(lambda: _request(address))  # a look-up of a name obeys no signal
    with response:
        kind = response.headers.get_content_type()
        start = head.lstrip().lower()
        if start.startswith(_PAGES) or (kind == "text/html" and not is_image(head)):
            raise DataError(f"{shown(address)} is a web page; name the address of the picture or video itself")
        if is_image(head):
            data = b"".join(_parts(address, response, head, most))
            if len(data) > most:
                raise DataError(f"{shown(address)} is a picture of more than {most:,} bytes")
            return Answer(data, False, False)
        playlist = head.lstrip().startswith(_PLAYLISTS)
        multipart = kind.startswith("multipart/")
        return Answer(None, playlist or multipart or not _length(response.headers), multipart)


def download(address: str, folder: Path) -> Path:
    """Save a file of a known length. One that breaks off is kept: its reader says so.

    Raises: DataError as `ask`; ResourceError when the disk is full.
    """
    response, head = in_thread(lambda: _request(address))  # a look-up of a name obeys no signal
    path = folder / "video"
    with response, path.open("wb") as file:
        try:
            for part in _parts(address, response, head):
                file.write(part)
        except OSError as error:
            raise write_error(error, path, _length(response.headers)) from None
    return path


def _parts(address: str, response: Any, head: bytes, most: float = math.inf) -> Iterator[bytes]:
    """What comes, until there is no more, or more than `most` bytes, or the connection is gone; with a bar."""
    total, done, part = _length(response.headers) or None, 0, head
    with download_bar(shown(address)) as tell:
        while part and done <= most:
            yield part
            done += len(part)
            tell(done, total)
            try:
                part = response.read(_CHUNK)
            except (OSError, HTTPException):
                return


def _request(address: str) -> tuple[Any, bytes]:
    """An open answer, and its first bytes."""
    headers, parts = {"User-Agent": "segmv3"}, urlsplit(address)
    if "@" in parts.netloc:  # urllib takes what stands there for a part of the host
        secret = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
        headers["Authorization"] = f"Basic {b64encode(secret).decode()}"
    try:
        response = urlopen(Request(_bare(address), headers=headers), timeout=PATIENCE)
        return response, response.read1(512)
    except HTTPError as error:
        raise DataError(f"{shown(address)} answers {error.code} ({error.reason})") from None
    except (OSError, ValueError, HTTPException) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise DataError(f"{shown(address)} is not trusted ({cause.verify_message})") from None
        if isinstance(cause, ssl.SSLError):
            raise DataError(f"{shown(address)}: no secure connection ({cause.reason or cause})") from None
        why = reason(cause) if isinstance(cause, BaseException) else str(cause)
        raise DataError(f"{shown(address)} cannot be reached ({why})") from None


def _length(headers: HTTPMessage) -> int:
    said = headers.get("Content-Length", "")
    return int(said) if said.isascii() and said.isdigit() else 0


def open_address(address: str) -> Any:
    """A stream, opened by PyAV. It ends in an error when nothing comes for ten seconds.

    Raises: OSError when it cannot be opened now; VideoError when what is there is no video.
    """
    av = import_av()
    options = {"protocol_whitelist": _PROTOCOLS}
    if address.startswith("https"):
        options |= {"tls_verify": "1"} | ({"ca_file": file} if (file := ssl.get_default_verify_paths().cafile) else {})
    if address.startswith("rtsp"):
        options["rtsp_flags"] = "prefer_tcp"  # over UDP pictures come torn
    try:
        return av.open(address, options=options, timeout=(PATIENCE, PATIENCE))
    except MemoryError:
        raise
    except av.error.InvalidDataError:
        raise VideoError(f"{shown(address)} sends no video that can be read") from None
    except av.error.ExitError:
        raise TimeoutError(f"nothing came for {PATIENCE} s") from None
    except (av.error.HTTPClientError, av.error.ProtocolNotFoundError) as error:
        raise VideoError(f"{shown(address)} cannot be opened ({reason(error)})") from None
    except av.error.FFmpegError as error:
        raise OSError(reason(error)) from None


def open_recording(address: str) -> Any:
    """A stream with an end, opened by PyAV; None where it is live, or cannot be opened now.

    Raises: VideoError when what is there is no video.
    """
    try:
        container = open_address(address)
    except OSError:
        return None
    if container.duration:
        return container
    container.close()
    return None
