"""The report of a run: what it counts is what the rows say, and what it cannot show it says."""

import gzip
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.counting_store import CountingStore
from tests.support.many_rows import link_tars, make_many
from tests.support.report_runs import Made, make_run
from tests.support.samples import encoded, photo, write_tar
from tests.support.tables import write_csv, write_parquet
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.report import album
from wordsworth.pipeline.report.album import Album
from wordsworth.pipeline.report.label_sections import PER_SHELF, gallery_section, label_section
from wordsworth.pipeline.report.page import write_report
from wordsworth.pipeline.report.statistics import RunStatistics
from wordsworth.pipeline.verification.verifier import verify

HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202e"


class Text(HTMLParser):
    """Collect the text, the images and the elements of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.words: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def thumbs(self) -> list[str]:
        return [attrs["src"] for tag, attrs in self.elements if tag == "img" and attrs.get("decoding")]


def images(count: int, first: int = 0) -> list[tuple[str, bytes]]:
    return [(f"d/{n:03d}.jpg", encoded(photo(n, 48, 36))) for n in range(first, first + count)]


def page_of(out: Path, **options) -> str:
    options = {"file": str(out.with_name(f"{out.name}.html"))} | options
    write_report(str(out), **options)
    return Path(options["file"]).read_text(encoding="utf-8")


def data_of(page: str, name: str) -> dict:
    return json.loads(re.search(rf'id="{name}-data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run over two tars with 40 images and two that are none."""
    folder = tmp_path_factory.mktemp("run")
    write_tar(folder / "in" / "a.tar", [*images(24), ("d/x.jpg", b"no image"), ("d/y.jpg", b"GIF no image")])
    write_tar(folder / "in" / "b.tar", images(16, 100))
    make_run(folder / "out", folder / "in")
    return folder / "out"


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    write_report(str(run))
    return (run / "report.html").read_text(encoding="utf-8")


def test_counts_means_and_errors_are_those_of_the_rows(run: Path, page: str):
    rows = pq.read_table(run / "predictions").to_pylist()
    expected = {}
    for row in rows:
        if row["error"] is None:
            expected.setdefault(row["label"], []).append(row["score"])
    told = {name: (count, mean) for name, count, mean, _ in data_of(page, "labels")["rows"]}
    assert {name: count for name, (count, _) in told.items()} == {
        name: len(scores) for name, scores in expected.items()
    }
    for name, (_, mean) in told.items():
        assert mean == pytest.approx(np.mean(expected[name]), abs=1e-4)
    text = Text(page).text
    assert "2 rows of 42 (4.8%) could not be labelled" in text
    assert "not_an_image" in text


def test_galleries_show_the_surest_and_the_least_sure_images(run: Path, page: str):
    rows = [row for row in pq.read_table(run / "predictions").to_pylist() if row["label"] == "ant"]
    best = max(rows, key=lambda row: row["score"])
    worst = min(rows, key=lambda row: row["score"])
    shelf = page[page.index('<details id="label-0"') :]
    captions = re.findall(r'data-caption="([^"]*)" data-detail="([^"]*)"', shelf)
    assert captions[0][0] == f"ant {best['score']:.3f}"
    assert captions[0][1].startswith(best["key"])
    assert f"ant {worst['score']:.3f}" in [caption for caption, _ in captions]


def test_images_are_in_the_page_itself(page: str):
    thumbs = Text(page).thumbs()
    assert len(thumbs) > 20
    assert all(thumb.startswith("data:image/webp;base64,") for thumb in thumbs)
    assert len([point for point in data_of(page, "map")["points"] if point["image"]]) == 40


def test_the_same_seed_shows_the_same_images_and_another_one_shows_others(run: Path, tmp_path: Path):
    def shown(seed: int) -> list[str]:
        file = str(tmp_path / f"{seed}.html")
        return re.findall(r'data-detail="([^"]*)"', page_of(run, file=file, seed=seed))

    assert shown(1) == shown(1)
    assert shown(1) != shown(2)


def test_the_run_is_as_good_with_its_report_as_without_it(run: Path, page: str):
    assert (run / "report.html").exists()
    assert verify(str(run), source=True).findings == []
    assert RunFolder(str(run)).foreign() == "holds a run: choose a new folder as --output"
    assert len(RunFolder(str(run)).units().row_files()) == len(list((run / "predictions").iterdir()))


def test_settings_and_model_are_named_and_secrets_are_not(tmp_path: Path):
    write_tar(tmp_path / "a.tar", images(2))
    make_run(tmp_path / "out", tmp_path / "a.tar")
    plan = json.loads((tmp_path / "out/_run/plan.json").read_text())
    plan["asked"]["source"] = [
        "https://user:hunter2@host/x.tar?X-Amz-Signature=hunter3",
        "s3://id:hunter4@b/x",
    ]
    (tmp_path / "out/_run/plan.json").write_text(json.dumps(plan))
    page = page_of(tmp_path / "out")
    assert "hunter" not in page
    assert plan["fingerprint"] in page
    assert "https://host/x.tar" in page


def test_keys_labels_and_messages_are_text(tmp_path: Path):
    write_tar(
        tmp_path / "in.tar", [(f"{HOSTILE}.jpg", encoded(photo(1, 40, 40))), (f"{HOSTILE}2.jpg", b"<b>no")]
    )
    make_run(tmp_path / HOSTILE.replace("/", "_"), tmp_path / "in.tar", labels=(HOSTILE, "b", "c", "d"))
    page = page_of(tmp_path / HOSTILE.replace("/", "_"), file=str(tmp_path / "page.html"))
    scripts = [attrs for tag, attrs in Text(page).elements if tag == "script"]
    assert [attrs.get("type") for attrs in scripts] == ["application/json", "application/json", None]
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "<script>alert" not in page
    (row,) = data_of(page, "labels")["rows"]
    assert row[0] == "<script>alert(1)</script>\"'&\\x1b[31m\\u202e"


def test_a_run_of_errors_alone(tmp_path: Path):
    write_tar(tmp_path / "a.tar", [(f"{n}.jpg", b"no image") for n in range(5)])
    text = Text(page_of(make_run(tmp_path / "out", tmp_path / "a.tar"))).text
    assert "No row has a label: every row has an error." in text
    assert "There is no image with a label to show." in text
    assert "No row has an embedding" in text
    assert "5 rows of 5 (100.0%)" in text


def test_a_run_of_one_row(tmp_path: Path):
    write_tar(tmp_path / "a.tar", images(1))
    page = page_of(make_run(tmp_path / "out", tmp_path / "a.tar"))
    assert len(set(Text(page).thumbs())) == 1
    assert "1 image made by" not in page
    assert "Fewer than two rows have an embedding" in page


def test_a_run_without_embeddings_says_what_would_keep_them(tmp_path: Path):
    write_tar(tmp_path / "a.tar", images(3))
    page = page_of(make_run(tmp_path / "out", tmp_path / "a.tar", embedding=None))
    assert "This run keeps no embeddings" in page
    assert 'id="map-data"' not in page
    assert len(set(Text(page).thumbs())) == 3


def test_a_run_without_a_row(tmp_path: Path):
    write_tar(tmp_path / "a.tar", [])
    text = Text(page_of(make_run(tmp_path / "out", tmp_path / "a.tar"))).text
    assert "0 images" in text


def test_copies_of_an_image_are_shown_together(tmp_path: Path):
    write_tar(tmp_path / "a.tar", images(12))
    signs = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    spread = np.concatenate([np.eye(4), -np.eye(4), signs / 2])  # no two closer than 60 degrees
    spread[7] = spread[2]
    make_run(
        tmp_path / "out",
        tmp_path / "a.tar",
        answer=lambda number: Made(number % 3, 0.9, tuple(spread[number])),
    )
    page = page_of(tmp_path / "out")
    shelf = page[page.index('id="duplicates"') : page.index('id="images"')]
    assert "2 images, similarity 1.000" in shelf
    assert sorted(re.findall(r'data-detail="(d/\d+)', shelf)) == ["d/002", "d/007"]
    assert "All 12 embeddings were compared" in shelf


def test_images_of_a_compressed_tar_are_shown(tmp_path: Path):
    tar = write_tar(tmp_path / "a.tar", images(6))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    page = page_of(make_run(tmp_path / "out", tmp_path / "in"))
    assert len(set(Text(page).thumbs())) == 6


def test_images_of_tables_are_shown_from_cells_and_from_addresses(tmp_path: Path):
    write_parquet(tmp_path / "cells/a.parquet", {"image": [data for _, data in images(4)]})
    (tmp_path / "named/x").mkdir(parents=True)
    rows = []
    for name, data in images(3):
        (tmp_path / "named/x" / Path(name).name).write_bytes(data)
        rows.append({"image": f"x/{Path(name).name}"})
    write_csv(tmp_path / "named/a.csv", rows)
    for place, count in (("cells", 4), ("named", 3)):
        source = next((tmp_path / place).glob("a.*"))
        page = page_of(make_run(tmp_path / f"out-{place}", source, format="table"))
        assert len(set(Text(page).thumbs())) == count


def test_an_image_that_is_gone_is_said_with_its_reason(tmp_path: Path):
    write_tar(tmp_path / "in/a.tar", images(3))
    write_tar(tmp_path / "in/b.tar", images(4, 10))
    make_run(tmp_path / "out", tmp_path / "in")
    (tmp_path / "in/a.tar").unlink()
    written = write_report(str(tmp_path / "out"))
    assert (written.num_images, sum(count for _, count in written.missing)) == (4, 3)
    text = Text((tmp_path / "out/report.html").read_text()).text
    assert "Images that are not shown 3 images:" in text
    assert text.count("no image") >= 3


def test_a_full_page_leaves_images_out_and_says_so(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(album, "MOST_BYTES", 2000)
    write_tar(tmp_path / "a.tar", images(9))
    written = write_report(str(make_run(tmp_path / "out", tmp_path / "a.tar")))
    assert 0 < written.num_images < 9
    assert written.missing == [(album.IS_FULL, 9 - written.num_images)]


def test_a_run_that_is_not_complete_shows_what_is_there(tmp_path: Path):
    write_tar(tmp_path / "in/a.tar", images(9))
    make_run(tmp_path / "out", tmp_path / "in")
    for name in ("summary.json", "manifest.parquet"):
        (tmp_path / "out/_run" / name).unlink()
    next((tmp_path / "out/predictions").glob("*-00001.parquet")).unlink()
    text = Text(page_of(tmp_path / "out")).text
    assert "This run is not complete." in text
    assert "5 images" in text


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no run"):
        write_report(str(tmp_path))
    assert not (tmp_path / "report.html").exists()


def test_twenty_thousand_labels_fit_and_a_page_of_them_is_drawn(tmp_path: Path):
    tar = write_tar(tmp_path / "a.tar", images(8))
    source = link_tars(tar, tmp_path / "in", 2)
    labels = tuple(f"label {number} of many" for number in range(20_000))
    make_many(tmp_path / "out", source, rows_per_shard=12_000, labels=labels, num_labels=20_000)
    page = page_of(tmp_path / "out")
    rows = data_of(page, "labels")["rows"]
    assert len(rows) == 20_000
    assert sum(count for _, count, _, _ in rows) == 24_000
    assert len(page) < 3_000_000
    assert page.count("<tr>") < 100
    assert "the 24 most frequent of 20,000 labels" in page


def test_the_plan_stands_beside_what_came_of_it(tmp_path: Path):
    write_tar(tmp_path / "a.tar", images(8))
    make_run(tmp_path / "out", tmp_path / "a.tar")
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
    folder = RunFolder(str(tmp_path / "out"))
    folder.keep_estimate({"forecast": {"seconds": 7200, "bottleneck": "decode"}, "measured": {"images": 10}})
    summary = json.loads((tmp_path / "out/_run/summary.json").read_text())
    summary["estimate"] = {
        "images": [10, 8],
        "images_per_second": [100.0, 50.0],
        "bytes_written": [1000, 900],
    }
    (tmp_path / "out/_run/summary.json").write_text(json.dumps(summary))
    text = Text(page_of(tmp_path / "out")).text
    assert "images 10 8 80.0%" in text
    assert "images a second 100 50 50.0%" in text
    assert "time 2 h 0 min" in text


def test_the_page_may_go_elsewhere(run: Path, tmp_path: Path):
    written = write_report(str(run), file=str(tmp_path / "deep/page.html"))
    assert Path(written.path).stat().st_size == written.size_bytes
    assert io.BytesIO(Path(written.path).read_bytes()).read(15) == b"<!doctype html>"


def test_a_head_that_gives_a_number_has_its_distribution_and_its_ends():
    count = 500
    names = ("key", "shard", "error", "error_detail")
    columns = {name: pa.array([f"{name} {n}" for n in range(count)]) for name in names[:2]}
    columns |= {name: pa.nulls(count, pa.string()) for name in names[2:]}
    columns |= {name: pa.array(range(count)) for name in ("index", "offset", "size", "width", "height")}
    columns["value"] = pa.array(np.linspace(-3, 5, count), pa.float32())
    rows = pa.table(columns)
    statistics = RunStatistics(rows.schema, PER_SHELF, seed=0)
    statistics.add_all(rows.to_batches(max_chunksize=64))
    section = label_section(statistics)
    assert section["values"] and section["labels"] is None
    assert "500 images, mean 1" in section["score_note"]
    (gallery,) = gallery_section(statistics, Album())["galleries"]
    shelves = {title: [image.caption for image in images] for title, images in gallery["shelves"]}
    assert shelves["Highest"][0] == "5.000"
    assert shelves["Lowest"][0] == "-3.000"
    assert len(shelves["Drawn at random"]) == PER_SHELF


@pytest.mark.server
def test_of_a_store_only_the_ranges_of_images_on_the_page_are_fetched_each_once(tmp_path: Path):
    write_tar(tmp_path / "bucket/in/a.tar", images(300))
    with CountingStore(tmp_path).serving() as store:
        options = {"key": "K", "secret": "S", "endpoint_url": store.url, "use_listings_cache": False}
        make_run(tmp_path / "out", "s3://bucket/in/a.tar", embedding=None, options=options)
        store.requests.clear()
        page = page_of(tmp_path / "out", storage_options=options)
    asked = [one.headers.get("range") for one in store.requests if one.method == "GET"]
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "out/predictions").to_pylist()}
    shown = set(re.findall(r'data-detail="(d/\d+) ', page))
    places = {(rows[key]["offset"], rows[key]["size"]) for key in shown}
    assert sorted(asked) == sorted(f"bytes={offset}-{offset + size - 1}" for offset, size in places)
    assert 30 < len(asked) < 100
