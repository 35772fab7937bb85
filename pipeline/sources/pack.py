"""Images in folders -> WebDataset shards, written with webdataset's own TarWriter."""

import io
import math
import random
from dataclasses import dataclass, field

import fsspec

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.shards import IMAGE_KEYS
from wordsworth.pipeline.sources.tar import is_skipped
from wordsworth.pipeline.storage.filesystem import open_filesystem, public, put_if_absent, replace


@dataclass(slots=True)
class Packed:
    """What was written. classes: their names by id, empty where the folder had no class folders."""

    images: int = 0
    shards: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    ignored: int = 0


def pack(
    folder: str, output: str, shard_size: int = 1000, seed: int = 0, image_keys: tuple[str, ...] = IMAGE_KEYS
) -> Packed:
    """Pack the images under `folder` into OUTPUT/shard-00000.tar, ...; shuffled by `seed`, `shard_size` images each.

    The folders right under `folder` are the classes, in the order of their names: every sample gets its class id as `.cls`, and the
    names go to OUTPUT/labels.txt. A folder without sub-folders gives images without a class. The same input gives the same bytes.
    """
    fs, root = open_filesystem(folder)
    if not fs.isdir(root):
        raise UserError(f"{public(folder)} is not a folder")
    paths, ignored = _images(fs, root, image_keys)
    if not paths:
        raise UserError(f"no images ({', '.join(image_keys)}) under {public(folder)}")
    classes = _classes(paths, root, folder)
    keys = _keys(paths, root)
    order = list(paths)
    random.Random(seed).shuffle(order)

    out, target = open_filesystem(output)
    target = target.rstrip("/")
    packed = Packed(ignored=ignored, classes=classes)
    names = [f"{target}/shard-{number:05d}.tar" for number in range(math.ceil(len(order) / shard_size))]
    there = out.ls(target, detail=False) if out.isdir(target) else []
    if others := sorted({path for path in there if path.endswith(".tar")} - set(names)):
        raise UserError(f"{public(output)} holds other shards already ({others[0]}): choose a new --output")
    for path, start in zip(names, range(0, len(order), shard_size), strict=True):
        data = _shard(fs, root, order[start : start + shard_size], keys, classes)
        if not put_if_absent(out, path, data) and out.cat_file(path) != data:
            raise UserError(
                f"{public(output)} holds other shards already ({path} differs): choose a new --output"
            )
        packed.shards.append(path)
    packed.images = len(order)
    if classes:
        replace(out, f"{target}/labels.txt", "".join(f"{name}\n" for name in classes).encode())
    return packed


def _images(fs: fsspec.AbstractFileSystem, root: str, image_keys: tuple[str, ...]) -> tuple[list[str], int]:
    found = sorted(fs.find(root))
    images = [
        path
        for path in found
        if path.rpartition(".")[2].lower() in image_keys and not _base(path).startswith(".")
    ]
    return images, len(found) - len(images)


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _relative(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/")


def _classes(paths: list[str], root: str, folder: str) -> list[str]:
    """The names of the folders right under the root."""
    relative = [_relative(path, root) for path in paths]
    classes = sorted({path.split("/", 1)[0] for path in relative if "/" in path})
    loose = [path for path in relative if "/" not in path]
    if classes and loose:
        raise UserError(
            f"{public(folder)} holds class folders and {len(loose)} images beside them ({loose[0]}): move these away"
        )
    return classes


def _keys(paths: list[str], root: str) -> dict[str, str]:
    """A WebDataset key for every path: it ends at the first dot of the base name, so other dots become underscores."""
    keys, taken = {}, set()
    for path in paths:
        parent, _, base = _relative(path, root).rpartition("/")
        stem = base.rpartition(".")[0].replace(".", "_")
        wanted = f"{parent}/{stem}" if parent else stem
        if is_skipped(f"{wanted}.jpg"):  # readers pass over what lies in folders called __x__ or PaxHeader
            wanted = wanted.replace("/", "-/")
        key, count = wanted, 1
        while key in taken:
            count += 1
            key = f"{wanted}-{count}"
        taken.add(key)
        keys[path] = key
    return keys


def _shard(
    fs: fsspec.AbstractFileSystem, root: str, paths: list[str], keys: dict[str, str], classes: list[str]
) -> bytes:
    from webdataset import TarWriter

    buffer = io.BytesIO()
    ids = {name: number for number, name in enumerate(classes)}
    with TarWriter(buffer, encoder=False, mtime=0) as writer:
        for path in paths:
            sample = {"__key__": keys[path], path.rpartition(".")[2].lower(): fs.cat_file(path)}
            if classes:
                sample["cls"] = str(ids[_relative(path, root).split("/", 1)[0]]).encode()
            writer.write(sample)
    return buffer.getvalue()
