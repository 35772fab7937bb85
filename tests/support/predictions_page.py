"""Check what the blocks of docs/using-predictions.md give, over a run whose answers are known.

The run has 41 rows: 40 images with the keys 000 to 039, of which every second one is a cat, and one that is
no image. The image of number n has the score 0.5 + n / 100 and an embedding at the angle n / 10.
"""

import csv
import json
from pathlib import Path
from typing import Any

Names = dict[str, Any]

KEYS = [f"{number:03d}" for number in range(40)]
CATS = KEYS[::2]
UNSURE = KEYS[:20]  # the least sure ones, and also those with the least margin
WRONG = {"036", "039"}  # images whose sidecar says the other class, of which the model is sure
SHOPS = "key,shop\n" + "".join(
    f"{key},{'north' if number < 10 else 'south'}\n" for number, key in enumerate(KEYS)
)


def is_near(keys: list[str]) -> bool:
    """Return whether keys are the nearest of 003 in their order; pairs are equally near."""
    return [set(keys[:1]), set(keys[1:3]), set(keys[3:5])] == [{"003"}, {"002", "004"}, {"001", "005"}]


def duckdb_reads(names: Names) -> None:
    assert len(names["found"]) == 5
    assert all(row["offset"] > 0 and row["size"] > 0 for row in names["found"])


def duckdb_counts(names: Names) -> None:
    rows = {row["label"]: row for row in names["found"]}
    assert {label: row["images"] for label, row in rows.items()} == {"cat": 20, "dog": 20}
    assert abs(rows["cat"]["mean_score"] - 0.69) < 1e-6


def duckdb_exports(names: Names) -> None:
    with open("rows.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [json.loads(line) for line in Path("rows.json").read_text().splitlines()]
    assert len(lines) == len(rows) == 41 and list(lines[0]) == ["key", "label", "score"]
    labels = {row["key"]: row["label"] for row in lines}
    assert [key for key in KEYS if labels[key] == "cat"] == CATS
    assert {row["key"]: len(row["topk"]) for row in rows if row["error"] is None} == dict.fromkeys(KEYS, 2)


def duckdb_is_unsure(names: Names) -> None:
    assert [row["key"] for row in names["found"]] == UNSURE
    assert abs(names["found"][1]["margin"] - 0.02) < 1e-6 and names["found"][1]["second"] == "cat"


def duckdb_joins(names: Names) -> None:
    counts = {(row["shop"], row["label"]): row["images"] for row in names["found"]}
    assert counts == {("north", "cat"): 5, ("north", "dog"): 5, ("south", "cat"): 15, ("south", "dog"): 15}


def duckdb_finds_neighbours(names: Names) -> None:
    assert is_near([row["key"] for row in names["found"]]) and len(names["found"]) == 12
    assert abs(names["found"][0]["similarity"] - 1) < 1e-3


def polars_reads(names: Names) -> None:
    assert names["rows"].collect().height == 41


def polars_counts(names: Names) -> None:
    assert {row["label"]: row["len"] for row in names["counts"].to_dicts()} == {"cat": 20, "dog": 20}


def polars_is_unsure(names: Names) -> None:
    assert names["unsure"]["key"].to_list() == UNSURE


def polars_joins(names: Names) -> None:
    shops = names["joined"]["shop"].to_list()
    assert [shops.count(shop) for shop in ("north", "south", None)] == [10, 30, 1]


def pandas_reads(names: Names) -> None:
    assert len(names["rows"]) == 41 and list(names["rows"]) == ["key", "shard", "label", "score"]


def pandas_is_unsure(names: Names) -> None:
    assert list(names["unsure"]["key"]) == UNSURE


def pandas_joins(names: Names) -> None:
    assert names["joined"]["shop"].value_counts(dropna=False).to_list() == [30, 10, 1]


def spark_reads(names: Names) -> None:
    assert names["rows"].count() == 41


def spark_counts(names: Names) -> None:
    assert {row["label"]: row["count"] for row in names["counts"]} == {"cat": 20, "dog": 20}


def spark_reads_vectors(names: Names) -> None:
    vectors = {row["key"]: row["embedding"] for row in names["vectors"]}
    assert sorted(vectors) == KEYS and vectors["000"] == [1.0, 0.0, 0.0, 0.0]
    assert abs(vectors["003"][0] - 0.9553) < 1e-3


def sheet_of_neighbours(names: Names) -> None:
    assert Path("nearest.png").read_bytes().startswith(b"\x89PNG")


def files_of_cats(names: Names) -> None:
    assert Path("cats.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(Path("cats").glob("*.jpg"))) == 20


def images_of_cats(names: Names) -> None:
    assert sorted(names["sizes"]) == CATS and set(names["sizes"].values()) == {(96, 72)}


def ranges_of_cats(names: Names) -> None:
    assert sorted(names["images"]) == CATS
    assert all(
        data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9") for data in names["images"].values()
    )


def lance_finds_neighbours(names: Names) -> None:
    assert names["table"].count_rows() == 40
    keys = list(names["nearest"]["key"])
    assert len(keys) == 12 and set(keys) <= set(CATS) and set(keys[:2]) == {"002", "004"}


def faiss_finds_neighbours(names: Names) -> None:
    assert is_near(names["nearest"]) and len(names["nearest"]) == 12


def datasets_reads(names: Names) -> None:
    assert len(names["rows"]) == 41
    assert {"key", "label", "topk", "embedding"} <= set(names["rows"].column_names)
    assert len(names["rows"][0]["embedding"]) == 4


def datasets_has_images(names: Names) -> None:
    found = names["images"]
    assert sorted(found["key"]) == KEYS and found[0]["image"].size == (96, 72)


def files_for_fiftyone(names: Names) -> None:
    assert len(list(Path("picked").glob("*.jpg"))) == 40


def fiftyone_has_samples(names: Names) -> None:
    assert names["dataset"].count_values("prediction.label") == {"cat": 20, "dog": 20}
    assert all(Path(path).is_file() for path in names["dataset"].values("filepath"))


def cleanlab_finds_wrong_labels(names: Names) -> None:
    assert set(names["wrong"]) == WRONG


CHECKS = {
    "DuckDB: read": duckdb_reads,
    "DuckDB: count by label": duckdb_counts,
    "DuckDB: CSV and JSON": duckdb_exports,
    "DuckDB: unsure images": duckdb_is_unsure,
    "DuckDB: join": duckdb_joins,
    "DuckDB: nearest neighbours": duckdb_finds_neighbours,
    "Polars: read": polars_reads,
    "Polars: count by label": polars_counts,
    "Polars: unsure images": polars_is_unsure,
    "Polars: join": polars_joins,
    "pandas: read": pandas_reads,
    "pandas: unsure images": pandas_is_unsure,
    "pandas: join": pandas_joins,
    "Spark: read": spark_reads,
    "Spark: count by label": spark_counts,
    "Spark: float16 embeddings": spark_reads_vectors,
    "wordsworth: nearest neighbours": sheet_of_neighbours,
    "wordsworth: files of a label": files_of_cats,
    "wordsworth: images of a label": images_of_cats,
    "fsspec: images of a label": ranges_of_cats,
    "LanceDB: nearest neighbours": lance_finds_neighbours,
    "FAISS: nearest neighbours": faiss_finds_neighbours,
    "datasets: read": datasets_reads,
    "datasets: with the images": datasets_has_images,
    "FiftyOne: files": files_for_fiftyone,
    "FiftyOne: samples": fiftyone_has_samples,
    "cleanlab: wrong labels": cleanlab_finds_wrong_labels,
}
