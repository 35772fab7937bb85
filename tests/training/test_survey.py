"""Before training: what is counted, what is refused, and how shards are divided."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.samples import encoded, photo, rows_of, units_of, write_tar
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.training.survey import (
    Survey,
    assign,
    cut_pages,
    survey_shard,
)

READING = ReadSettings(unit_rows=512, keep=("cls",))


def test_a_survey_counts_rows_and_classes_as_training_will_meet_them(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [(f"{n}.{kind}", data) for n in range(5) for kind, data in (("jpg", b"x"), ("cls", b"%d" % (n % 2)))],
    )
    (shard,) = find_shards([str(path)]).shards
    assert survey_shard(shard, READING, "cls") == (5, Counter({"0": 3, "1": 2}))


def test_a_survey_of_a_cut_shard_agrees_with_the_reader_or_names_the_sample(tmp_path):
    """Where a cut leaves an image without its class, training would have nothing to learn it from."""
    whole = [
        (f"{n}.{kind}", data)
        for n in range(3)
        for kind, data in (("jpg", bytes([n + 1]) * 100), ("cls", b"1"))
    ]
    path = write_tar(tmp_path / "a.tar", whole)
    data, named = path.read_bytes(), 0
    for cut in range(0, 7 * 1024, 128):
        path.write_bytes(data[:cut])
        (shard,) = find_shards([str(path)]).shards
        rows = rows_of(units_of(path, keep=("cls",)))
        unnamed = [row["key"] for row in rows if row["error"] is None and row["sidecars"] == [None]]
        if unnamed:
            named += 1
            with pytest.raises(UserError, match=f"sample {unnamed[0]} has no class"):
                survey_shard(shard, READING, "cls")
        else:
            assert survey_shard(shard, READING, "cls")[0] == len(rows)
    assert named > 5


@pytest.mark.parametrize("text", [None, b"", b"-1", b"1.5", b"nan"])
def test_a_sample_without_a_class_is_refused_and_named(tmp_path, text):
    members = [("good.jpg", b"x"), ("good.cls", b"3"), ("d/bad.jpg", b"x")] + (
        [("d/bad.cls", text)] if text is not None else []
    )
    (shard,) = find_shards([str(write_tar(tmp_path / "a.tar", members))]).shards
    shown = repr(text.decode()) if text else "None"
    with pytest.raises(
        UserError,
        match=rf"a.tar: sample d/bad has no class: --target cls gives {shown}, a number from 0 on or a name "
        r"is needed: --target folder gives 'd'",
    ):
        survey_shard(shard, READING, "cls")


def test_a_class_stands_in_a_sidecar_a_field_a_column_or_a_folder(tmp_path):
    members = [
        ("a.jpg", b"x"),
        ("a.json", b'{"kind": "cat", "n": 3}'),
        ("b.jpg", b"x"),
        ("b.json", b'{"kind": "dog", "n": 4}'),
    ]
    (shard,) = find_shards([str(write_tar(tmp_path / "a.tar", members))]).shards
    for target, names in (("json:kind", {"cat": 1, "dog": 1}), ("json:n", {"3": 1, "4": 1})):
        assert survey_shard(shard, ReadSettings(unit_rows=512, keep=("json",)), target) == (2, Counter(names))
    pq.write_table(pa.table({"image": [b"x", b"y", b"z"], "label": [1, 0, 1]}), tmp_path / "t.parquet")
    (shard,) = find_shards([str(tmp_path / "t.parquet")]).shards
    assert survey_shard(shard, ReadSettings(unit_rows=512, keep=("label",)), "label") == (
        3,
        Counter({"1": 2, "0": 1}),
    )
    skipped = (
        ".ipynb_checkpoints/1.png",
        "cat/@eaDir/1.png",
        ".Trash-1000/files/x.png",
        "__MACOSX/cat/1.png",
    )
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", *skipped):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(encoded(photo(1), "PNG"))
    (shard,) = find_shards([str(tmp_path / "tree")]).shards
    assert survey_shard(shard, ReadSettings(unit_rows=512), "folder") == (3, Counter({"cat": 2, "dog": 1}))


@pytest.mark.parametrize(
    ("images", "pages", "largest"), [(3, 1, 3), (70, 5, 16), (1000, 17, 62), (40_000, 79, 512)]
)
def test_loose_images_come_in_pages_of_which_several_workers_have_some(images, pages, largest):
    def page(first: int, count: int) -> Shard:
        members = tuple({"key": f"{n}.jpg", "size": n, "version": ""} for n in range(first, first + count))
        return Shard(
            kind="images",
            uri="/bucket",
            size=sum(member["size"] for member in members),
            version="",
            first_index=first,
            members=members,
        )

    whole = [page(first, min(25_000, images - first)) for first in range(0, images, 25_000)]
    cut = cut_pages(whole)
    assert len(cut) == pages and max(len(shard.members) for shard in cut) == largest
    assert [member for shard in cut for member in shard.members] == [
        member for shard in whole for member in shard.members
    ]
    assert all(shard.first_index == int(shard.members[0]["key"][:-4]) for shard in cut)
    assert sum(shard.size for shard in cut) == sum(shard.size for shard in whole)
    assert len({shard.name for shard in cut}) == pages
    assert cut_pages([Shard(kind="tar", uri="/a.tar", size=1, version="")]) == [
        Shard(kind="tar", uri="/a.tar", size=1, version="")
    ]


def test_a_target_that_names_every_sample_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("wordsworth.pipeline.training.survey.MOST_CLASSES", 3)
    members = [(f"{n}.{kind}", data) for n in range(4) for kind, data in (("jpg", b"x"), ("cls", b"n%d" % n))]
    (shard,) = find_shards([str(write_tar(tmp_path / "a.tar", members))]).shards
    with pytest.raises(UserError, match=r"a.tar alone has over 3 classes: does --target cls name one"):
        survey_shard(shard, READING, "cls")


def test_the_digest_is_the_datas_whatever_the_order(tmp_path):
    shards = [Shard(kind="tar", uri=f"/{n}.tar", size=n, version="") for n in range(3)]
    rows = {shard.name: 5 for shard in shards}
    one = Survey(shards=tuple(shards), rows=rows, classes=Counter()).digest
    assert Survey(shards=tuple(shards[::-1]), rows=rows, classes=Counter()).digest == one
    assert Survey(shards=tuple(shards), rows=rows | {shards[1].name: 6}, classes=Counter()).digest != one
    assert Survey(shards=tuple(shards[:2]), rows=rows, classes=Counter()).digest != one


def test_shards_are_divided_so_that_no_worker_has_much_more_than_another():
    rng = np.random.default_rng(0)
    for workers in (1, 2, 3, 7):
        shards = [Shard(kind="tar", uri=f"/{n}.tar", size=1, version="") for n in range(31)]
        rows = {shard.name: int(rng.integers(1, 1000)) for shard in shards}
        parts = assign(shards, rows, workers)
        assert sorted(shard.uri for part in parts for shard in part) == sorted(shard.uri for shard in shards)
        loads = [sum(rows[shard.name] for shard in part) for part in parts]
        assert max(loads) - min(loads) <= max(rows.values()) and all(parts)
        assert assign(shards[::-1], rows, workers) == parts  # whatever the order of the listing
    with pytest.raises(UserError, match="3 workers need at least 3 shards, there are 2: pack smaller ones"):
        assign(shards[:2], rows, 3)
