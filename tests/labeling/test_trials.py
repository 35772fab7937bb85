"""Inputs as people have them, through the labeler: each image a row with its own pixels, and verify agrees.

A trial is a small input that was made from a public complaint about a comparable tool. Trials that need the
same options are the sources of one run. Each image of a trial has a size of its own, so that a row's width
and height say which image it was made from.
"""

import base64
import gzip
import io
import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest
import zstandard
from PIL import Image

from tests.support.labelling import rows, run
from tests.support.samples import encoded
from tests.support.tables import write_csv, write_json, write_jsonl, write_parquet
from wordsworth.pipeline.storage.filesystem import ALLOW_URIS
from wordsworth.pipeline.verification.verifier import verify
from wordsworth.vit_model.model_folder import load_folder

pytestmark = pytest.mark.usefixtures("local_ray")


class Trial(NamedTuple):
    """Hold an input and what is right.

    Attributes:
        make: writes the input into a folder, and returns the sources to label
        rows: by key (None for the rest of a shard that is cut), the number of the image that the row was made
            from, or the code of its error
    """

    make: Callable[[Path], list[Path | str]]
    rows: dict[str | None, int | str]


def image(number: int) -> bytes:
    """Return a JPEG that is `20 + number` pixels wide and 16 high."""
    buffer = io.BytesIO()
    Image.new("RGB", (20 + number, 16), (number * 7 % 256, 90, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def write(folder: Path, *names: str) -> list[Path]:
    """Write image 1, 2, ... under these names, and return the folder as the one source."""
    for number, name in enumerate(names, 1):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
    return [folder]


def write_tar(path: Path, *names: str) -> list[Path]:
    """Write a tar with image 1, 2, ... under these names, and return it as the one source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names, 1):
            data = image(number)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return [path]


# ---- the trials --------------------------------------------------------------------------------------------


def plain_folder(folder: Path) -> list[Path]:
    return write(folder, "cat/1.jpg", "dog/1.jpg", "a b.jpg", "100%.jpg", "x#y.jpg", "q?.jpg", "[1].jpg")


def folder_of_programs(folder: Path) -> list[Path]:
    junk = (
        ".thumbnails/t.jpg",
        "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
        "cat/._1.jpg",
        "__MACOSX/cat/._1.jpg",
    )
    trash = (".Trash-1000/files/x.jpg", "$RECYCLE.BIN/x.jpg", ".ipynb_checkpoints/1-checkpoint.jpg")
    return write(folder, "cat/1.jpg", "dog/1.jpg", "_2.jpg", *junk, *trash)


def tar_of_programs(folder: Path) -> list[Path]:
    return write_tar(
        folder / "a.tar", "cat/1.jpg", ".thumbnails/t.jpg", "@eaDir/1.jpg", "dog/2.jpg", "._3.jpg"
    )


def folder_of_links(folder: Path) -> list[Path]:
    write(folder, "in/cats/a.jpg", "elsewhere/dogs/1.jpg", "in/.store/birds/c.jpg")
    (folder / "in" / "dogs").symlink_to(folder / "elsewhere" / "dogs")
    (folder / "in" / "cats" / "loop").symlink_to("..")
    (folder / "in" / "birds").symlink_to(".store/birds")
    (folder / "in" / "dog.jpg").symlink_to(folder / "elsewhere" / "dogs" / "1.jpg")
    return [folder / "in"]


def folder_of_formats(folder: Path) -> list[Path]:
    write(folder, "1.jfif", "2.JPE")
    for number, name, kind in ((3, "3.jp2", "JPEG2000"), (4, "4.heic", "HEIF"), (5, "5.avif", "AVIF")):
        (folder / name).write_bytes(encoded(Image.open(io.BytesIO(image(number))), kind))
    (folder / "6.jxl").write_bytes(b"\xff\x0a" + bytes(50))
    (folder / "7.jpg").symlink_to("/nowhere")
    return [folder]


def tables_of_text(folder: Path) -> list[Path]:
    write(folder, *(f"{number} é.jpg" for number in range(1, 6)))
    rows = [{"n": f"{number},5", "url": f"{number} é.jpg"} for number in range(1, 6)]
    semicolons = write_csv(folder / "a.csv", rows[:2], ";")
    semicolons.write_bytes(semicolons.read_text().encode("utf-16"))
    lines = write_jsonl(folder / "b.jsonl", [*rows[2:3], "{broken"])
    array = write_json(folder / "c.json", [rows[3], {"url": "images\\5 é.jpg"}], indent=1)
    packed = [folder / "b.jsonl.gz", folder / "c.json.zst"]
    packed[0].write_bytes(gzip.compress(lines.read_bytes()))
    packed[1].write_bytes(zstandard.compress(array.read_bytes()))
    return [semicolons, *packed]


def partitioned_table(folder: Path) -> list[Path]:
    write(folder, "1.jpg", "2.jpg")
    for number, label in enumerate(("cat", "dog"), 1):
        write_parquet(folder / "t" / f"label={label}" / "p.parquet", {"url": [f"../../{number}.jpg"]})
    return [folder / "t"]


def output_of_img2dataset(folder: Path) -> list[Path]:
    write_tar(folder / "00000.tar", "000000000.jpg", "000000001.jpg")
    write_parquet(folder / "00000.parquet", {"url": ["http://a/1.jpg", "http://a/2.jpg"]})
    write_json(folder / "00000_stats.json", {"count": 2})
    return [folder]


def images_in_text(name: str, folder: Path) -> list[Path]:
    texts = [base64.b64encode(image(number)).decode() for number in (1, 2, 3)]
    rows = [
        {"image": text, "n": 1} for text in (texts[0], f"data:image/jpeg;base64,{texts[1]}", texts[2] + "#")
    ]
    if name == "t.csv":
        return [write_csv(folder / name, rows)]
    if name == "t.jsonl":
        return [write_jsonl(folder / name, rows)]
    return [write_parquet(folder / name, pa.Table.from_pylist(rows))]


def lists_of_images(folder: Path) -> list[Path]:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [[], [1], [2, 3], [None]]
    column = [[n and {"bytes": image(n), "path": f"{n}.jpg"} for n in cell] for cell in cells]
    write_parquet(folder / "t.parquet", {"images": pa.array(column, pa.list_(struct))})
    return [folder]


def structs_without_some_bytes(folder: Path) -> list[Path]:
    write(folder, "1.jpg", "2.jpg", "3.jpg")
    cells = [{"bytes": image(n) if n != 2 else None, "path": f"{n}.jpg"} for n in (1, 2, 3)]
    cells += [{"bytes": image(4), "path": None}, None]
    return [write_parquet(folder / "t.parquet", {"image": cells})]


def nested_names(folder: Path) -> list[Path]:
    write(folder, "a.jpg", "b.jpg")
    rows = [{"image": {"url": name}, "meta": {"id": 7}} for name in ("a.jpg", "b.jpg")]
    return [write_jsonl(folder / "t.jsonl", rows)]


def one_image_for_many_rows(folder: Path) -> list[Path]:
    column = pa.DictionaryArray.from_arrays([0, 1, 0, 0, None], [image(1), image(2)])
    return [write_parquet(folder / "t.parquet", {"photo": column})]


def names_like_uris(folder: Path) -> list[Path]:
    named = ["run-12:30/a.jpg", "a**b/a.jpg", "a::b.jpg", "end .jpg", "caf\u00e9.jpg", "cafe\u0301.jpg"]
    write(folder / "loose", *named)
    tar = write_tar(folder / "batch::1.tar", "1.jpg", "2.jpg")
    write(folder / "cells", "cam1:0001.jpg", "pipe:ls.jpg", "x::y.jpg")
    table = folder / "cells" / "t.csv"
    table.write_text("url\ncam1:0001.jpg\npipe:ls.jpg\nx::y.jpg\npipe:cat x\n")
    return [folder / "loose", *tar, table]


def dotted_tar(folder: Path) -> list[Path]:
    names = [f"22.{number:02}.png" for number in range(1, 11)]
    return write_tar(folder / "a.tar", *names, "000.left.jpg", "000.right.jpg", "a.jpg", "a.seg.png")


def list_of_images(folder: Path) -> list[Path | str]:
    names = ["c/5.jpg", "a/1.jpg", "a/2 é.jpg", "b/x[1].jpg", "b/deep/er/4.jpg"]
    write(folder, *names, "a/no line.jpg")
    (folder / "list.txt").write_text(
        "\n".join(f"{folder}/{name}" for name in [*names, names[1], "gone/6.jpg"])
    )
    return [f"@{folder}/list.txt"]


def zip_of_a_delivery(folder: Path) -> list[Path]:
    names = ("cat/1.jpg", "Grün/2.JPG", "a.b/3.v2.png", "__MACOSX/cat/._1.jpg", "notes.txt", "more.zip")
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, name in enumerate(names, 1):
            archive.writestr(name, image(number), zipfile.ZIP_STORED if number == 2 else None)
    data = (folder / "a.zip").read_bytes()
    (folder / "cut.zip").write_bytes(data[:-400])
    return [folder]


TRIALS = {
    "files whose names look like URIs, chains and globs": Trial(
        names_like_uris,
        {
            **{"run-12:30/a.jpg": 1, "a**b/a.jpg": 2, "a::b.jpg": 3, "end .jpg": 4},
            **{"caf\u00e9.jpg": 5, "cafe\u0301.jpg": 6},
            **{"1": 1, "2": 2},
            **{"cam1:0001.jpg": 1, "pipe:ls.jpg": 2, "x::y.jpg": 3, "pipe:cat x": "refused_uri"},
        },
    ),
    "a folder with spaces and signs in its names": Trial(
        plain_folder,
        {
            "cat/1.jpg": 1,
            "dog/1.jpg": 2,
            "a b.jpg": 3,
            "100%.jpg": 4,
            "x#y.jpg": 5,
            "q?.jpg": 6,
            "[1].jpg": 7,
        },
    ),
    "a folder with thumbnails, trash and checkpoints": Trial(
        folder_of_programs, {"cat/1.jpg": 1, "dog/1.jpg": 2, "_2.jpg": 3}
    ),
    "a tar with thumbnails": Trial(tar_of_programs, {"cat/1": 1, "dog/2": 4}),
    "a folder with links to folders": Trial(
        folder_of_links, {"cats/a.jpg": 1, "birds/c.jpg": 3, "dog.jpg": 2}
    ),
    "a folder with images of many formats, and a link that leads nowhere": Trial(
        folder_of_formats,
        {
            "1.jfif": 1,
            "2.JPE": 2,
            "3.jp2": 3,
            "4.heic": 4,
            "5.avif": 5,
            "6.jxl": "unsupported_format",
            "7.jpg": "not_found",
        },
    ),
    "tables of text with semicolons, in UTF-16, compressed, as an array": Trial(
        tables_of_text,
        {
            "1 é.jpg": 1,
            "2 é.jpg": 2,
            "3 é.jpg": 3,
            "1": "bad_record",
            "4 é.jpg": 4,
            "images\\5 é.jpg": "not_found",
        },
    ),
    **{
        f"base64 and data: URIs in {name}": Trial(
            partial(images_in_text, name), {"0": 1, "1": 2, "2": "bad_record"}
        )
        for name in ("t.csv", "t.jsonl", "t.parquet")
    },
    "lists of images": Trial(
        lists_of_images, {"0": "missing_image", "1#0": 1, "2#0": 2, "2#1": 3, "3#0": "missing_image"}
    ),
    "structs of which some have no bytes": Trial(
        structs_without_some_bytes, {"1.jpg": 1, "2.jpg": 2, "3.jpg": 3, "3": 4, "4": "missing_image"}
    ),
    "names in JSON objects": Trial(nested_names, {"a.jpg": 1, "b.jpg": 2}),
    "images in a dictionary": Trial(
        one_image_for_many_rows, {"0": 1, "1": 2, "2": 1, "3": 1, "4": "missing_image"}
    ),
    "a list of images in several folders, one of them twice, one not there": Trial(
        list_of_images,
        {"5.jpg": 1, "1.jpg": 2, "2 é.jpg": 3, "x[1].jpg": 4, "4.jpg": 5, "6.jpg": "not_found"},
    ),
    "a partitioned table": Trial(partitioned_table, {"../../1.jpg": 1, "../../2.jpg": 2}),
    "a zip archive, and one that is cut": Trial(
        zip_of_a_delivery, {"cat/1.jpg": 1, "Grün/2.JPG": 2, "a.b/3.v2.png": 3, None: "shard_truncated"}
    ),
    "the output of img2dataset": Trial(output_of_img2dataset, {"000000000": 1, "000000001": 2}),
    "names with dots in tars": Trial(
        dotted_tar,
        {**{f"22.{number:02}": number for number in range(1, 11)}, "000.left": 11, "000.right": 12, "a": 13},
    ),
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, local_ray, small_model) -> tuple[dict[str, dict], list[str]]:
    """Label all trials in one run. Return the rows of each by key, and what the run said."""
    base = tmp_path_factory.mktemp("trials")
    sources: list[Path | str] = []
    for number, trial in enumerate(TRIALS.values()):
        sources += trial.make(base / f"in{number:03d}")
    # One table is partitioned, and its images lie above its folders.
    options = {ALLOW_URIS: [str(base)]}
    _, watcher = run(base, load_folder(small_model), *sources, storage_options=options)
    found: dict[str, dict] = {name: {} for name in TRIALS}
    for row in rows(base):
        number = int(os.path.relpath(row["shard"], base).removeprefix("in")[:3])
        keys = found[list(TRIALS)[number]]
        assert row["key"] not in keys, "two rows of one key"
        keys[row["key"]] = row
    report = verify(str(base / "out"), source=True)
    assert report.ok, report.findings
    return found, watcher.notes


@pytest.mark.parametrize("name", TRIALS)
def test_each_image_is_a_row_with_its_own_pixels(labelled, name):
    found = {}
    for key, row in labelled[0][name].items():
        found[key] = row["error"] or row["width"] - 20
    assert found == TRIALS[name].rows


def test_a_note_names_what_was_skipped_and_every_link_that_was_left_out(labelled):
    notes = " | ".join(labelled[1])
    assert re.search(r"skipped by their names: .*2 thumbnails_folder.*; --include-hidden takes them", notes)
    assert re.search(
        r"left out 1 link to a folder outside the source: \S*in/dogs -> \S*elsewhere/dogs;", notes
    )
    assert re.search(r"left out 1 name that came before: \S*a/1.jpg; each image is labelled once", notes)
    assert "did not read 1 tars and zips inside zip archives" in notes
    assert re.search(r"left out 1 link to a folder above itself: \S*in/cats/loop -> ", notes)


def test_a_note_names_the_tar_whose_samples_have_several_images(labelled):
    (dotted,) = [note for note in labelled[1] if "only their dots tell apart" in note]
    (several,) = [note for note in labelled[1] if "samples with several images" in note]
    assert dotted.partition(" has ")[0] == several.partition(" has ")[0]


def test_names_without_an_extension_are_judged_by_their_bytes_with_format_images(
    tmp_path, local_ray, small_model
):
    folder = tmp_path / "in"
    names = [f"ab/{digit * 64}" for digit in "0af"]
    write(folder, *names, "page.json", "photo.jpg")
    (folder / "ab" / "README").write_text("about these files")
    run(tmp_path, load_folder(small_model), folder, format="images")
    found = {row["key"]: row["error"] or row["width"] - 20 for row in rows(tmp_path)}
    numbers = {name: number for number, name in enumerate(names, 1)}
    assert found == {**numbers, "photo.jpg": 5, "ab/README": "not_an_image"}
    report = verify(str(tmp_path / "out"), source=True)
    assert report.ok, report.findings


def test_what_stands_beside_images_in_folders_and_archives_is_kept(tmp_path, local_ray, small_model):
    folder = tmp_path / "in"
    write(folder, "train/0.jpg", "train/1.jpg", "train/IMG_2.JPG")
    (folder / "metadata.csv").write_text("file_name,text\ntrain/0.jpg,a red ball\ntrain/1.jpg,naïve\n")
    (folder / "train" / "1.txt").write_text("beside")
    (folder / "train" / "IMG_2.TXT").write_text("beside too")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for name, data in {"t/4.jpg": image(4), "t/4.txt": b"inside", "t/5.jpg": image(5)}.items():
            archive.writestr(name, data)
    run(tmp_path, load_folder(small_model), folder, folder / "a.zip", keep=("text", "txt"))
    found = {row["key"]: (row["width"] - 20, row["text"], row["txt"]) for row in rows(tmp_path)}
    assert found == {
        "train/0.jpg": (1, "a red ball", None),
        "train/1.jpg": (2, "naïve", "beside"),
        "train/IMG_2.JPG": (3, None, "beside too"),
        "t/4.jpg": (4, None, "inside"),
        "t/5.jpg": (5, None, None),
    }
    report = verify(str(tmp_path / "out"), source=True)
    assert report.ok, report.findings
