"""The classes of a model: by which names images have them, and what is said of it."""

import re
import unicodedata

import pyarrow as pa
import pytest

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources import wordnet
from wordsworth.pipeline.sources.model_target import NO_CLASS, model_target
from wordsworth.pipeline.sources.wordnet import ID_FILES, wordnet_ids

LABELS = ("ant", "bee", "cat", "dog", "elk")
ROTATIONS = ("0", "180", "270", "90")
TENCH, GOLDFISH, BRAMBLING = "n01440764", "n01443537", "n01530575"


def rows(where: str, names: list[str | None]) -> pa.Table:
    """Return rows of predictions whose class stands at `where`."""
    keys = [f"{name}/{row}" if where == "folder" else f"k{row}" for row, name in enumerate(names)]
    columns = {"shard": ["s.tar"] * len(names), "key": keys}
    if where != "folder":
        columns[where.partition(":")[0]] = names
    return pa.table(columns)


def read(where: str, names: list[str | None], labels: tuple[str, ...] | None, classes: int = 0):
    """Return the classes of images of a data set, and what is said of them."""
    target = model_target(where, labels, classes or len(labels or ()))
    found = rows(where, names)
    met = target.names(found)
    settled = target.settled(met)
    return settled.of(found).tolist(), settled.describe(met)


@pytest.mark.parametrize(
    ("where", "texts"),
    [
        ("cls", ["4", " 0\n", "bee"]),
        ("json:label", ['{"label": 4}', '{"label": "ant", "x": 1}', '{"label": "1"}']),
        ("folder", ["train/elk", "ant", "a/b/bee"]),
    ],
)
def test_a_class_is_a_number_or_a_label_wherever_it_stands(where, texts):
    assert read(where, texts, LABELS)[0] == [4, 0, 1]


@pytest.mark.parametrize(
    ("where", "texts", "said"),
    [
        ("cls", ["1", "5"], "s.tar: sample k1 has no class of this model's 5: --target cls gives '5'"),
        ("cls", ["9" * 5000], "gives '9999"),
        ("cls", ["-2"], "gives '-2'"),
        ("cls", ["fox"], "gives 'fox'; its classes are 'ant', 'bee', 'cat', ...: wordsworth finetune makes"),
        ("folder", [TENCH], f"--target folder gives '{TENCH}'"),
    ],
)
def test_a_class_that_the_model_does_not_have_is_named_with_its_sample(where, texts, said):
    with pytest.raises(UserError, match=re.escape(said)):
        read(where, texts, LABELS)


def test_images_without_a_class_are_left_out_and_counted():
    numbers, said = read("cls", ["1", None, "-1", " ", "ant"], LABELS)
    assert numbers == [1, NO_CLASS, NO_CLASS, NO_CLASS, 0]
    assert said.endswith("2 of the model's 5 classes occur; 3 images without a class are left out")
    for text in ('{"other": 1}', "[1]", "{", '{"label": null}', '{"label": -1}', None):
        assert read("json:label", ['{"label": 2}', text], LABELS)[0] == [2, NO_CLASS]
    target = model_target("folder", LABELS, 5)
    keys = ["a.jpg", "/a.jpg", "cat//a.jpg", "/dog/a.jpg", "x/elk/a.jpg/"]  # the last of a store, not a disk
    assert target.of(pa.table({"shard": ["s"] * 5, "key": keys})).tolist() == [NO_CLASS, NO_CLASS, 2, 3, 4]


# ---- ImageNet -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet() -> tuple[str, ...]:
    """timm's names of ImageNet's classes, which timm's and most models of Hugging Face have as labels."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo().label_descriptions())


@pytest.mark.parametrize("size", sorted(ID_FILES))
def test_the_ids_of_a_head_without_labels_are_timms(size):
    from timm.data import ImageNetInfo, infer_imagenet_subset

    names = ImageNetInfo(infer_imagenet_subset({"num_classes": size})).label_names()
    assert wordnet_ids(None, size) == {name: number for number, name in enumerate(names)}


def test_folders_of_imagenet_and_its_subsets_are_the_models_classes(imagenet):
    folders = [GOLDFISH, TENCH, BRAMBLING]  # ImageNet-A and -R have 200 of the thousand
    said = "folders are WordNet ids: 3 of the model's 1000 classes occur"
    assert read("folder", folders, imagenet) == ([1, 0, 10], said)
    numbers, of_nameless = read("folder", folders, None, 1000)
    assert numbers == [1, 0, 10]
    assert of_nameless == f"{said}; the labels have no names and are taken for ImageNet's"
    ids = tuple(wordnet_ids(None, 1000))
    by_labels = "folders are names of labels: 3 of the model's 1000 classes occur"
    assert read("folder", folders, ids) == ([1, 0, 10], by_labels)
    in_words = tuple(f"{id} {label}" for id, label in zip(ids, imagenet, strict=True))
    assert read("folder", folders, in_words) == ([1, 0, 10], said)


def test_folders_of_imagenet_v2_are_places(imagenet):
    folders = [str(number) for number in range(1000)]
    numbers, said = read("folder", folders, imagenet)
    assert numbers == list(range(1000))
    assert said == "folders are places in the labels: 1000 of the model's 1000 classes occur"


def test_words_of_imagenet_are_its_classes_unless_two_have_the_word(imagenet):
    names = ["tench", "Tinca_tinca", "tench, Tinca tinca", "great_white_shark", "missile"]
    numbers, said = read("folder", names, imagenet)
    assert numbers == [0, 0, 0, 2, imagenet.index("missile")]
    assert said.startswith("folders are names of labels in other writing (3) and names of labels (2): 3 of")
    with pytest.raises(UserError, match="gives 'crane', which is the name of 2 labels"):
        read("folder", ["crane"], imagenet)
    with pytest.raises(UserError, match="gives 'panda'"):  # the lesser panda, and the giant one
        read("folder", ["panda"], imagenet)


def test_a_few_classes_of_imagenet_have_its_ids_by_their_words():
    labels = ("parachute", "tench", "golf_ball", "crane", "cat")
    assert wordnet_ids(labels, 5) == {"n03888257": 0, TENCH: 1, "n03445777": 2}
    assert read("folder", [TENCH, "cat"], labels)[0] == [1, 4]


def test_a_head_of_imagenets_size_with_other_labels_has_no_ids():
    others = tuple(f"product {number}" for number in range(1000))
    assert not wordnet_ids(others, 1000)
    with pytest.raises(UserError, match=f"gives '{TENCH}'"):
        read("folder", [TENCH], others)


def test_without_timms_files_there_are_no_ids(monkeypatch, imagenet):
    monkeypatch.setattr(wordnet, "find_spec", lambda name: None)
    assert not wordnet_ids(imagenet, 1000) and not wordnet_ids(None, 1000)
    assert read("folder", ["tench, Tinca tinca"], imagenet)[0] == [0]


# ---- names that could be read in two ways ---------------------------------------------------------------

NAMES = "; numbers are taken as names, not as places"
DESPITE = "; numbers are taken as places, though labels have such names"


@pytest.mark.parametrize(
    ("where", "texts", "numbers", "end"),
    [
        ("folder", ["0", "90", "180", "270"], [0, 3, 1, 2], "occur"),
        ("label", ["0", "90"], [0, 3], "occur"),
        ("cls", ["0", "1", "2", "3"], [0, 1, 2, 3], "occur"),  # as `pack` numbers these folders
        ("cls", ["90", "180"], [3, 1], "occur"),
        ("label", ["1", "2"], [1, 2], "occur"),
    ],
)
def test_digits_are_names_or_places_by_all_names_of_the_set(where, texts, numbers, end):
    found, said = read(where, texts, ROTATIONS)
    assert found == numbers and said.endswith(end)


@pytest.mark.parametrize(
    ("where", "numbers", "end"),
    [("folder", [0, 1], NAMES), ("label", [0, 1], NAMES), ("cls", [1, 2], DESPITE)],
)
def test_digits_that_could_be_either_are_read_one_way_and_it_is_said(where, numbers, end):
    found, said = read(where, ["1", "2"], ("1", "2", "3"))
    assert found == numbers and said.endswith(end)


def test_folders_of_digits_that_are_no_labels_are_no_places_among_labels_of_digits():
    with pytest.raises(UserError, match="--target folder gives '1'"):
        read("folder", ["0", "1"], ROTATIONS)


def test_names_in_other_case_or_unicode_form_are_the_class_where_only_one_is_meant():
    composed, decomposed = unicodedata.normalize("NFC", "Café"), unicodedata.normalize("NFD", "Café")
    labels = (decomposed, "Shih-Tzu", "us", "US", "C++", "C#")
    assert read("folder", [composed, decomposed, "shih_tzu", "US"], labels)[0] == [0, 0, 1, 3]
    for name in ("Us", "C", "Cafe"):
        with pytest.raises(UserError, match=f"gives '{name}'"):
            read("folder", [name], labels)


def test_a_class_that_may_be_known_passes_until_all_names_are():
    target = model_target("cls", ROTATIONS, 4)
    cells = [["90"], ["1"], [None], ["-1"]]
    samples = pa.table({"key": ["a", "b", "c", "d"], "sidecars": cells})
    assert target.of_samples(samples, "s.tar").tolist() == [3, 1, NO_CLASS, NO_CLASS]
    with pytest.raises(UserError, match="sample a has no class of this model's 4: --target cls gives '90'"):
        target.settled(["90", "1"]).of_samples(samples, "s.tar")
