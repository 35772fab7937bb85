"""Labels against known classes, in the report and in the difference of two runs: the figures are those of
their definitions, and what has no class is said."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from tests.support.report_runs import LABELS, Made, make_run
from tests.support.samples import encoded, photo, write_tar
from wordsworth.jobs.cli import run
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.accuracy import AccuracyCounter
from wordsworth.pipeline.output.intervals import mcnemar_p_value, paired_interval, wilson_interval
from wordsworth.pipeline.report import truth as reading
from wordsworth.pipeline.report.diff import compare_runs
from wordsworth.pipeline.report.page import write_report
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.report.truth_tally import Accuracy

HOSTILE = "<script>document.title='taken'</script>\x1b[31m\u202e\"'"
ANT, BEE, CAT, DOG = range(4)
TRUTH = [ANT, ANT, BEE, CAT, ANT, ANT, BEE, BEE, CAT, DOG]
#         right but for 2, 3 and 9; the second guess is the next class, which is right for 2 and 3
SAID = [ANT, ANT, ANT, BEE, ANT, ANT, BEE, BEE, CAT, BEE]
SAID_B = [BEE, ANT, BEE, CAT, ANT, ANT, BEE, CAT, CAT, ANT]


def source(folder: Path, names: list[str | None], end: str = "cls") -> Path:
    """A tar of an image for each name, which lies in a sidecar, or in the folder of the key."""
    members = []
    for number, name in enumerate(names):
        stem = f"{name}/{number}" if end == "folder" else f"{number}"
        members.append((f"{stem}.jpg", encoded(photo(number, 24, 18))))
        if name is not None and end != "folder":
            members.append((f"{stem}.{end}", name.encode()))
    write_tar(folder / "a.tar", members)
    return folder


def answers(labels: list[int], score: float = 0.9):
    return lambda number: Made(labels[number], score - number / 20, (1.0, 0.0, 0.0, 0.0))


def names_of(classes: list[int]) -> list[str | None]:
    return [LABELS[number] for number in classes]


def accuracy_of(out: Path, where: str) -> Accuracy:
    written = write_report(str(out), file=str(out.with_name("page.html")), truth=where)
    assert written.truth is not None
    return written.truth


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("truth")
    source(folder / "in", names_of(TRUTH))
    make_run(folder / "a", folder / "in", answer=answers(SAID), keep=("cls",))
    make_run(folder / "b", folder / "in", answer=answers(SAID_B, 0.8))
    return folder


# ---- the figures ----------------------------------------------------------------------------------------


def test_accuracy_and_calibration_are_those_that_evaluate_counts(place: Path):
    found = accuracy_of(place / "a", "cls")
    rows = pq.read_table(place / "a" / "predictions").sort_by("index").to_pylist()
    counter = AccuracyCounter()
    ids = np.array([[best["label_id"] for best in row["topk"]] for row in rows])
    counter.add(np.array(TRUTH), ids, np.array([row["score"] for row in rows], np.float64))
    expected = counter.figures(LABELS)
    assert (found.num_images, found.num_right, found.accuracy) == (10, 7, expected["top1"])
    assert found.interval == wilson_interval(7, 10)
    assert (found.top_k, found.num_in_top, found.in_top) == (2, 9, expected["top5"])
    assert found.calibration_error == pytest.approx(expected["calibration_error"])
    assert found.worst == expected["worst"]
    assert found.reading == "cls holds names of labels" and found.notes == []


def test_the_worst_pairs_are_those_counted_by_hand(tmp_path: Path):
    truth = [ANT, ANT, ANT, ANT, BEE, BEE, CAT]
    source(tmp_path / "in", names_of(truth))
    said = [BEE, BEE, CAT, ANT, ANT, BEE, CAT]
    make_run(tmp_path / "a", tmp_path / "in", answer=answers(said), keep=("cls",))
    found = accuracy_of(tmp_path / "a", "cls")
    assert [(pair.truth, pair.label, pair.num, pair.share) for pair in found.pairs] == [
        ("ant", "bee", 2, 0.5),
        ("ant", "cat", 1, 0.25),
        ("bee", "ant", 1, 0.5),
    ]
    assert found.num_pairs == 3


@pytest.mark.parametrize(
    ("where", "end", "names"),
    [
        ("cls", "cls", [str(number) for number in TRUTH]),
        ("cls", "cls", [name.upper() for name in names_of(TRUTH)]),
        ("json:what", "json", [json.dumps({"what": name}) for name in names_of(TRUTH)]),
        ("folder", "folder", names_of(TRUTH)),
    ],
)
def test_classes_are_read_as_evaluate_reads_them(tmp_path: Path, where: str, end: str, names: list[str]):
    source(tmp_path / "in", names, end)
    keep = () if end == "folder" else (end,)
    make_run(tmp_path / "a", tmp_path / "in", answer=answers(SAID), keep=keep)
    assert accuracy_of(tmp_path / "a", where).num_right == 7


def test_a_kept_column_is_called_as_it_is_in_the_rows(place: Path, tmp_path: Path):
    make_run(tmp_path / "a", place / "in", answer=answers(SAID), keep=("cls=truth",))
    assert accuracy_of(tmp_path / "a", "truth").num_right == 7
    assert compared(tmp_path / "a", place / "a", "truth").truth.num_both_right == 7


def test_images_without_a_class_are_left_out_and_unknown_classes_count_as_mistakes(tmp_path: Path):
    names = [None, "-1", *names_of(TRUTH)[2:9], "zebra"]
    source(tmp_path / "in", names)
    make_run(tmp_path / "a", tmp_path / "in", answer=answers(SAID), keep=("cls",))
    found = accuracy_of(tmp_path / "a", "cls")
    assert (found.num_images, found.num_right, found.num_left_out, found.num_unknown) == (8, 5, 2, 1)
    assert found.notes == [
        "left out: 2 images without a class",
        "counted as mistakes: 1 image (12.5%) whose class is among the best classes of no row: 'zebra' (1)",
    ]
    page = (tmp_path / "page.html").read_text()
    assert "but it is zebra" in page and "left out: 2 images without a class" in page


def test_a_class_of_two_labels_is_left_out(tmp_path: Path):
    source(tmp_path / "in", ["crane", "ant", "ant"])
    labels = ("ant", "crane", "crane")
    make_run(tmp_path / "a", tmp_path / "in", answer=answers([1, 0, 2]), labels=labels, keep=("cls",))
    found = accuracy_of(tmp_path / "a", "cls")
    assert (found.num_images, found.num_right, found.num_left_out) == (2, 1, 1)
    assert found.notes == ["left out: 1 image whose class is the name of several: 'crane' (1)"]


# ---- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("txt", "no column txt was kept: .*/a keeps cls; `wordsworth label --keep txt` keeps one"),
        ("json:what", "no column json was kept"),
        ("label", "no column label was kept: .* --keep label=NAME` keeps one"),
        ("folder", "none of the 10 images of .* has a class: --truth folder gives none"),
    ],
)
def test_a_truth_that_is_not_there_is_one_line(place: Path, where: str, words: str):
    with pytest.raises(UserError, match=words) as raised:
        accuracy_of(place / "a", where)
    assert "\n" not in str(raised.value)


def test_classes_of_which_none_is_the_models_are_refused_with_examples(tmp_path: Path):
    source(tmp_path / "in", ["fox", "fox", "yak"])
    make_run(tmp_path / "a", tmp_path / "in", answer=answers(SAID), keep=("cls",))
    with pytest.raises(
        UserError, match=r"it gives 'fox' \(2\), 'yak' \(1\), and the labels are 'ant', 'bee'"
    ):
        accuracy_of(tmp_path / "a", "cls")


def test_a_run_without_labels_and_a_column_of_texts_are_refused(place: Path, tmp_path: Path, monkeypatch):
    make_run(tmp_path / "a", place / "in", answer=answers(SAID), keep=("cls",), top_k=0)
    with pytest.raises(UserError, match="have no labels to compare with --truth cls"):
        accuracy_of(tmp_path / "a", "cls")
    monkeypatch.setattr(reading, "MOST_NAMES", 2)
    with pytest.raises(UserError, match="more than 2 different values"):
        accuracy_of(place / "a", "cls")


# ---- the page and the terminal --------------------------------------------------------------------------


def test_the_command_prints_the_accuracy_and_json_has_all(place: Path, tmp_path: Path, capsys):
    page = str(tmp_path / "page.html")
    assert run(["report", str(place / "a"), "--truth", "cls", "--output", page]) == 0
    out, err = capsys.readouterr()
    assert "accuracy: 70.00% (95% interval 39.68% to 89.22%)" in out and err == ""
    assert run(["report", str(place / "a"), "--truth", "cls", "--output", page, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["truth"]["num_right"] == 7
    text = Path(page).read_text()
    assert "ant 0.800, but it is bee" in text and "bee → ant" in text and "Worst pairs" in text
    assert run(["report", str(place / "a"), "--output", page]) == 0
    assert 'id="truth"' not in Path(page).read_text()


def test_hostile_classes_are_text(tmp_path: Path, capsys):
    source(tmp_path / "in", [HOSTILE, HOSTILE, "ant", f"{HOSTILE}, of no row"])
    labels = (HOSTILE, "ant")
    make_run(tmp_path / "a", tmp_path / "in", answer=answers([0, 1, 1, 0]), labels=labels, keep=("cls",))
    page = tmp_path / "page.html"
    assert run(["report", str(tmp_path / "a"), "--truth", "cls", "--output", str(page)]) == 0
    out, _ = capsys.readouterr()
    for text in (out, page.read_text()):
        assert "taken" in text and "\x1b" not in text and "\u202e" not in text
    assert "<script>document" not in page.read_text()


# ---- two runs -------------------------------------------------------------------------------------------


def compared(a: Path, b: Path, where: str = "cls"):
    return compare_runs(RunRows.open(str(a)), RunRows.open(str(b)), where)


def test_which_run_is_right_is_counted_by_hand(place: Path):
    truth = compared(place / "a", place / "b").truth
    # A is wrong in 2, 3, 9; B in 0, 7, 9: B mends 2 and 3 and breaks 0 and 7
    assert (truth.a.num_right, truth.b.num_right, truth.num_images) == (7, 7, 10)
    counts = truth.num_both_right, truth.num_only_a_right, truth.num_only_b_right, truth.num_both_wrong
    assert counts == (5, 2, 2, 1) and truth.change == 0.0 and truth.p_value == 1.0
    assert [(e.key, e.truth, e.label_b) for e in truth.became_wrong] == [
        ("0", "ant", "bee"),
        ("7", "bee", "cat"),
    ]
    assert [(e.key, e.truth, e.label_a) for e in truth.became_right] == [
        ("2", "bee", "ant"),
        ("3", "cat", "bee"),
    ]


def test_each_change_of_labels_says_what_became_better_and_worse(place: Path):
    flips = {
        (f.label_a, f.label_b): (f.num_better, f.num_worse) for f in compared(place / "a", place / "b").flips
    }
    assert flips == {
        ("ant", "bee"): (1, 1),
        ("bee", "cat"): (1, 1),
        ("bee", "ant"): (0, 0),
    }


def test_the_classes_may_stand_in_the_second_run_and_either_order_agrees(place: Path):
    there, back = compared(place / "a", place / "b").truth, compared(place / "b", place / "a").truth
    assert (there.read_from, back.read_from) == ("A", "B")
    assert (there.a, there.b) == (back.b, back.a)
    assert there.num_only_a_right == back.num_only_b_right
    with pytest.raises(UserError, match=r"no column txt was kept: .*/a keeps cls, .*/b keeps no column"):
        compared(place / "a", place / "b", "txt")


def test_runs_with_other_numbers_for_their_classes_are_compared_by_text(place: Path, tmp_path: Path):
    backwards = tuple(reversed(LABELS))
    said = [backwards.index(LABELS[number]) for number in SAID_B]
    make_run(tmp_path / "b", place / "in", answer=answers(said, 0.8), labels=backwards)
    found, expected = compared(place / "a", tmp_path / "b"), compared(place / "a", place / "b")
    assert not found.has_same_classes
    assert replace(found.truth, notes=[]) == replace(expected.truth, notes=[])


def test_a_drop_of_the_accuracy_is_exit_code_3(place: Path, tmp_path: Path, capsys):
    make_run(tmp_path / "worse", place / "in", answer=answers([DOG] * 10, 0.8))
    asked = ["diff", str(place / "a"), str(tmp_path / "worse"), "--truth", "cls", "--fail-if-accuracy-drops"]
    assert run([*asked, "0.5"]) == 3
    out, err = capsys.readouterr()
    assert "70.00%" in out and "the accuracy dropped from 70.0000% to 10.0000%" in err
    assert run([*asked, "0.7"]) == 0
    assert run([*asked[:3], *asked[-1:], "0.5"]) == 2
    capsys.readouterr()
    assert run([*asked[:-1], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["truth"]
    assert (told["num_only_a_right"], told["num_only_b_right"]) == (7, 1)


def test_the_test_of_two_runs_is_mcnemars_exact_one():
    for of_a, of_b in ((0, 0), (3, 9), (9, 3), (120, 60), (5000, 5200), (0, 40)):
        expected = binomtest(of_a, of_a + of_b).pvalue if of_a + of_b else 1.0
        assert mcnemar_p_value(of_a, of_b) == pytest.approx(expected, rel=1e-6)
    low, high = paired_interval(20, 5, 100)
    assert low < -0.15 < high < 0 and paired_interval(5, 20, 100) == pytest.approx([-high, -low])
