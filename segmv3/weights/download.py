"""Published weight files: fetched once, checked against the published digest, kept in the user's cache.

What is in the cache was checked before it got its name and is checked again whenever it is used. Environment:
`SEGMV3_CACHE` moves the cache, `SEGMV3_MIRROR` replaces the place files come from, `SEGMV3_OFFLINE=1` forbids the
network.

The library pooch was looked at. It neither continues a download nor knows digests by their first digits, and it tries
again after a 404 as after a cut connection.
"""

import http.client
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from segmv3.errors import CheckpointError, ResourceError
from segmv3.files import alone, append, cache_folder, make_folder, sha256, write_bytes
from segmv3.screen import print_line

_MAX_BYTES = 500_000_000
_CHUNK = 1 << 18
_TIMEOUT = 30.0  # seconds without a byte
_TRIES = 5
_PAUSE = 1.0  # seconds before the second try, doubled for each further one
_SCHEMES = ("https://", "http://", "file://")

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and, where the server tells it, the size of the file."""


@dataclass(frozen=True)
class Published:
    """A weight file that its authors have put on the network."""

    name: str
    url: str
    sha256: str
    """64 hex digits, or as many of the first ones as are published (8 in the names of OpenMMLab and torchvision). Empty
    where the authors publish none: then the first download counts, and a later change of the file is noticed."""
    licence: str
    source: str
    """The page that digest and accuracy were taken from."""
    accuracy: str
    trained_on: str = ""
    """The data set, as far as a licence or a choice depends on it."""

    def __post_init__(self) -> None:
        if not re.fullmatch("([0-9a-f]{8,64})?", self.sha256):
            raise ValueError(f"{self.name}: {self.sha256!r} is no SHA-256")

    @property
    def file(self) -> str:
        """What it is called in the cache and on a mirror."""
        *_, folder, name = urlsplit(self.url).path.split("/")
        return f"{folder}{Path(name).suffix}" if name == "model.pdparams" else name  # PaddleSeg calls every file so


def fetch(
    published: Published,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = print_line,
) -> Path:
    """Find the file in the cache, or download it. A download that was cut is continued.

    Raises: CheckpointError when it can neither be found nor fetched, or is not what was published; ResourceError
        when the disk is full, OutputError when the cache cannot be written.
    """
    path = cache_folder() / "weights" / f"{published.sha256[:8] or 'first'}-{published.file}"
    if _is_intact(path, published):
        return path
    if is_offline(offline):
        what = "is damaged in the cache" if path.exists() else "is not in the cache"
        raise CheckpointError(f"{published.name} {what}; run without --offline, or put {published.url} at {path}")
    make_folder(path.parent)
    with alone(path.parent / ".lock", f"checkpoint: waiting for another download into {path.parent}", say):
        if not _is_intact(path, published):  # another process may have brought it in the meantime
            if path.exists():
                say(f"checkpoint: {path} is damaged; fetching it again")
            _download(published, path, progress, say)
    return path


def is_offline(asked: bool) -> bool:
    """Whether the network is not to be used: it was asked for, or `SEGMV3_OFFLINE` says so."""
    return asked or os.environ.get("SEGMV3_OFFLINE", "0") not in ("", "0")


def _is_intact(path: Path, published: Published) -> bool:
    if not path.is_file():
        return False
    if published.sha256:
        return sha256(path, CheckpointError).startswith(published.sha256)
    kept = _kept_digest(path)
    return kept.is_file() and kept.read_text() == sha256(path, CheckpointError)


def _kept_digest(path: Path) -> Path:
    """Where the digest of a file lies whose authors publish none."""
    return path.with_name(f"{path.name}.sha256")


def _download(published: Published, path: Path, progress: Progress | None, say: Callable[[str], None]) -> None:
    url, part = _address(published), path.with_name(path.name + ".part")
    if not _is_intact(part, published):
        _transfer(_Transfer(url, part, progress), say)
    found = sha256(part, CheckpointError)
    if not found.startswith(published.sha256):
        part.unlink()
        raise CheckpointError(
            f"{url} is not the published file: SHA-256 {found}, expected {published.sha256}; nothing was kept, "
            "try once more or from another place (SEGMV3_MIRROR)"
        )
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    part.replace(path)
    if not published.sha256:
        write_bytes(_kept_digest(path), found.encode())
        say(f"checkpoint: nobody publishes the digest of {published.name}; what came has the SHA-256 {found}")


def _address(published: Published) -> str:
    mirror = os.environ.get("SEGMV3_MIRROR")
    if not mirror:
        return published.url
    if not mirror.startswith(_SCHEMES):
        raise CheckpointError(f"SEGMV3_MIRROR is {mirror}; it must start with one of {', '.join(_SCHEMES)}")
    return f"{mirror.rstrip('/')}/{published.file}"


class _Transfer:
    """One file on its way into its `.part`, over as many connections as it takes."""

    def __init__(self, url: str, part: Path, progress: Progress | None) -> None:
        self.url, self.part, self.progress = url, part, progress
        self.version: str | None = None
        """ETag or date of what the part holds; unknown when an earlier run left it, and then the digest decides."""

    def run(self) -> None:
        """Fetch what is missing, over one connection.

        Raises: OSError, HTTPException or ValueError for the connection, Segmv3Error for all else.
        """
        have = self.part.stat().st_size if self.part.exists() else 0
        request = Request(self.url, headers={"User-Agent": "segmv3"})
        if have:
            request.add_header("Range", f"bytes={have}-")
            if self.version:
                request.add_header("If-Range", self.version)
        try:
            with build_opener(_Redirects).open(request, timeout=_TIMEOUT) as response:
                self._receive(response, self._continue_at(response, have))
        except HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            self.part.unlink()
            raise ConnectionError("the part from before does not belong to this file") from None

    def _continue_at(self, response: Any, have: int) -> int:
        """Where the answer begins: at what is there, or at 0 from a server that sends the whole file again."""
        if response.status == http.client.PARTIAL_CONTENT:
            if (response.headers["Content-Range"] or "").startswith(f"bytes {have}-"):
                return have
            self.part.unlink(missing_ok=True)
            raise ConnectionError("the server sent another part than the one asked for")
        self.part.unlink(missing_ok=True)
        return 0

    def _receive(self, response: Any, have: int) -> None:
        length, etag = response.headers["Content-Length"] or "", response.headers["ETag"] or ""
        self.version = response.headers["Last-Modified"] if etag.startswith(("W/", "w/")) or not etag else etag
        total = have + int(length) if length.isdecimal() else None
        self._check_size(total or 0)
        while chunk := response.read(_CHUNK):
            if have == 0 and (response.headers.get_content_type() == "text/html" or chunk.lstrip().startswith(b"<")):
                raise CheckpointError(
                    f"{self.url}: the server sent a web page instead of the file; open the address in a browser"
                )
            _append(self.part, chunk)
            have += len(chunk)
            self._check_size(have)
            if self.progress:
                self.progress(have, total)
        if not have or (total is not None and have < total):
            raise ConnectionError("the connection was cut")

    def _check_size(self, size: int) -> None:
        if size > _MAX_BYTES:
            self.part.unlink(missing_ok=True)
            raise CheckpointError(f"{self.url} is larger than {_MAX_BYTES // 10**6} MB: no published weight file is")


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to http and https, never from https to http: a published digest may have only 8 digits."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if not newurl.startswith("https://" if req.type == "https" else ("https://", "http://")):
            raise CheckpointError(f"{req.full_url} sends on to {newurl}, which is not safe; set SEGMV3_MIRROR")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _append(part: Path, chunk: bytes) -> None:
    try:
        append(part, chunk)
    except ResourceError as error:
        raise ResourceError(f"{error.args[0]}; the download goes on from here next time") from None


def _transfer(transfer: _Transfer, say: Callable[[str], None]) -> None:
    for number in range(_TRIES):
        try:
            transfer.run()
            return
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a URL that is none
            if number == _TRIES - 1 or not _may_pass(error):
                raise CheckpointError(
                    f"{transfer.url} cannot be fetched ({_cause(error)}); set SEGMV3_MIRROR to another place, or "
                    "download it with a browser and run: segmv3 weights import FILE"
                ) from None
            say(f"checkpoint: {transfer.url}: {_cause(error)}; trying again")
            time.sleep(_PAUSE * 2**number)


def _may_pass(error: Exception) -> bool:
    """Whether another try may succeed. A URLError, which means that no connection is made at all, is final."""
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code == http.client.TOO_MANY_REQUESTS
    return isinstance(error, ConnectionError | TimeoutError | ssl.SSLError | http.client.IncompleteRead)


def _cause(error: Exception) -> str:
    """Describe an error in a few words."""
    if isinstance(error, HTTPError):
        return " ".join(f"HTTP {error.code} {error.reason}".split())[:120]
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, socket.gaierror):
        return "the host name is not known; is there a network?"
    if isinstance(reason, TimeoutError):
        return f"no answer for {_TIMEOUT:.0f} s"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {reason.verify_message}"
    text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return " ".join(text.split())[:120] or type(reason).__name__
