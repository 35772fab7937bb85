"""Put a small object store in memory in the place of s3, with the faults of real stores."""

import contextlib
import hashlib
import io
from collections.abc import Iterator

import fsspec
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem


class Bucket(AbstractFileSystem):
    """Hold flat objects by path, with an etag for each. The attributes below `objects` make the store
    fail."""

    protocol = "s3"
    cachable = False
    objects: dict[str, bytes]
    late = False  # whether a PUT is done and its acknowledgement is lost
    refused: type[OSError] | None = None  # the exception that every read raises
    conditional = True  # False: a store that knows no If-None-Match

    def info(self, path, **kwargs):
        path = self._strip_protocol(path)
        if path in self.objects:
            data = self.objects[path]
            return {
                "name": path,
                "size": len(data),
                "type": "file",
                "ETag": f'"{hashlib.md5(data).hexdigest()}"',
            }
        if any(name.startswith(f"{path}/") for name in self.objects):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path)
        depth = len(path.split("/")) + 1 if path else 1
        names = {
            "/".join(name.split("/")[:depth])
            for name in self.objects
            if not path or name.startswith(f"{path}/")
        }
        if not names:
            names = {self.info(path)["name"]}
        return [self.info(name) for name in sorted(names)] if detail else sorted(names)

    def cat_file(self, path, start=None, end=None, **kwargs):
        if self.refused:
            raise self.refused(path)
        self.info(path)
        return self.objects[self._strip_protocol(path)][start:end]

    def _open(self, path, mode="rb", **kwargs):
        return io.BytesIO(self.cat_file(path))

    def rm_file(self, path):
        self.info(path)
        del self.objects[self._strip_protocol(path)]

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        path = self._strip_protocol(path)
        if mode == "create" and not self.conditional:
            raise NotImplementedError
        if mode == "create" and path in self.objects:
            raise FileExistsError(path)
        self.objects[path] = bytes(value)
        if self.late:
            raise OSError("connection reset before the answer")


@contextlib.contextmanager
def s3_bucket() -> Iterator[type[Bucket]]:
    """Make s3:// an empty Bucket inside the block."""
    made = type("Bucket", (Bucket,), {"objects": {}})
    before = _registry.get("s3")
    fsspec.register_implementation("s3", made, clobber=True)
    try:
        yield made
    finally:
        _registry.pop("s3")
        if before is not None:
            _registry["s3"] = before
