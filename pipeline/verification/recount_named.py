"""Ask again for images that were named one by one: each by its own name, since nothing lists just these."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.filesystem import StorageOptions, without_credentials
from wordsworth.pipeline.verification.recount_lost import ASKED_AGAIN, LOST, error_now
from wordsworth.pipeline.verification.recount_objects import ListedObject
from wordsworth.pipeline.verification.recount_tars import Sample

NOTHING_THERE = (0, "")  # size and version of an image that was named while nothing was there
ASKED_AT_ONCE = 16  # objects of a store


def place_of(shard: Shard, number: int) -> tuple[str, str]:
    """Return folder and base name of an image, by its number in the page: shard and key of its row."""
    path = "/".join((without_credentials(shard.uri), shard.members[number]["key"]))
    cut = path.rindex("/")
    return path[:cut], path[cut + 1 :]


def named_samples(
    shard: Shard, rows: list[Sample], options: StorageOptions | None
) -> tuple[list[Sample], list[str]]:
    """Return the samples of a page, and the keys of the images that changed or are gone.

    Args:
        shard: a page of named images.
        rows: its rows, each with the path of its image as key.
        options: options of the file system.
    """
    errors = {row.key: row.error for row in rows if row.error in LOST}
    samples: list[Sample] = []
    changed: list[str] = []
    num_asked = 0
    for number, (uri, now) in enumerate(_identities(shard, options)):
        size, version = shard.members[number]["size"], shard.members[number]["version"]
        key = "/".join(place_of(shard, number))
        error = errors.get(key)
        if now is None and (size, version) == NOTHING_THERE:
            error = error or "not_found"
        if now is None:
            if not error:
                changed.append(key)
        elif now != (size, version) and (size, version) != NOTHING_THERE:
            changed.append(key)
        else:
            size = now[0]
            if (error or not size) and num_asked < ASKED_AGAIN:
                num_asked += 1
                error = error_now(uri, size, options)
        samples.append(Sample(key, 0, size, error))
    return samples, changed


def _identities(shard: Shard, options: StorageOptions | None) -> Iterator[tuple[str, tuple[int, str] | None]]:
    """Yield each image's URI, and its size and version as they are now; None where nothing can be seen."""
    uris = ["/".join((shard.uri, member["key"])) for member in shard.members]
    if "://" not in shard.uri:
        for path in uris:
            yield path, _on_disk(path)
        return
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        yield from zip(uris, pool.map(partial(_in_store, options), uris), strict=True)


def _on_disk(path: str) -> tuple[int, str] | None:
    try:
        return os.path.getsize(path), str(os.path.getmtime(path))
    except OSError:
        return None


def _in_store(options: StorageOptions | None, uri: str) -> tuple[int, str] | None:
    try:
        return ListedObject(uri, options).identity()
    except (FileNotFoundError, PermissionError):
        return None
