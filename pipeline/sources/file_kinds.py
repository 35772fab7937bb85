"""Judge a file by its name: a tar, an image or a table, and in which form."""

from collections.abc import Mapping

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")  # extensions of images
FORMATS = {
    "tar": ".tar shards",
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
TABLES = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}  # ending: form


def kind_of(base: str, image_keys: tuple[str, ...]) -> str | None:
    """Return one of FORMATS for a file's name without its folders; None for a file of another kind."""
    if base.lower().endswith(tuple(TARS)):
        return "tar"
    if "." in base and base.rpartition(".")[2].lower() in image_keys:
        return "images"
    return "table" if table_form(base) else None


def base_name(path: str) -> str:
    """Return a path's name without its folders. An object of a store may have slashes at its name's end."""
    return path.rstrip("/").rpartition("/")[2]


def compression(name: str) -> str | None:
    """Return how a tar is compressed: "gzip", "zstd" or None."""
    return _by_ending(name, TARS)


def table_form(name: str) -> str | None:
    """Return "parquet", "csv", "tsv" or "jsonl"; None for a file that is no table."""
    return _by_ending(name, TABLES)


def _by_ending(name: str, endings: Mapping[str, str | None]) -> str | None:
    for ending, form in endings.items():
        if name.lower().endswith(ending):
            return form
    return None
