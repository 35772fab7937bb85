"""Serve a model hub on loopback: the part of the hub's API that huggingface_hub calls."""

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import pytest

from tests.support.serving import Quiet, serving

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """Hold what the hub has of one repository.

    Attributes:
        commits: the folder of each commit, by 40 hex digits.
        refs: the commit of each branch, tag and pull request.
        status: answer every question and every download with this status, if it is not 200.
        error: the hub's code for that status, such as GatedRepo.
        gated_files: let questions through, and refuse downloads with `status`.
    """

    commits: dict[str, Path]
    refs: dict[str, str]
    status: int = 200
    error: str = ""
    gated_files: bool = False

    def commit(self, revision: str) -> str | None:
        """Return the commit of a revision. The hub takes a commit of 40 digits alone."""
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Requests:
    """Hold what was asked of a hub: names of downloaded files, and paths of questions."""

    downloaded: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)


def _tree(folder: Path) -> list[dict]:
    blobs = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    return [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in blobs
    ]


def _about(name: str, commit: str, folder: Path) -> dict:
    files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
    known = {"id": name, "modelId": name, "sha": commit, "siblings": files}
    return known | {"private": False, "downloads": 0, "tags": []}


def _refs(repository: Repository) -> dict:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
        for name, commit in repository.refs.items()
        if not name.startswith("refs/")
    ]
    return {"branches": branches, "tags": [], "converts": []}


def _history(repository: Repository) -> list[dict]:
    date = "2026-01-02T03:04:05.000Z"
    return [
        {"id": commit, "title": "a change", "message": "", "date": date, "authors": []}
        for commit in repository.commits
    ]


class HubHandler(Quiet):
    """Answer as the hub does. A server has a class of its own, with what it serves."""

    repositories: ClassVar[dict[str, Repository]]
    requests: ClassVar[Requests]

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = [unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")]
        question = parts[:2] == ["api", "models"]
        name, rest = ("/".join(parts[2:4]), parts[4:]) if question else ("/".join(parts[:2]), parts[2:])
        repository = self.repositories.get(name)
        if repository is None:
            self._refuse(404, "RepoNotFound", body)
        elif repository.status != 200 and not (question and repository.gated_files):
            self._refuse(repository.status, repository.error, body)
        elif question:
            self.requests.questions.append("/".join(rest) or "info")
            self._answer_question(name, repository, rest, body)
        else:
            self._send_file(repository, rest, body)

    def _answer_question(self, name: str, repository: Repository, rest: list[str], body: bool) -> None:
        if rest[:1] == ["refs"]:
            return self._send_json(_refs(repository), body)
        if rest[:1] == ["commits"]:
            return self._send_json(_history(repository), body)
        commit = repository.commit(rest[1] if rest else "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound", body)
        folder = repository.commits[commit]
        told = _tree(folder) if rest[:1] == ["tree"] else _about(name, commit, folder)
        return self._send_json(told, body)

    def _send_file(self, repository: Repository, rest: list[str], body: bool) -> None:
        commit = repository.commit(rest[1])
        if commit is None:
            return self._refuse(404, "RevisionNotFound", body)
        file = repository.commits[commit] / rest[-1]
        if not file.is_file():
            return self._refuse(404, "EntryNotFound", body)
        if body:
            self.requests.downloaded.append(rest[-1])
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}
        return self.send(200, data, headers, body)

    def _send_json(self, content: object, body: bool) -> None:
        self.send(200, json.dumps(content).encode(), {}, body)

    def _refuse(self, status: int, error: str, body: bool) -> None:
        self.send(status, b"", {"X-Error-Code": error, "X-Error-Message": error}, body)


@contextmanager
def serving_hub(repositories: dict[str, Repository]) -> Iterator[tuple[str, Requests]]:
    """Serve repositories OWNER/NAME; give the endpoint, and what was asked of it."""
    requests = Requests()
    handler = type("Handler", (HubHandler,), {"repositories": repositories, "requests": requests})
    with serving(handler) as address:
        yield address, requests


@contextmanager
def hub(folders: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as repositories of one commit; give the endpoint, and the list of downloaded files."""
    repositories = {
        name: Repository(commits={SHA: folder}, refs={"main": SHA}) for name, folder in folders.items()
    }
    with serving_hub(repositories) as (address, requests):
        yield address, requests.downloaded


@contextmanager
def silent_server() -> Iterator[str]:
    """Give the address of a port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def closed_port() -> str:
    """Return the address of a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """Let huggingface_hub use an endpoint and a cache in this process."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
