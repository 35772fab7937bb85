"""Pack images in folders into WebDataset shards, with webdataset's own TarWriter."""

import io
import math
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import fsspec

from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.sources.class_target import normalised
from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS, base_name, extension_of
from wordsworth.pipeline.sources.passed_over import ListingRules, PassedOver
from wordsworth.pipeline.sources.shard_index import INDEX, IndexedShard, ShardIndex
from wordsworth.pipeline.sources.source_files import list_files
from wordsworth.pipeline.sources.tar_keys import is_skipped
from wordsworth.pipeline.storage.atomic import overwrite, put_if_absent
from wordsworth.pipeline.storage.filesystem import (
    StorageOptions,
    is_local,
    open_filesystem,
    version_of,
    without_credentials,
)
from wordsworth.pipeline.storage.objects import object_bytes
from wordsworth.pipeline.storage.small_files import MAX_BYTES
from wordsworth.pipeline.storage.streams import with_retries


@dataclass(slots=True)
class PackResult:
    """Hold what was written.

    Attributes:
        images: number of images
        shards: paths of the shards
        classes: names of the classes by number; empty if the folder has no class folders
        alike: classes that are two folders or more, whose names differ in their Unicode form alone
        ignored: number of files that are no images
        passed_over: what was skipped by its name, and which links to folders were left out
        is_indexed: whether there is an index of the shards; a training counts them itself where it would be
            too large
    """

    images: int = 0
    shards: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    alike: list[str] = field(default_factory=list)
    ignored: int = 0
    passed_over: PassedOver = field(default_factory=PassedOver)
    is_indexed: bool = True


def pack(
    folder: str,
    output: str,
    shard_size: int = 1000,
    seed: int = 0,
    rules: ListingRules | None = None,
    storage_options: StorageOptions | None = None,
) -> PackResult:
    """Pack the images under `folder` into OUTPUT/shard-00000.tar and so on.

    The same input gives the same bytes.

    The folders right under `folder` are the classes, in the order of their names: every sample gets the
    number of its class as `.cls`, and the names go to OUTPUT/labels.txt. A folder without sub-folders gives
    images without a class. OUTPUT/_index.json says at last what each shard holds.

    Args:
        folder: folder or URL of the images
        output: folder or URL of the shards
        shard_size: images in a shard
        seed: seed of the order of the images
        rules: what to take beside plain files and folders
        storage_options: of the stores

    Raises:
        UserError: the folder is missing, has no images or mixes classes and loose images, or the output
            holds other shards.
    """
    fs, root = open_filesystem(folder, storage_options)
    if not fs.isdir(root):
        kind = "a file" if fs.exists(root) else "not there"
        raise UserError(f"{without_credentials(folder)} is {kind}: name a folder of images")
    passed_over = PassedOver()
    _, files = list_files(fs, root, folder, None, rules or ListingRules(), passed_over)
    found = [path for path, _ in files]
    paths = [path for path in found if path.rpartition(".")[2].lower() in IMAGE_KEYS]
    if not paths:
        notes = "".join(f"; {note}" for note in passed_over.serious_notes())
        wanted = f"no images ({', '.join(IMAGE_KEYS)})"
        raise UserError(f"{wanted} under {without_credentials(folder)}{notes}: name a folder of images")
    folders = _classes(paths, root, folder)
    classes = sorted(folders)
    keys = _keys(paths, root)
    order = list(paths)
    random.Random(seed).shuffle(order)

    out, target = open_filesystem(output, storage_options)
    target = target.rstrip("/")
    names = [f"{target}/shard-{number:05d}.tar" for number in range(math.ceil(len(order) / shard_size))]
    _refuse_other_shards(out, target, names, output)
    indexed: list[IndexedShard] = []
    for number, path in enumerate(names):
        members = order[number * shard_size : (number + 1) * shard_size]
        data, counts = _shard(fs, root, members, keys, classes)
        indexed.append(
            IndexedShard(
                name=base_name(path),
                size=len(data),
                version="",
                samples=len(members),
                classes=dict(sorted(counts.items())),
            )
        )
        if not put_if_absent(out, path, data) and with_retries(partial(out.cat_file, path)) != data:
            raise UserError(
                f"{without_credentials(output)} holds other shards already ({path} differs): "
                "choose a new --output"
            )
    if classes:
        overwrite(out, f"{target}/labels.txt", "".join(f"{name}\n" for name in classes).encode())
    extensions = sorted({extension_of(path) for path in order})
    is_indexed = _write_index(out, target, ShardIndex.of(classes, extensions, indexed))
    return PackResult(
        images=len(order),
        shards=names,
        classes=classes,
        alike=[name for name in classes if folders[name] > 1],
        ignored=len(found) - len(paths),
        passed_over=passed_over,
        is_indexed=is_indexed,
    )


def _write_index(out: fsspec.AbstractFileSystem, target: str, index: ShardIndex) -> bool:
    """Write the index of the shards, and return whether it is small enough to be read."""
    if not is_local(out):
        out.invalidate_cache()  # a listing from before the shards were written
        listed = with_retries(partial(out.ls, target, detail=True))
        found = {base_name(info["name"]): version_of(info) for info in listed}
        index = index.with_versions(found)
    content = index.to_json()
    if len(content) > MAX_BYTES:
        return False
    overwrite(out, f"{target}/{INDEX}", content)
    return True


def _refuse_other_shards(out: fsspec.AbstractFileSystem, target: str, names: list[str], output: str) -> None:
    found = out.ls(target, detail=False) if out.isdir(target) else []
    others = sorted(path for path in set(found) - set(names) if path.endswith(".tar"))
    if others:
        raise UserError(
            f"{without_credentials(output)} holds other shards already ({others[0]}): choose a new --output"
        )


def _relative(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/")


def _classes(paths: list[str], root: str, folder: str) -> Counter[str]:
    """Return the names of the folders right under the root, and how many folders have each.

    Raises UserError for images beside such folders.
    """
    relative = [_relative(path, root) for path in paths]
    folders = {path.split("/", 1)[0] for path in relative if "/" in path}
    loose = [path for path in relative if "/" not in path]
    if folders and loose:
        raise UserError(
            f"{without_credentials(folder)} holds class folders and {plural(len(loose), 'image')} "
            f"beside them ({loose[0]}): move these away"
        )
    return Counter(map(normalised, folders))


def _keys(paths: list[str], root: str) -> dict[str, str]:
    """Return a WebDataset key for every path.

    A key ends at the first dot of the base name, so other dots become underscores.
    """
    keys: dict[str, str] = {}
    taken: set[str] = set()
    for path in paths:
        parent, _, base = _relative(path, root).rpartition("/")
        stem = base.rpartition(".")[0].replace(".", "_")
        wanted = f"{parent}/{stem}" if parent else stem
        if is_skipped(f"{wanted}.jpg"):  # readers skip what lies in folders called __x__, PaxHeader or .x
            wanted = re.sub(r"(^|/)\.", r"\1_.", wanted.replace("/", "-/"))
        key = wanted
        count = 1
        while key in taken:
            count += 1
            key = f"{wanted}-{count}"
        taken.add(key)
        keys[path] = key
    return keys


def _shard(
    fs: fsspec.AbstractFileSystem, root: str, paths: list[str], keys: dict[str, str], classes: list[str]
) -> tuple[bytes, Counter[str]]:
    """Return a tar of the images with the class of each, and the images by the number of their class.

    An image that no reader takes for its size counts for no class, as in a training's own count.
    """
    from webdataset import TarWriter

    buffer = io.BytesIO()
    counts: Counter[str] = Counter()
    numbers = {name: number for number, name in enumerate(classes)}
    with TarWriter(buffer, encoder=False, mtime=0) as writer:
        for path in paths:
            data = with_retries(partial(object_bytes, fs, path))
            sample = {"__key__": keys[path], path.rpartition(".")[2].lower(): data}
            if classes:
                name = normalised(_relative(path, root).split("/", 1)[0])
                sample["cls"] = str(numbers[name]).encode()
                counts[str(numbers[name])] += len(data) <= DecodeLimits.max_bytes
            writer.write(sample)
    return buffer.getvalue(), +counts
