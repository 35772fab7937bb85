"""The classes of a training: which names become which labels, what is said of it, and what is refused."""

import unicodedata
from collections import Counter

import pytest

from tests.support.samples import write_tar
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.training.classes import check_classes, class_names, train_target


def labels_of(names: list[str], where: str = "cls", labels: tuple[str, ...] | None = None):
    """Return the labels, the number of classes, the numbers of `names`, and the notes."""
    target, notes = train_target(where, Counter(names), labels)
    return target.labels, target.classes, [target.number(name) for name in names], notes


def test_names_make_labels_in_order_and_numbers_make_none():
    assert labels_of(["dog", "ant"]) == (("ant", "dog"), 2, [1, 0], [])
    assert labels_of(["1", "0"]) == (None, 2, [1, 0], [])
    assert labels_of(["1", "ant"], labels=("ant", "bee")) == (("ant", "bee"), 2, [1, 0], [])
    assert labels_of(["cat", "1"]) == (
        ("1", "cat"),
        2,
        [1, 0],
        ["--target cls gives numbers: taken as names, in the order of text: class 0 is 1, class 1 is cat"],
    )


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (["0", "90", "180", "270"], ("0", "180", "270", "90")),
        (["1", "2", "3"], ("1", "2", "3")),
        (["001", "002"], ("001", "002")),
        ([str(number) for number in range(12)], ("0", "1", "10", "11", *map(str, range(2, 10)))),
    ],
)
def test_folders_of_digits_are_names_in_the_order_of_text(folders, labels):
    found, classes, numbers, (note,) = labels_of(folders, "folder")
    assert found == labels == tuple(sorted(labels)) and classes == len(labels)
    assert [labels[number] for number in numbers] == folders
    assert note.startswith("--target folder gives numbers: taken as names, in the order of text: class 0 is")
    assert (f"({len(labels)} in all)" in note) == (len(labels) > 4)


def test_a_column_of_numbers_counts_classes_unless_zeros_stand_before_them():
    assert labels_of(["1", "0"], "label")[:3] == (None, 2, [1, 0])
    assert labels_of(["002", "001"], "json:id")[:3] == (("001", "002"), 2, [1, 0])
    assert labels_of(["001", "000"], "cls")[:3] == (None, 2, [1, 0])  # WebDataset reads int("001")


ROTATIONS = ("0", "180", "270", "90")  # what `pack` writes into labels.txt for folders of these names
DOZEN = tuple(sorted(map(str, range(12))))


NAMES = "that are names of labels: taken as these"
PLACES = "taken as places in the labels: class 0 is"


@pytest.mark.parametrize(
    ("where", "names", "labels", "numbers", "said"),
    [
        ("cls", ["0", "1", "2", "3"], ROTATIONS, [0, 1, 2, 3], PLACES),
        ("cls", ["0", "90", "180", "270"], ROTATIONS, [0, 3, 1, 2], NAMES),
        ("cls", [str(number) for number in range(12)], DOZEN, list(range(12)), PLACES),
        ("cls", ["cat", "1"], ("1", "cat"), [1, 0], NAMES),
        ("label", ["0", "1", "2"], ("2", "1", "0"), [2, 1, 0], NAMES),
        ("label", ["0", "1", "2"], ("ant", "1", "2"), [0, 1, 2], PLACES),
        ("folder", ["1", "2", "3"], ("1", "2", "3"), [0, 1, 2], NAMES),
        ("folder", ["1", "0"], ("ant", "bee"), [1, 0], PLACES),
    ],
)
def test_numbers_beside_labels_that_are_numbers_are_read_one_way_and_it_is_said(
    where, names, labels, numbers, said
):
    found, _, read, (note,) = labels_of(names, where, labels)
    assert (found, read) == (labels, numbers)
    assert note.startswith(f"--target {where} gives numbers") and said in note


def test_folders_of_digits_that_are_no_labels_are_no_places_among_labels_of_digits():
    with pytest.raises(UserError, match="class 1 occurs, but there are only 4 labels"):
        labels_of(["0", "1", "2", "3"], "folder", ROTATIONS)


def test_two_spellings_of_a_name_are_one_class_and_it_is_said():
    composed, decomposed = unicodedata.normalize("NFC", "Café"), unicodedata.normalize("NFD", "Café")
    for labels in (None, ("Bar", composed), ("Bar", decomposed)):
        found, classes, numbers, (note,) = labels_of([composed, "Bar", decomposed], "folder", labels)
        assert found == (labels or ("Bar", composed)) and (classes, numbers) == (2, [1, 0, 1])
        assert note == f"class {composed} is written in 2 ways of Unicode: taken as one class"


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (
            ["0", "2"],
            None,
            "1 of 3 classes have no sample, first class 1: .*unless --labels FILE has them as",
        ),
        (["0", "9" * 18], None, "of 10{18} classes have no sample, first class 1:"),
        (["0", "9" * 5000], None, "class 9{18}... is no number of a class: does --target cls name one"),
        (["ant"], ("ant", "bee"), r"1 of 2 classes have no sample, first class 1 \(bee\): [a-z ]*$"),
        (["cat"], ("ant", "bee"), "class cat occurs, but there are only 2 labels"),
        (["2", "0", "1"], ("ant", "bee"), "class 2 occurs, but there are only 2 labels"),
        (["ant"], ("ant", "ant"), "class ant occurs, but 2 labels have this name"),
    ],
)
def test_classes_that_do_not_fit_are_one_line(names, labels, message):
    with pytest.raises(UserError, match=message):
        labels_of(names, labels=labels)


def test_of_validation_data_every_class_must_be_known_but_none_must_occur():
    target, _ = train_target("cls", Counter(["ant", "bee"]), None)
    check_classes(Counter(["ant"]), target)
    with pytest.raises(UserError, match="class wasp occurs"):
        check_classes(Counter(["wasp"]), target)


def test_class_names_come_from_the_option_or_from_beside_the_shards(tmp_path):
    write_tar(tmp_path / "in" / "0.tar", [("0.jpg", b"x"), ("0.cls", b"0")])
    source = str(tmp_path / "in")
    assert class_names(None, [source], {}) is None
    (tmp_path / "in" / "labels.txt").write_text("ant\nbee\n")
    (tmp_path / "other.txt").write_text("cat\ndog\n")
    for given in (source, f"{source}/", f"{source}/0.tar", f"{source}/*.tar"):
        assert class_names(None, [given], {}) == ("ant", "bee")
    assert class_names(str(tmp_path / "other.txt"), [source], {}) == ("cat", "dog")
    with pytest.raises(UserError, match=r"--labels .*/missing.txt: no such file") as refusal:
        class_names(f"{tmp_path}/missing.txt", [source], {})
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "labels.txt names no class"),
        ("\n \n", "labels.txt names no class"),
        ("cat\n\ndog\n", "labels.txt, line 2 is empty: a class needs a name"),
    ],
)
def test_a_file_of_labels_with_a_gap_is_one_line(tmp_path, text, said):
    """A gap would give every class behind it the number of another."""
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        class_names(str(tmp_path / "labels.txt"), ["in"], {})
    (tmp_path / "labels.txt").write_text("cat\ndog\n\n\n")
    assert class_names(str(tmp_path / "labels.txt"), ["in"], {}) == ("cat", "dog")


def test_a_class_that_only_the_images_of_val_have_is_said_so():
    target, _ = train_target("cls", Counter(["0", "1"]), None)
    with pytest.raises(UserError, match="class 2 occurs in --val, but there are only 2 labels"):
        check_classes(Counter(["0", "2"]), target, "--val")
