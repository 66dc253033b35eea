"""A small Hub: the endpoints that huggingface_hub uses to make a repository, commit files and fetch them."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"


class Hub:
    """What the server holds.

    Attributes: repositories: files by name, of each commit by its name. private: repositories that ask for the token.
        asked: method, path and user agent of each request. spoilt: send other bytes than the digest says.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.spoilt = self.broken = False
        self.url = ""

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Put files into a repository; gives the commit."""
        commits = self.repositories.setdefault(repo, {})
        files = commits.get("main", {}) | files
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        commits[sha] = commits["main"] = files
        return sha


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _send(self, code: int, body: Any = b"", **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            named = {"Content-Length": str(len(data))} | {k.replace("_", "-"): v for k, v in headers.items()}
            for name, value in named.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _handle(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("User-Agent", "")))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hub.broken:
                self._send(507, {"error": "full"})
            elif self.command == "PUT":
                hub.objects[path.rpartition("/")[2]] = body
                self._send(200)
            elif path == "/api/repos/create":
                self._create(json.loads(body))
            elif path.endswith("/info/lfs/objects/batch"):
                self._send(200, {"transfer": "basic", "objects": [self._place(o) for o in json.loads(body)["objects"]]})
            elif "/preupload/" in path:
                modes = [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                    | {"shouldIgnore": False, "oid": None}
                    for f in json.loads(body)["files"]
                ]
                self._send(200, {"files": modes})
            elif "/commit/" in path:
                self._commit(path, body)
            elif "/resolve/" in path:
                self._resolve(path)
            else:
                self._send(200, {"errors": [], "warnings": []})

        do_GET = do_HEAD = do_POST = do_PUT = _handle

        def _create(self, wanted: dict[str, Any]) -> None:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._send(401, {"error": "Invalid username or password."}, X_Error_Message="Invalid credentials")
                return
            repo = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            hub.repositories.setdefault(repo, {})
            if wanted.get("private") or wanted.get("visibility") == "private":
                hub.private.add(repo)
            self._send(200, {"url": f"{hub.url}/{repo}", "name": repo, "id": repo})

        def _place(self, wanted: dict[str, Any]) -> dict[str, Any]:
            upload = {"href": f"{hub.url}/objects/{wanted['oid']}", "header": {}}
            return {"oid": wanted["oid"], "size": wanted["size"], "actions": {"upload": upload}}

        def _commit(self, path: str, body: bytes) -> None:
            repo, files = path.removeprefix("/api/models/").partition("/commit/")[0], {}
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            sha = hub.commit(repo, files)
            self._send(200, {"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{repo}/commit/{sha}"})

        def _resolve(self, path: str) -> None:
            repo, _, rest = path.removeprefix("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if repo in hub.gated:
                self._send(403, {"error": "gated"}, X_Error_Code="GatedRepo", X_Error_Message="gated")
            elif repo not in hub.repositories or (repo in hub.private and not known):
                self._send(404, {"error": "no"}, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            elif revision not in hub.repositories[repo]:
                self._send(404, {"error": "no"}, X_Error_Code="RevisionNotFound", X_Error_Message="Revision not found")
            elif name not in (found := hub.repositories[repo][revision]):
                self._send(404, {"error": "no"}, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
            else:
                commits, data = hub.repositories[repo], found[name]
                sha = next(sha for sha, files in commits.items() if sha != "main" and files == found)
                digest = hashlib.sha256(data).hexdigest()
                sent = data[:-1] + bytes([data[-1] ^ 1]) if hub.spoilt else data
                self._send(200, sent, ETag=f'"{digest}"', X_Repo_Commit=sha, X_Linked_Size=str(len(data)))

    return Handler


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub at `url`, as long as it is needed."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
