"""A small Hub: repositories in memory behind the endpoints that push and pull call."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class Hub:
    """Repositories by name: each a list of (commit, files), the oldest first."""

    def __init__(self) -> None:
        self.repos: dict[str, list[tuple[str, Files]]] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.token = "hf_test"
        self.endpoint = ""

    def commit(self, repo: str, files: Files) -> str:
        """Make a commit that holds `files` and nothing else."""
        commits = self.repos.setdefault(repo, [])
        named = repr((len(commits), repo, sorted(files.items())))
        sha = hashlib.sha1(named.encode()).hexdigest()
        commits.append((sha, files))
        return sha

    def upload(self, repo: str, folder: Path) -> str:
        files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
        return self.commit(repo, {name: file.read_bytes() for name, file in files.items()})

    def at(self, repo: str, revision: str) -> tuple[str, Files] | None:
        commits = self.repos.get(repo) or []
        if revision == "main" and commits:
            return commits[-1]
        return next((each for each in commits if each[0] == revision), None)

    def files(self, repo: str) -> Files:
        return self.repos[repo][-1][1]

    def fetched(self) -> set[str]:
        """Names of the files that were asked for."""
        found = (re.fullmatch(r"GET /[^/]+/[^/]+/resolve/[^/]+/(.*)", line) for line in self.asked)
        return {match[1] for match in found if match}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def do_PUT(self) -> None:
        self._route()

    def _route(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        for verb, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in verb.split():
                if "GET" not in verb and "PUT" not in verb and not self._known():
                    return
                function(self, *match.groups())
                return
        self._fail(404, "EntryNotFound")

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _known(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return True
        self._fail(401, "")
        return False

    def _fail(self, status: int, code: str) -> None:
        self._send(b"{}", status, {"X-Error-Code": code} if code else {})

    def _json(self, data: object) -> None:
        self._send(json.dumps(data).encode(), 200, {"Content-Type": "application/json"})

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _found(self, repo: str, revision: str | None) -> tuple[str, Files] | None:
        if repo not in self.hub.repos:
            self._fail(404, "RepoNotFound")
            return None
        found = self.hub.at(repo, revision or "main")
        if found is None:
            self._fail(404, "RevisionNotFound")
        return found

    def info(self, repo: str, revision: str | None = None) -> None:
        found = self._found(repo, revision)
        if found:
            sha, files = found
            names = [{"rfilename": name} for name in files]
            self._json({"id": repo, "sha": sha, "siblings": names, "tags": [], "private": False})

    def tree(self, repo: str, revision: str) -> None:
        found = self._found(repo, revision)
        if found:
            entries = [
                {"type": "file", "path": name, "size": len(body), "oid": _oid(body)}
                for name, body in found[1].items()
            ]
            self._json(entries)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        found = self._found(repo, revision)
        if found is None:
            return
        sha, files = found
        if name not in files:
            self._fail(404, "EntryNotFound")
            return
        body = files[name]
        self._send(body, 200, {"ETag": f'"{_oid(body)}"', "X-Repo-Commit": sha})

    def create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repos:
            self._send(json.dumps({"url": f"{self.hub.endpoint}/{repo}"}).encode(), 409)
            return
        self.hub.commit(repo, {".gitattributes": b""})
        self._json({"url": f"{self.hub.endpoint}/{repo}"})

    def valid(self) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for each in json.loads(self.body)["files"]
        ]
        self._json({"files": files})

    def batch(self, repo: str) -> None:
        objects = [
            {
                **each,
                "actions": {"upload": {"href": f"{self.hub.endpoint}/blobs/{each['oid']}"}},
            }
            for each in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def blob(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.blobs[oid] = self.body
        self._send(b"")

    def commit(self, repo: str, revision: str) -> None:
        files = dict(self.hub.files(repo))
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.hub.commit(repo, files)
        self._json({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{sha}", "commitOid": sha})


def _oid(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


NAME = r"([^/]+/[^/]+)"
ROUTES = (
    ("GET", rf"/api/models/{NAME}", Handler.info),
    ("GET", rf"/api/models/{NAME}/revision/([^/]+)", Handler.info),
    ("GET", rf"/api/models/{NAME}/tree/([^/]+)", Handler.tree),
    ("GET HEAD", rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.valid),
    ("POST", rf"/api/models/{NAME}/preupload/([^/]+)", Handler.preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/blobs/(\w+)", Handler.blob),
    ("POST", rf"/api/models/{NAME}/commit/([^/]+)", Handler.commit),
)


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a Hub on a free port of this machine for the block."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
