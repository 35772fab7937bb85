"""What the name of a file says about it: a tar, an image or a table, and in which form."""

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
FORMATS = {"tar": ".tar shards", "images": "images", "table": "tables"}  # and how they are called in messages
TARS = {".tar": None, ".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd", ".tzst": "zstd"}
TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def _by_ending(name: str, endings: dict[str, str | None]) -> str | None:
    return next((kind for ending, kind in endings.items() if name.lower().endswith(ending)), None)


def compression(name: str) -> str | None:
    """How a tar is compressed: "gzip", "zstd" or None."""
    return _by_ending(name, TARS)


def table_form(name: str) -> str | None:
    """ "parquet", "csv", "tsv" or "jsonl"; None for what is no table."""
    return _by_ending(name, TABLES)


def kind_of(base: str, image_keys: tuple[str, ...]) -> str | None:
    """One of FORMATS for the name of a file without its folders, or None."""
    if base.lower().endswith(tuple(TARS)):
        return "tar"
    if base.startswith("._"):  # what macOS leaves beside a file
        return None
    if "." in base and base.rpartition(".")[2].lower() in image_keys:
        return "images"
    return "table" if table_form(base) else None
