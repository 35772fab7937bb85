"""Write tables for the tests by pyarrow, csv and json."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_parquet(path: Path, columns: dict, rows_in_group: int = 1 << 20, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, row_group_size=rows_in_group, **options)
    return path


def write_hugging_face(path: Path, columns: dict, names: dict[str, list[str]]) -> Path:
    """Write columns as Hugging Face's datasets do; `names` are those of columns of the type ClassLabel."""
    features: dict = {"image": {"_type": "Image"}}
    for column, labels in names.items():
        features[column] = {"names": labels, "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return write_parquet(path, pa.table(columns).replace_schema_metadata(metadata))


def write_csv(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path: Path, rows: list, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, **options))
    return path


def write_jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def write_files(folder: Path, count: int) -> list[str]:
    """Write `count` files of different bytes, and return their names relative to the folder's parent."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:03d}.jpg").write_bytes(image_bytes(number))
    return [f"{folder.name}/{number:03d}.jpg" for number in range(count)]


def image_bytes(number: int) -> bytes:
    return b"%04d" % number * (50 + number)  # the reader never looks into it
