"""wordsworth diff: which labels, scores and embeddings of the same images changed between two runs."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.compacting import run as compact
from tests.support.report_runs import LABELS, Made, by_number, make_run
from tests.support.samples import encoded, photo, write_tar
from wordsworth.jobs.cli import run
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.pair_counts import PairCounts, pair_numbers
from wordsworth.pipeline.report import joined_rows
from wordsworth.pipeline.report.diff import compare_runs
from wordsworth.pipeline.report.diff_page import write_diff_page
from wordsworth.pipeline.report.difference import Difference
from wordsworth.pipeline.report.joined_rows import SharedNames
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.report.shifts import ScoreTally, stability_index

HOSTILE = "<script>document.title='taken'</script>\x1b[31m\u202e\"'"
ANT, BEE, CAT, DOG = range(4)
#         ant->bee twice, bee->ant once, cat->dog once, six stay
LABELS_A = [ANT, ANT, BEE, CAT, ANT, ANT, BEE, BEE, CAT, DOG]
LABELS_B = [BEE, BEE, ANT, DOG, ANT, ANT, BEE, BEE, CAT, DOG]


def source(
    folder: Path, *, names: list[str] | None = None, broken: tuple[int, ...] = (), count: int = 10
) -> Path:
    names = names or [f"{n}.jpg" for n in range(count)]
    images = [b"no image" if n in broken else encoded(photo(n, 24, 18)) for n in range(len(names))]
    write_tar(folder / "a.tar", list(zip(names, images, strict=True)))
    return folder


def answers(labels: list[int], score: float = 0.9, vector: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)):
    return lambda number: Made(labels[number], score - number / 100, vector)


def compared(a: Path | str, b: Path | str) -> Difference:
    return compare_runs(RunRows.open(str(a)), RunRows.open(str(b)))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("diff")
    source(folder / "in")
    make_run(folder / "a", folder / "in", answer=answers(LABELS_A))
    make_run(folder / "b", folder / "in", answer=answers(LABELS_B, 0.8, (1.0, 1.0, 0.0, 0.0)))
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> Difference:
    return compared(place / "a", place / "b")


# ---- labels ---------------------------------------------------------------------------------------------


def test_flips_are_those_counted_by_hand(found: Difference):
    assert (found.num_joined, found.num_labelled, found.num_agree, found.num_flips) == (10, 10, 6, 4)
    assert [(f.label_a, f.label_b, f.num, f.share) for f in found.flips] == [
        ("ant", "bee", 2, 0.2),
        ("bee", "ant", 1, 0.1),
        ("cat", "dog", 1, 0.1),
    ]
    assert (found.only_a.num, found.only_b.num, found.num_unclear, found.has_same_classes) == (0, 0, 0, True)


def test_an_example_has_both_labels_and_both_scores_the_surest_first(found: Difference):
    first, second = found.flips[0].examples
    assert (first.key, second.key) == ("0", "1")
    assert (first.label_a, first.label_b) == ("ant", "bee")
    assert (first.score_a, first.score_b) == (pytest.approx(0.9), pytest.approx(0.8))
    assert first.shard.endswith("/in/a.tar") and first.size > 0


def test_confused_pairs_count_both_directions(found: Difference):
    assert [(p.labels, p.num, p.num_forth, p.num_back, p.share) for p in found.confused] == [
        (("ant", "bee"), 3, 2, 1, 0.75),
        (("cat", "dog"), 1, 1, 0, 0.25),
    ]


def test_the_interval_of_the_agreement_is_wilsons(found: Difference):
    # 6 of 10, in the tables of Brown, Cai and DasGupta 2001: 0.313 to 0.832
    assert found.agreement == 0.6
    assert found.agreement_interval == [pytest.approx(0.3127, abs=1e-4), pytest.approx(0.8318, abs=1e-4)]


def test_a_run_agrees_with_its_compaction_in_everything(place: Path):
    compact(place / "b")
    large = compared(place / "b", place / "b-large")
    assert (large.num_joined, large.num_agree, large.num_flips) == (10, 10, 0)
    assert (large.scores.psi, large.drift.mean) == (0.0, pytest.approx(1.0))
    told = compared(place / "a", place / "b-large")
    plain = compared(place / "a", place / "b")
    assert (told.flips, told.confused, told.scores, told.drift.mean) == (
        plain.flips,
        plain.confused,
        plain.scores,
        plain.drift.mean,
    )


def test_runs_with_other_class_lists_are_compared_by_text(place: Path, tmp_path: Path, capsys):
    """The classes have other numbers in the second run, and the same names."""
    names = ("dog", "cat", "bee", "ant")
    numbers = [names.index(LABELS[label]) for label in LABELS_A]
    make_run(tmp_path / "b", place / "in", answer=answers(numbers), labels=names)
    told = compared(place / "a", tmp_path / "b")
    assert (told.num_agree, told.has_same_classes) == (10, False)
    assert run(["diff", str(place / "a"), str(tmp_path / "b")]) == 0
    assert "the lists of classes differ: labels are compared by their text" in capsys.readouterr().out


# ---- scores and embeddings ------------------------------------------------------------------------------


def test_the_stability_index_is_that_of_a_hand_computation():
    before, after = np.array([9, 0] + [0] * 8), np.array([4, 5] + [0] * 8)
    # 14 = 9 + 10 * 0.5 rows: shares 9.5/14 and 4.5/14 in the first bin, 0.5/14 and 5.5/14 in the second
    by_hand = (4.5 - 9.5) / 14 * math.log(4.5 / 9.5) + (5.5 - 0.5) / 14 * math.log(5.5 / 0.5)
    assert stability_index(before, after) == pytest.approx(by_hand)
    assert stability_index(before, before) == 0.0


def test_scores_are_counted_by_label_and_bin():
    tally = ScoreTally()
    tally.add(np.array([0, 2, 2]), np.array([0.05, 0.95, 1.0]), 3)
    tally.add(np.array([3]), np.array([0.5]), 4)
    assert tally.bins[0, 0] == 1 and tally.bins[2, 9] == 2 and tally.bins[3, 5] == 1
    assert tally.bins.sum() == 4
    assert tally.sums.tolist() == [0.05, 0, 1.95, 0.5]


def test_the_shift_of_a_label_is_told_from_enough_images_on(tmp_path: Path):
    source(tmp_path / "in", count=60)
    for name, score in (("a", 0.95), ("b", 0.35)):
        make_run(
            tmp_path / name, tmp_path / "in", answer=lambda n, s=score: Made(int(n >= 55), s, (1, 0, 0, 0))
        )
    scores = compared(tmp_path / "a", tmp_path / "b").scores
    assert [(s.label, s.num_a, s.num_b) for s in scores.labels] == [("ant", 55, 55)]
    assert (scores.num_rare, scores.least_rows) == (1, 50)
    assert scores.labels[0].psi == pytest.approx(2 * 55 / 60 * math.log(55.5 / 0.5))
    assert (scores.mean_a, scores.mean_b) == (pytest.approx(0.95), pytest.approx(0.35))


def test_embeddings_drift_by_their_cosine(found: Difference):
    assert found.drift.num == 10
    assert found.drift.mean == pytest.approx(math.sqrt(0.5), abs=1e-3)
    assert found.drift.quantiles["0.5"] == pytest.approx(math.sqrt(0.5), abs=1e-3)
    assert len(found.drift.farthest) == 10


def test_the_farthest_row_comes_first_and_a_zero_has_no_direction(place: Path, tmp_path: Path):
    vectors = {3: (-1.0, 0.0, 0.0, 0.0), 5: (0.0, 0.0, 0.0, 0.0)}
    answer = lambda n: Made(0, 0.9, vectors.get(n, (1.0, 0.0, 0.0, 0.0)))  # noqa: E731
    make_run(tmp_path / "b", place / "in", answer=answer, embedding="float32")
    drift = compared(place / "a", tmp_path / "b").drift
    assert (drift.num, drift.num_undefined) == (9, 1)
    assert (drift.farthest[0].key, drift.farthest[0].cosine) == ("3", pytest.approx(-1.0))
    assert drift.quantiles["0"] == pytest.approx(-1.0) and drift.mean == pytest.approx(7 / 9)


def test_without_embeddings_there_is_no_drift(place: Path, tmp_path: Path):
    make_run(tmp_path / "b", place / "in", answer=answers(LABELS_A), embedding=None)
    assert compared(place / "a", tmp_path / "b").drift is None


# ---- the join -------------------------------------------------------------------------------------------


def table(keys: list[str], indices: list[int]) -> pa.Table:
    shard = pa.array([0] * len(keys), pa.int32())
    return pa.table(
        {"shard": shard, "key": pa.array(keys, pa.string()), "index": pa.array(indices, pa.int32())}
    )


def test_doubled_keys_are_joined_by_the_index_too():
    a = table(["x", "y", "x", "x", "z"], [0, 1, 2, 7, 9])
    b = table(["x", "x", "y", "x", "w"], [2, 0, 5, 8, 9])
    part = joined_rows._joined(a, b)
    assert part.pairs.tolist() == [[0, 1], [1, 2], [2, 0]]  # y is there once: its index may differ
    assert (part.only_a.tolist(), part.only_b.tolist()) == ([3, 4], [3, 4])
    assert (part.num_by_index, part.num_unclear) == (2, 2)  # x 7 and x 8; z and w are of one run alone


def test_rows_that_are_the_same_twice_join_once():
    part = joined_rows._joined(table(["x", "x"], [0, 0]), table(["x", "x"], [0, 0]))
    assert (len(part.pairs), part.num_unclear) == (1, 2)
    assert len(joined_rows._joined(table([], []), table(["x"], [0])).only_b) == 1


def test_doubled_keys_of_a_run_are_told(tmp_path: Path, capsys):
    source(tmp_path / "in", names=["x.jpg", "y.jpg", "x.jpg"])
    make_run(tmp_path / "a", tmp_path / "in", answer=answers([ANT, BEE, CAT]))
    make_run(tmp_path / "b", tmp_path / "in", answer=answers([ANT, BEE, DOG]))
    told = compared(tmp_path / "a", tmp_path / "b")
    assert (told.num_joined, told.num_by_index, told.num_unclear) == (3, 2, 0)
    assert [(f.label_a, f.label_b) for f in told.flips] == [("cat", "dog")]
    assert run(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "3 rows, 2 of them by the index too" in capsys.readouterr().out


def test_many_parts_find_what_one_part_finds(place: Path, found: Difference, monkeypatch):
    monkeypatch.setattr(joined_rows, "PART_BYTES", 400)
    monkeypatch.setattr(joined_rows, "WAITING_BYTES", 0)
    monkeypatch.setattr(joined_rows, "PAIRS_AT_ONCE", 2)
    told = compared(place / "a", place / "b")
    assert (told.flips, told.confused, told.scores) == (found.flips, found.confused, found.scores)
    assert (told.num_joined, told.drift.mean) == (10, pytest.approx(found.drift.mean))


def test_flip_counts_are_merged(monkeypatch):
    monkeypatch.setattr("wordsworth.pipeline.output.pair_counts.MERGE_AT", 1)
    counts = PairCounts()
    for _ in range(5):
        counts.add(np.array([1, 2, 1]), np.array([2, 1, 3]))
    pairs, nums = counts.all()
    assert pairs.tolist() == pair_numbers(np.array([1, 1, 2]), np.array([2, 3, 1])).tolist()
    assert nums.tolist() == [5, 5, 5]
    assert counts.unordered()[1].tolist() == [10, 5]


def test_a_class_without_a_name_is_called_by_its_number():
    names = SharedNames()
    codes = names.of_labels(0, pa.array([7, None, 7], pa.int32()), pa.nulls(3, pa.string()))
    assert (codes.to_pylist(), names.labels) == ([0, None, 0], ["class 7"])


def test_rows_and_errors_of_one_run_are_told(tmp_path: Path):
    for name, count, broken in (("a", 8, (2, 3)), ("b", 6, (3, 4))):
        folder = tmp_path / "in"
        source(folder, count=count, broken=broken)
        make_run(tmp_path / name, folder)
        (folder / "a.tar").unlink()
    told = compared(tmp_path / "a", tmp_path / "b")
    assert (told.num_joined, told.only_a.num, told.only_b.num) == (6, 2, 0)
    assert sorted(row.key for row in told.only_a.examples) == ["6", "7"]
    assert (told.errors_a.num, told.errors_b.num, told.num_errors_both) == (1, 1, 1)
    assert (told.errors_a.examples[0].key, told.errors_b.examples[0].key) == ("2", "4")
    assert told.num_labelled == 3


# ---- the command ----------------------------------------------------------------------------------------


def test_it_prints_tables_and_json(place: Path, capsys):
    assert run(["diff", str(place / "a"), str(place / "b")]) == 0
    out, err = capsys.readouterr()
    assert "60.000% (95% interval 31.267% to 83.182%)" in out
    assert "ant" in out and "20.00%" in out and err == ""
    assert run(["diff", str(place / "a"), str(place / "b"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num_flips"], told["flips"][0]["examples"][0]["score_b"]) == (4, pytest.approx(0.8))


@pytest.mark.parametrize(("limit", "code"), [("0.4", 0), ("0.39", 3), ("0", 3), ("1", 0)])
def test_more_flips_than_the_limit_exit_with_3(place: Path, capsys, limit: str, code: int):
    assert run(["diff", str(place / "a"), str(place / "b"), "--fail-if-flips-over", limit]) == code
    assert ("4 of 10 labels changed" in capsys.readouterr().err) == (code == 3)


def test_a_limit_without_labels_in_both_is_no_success(tmp_path: Path, capsys):
    source(tmp_path / "in", count=2, broken=(0, 1))
    for name in ("a", "b"):
        make_run(tmp_path / name, tmp_path / "in")
    arguments = ["diff", str(tmp_path / "a"), str(tmp_path / "b")]
    assert run(arguments) == 0
    assert run([*arguments, "--fail-if-flips-over", "0.5"]) == 1
    assert "no image has a label in both runs" in capsys.readouterr().err


def test_what_cannot_be_compared_is_one_line(place: Path, tmp_path: Path, capsys, monkeypatch):
    a = place / "a"
    (tmp_path / "link").symlink_to(a)
    source(tmp_path / "in", names=["other.jpg"])
    make_run(tmp_path / "other", tmp_path / "in")
    monkeypatch.setattr("tests.support.report_runs.WIDTH", 3)
    make_run(tmp_path / "narrow", place / "in", answer=lambda n: Made(0, 0.5, (1.0, 0.0, 0.0)))
    for arguments, code, words in (
        ([a, a], 2, "are one run"),
        ([a, tmp_path / "link"], 2, "are one run"),
        ([a, tmp_path / "in"], 1, "holds no run"),
        ([a, tmp_path / "other"], 1, "no row of"),
        ([a, tmp_path / "narrow"], 1, "have 4 numbers and those of"),
        ([a, place / "b", "--output", tmp_path / "page.png"], 2, "is no name of a page"),
    ):
        assert run(["diff", *map(str, arguments)]) == code, words
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1


def test_a_run_without_rows_is_refused(place: Path):
    empty = RunRows.open(str(place / "a"))
    empty.files, empty.summary = [], None
    for runs in ((empty, RunRows.open(str(place / "b"))), (RunRows.open(str(place / "b")), empty)):
        with pytest.raises(UserError, match="/a has no rows: there is nothing to compare"):
            compare_runs(*runs)


def test_a_run_without_labels_is_refused(place: Path):
    rows = RunRows.open(str(place / "a"))
    rows.schema = pa.schema([field for field in rows.schema if field.name not in ("label", "embedding")])
    with pytest.raises(UserError, match="have no labels to compare"):
        compare_runs(rows, RunRows.open(str(place / "b")))


def test_runs_of_embeddings_alone_are_compared_by_these(place: Path, tmp_path: Path, capsys):
    for name, vector in (("a", (1.0, 0.0, 0.0, 0.0)), ("b", (1.0, 1.0, 0.0, 0.0))):
        make_run(tmp_path / name, place / "in", answer=answers(LABELS_A, 0.9, vector), top_k=0)
    found = compared(tmp_path / "a", tmp_path / "b")
    assert (found.num_joined, found.num_labelled, found.agreement, found.has_labels) == (10, 0, None, False)
    assert (found.drift.num, found.drift.mean) == (10, pytest.approx(math.sqrt(0.5), abs=1e-3))
    assert len(found.drift.farthest) == 10 and found.drift.farthest[0].label_a is None
    of_labels = compared(tmp_path / "a", place / "b")
    assert (of_labels.num_joined, of_labels.has_labels, of_labels.drift.num) == (10, False, 10)
    page = tmp_path / "diff.html"
    assert run(["diff", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(page)]) == 0
    assert "a run has none: the embeddings alone are compared" in capsys.readouterr().out
    assert "A run has no labels" in page.read_text() and page.read_text().count("data:image/webp") == 10


def test_no_room_for_the_join_says_where_and_what_to_do(place: Path, monkeypatch):
    class Full:
        free = 10

    monkeypatch.setattr(joined_rows.shutil, "disk_usage", lambda folder: Full)
    with pytest.raises(UserError, match=r"no room in .* set TMPDIR to a folder"):
        compared(place / "a", place / "b")


def test_no_temporary_file_is_left(place: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    compared(place / "a", place / "b")
    assert list(tmp_path.iterdir()) == []


# ---- the page -------------------------------------------------------------------------------------------


def test_the_page_has_the_images_that_changed(place: Path, tmp_path: Path, capsys):
    page = tmp_path / "diff.html"
    assert run(["diff", str(place / "a"), str(place / "b"), "--output", str(page)]) == 0
    assert capsys.readouterr().err == f"{page}: the page\n"
    text = page.read_text()
    assert text.count("data:image/webp") == 4 + 10  # four changed the label, and the embeddings of all moved
    assert "ant 0.900 → bee 0.800" in text
    assert "are not on the page" not in text


def test_hostile_names_are_text_on_the_page_and_the_terminal(tmp_path: Path, capsys):
    names = [f"{HOSTILE}{n}.jpg" for n in range(3)]
    source(tmp_path / "in", names=names, broken=(2,))
    for name, second in (("a", 1), ("b", 0)):
        make_run(
            tmp_path / name,
            tmp_path / "in",
            answer=lambda n, s=second: by_number(n)._replace(label_id=s),
            labels=(HOSTILE, "bee"),
        )
    page = tmp_path / "diff.html"
    assert run(["diff", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(page)]) == 0
    out, _ = capsys.readouterr()
    for text in (out, page.read_text()):
        assert "taken" in text and "\x1b" not in text and "\u202e" not in text
    assert "<script>document" not in page.read_text()


def test_images_that_are_gone_are_said(place: Path, tmp_path: Path):
    source(tmp_path / "in")
    for name, labels in (("a", LABELS_A), ("b", LABELS_B)):
        make_run(tmp_path / name, tmp_path / "in", answer=answers(labels))
    (tmp_path / "in/a.tar").unlink()
    a = RunRows.open(str(tmp_path / "a"))
    missing = write_diff_page(a, compared(tmp_path / "a", tmp_path / "b"), str(tmp_path / "diff.html"))
    assert [count for _, count in missing] == [10]
    assert "no image" in (tmp_path / "diff.html").read_text()
