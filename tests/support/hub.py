"""Serve a model hub on loopback: the part of the hub's API that huggingface_hub calls."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.serving import Quiet, serving

SHA = "0123456789abcdef0123456789abcdef01234567"


def _tree(folder: Path) -> list[dict]:
    blobs = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    return [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in blobs
    ]


@contextmanager
def hub(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as repositories OWNER/NAME; give the endpoint, and the list of downloaded files."""
    downloaded: list[str] = []

    class Handler(Quiet):
        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"] and (folder := repositories.get("/".join(parts[2:4]))):
                name = "/".join(parts[2:4])
                if parts[4:5] == ["tree"]:
                    return self._send(200, json.dumps(_tree(folder)).encode(), body)
                files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
                about = {
                    "id": name,
                    "modelId": name,
                    "sha": SHA,
                    "siblings": files,
                    "private": False,
                    "downloads": 0,
                    "tags": [],
                }
                return self._send(200, json.dumps(about).encode(), body)
            folder = repositories.get("/".join(parts[:2]))
            if folder and parts[2:3] == ["resolve"] and (file := folder / parts[-1]).is_file():
                if body:
                    downloaded.append(parts[-1])
                return self._send(200, file.read_bytes(), body)
            code = "RepoNotFound" if folder is None else "EntryNotFound"
            return self._send(404, b"", body, {"X-Error-Code": code, "X-Error-Message": code})

        def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
            known = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA}
            self.send(status, data, known | (headers or {}), body)

    with serving(Handler) as address:
        yield address, downloaded
