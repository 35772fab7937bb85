"""Judge a file by its name: a tar, a zip archive, an image or a table, and in which form."""

from collections.abc import Mapping, Sequence

# Extensions of images, in order of preference; the default of --image-key. What was begun with the earlier
# default goes on with it: see begun_image_keys.
_EARLIER_IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
IMAGE_KEYS = (*_EARLIER_IMAGE_KEYS, "jfif", "jpe", "mpo", "heic", "heif", "hif", "jp2", "jxl")
NO_EXTENSION = "without an extension"  # stands in counts for the extension of such a name
FORMATS = {
    "tar": ".tar shards",
    "zip": ".zip archives",
    "images": "images",
    "table": "tables",
}  # kinds of sources, and their names in messages
TARS = {
    ".tar": None,
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.zst": "zstd",
    ".tzst": "zstd",
}  # ending: compression
_TEXTS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}  # ending: form
_PACKED = {".gz": "gzip", ".zst": "zstd"}  # second ending of a table of text: compression
TABLES = {
    ".parquet": "parquet",
    **_TEXTS,
    **{text + packed: form for text, form in _TEXTS.items() for packed in _PACKED},
}  # ending: form
# Tables only where the source's own name ends so: in folders, such files mostly describe other files.
JSONS = {".json": "json", ".json.gz": "json", ".json.zst": "json"}
_TABLE_ENDINGS = tuple(TABLES)


def kind_of(base: str, image_keys: tuple[str, ...], format: str | None = None) -> str | None:
    """Return one of FORMATS for a file's name; None for a file of another kind.

    Args:
        base: the name without its folders
        image_keys: extensions of images, in lower case
        format: the kind that was asked for. For "images" a name without an extension is an image: names such
            as a sha256 say nothing, so the decoder judges by the bytes
    """
    if base.lower().endswith(tuple(TARS)):
        return "tar"
    extension = extension_of(base)
    if extension == "zip":
        return "zip"
    if extension in image_keys:
        return "images"
    if not extension and base and format == "images":
        return "images"
    return "table" if is_table(base) else None


def begun_image_keys(asked: tuple[str, ...], begun: Sequence[str]) -> tuple[str, ...]:
    """Return the extensions of images with which a run or a training that was begun goes on.

    Args:
        asked: what the command says
        begun: what the first command said
    """
    is_default_of_its_time = tuple(begun) == _EARLIER_IMAGE_KEYS
    return _EARLIER_IMAGE_KEYS if asked == IMAGE_KEYS and is_default_of_its_time else asked


def extension_of(base: str) -> str:
    """Return what is behind the last dot of a name, in lower case; "" where there is nothing."""
    return base.rpartition(".")[2].lower() if "." in base else ""


def base_name(path: str) -> str:
    """Return a path's name without its folders. An object of a store may have slashes at its name's end."""
    return path.rstrip("/").rpartition("/")[2]


def compression(name: str) -> str | None:
    """Return how a tar or a table of text is compressed: "gzip", "zstd" or None."""
    return _by_ending(name, TARS | _PACKED)


def table_form(name: str) -> str | None:
    """Return "parquet", "csv", "tsv", "jsonl" or "json"; None for a file that is no table."""
    return _by_ending(name, TABLES | JSONS)


def is_table(name: str) -> bool:
    """Return whether a name is that of a table wherever it lies."""
    return name.lower().endswith(_TABLE_ENDINGS)


def is_json(name: str) -> bool:
    """Return whether a name is that of a JSON file: an array, or an object a line."""
    return _by_ending(name, JSONS) is not None


def _by_ending(name: str, endings: Mapping[str, str | None]) -> str | None:
    for ending, form in endings.items():
        if name.lower().endswith(ending):
            return form
    return None
