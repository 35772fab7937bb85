"""Check that every node of a cluster sees a run's places as the command does, before anything is written."""

import contextlib
import functools
import os
import secrets
from collections.abc import Callable, Iterator, Sequence

from wordsworth.pipeline.cluster import env_file
from wordsworth.pipeline.cluster.node_check import MODULES, Question, check_nodes
from wordsworth.pipeline.cluster.session import on_cluster
from wordsworth.pipeline.sources.shards import PAGE_KINDS, Shard
from wordsworth.pipeline.storage.atomic import put_if_absent
from wordsworth.pipeline.storage.filesystem import (
    StorageOptions,
    absolute_uri,
    is_local,
    join,
    open_filesystem,
    without_credentials,
)
from wordsworth.pipeline.storage.schemes import scheme_of
from wordsworth.pipeline.storage.store_view import PROBE, View, difference, view_of_object, view_of_record

# Modules of the clients of stores, by scheme.
CLIENTS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hf": "huggingface_hub",
}

# Whether the file of --env-file was read there; it comes first, because without keys nothing is seen.
KEYS = Question(look=env_file.trouble, judge=lambda _, theirs: theirs and f"has no keys: {theirs}")


def check_places(
    objects: Callable[[], Sequence[str]],
    output: str,
    record: str | None,
    options: StorageOptions,
    note: Callable[[str], None],
) -> None:
    """Let every node of a cluster look at objects of the source and at the output. A local Ray is not asked.

    Where the output has no record of the run yet, the nodes look for a probe, which is removed afterwards.

    Args:
        objects: gives the URIs of a few objects of the source, each of which every node must see.
        output: folder of the run.
        record: name in the output of a small file that its command wrote first, such as "_run/plan.json";
            None where there is none.
        options: storage options of the command.
        note: gets what the user should know of the nodes.

    Raises:
        UserError: a node sees something else, or cannot work at all.
    """
    if not on_cluster():
        return
    uris = objects()
    questions = [KEYS, *(_about_source(uri, options) for uri in uris)]
    with _written(output, record, options) as (uri, folder):
        questions.append(_about_output(uri, folder, output, options))
        clients = {CLIENTS.get(scheme_of(place) or "") for place in (*uris, output)}
        check_nodes(questions, note, (*MODULES, *sorted(filter(None, clients))))


def some_objects(shards: Sequence[Shard]) -> list[str]:
    """Return the URIs of objects of the first and of the last of some shards."""
    uris = [_object_of(shard) for shard in (*shards[:1], *shards[-1:])]
    return list(dict.fromkeys(filter(None, uris)))


def _object_of(shard: Shard) -> str:
    """Return the URI of a shard's object, or of a page's first image."""
    if shard.kind not in PAGE_KINDS:
        return shard.uri
    return join(shard.uri, shard.members[0]["key"]) if shard.members else ""


def _about_source(uri: str, options: StorageOptions) -> Question:
    shown = without_credentials(uri)

    def judge(here: View, there: View) -> str | None:
        return difference(f"the source's {shown}", here, there)

    return Question(look=functools.partial(view_of_object, uri, options), judge=judge)


def _about_output(uri: str, folder: str, output: str, options: StorageOptions) -> Question:
    shown = without_credentials(output)

    def judge(here: View, there: View) -> str | None:
        return difference(f"the output {shown}", here, there)

    return Question(look=functools.partial(view_of_record, uri, options, folder), judge=judge)


@contextlib.contextmanager
def _written(output: str, record: str | None, options: StorageOptions) -> Iterator[tuple[str, str]]:
    """Yield the URI of a small file in the output, and of the folder where it lies.

    The run's own record serves if it is there. Else a probe is written: on a disk into the folder that holds
    the output's nearest folder that exists, so that nothing of the output comes about.
    """
    fs, root = open_filesystem(output, options)
    root = root.rstrip("/") or "/"
    if record and fs.exists(f"{root}/{record}"):
        yield absolute_uri(fs, f"{root}/{record}"), absolute_uri(fs, root)
        return
    folder = f"{root}/_run"
    if is_local(fs):
        folder = root
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
    probe = join(folder, f"{PROBE}{secrets.token_hex(8)}")
    put_if_absent(fs, probe, secrets.token_bytes(16))
    try:
        yield absolute_uri(fs, probe), absolute_uri(fs, folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(probe)
