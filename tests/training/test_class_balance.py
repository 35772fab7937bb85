"""Rare classes: weights in the loss, epochs in which all classes come equally often, what is measured."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from tests.support.samples import write_tar
from tests.support.trainings import SIZE, request
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import DecodeSettings
from wordsworth.pipeline.sources.class_target import Target
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import Shard, listing_table
from wordsworth.pipeline.training import batches as training_batches
from wordsworth.pipeline.training.augment import Augmentation
from wordsworth.pipeline.training.batches import (
    Batch,
    BatchSettings,
    ErrorTally,
    ShardCursor,
    epoch_batches,
    shuffled_shards,
)
from wordsworth.pipeline.training.class_balance import ClassUse, read_class_weights, use_classes
from wordsworth.pipeline.training.optimizer import build_optimizer
from wordsworth.pipeline.training.request import TrainRequest, build_objective
from wordsworth.pipeline.training.step import Step
from wordsworth.pipeline.training.stream import _decode_stage, _epochs_stage, _read_stage, remaining_rows
from wordsworth.pipeline.training.survey import Survey, survey_shard
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.config import Preprocessing
from wordsworth.vit_model.recall import ClassRecall

UNIT_ROWS = 8
READING = ReadSettings(unit_rows=UNIT_ROWS, keep=("cls",))
DECODE = DecodeSettings(preprocessing=Preprocessing(), image_size=(16, 16), patch_size=8)
START = ShardCursor()
LABELS = ("often", "rare")
TARGET = Target(where="cls", labels=LABELS, classes=2)


def asked(**changes) -> TrainRequest:
    return request(Path("nowhere"), config=replace(SIZE, num_classes=2), **changes)


def data_of(shards: list[Shard]) -> Survey:
    counted = {shard.name: survey_shard(shard, READING, "cls") for shard in shards}
    return Survey(
        shards=tuple(shards),
        rows={name: rows for name, (rows, _) in counted.items()},
        classes=sum((classes for _, classes in counted.values()), Counter()),
        classes_by_shard={name: classes for name, (_, classes) in counted.items()},
    )


def counts(**by_name: int) -> Survey:
    return Survey(shards=(), rows={}, classes=Counter(by_name))


# ---- weights ----


def test_balanced_weights_are_those_of_scikit_learn():
    use, (note,) = use_classes(asked(class_weights="balanced"), counts(often=95, rare=5), TARGET, UNIT_ROWS)
    expected = compute_class_weight("balanced", classes=np.arange(2), y=np.array([0] * 95 + [1] * 5))
    assert use.weights == pytest.approx(expected.tolist())
    assert note == "--class-weights balanced: class 1 (rare) weighs 10, class 0 (often) weighs 0.526"
    unweighted, notes = use_classes(asked(), counts(often=95, rare=5), TARGET, UNIT_ROWS)
    assert (unweighted.weights, unweighted.balance, notes) == (None, None, [])


def test_weights_of_a_file_go_to_the_classes_that_it_names_and_the_others_weigh_1(tmp_path):
    (tmp_path / "weights.csv").write_text("rare, 7.5\n\nbald eagle 2\n")
    weights = read_class_weights(str(tmp_path / "weights.csv"), {})
    assert weights == {"rare": 7.5, "bald eagle": 2.0}
    target = Target(where="cls", labels=("often", "rare", "bald eagle"), classes=3)
    use, (note,) = use_classes(asked(class_weights=weights), counts(often=1), target, UNIT_ROWS)
    assert use.weights == (1.0, 7.5, 2.0)
    assert note == "--class-weights: 1 of 3 classes are not named: they weigh 1"
    numbers = Target(where="cls", labels=None, classes=2)
    assert use_classes(asked(class_weights={"1": 3.0}), counts(), numbers, UNIT_ROWS)[0].weights == (1.0, 3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rare\n", "weights.csv, line 1: a class, a comma and a weight above 0 are needed, such as cat,2.5"),
        ("often,1\nrare,0\n", "weights.csv, line 2: a class, a comma and a weight above 0"),
        ("rare,nan\n", "line 1: a class, a comma and a weight above 0"),
        ("rare,1\nrare,2\n", "line 2: class rare has a weight already"),
        ("fox,1\n", "--class-weights has a weight for class fox, which the training images do not have"),
        ("1,1\nrare,2\n", "--class-weights has two weights for one class, 1 and rare"),
    ],
)
def test_weights_that_mean_nothing_are_one_line(tmp_path, text, message):
    path = tmp_path / "weights.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        weights = read_class_weights(str(path), {})
        use_classes(asked(class_weights=weights), counts(often=9, rare=1), TARGET, UNIT_ROWS)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"class_weights": "balanced"},
            r"--class-weights balanced: class 1 \(rare\) has no sample: give FILE",
        ),
        ({"balance": True}, r"--balance: class 1 \(rare\) has no sample: mend the labels"),
    ],
)
def test_an_empty_class_cannot_be_balanced(changes, message):
    with pytest.raises(UserError, match=message):
        use_classes(asked(**changes), counts(often=9), TARGET, UNIT_ROWS)


def test_a_file_of_weights_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--class-weights .*w\.csv: no such file, nor none or balanced"):
        read_class_weights(str(tmp_path / "w.csv"), {})


# ---- epochs ----


def numbered_image(number: int) -> bytes:
    """Return an image whose colour says its number, with a corner that says nothing."""
    from PIL import Image

    from tests.support.samples import encoded

    return encoded(Image.new("RGB", (20, 18), (number, 99, 77)), "PNG")


def write_shards(folder: Path, classes: list[list[str]]) -> list[Shard]:
    """Write a shard for each list; images are numbered over all."""
    number = 0
    for place, names in enumerate(classes):
        members = []
        for name in names:
            members += [(f"{number}.png", numbered_image(number)), (f"{number}.cls", name.encode())]
            number += 1
        write_tar(folder / f"{place}.tar", members)
    return find_shards([str(folder)]).shards


def mixed(images: int, every: int = 19) -> list[str]:
    return ["rare" if number % every == every - 1 else "often" for number in range(images)]


def stream(shards: list[Shard], epochs: range, use: ClassUse, cursor: ShardCursor = START):
    """Call the stages as Ray Data does, a table at a time."""
    first = remaining_rows(shuffled_shards(shards, epochs[0], 0), epochs[0], cursor)
    for row in _epochs_stage(listing_table(shards), first, epochs[1:], 0):
        for table in _read_stage(row, READING, balance=use.balance):
            yield Unit.from_arrow(_decode_stage(table, DECODE, Augmentation(crop_scale=0.9, flip=False), 0))


def batches_of(
    shards: list[Shard], steps: int, epochs: range, use: ClassUse, cursor: ShardCursor = START, done: int = 0
) -> list[Batch]:
    units = stream(shards, epochs, use, cursor)
    drawn: list[Batch] = []
    for epoch in epochs:
        settings = BatchSettings(decode=DECODE, target=TARGET, batch_size=4, seed=(0, epoch, 1))
        left, begin = (steps - done, cursor) if epoch == epochs[0] else (steps, START)
        drawn += epoch_batches(units, len(shards), left, settings, begin, ErrorTally())
    return drawn


def balanced(shards: list[Shard]) -> ClassUse:
    return use_classes(asked(balance=True), data_of(shards), TARGET, UNIT_ROWS)[0]


@pytest.fixture(params=[8192, 10], ids=["one group", "many groups"])
def group(request, monkeypatch):
    monkeypatch.setattr(training_batches, "GROUP_ROWS", request.param)


def test_95_to_5_come_equally_often_in_an_epoch_as_long_as_without(tmp_path, group):
    shards = write_shards(tmp_path, [mixed(38), mixed(19), mixed(57), mixed(38)])
    use = balanced(shards)
    assert sum(use.drawn.values()) == 152, "as many as there are"
    drawn = batches_of(shards, 152 // 4, range(3), use)
    assert len(drawn) == 3 * 38
    seen = set()
    for epoch in range(3):
        classes = np.concatenate([batch.classes for batch in drawn[38 * epoch : 38 * (epoch + 1)]])
        assert abs(int((classes == 1).sum()) - 76) <= 6, "a shard rounds, and the last batch may be repeated"
        numbers = Counter(
            int(patches[0, 0])
            for batch in drawn[38 * epoch : 38 * (epoch + 1)]
            for patches, number in zip(batch.patches, batch.classes, strict=True)
            if number == 0
        )
        assert len(numbers) > 60, "different images of the frequent class"
        seen |= set(numbers)
    # 129 of 144 on the mean; what is drawn follows from the names of the shards, so the number varies.
    assert len(seen) > 90, "those that one epoch leaves out come in another"


def test_a_source_sorted_by_class_gives_every_worker_as_many_steps(tmp_path):
    """One shard of rare images is as long as many of frequent ones; no unit is longer than others."""
    shards = write_shards(tmp_path, [["often"] * 20] * 4 + [["rare"] * 4])
    use = balanced(shards)
    rows = [use.drawn[shard.name] for shard in shards]
    assert rows == [10, 10, 10, 10, 42], "10.5 of each frequent shard, on the mean"
    units = list(stream(shards, range(1), use))
    assert max(len(unit.samples) for unit in units) <= UNIT_ROWS
    assert Counter(unit.last for unit in units)[True] == 5
    rare = [unit for unit in units if unit.shard_name == shards[-1].name]
    assert [unit.number for unit in rare] == list(range(len(rare)))
    assert sum(len(unit.samples) for unit in rare) == 42


def test_copies_of_an_image_have_crops_of_their_own(tmp_path):
    from tests.support.samples import encoded, photo

    members = [(f"{n}.png", encoded(photo(n), "PNG")) for n in range(4)]
    for number in range(4):
        members.append((f"{number}.cls", b"rare" if number == 3 else b"often"))
    write_tar(tmp_path / "a.tar", sorted(members))
    shards = find_shards([str(tmp_path)]).shards
    (unit,) = stream(shards, range(1), balanced(shards))
    keys = unit.samples["key"].to_pylist()
    copies = [unit.payload.reshape(len(keys), -1)[row] for row, key in enumerate(keys) if key == "3"]
    assert len(copies) == 2 and not np.array_equal(*copies)


def test_from_every_place_a_balanced_epoch_goes_on_with_the_batch_that_was_due(tmp_path, group):
    shards = write_shards(tmp_path, [mixed(19), mixed(10, 5), mixed(38), ["rare"] * 2])
    use = balanced(shards)
    steps = sum(use.drawn.values()) // 4
    whole = batches_of(shards, steps, range(2), use)
    for at in range(0, steps, 3):
        rest = batches_of(shards, steps, range(2), use, cursor=whole[at].cursor, done=at + 1)
        assert len(rest) == 2 * steps - at - 1
        for one, other in zip(rest, whole[at + 1 :], strict=True):
            assert np.array_equal(one.patches, other.patches) and np.array_equal(one.classes, other.classes)
            assert one.cursor == other.cursor


def test_a_sample_that_cannot_be_read_has_no_class_and_stays_one_error(tmp_path):
    write_shards(tmp_path, [mixed(6, 3)])
    path = tmp_path / "0.tar"
    path.write_bytes(path.read_bytes()[: 5 * 2048 + 530])  # in the image of the sixth sample
    shards = find_shards([str(path)]).shards
    use = balanced(shards)
    errors = [error for unit in stream(shards, range(1), use) for error in unit.samples["error"].to_pylist()]
    assert Counter(errors)["shard_truncated"] == 1
    assert use.drawn[shards[0].name] == 6 and abs(len(errors) - 6) <= 1, "each class rounds"


# ---- what it is for ----


def overlapping(images: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return patches (M, N, P*P*3) whose brightness hints at the class, and the classes (M,)."""
    rng = np.random.default_rng(seed)
    classes = (np.arange(images) % round(1 / share) == 0).astype(np.int64)
    levels = 110 + 26 * classes + rng.normal(0, 22, images)
    noise = rng.normal(0, 10, (images, SIZE.num_patches, SIZE.patch_dim))
    return (levels[:, None, None] + noise).clip(0, 255).astype(np.uint8), classes


def recall_after(weights: tuple[float, ...] | None = None, drawn: np.ndarray | None = None) -> ClassRecall:
    """Train on 95 to 5 images, and return the recall on as many of each class.

    Args:
        weights: of the classes in the loss.
        drawn: chance of each image to be drawn; None for the same.
    """
    patches, classes = overlapping(400, 0.05, 0)
    settings = replace(asked(lr=1e-2), config=replace(SIZE, width=16, depth=1, mlp_dim=32, num_classes=2))
    objective = build_objective(settings)
    optimizer = build_optimizer(objective, settings)
    step = Step(objective, optimizer, settings, torch.device("cpu"), class_weights=weights)
    rng = np.random.default_rng(0)
    for number in range(80):
        rows = rng.choice(len(classes), 32, p=drawn)
        step([(patches[rows], classes[rows])], 1e-2 * (1 - number / 80), number)
    tried, truth = overlapping(400, 0.5, 1)
    recall = ClassRecall(np.zeros(2, np.int64), np.zeros(2, np.int64))
    recall.add(truth, step.score(tried, truth, 0)[1]["right"].numpy())
    return recall


def test_with_95_to_5_weights_or_balanced_draws_find_the_rare_class_that_is_lost_without():
    plain = recall_after()
    assert 0.95 * plain.recall[0] + 0.05 * plain.recall[1] > 0.93, (
        "right, by hardly ever saying the rare class"
    )
    assert plain.recall[1] < 0.25 and plain.balanced_accuracy < 0.62
    _, classes = overlapping(400, 0.05, 0)
    weighted = recall_after(weights=(100 / 190, 10.0))
    drawn = recall_after(drawn=np.where(classes == 1, 0.5 / 20, 0.5 / 380))
    for better in (weighted, drawn):
        assert better.recall[1] > plain.recall[1] + 0.25
        assert better.balanced_accuracy > plain.balanced_accuracy + 0.05
