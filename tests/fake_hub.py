"""A Hugging Face Hub of folders, on this machine: repositories with commits and branches, private ones by token."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_secret"
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class FakeHub:
    """repos: for each repository its branches and commits, each a folder; asked: every request for a file of one."""

    repos: dict[str, dict[str, Path]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, str, str, str | None]] = field(
        default_factory=list
    )  # method, repo, revision, file, token

    def push(self, repo: str, folder: Path, branch: str = "main") -> str:
        """A new commit on a branch; its name is that of the folder's content."""
        digest = hashlib.sha1()
        for file in sorted(p for p in folder.iterdir() if p.is_file()):
            digest.update(file.name.encode() + file.read_bytes())
        self.repos.setdefault(repo, {}).update({branch: folder, digest.hexdigest(): folder})
        return digest.hexdigest()

    def commit(self, repo: str, revision: str) -> str:
        folder = self.repos[repo][revision]
        return next(name for name, it in self.repos[repo].items() if it == folder and len(name) == 40)

    def serve(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        match = RESOLVE.fullmatch(self.path)
        if match is None:
            return self._refuse(404, "EntryNotFound")
        repo, revision, name = match["repo"], match["revision"], match["file"]
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.asked.append((self.command, repo, revision, name, token))
        if repo not in self.hub.repos or (repo in self.hub.private and token != TOKEN):
            return self._refuse(401, "RepoNotFound")
        if revision not in self.hub.repos[repo]:
            return self._refuse(404, "RevisionNotFound")
        commit, path = self.hub.commit(repo, revision), self.hub.repos[repo][revision] / name
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", commit)
        content = path.read_bytes()
        self.send_response(200)
        for header, value in (
            ("ETag", f'"{hashlib.sha1(content).hexdigest()}"'),
            ("Content-Length", str(len(content))),
        ):
            self.send_header(header, value)
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if body:
            self.wfile.write(content)
        return None

    def _refuse(self, status: int, code: str, commit: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()
