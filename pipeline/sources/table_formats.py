"""Refuse what is not read, and say what to run instead: folders of Delta and Iceberg, foreign files.

A Delta or Iceberg table is not the files below its folder: files that were deleted or replaced lie there too,
until they are cleaned up. Read as plain files they would be rows of images that the table no longer has.
"""

import re
from collections import Counter
from typing import Any

import fsspec

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.file_kinds import base_name
from wordsworth.pipeline.storage.filesystem import absolute_uri, without_credentials
from wordsworth.pipeline.storage.objects import object_info
from wordsworth.pipeline.storage.streams import with_retries

DELTA_LOG = "_delta_log"
_ICEBERG_METADATA = re.compile(r"(.*)/metadata/[^/]+\.metadata\.json")
_NUMBER = re.compile(r"\d+")
# Ending of files that are not read: what makes something of them that is read.
_INSTEAD = {
    ".arrow": "datasets.load_from_disk('FOLDER').to_parquet('t.parquet') makes a table of them",
    ".bz2": "bunzip2 makes a .tar of a .tar.bz2",
    ".xz": "unxz makes a .tar of a .tar.xz",
    ".tfrecord": "write the images of TFRecords into .tar shards: wds.ShardWriter of webdataset",
    ".mds": "write the images of MosaicML's shards into .tar shards: wds.ShardWriter of webdataset",
    ".lance": "lance.dataset('FOLDER').to_table() and pyarrow.parquet.write_table make a table",
    ".orc": "pyarrow.orc.read_table and pyarrow.parquet.write_table make a table",
    ".feather": "pyarrow.feather.read_table and pyarrow.parquet.write_table make a table",
    ".xlsx": "pandas.read_excel('FILE').to_csv('t.csv') makes a table",
    ".json": "a .json file is a table where it is named itself: FILE.json, or 'FOLDER/*.json'",
}


def instead_of(ignored: Counter[str]) -> str | None:
    """Return what to run for the most frequent files that are not read; None where nothing is known."""
    for extension, _ in ignored.most_common():
        for ending, advice in _INSTEAD.items():
            if extension == ending or extension.startswith(f"{ending}-"):  # .tfrecord-00000-of-00010
                return advice
    return None


def refuse_table_folder(fs: fsspec.AbstractFileSystem, folder: str, source: str) -> None:
    """Refuse a folder that is, or is a part of, a table of Delta or Iceberg.

    Args:
        fs: file system of the folder
        folder: path in `fs`
        source: the user's name of the folder, for the message

    Raises:
        UserError: it is one. The message says how to list the files that count.
        OSError: the store fails.
    """
    folder = folder.rstrip("/")
    while folder:
        if _info(fs, f"{folder}/{DELTA_LOG}"):
            raise _refusal(source, "Delta", _delta_files(absolute_uri(fs, folder)))
        if _info(fs, f"{folder}/metadata") and _info(fs, f"{folder}/data"):
            _refuse_iceberg(fs, folder, source)
        name = base_name(folder)
        is_part = "=" in name or name == "data"  # a partition, or the files of Iceberg
        folder = folder.rpartition("/")[0] if is_part else ""


def refuse_table_below(fs: fsspec.AbstractFileSystem, path: str, source: str) -> None:
    """Refuse a file that only a table of Delta or Iceberg has, below a folder of several tables."""
    if f"/{DELTA_LOG}/" in path:
        raise _refusal(source, "Delta", _delta_files(absolute_uri(fs, path.partition(f"/{DELTA_LOG}/")[0])))
    if path.endswith(".metadata.json") and (found := _ICEBERG_METADATA.fullmatch(path)):
        _refuse_iceberg(fs, found[1], source)


def _refuse_iceberg(fs: fsspec.AbstractFileSystem, folder: str, source: str) -> None:
    entries = with_retries(lambda: fs.ls(f"{folder}/metadata", detail=False))
    versions = [name for name in entries if name.endswith(".metadata.json")]
    if versions:
        newest = max(versions, key=_version)
        raise _refusal(source, "Iceberg", _iceberg_files(absolute_uri(fs, newest)))


def _version(path: str) -> tuple[int, str]:
    """Return the number of a state of a table: 12 of v12.metadata.json or 00012-ID.metadata.json."""
    number = _NUMBER.search(base_name(path))
    return (int(number[0]) if number else -1, path)


def _delta_files(uri: str) -> str:
    place = repr(without_credentials(uri))
    return f"from deltalake import DeltaTable as T; print(*T({place}).file_uris(), sep='\\n')"


def _iceberg_files(uri: str) -> str:
    place = repr(without_credentials(uri))
    files = f"f.file.file_path for f in T.from_metadata({place}).scan().plan_files()"
    return f"from pyiceberg.table import StaticTable as T; print(*({files}), sep='\\n')"


def _refusal(source: str, name: str, code: str) -> UserError:
    return UserError(
        f"{without_credentials(source)} holds a table of {name}, where removed files lie beside live ones: "
        f'list the live ones with python -c "{code}" > live.txt, and use @live.txt as the source'
    )


def _info(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    try:
        return with_retries(lambda: object_info(fs, path))
    except (FileNotFoundError, NotADirectoryError):
        return None
