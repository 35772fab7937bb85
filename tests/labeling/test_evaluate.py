"""evaluate: every labelled image counts once, and the figures are those of their definitions."""

import contextlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.builders import photo, write_tar
from tests.support.labelling import Watcher, label_of
from tests.support.tables import write_hugging_face, write_parquet
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.evaluate import evaluate
from wordsworth.pipeline.labeling.probes import EmbeddingProbes
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.accuracy import NUM_BINS, AccuracyCounter
from wordsworth.pipeline.output.intervals import wilson_interval
from wordsworth.pipeline.verification.verifier import verify
from wordsworth.vit_model import neighbours
from wordsworth.vit_model.few_shot import SEEDS, draw, fit_probe
from wordsworth.vit_model.model_folder import load_folder

LABELS = ("ant", "bee", "cat", "dog", "elk")


def answers(seed: int, images: int = 500, classes: int = 7):
    """Random true classes, ranked guesses that are right more often than not by chance, and confidences."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, images)
    ids = np.array([rng.permutation(classes)[:5] for _ in range(images)])
    right = rng.random(images) < 0.6
    ids[right, 0] = true[right]
    return true, ids, rng.random(images).clip(1e-6, 1.0)


def test_figures_are_those_of_their_definitions_whatever_the_pieces_they_come_in():
    true, ids, scores = answers(0)
    whole, pieces = AccuracyCounter(), AccuracyCounter()
    whole.add(true, ids, scores)
    for at in range(0, len(true), 37):
        pieces.add(true[at : at + 37], ids[at : at + 37], scores[at : at + 37])
    found, of_pieces = whole.figures(None), pieces.figures(None)
    for name in ("worst", "top1_interval", "recall"):
        assert found.pop(name) == of_pieces.pop(name)
    assert found == pytest.approx(of_pieces)
    assert found["top1"] == np.mean(ids[:, 0] == true)
    assert found["top5"] == np.mean([one in some for one, some in zip(true, ids, strict=True)])
    error = 0.0
    for low in np.arange(NUM_BINS) / NUM_BINS:
        inside = (scores >= low) & ((scores < low + 1 / NUM_BINS) | (low + 1 / NUM_BINS > 1 - 1e-9))
        if inside.any():
            error += inside.mean() * abs(scores[inside].mean() - (ids[inside, 0] == true[inside]).mean())
    assert found["calibration_error"] == pytest.approx(error)


def test_a_model_that_is_as_sure_as_it_is_right_has_no_calibration_error():
    tally = AccuracyCounter()
    tally.add(np.array([0] * 8 + [1] * 2), np.zeros((10, 1), int), np.full(10, 0.8))
    assert tally.figures(None)["calibration_error"] == pytest.approx(0.0)
    sure = AccuracyCounter()
    sure.add(np.array([0] * 5 + [1] * 5), np.zeros((10, 1), int), np.full(10, 1.0))
    assert sure.figures(None)["calibration_error"] == pytest.approx(0.5)


def test_the_worst_classes_come_first_with_what_they_are_taken_for():
    tally = AccuracyCounter()
    said = np.array([0, 0, 0, 1, 1, 2, 0, 0])
    tally.add(np.array([0, 0, 0, 1, 1, 2, 2, 2]), said[:, None], np.full(8, 0.5))
    worst, *rest = tally.figures(("ant", "bee", "cat"))["worst"]
    assert worst == {"class": "cat", "images": 3, "accuracy": pytest.approx(1 / 3), "taken_for": {"ant": 2}}
    assert [row["accuracy"] for row in rest] == [1.0, 1.0]


def test_a_rare_class_that_is_never_found_halves_the_balanced_accuracy_and_hardly_top_1():
    tally = AccuracyCounter()
    tally.add(np.array([1] * 95 + [3] * 5), np.full((100, 1), 1), np.full(100, 0.9))
    found = tally.figures(("no", "often", "matter", "rare"))
    assert (found["top1"], found["balanced_accuracy"]) == (0.95, 0.5)
    assert found["recall"] == [
        {"class": "often", "images": 95, "recall": 1.0},
        {"class": "rare", "images": 5, "recall": 0.0},
    ]


def test_recall_and_balanced_accuracy_are_those_of_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, recall_score

    true, ids, scores = answers(3)
    tally = AccuracyCounter()
    tally.add(true, ids, scores)
    found = tally.figures(None)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, ids[:, 0]))
    expected = recall_score(true, ids[:, 0], average=None, labels=np.unique(true))
    assert [row["recall"] for row in found["recall"]] == pytest.approx(expected.tolist())
    assert [row["class"] for row in found["recall"]] == [str(number) for number in np.unique(true)]


def test_an_interval_is_wilsons():
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4) and high == pytest.approx(0.9433, abs=1e-4)
    assert wilson_interval(0, 10)[0] == pytest.approx(0.0, abs=1e-9)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


# ---- embeddings -----------------------------------------------------------------------------------------


def clouds(seed: int, images: int, classes: int = 4, width: int = 12):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, images)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    return (centres[true] + rng.normal(size=(images, width))).astype(np.float32), true


def test_probes_and_neighbours_in_pieces_are_those_of_the_whole(monkeypatch):
    (x, classes), (x_test, true) = clouds(1, 200), clouds(2, 300)
    monkeypatch.setattr(neighbours, "BLOCK", 64)
    probes = EmbeddingProbes(x, classes, (1, 5, 10**6), 4)
    for at in range(0, 300, 77):
        probes.add(x_test[at : at + 77], true[at : at + 77])
    found = probes.figures()
    for k in (1, 5):
        drawn = [draw(classes, k, seed) for seed in SEEDS]
        predicted = [fit_probe(x[rows], classes[rows]).predict(x_test).numpy() for rows in drawn]
        assert found["few_shot"].pop(str(k)) == [np.mean(one == true) for one in predicted]
    assert not found["few_shot"], "1,000,000 images of a class were not there"
    votes = np.zeros((300, 4))
    for row, one in enumerate(x_test):
        cosines = x @ one / np.linalg.norm(x, axis=1) / np.linalg.norm(one)
        for place in np.argsort(cosines)[-neighbours.NEIGHBOURS :]:
            votes[row, classes[place]] += np.exp(cosines[place] / neighbours.TEMPERATURE)
    assert found["neighbours"] == np.mean(votes.argmax(1) == true) > 0.6
    assert found["train_images"] == 200


# ---- the whole ------------------------------------------------------------------------------------------


def write(folder, first: int, images: int, model, truth):
    """Two shards, whose classes the model gets right where `truth` says."""
    for shard in range(2):
        members = {}
        for number in range(first + shard, first + images, 2):
            said = LABELS.index(label_of(model, photo(number)))
            members[f"{number:04d}.jpg"] = photo(number)
            members[f"{number:04d}.cls"] = str(said if truth(number) else (said + 1) % 5).encode()
        if not shard:
            members |= {"bad.jpg": b"no image", "bad.cls": b"0"}
            members |= {"none.jpg": photo(1), "minus.jpg": photo(2), "minus.cls": b"-1"}
        write_tar(folder / f"part-{shard}.tar", members)
    return str(folder)


def test_every_image_with_a_class_counts_once_and_what_does_not_is_said(tmp_path, local_ray, small_model):
    model = load_folder(small_model)
    source = write(tmp_path / "test", 0, 40, model, lambda number: number % 4 != 0)
    train = write(tmp_path / "train", 100, 30, model, lambda number: True)
    request = LabelRequest(
        command="label",
        sources=(source,),
        output=str(tmp_path / "out"),
        model="small",
        precision="fp32",
        unit_rows=8,
    )
    watchers = []

    @contextlib.contextmanager
    def watch(name):
        watchers.append((name, Watcher()))
        yield watchers[-1][1]

    found = evaluate(request, model, "cls", watch, (train,), (1, 2, 1000))
    assert (found["images"], found["errors"], found["no_class"]) == (40, 1, 2)
    for name in ("classes", "train_classes"):
        assert found[name].startswith("cls holds places in the labels: ")
        assert found[name].endswith("of the model's 5 classes occur; 2 images without a class are left out")
    assert found["top1"] == 0.75 and found["top5"] == 1.0, "five classes, five guesses"
    assert [name for name, _ in watchers] == ["the session", "train", "test"]
    assert (
        found["train_images"] == 30 and set(found["few_shot"]) <= {"1", "2"} and 0 <= found["neighbours"] <= 1
    )
    json.dumps(found)
    again = evaluate(request, model, "cls", watch, (train,), (1, 2, 1000))
    assert again == found and not watchers[-1][1].receipts, "what is labelled is not labelled again"


def test_tables_are_evaluated_by_a_column_that_is_called_like_one_of_the_rows_own(
    tmp_path, local_ray, small_model
):
    """The column stands in the path of two tables; in the third, numbers have the names of Hugging Face."""
    model = load_folder(small_model)
    said = label_of(model, photo(1))
    other = next(label for label in LABELS if label != said)
    for label in (said, other):
        write_parquet(tmp_path / "in" / f"label={label}" / "p.parquet", {"image": [photo(1), photo(1)]})
    columns = {"image": [photo(1)] * 3, "label": [0, 1, -1]}
    write_hugging_face(tmp_path / "in" / "first.parquet", columns, {"label": [other, said]})
    request = LabelRequest(
        command="label",
        sources=(str(tmp_path / "in"),),
        output=str(tmp_path / "out"),
        model="small",
        precision="fp32",
    )
    found = evaluate(request, model, "label", lambda name: contextlib.nullcontext(Watcher()))
    assert (found["images"], found["errors"], found["no_class"], found["top1"]) == (6, 0, 1, 0.5)
    rows = pq.read_table(tmp_path / "out" / "test" / "predictions").to_pylist()
    assert {row["label"] for row in rows} == {said}
    assert Counter(row["target"] for row in rows) == {said: 3, other: 3, "-1": 1}
    assert len({(row["shard"], row["key"]) for row in rows}) == 7


def test_a_class_that_is_none_of_the_models_ends_an_evaluation_before_its_unit_is_labelled(
    tmp_path, small_model, wordsworth
):
    members = {
        f"{number}.{end}": data
        for number in range(6)
        for end, data in (("jpg", photo(number)), ("cls", b"1"))
    }
    write_tar(tmp_path / "test" / "a.tar", members | {"late.jpg": photo(9), "late.cls": b"fox"})
    said = wordsworth(
        "evaluate", str(tmp_path / "test"), "--model", small_model, "--output", str(tmp_path / "out")
    )
    assert (
        said.returncode == 1
        and "a.tar: sample late has no class of this model's 5: --target cls gives 'fox'" in said.stderr
    )
    lines = [line for line in said.stderr.splitlines() if not line.endswith(" ...")]
    assert len(lines) < 5 and not list(tmp_path.glob("out/**/predictions/*.parquet")), said.stderr


def test_folders_that_are_none_of_the_models_classes_end_an_evaluation_before_ray_starts(
    tmp_path, small_model
):
    for name in ("ant", "bee", "fox"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.jpg").write_bytes(photo(1))
    request = LabelRequest(
        command="label", sources=(str(tmp_path / "images"),), output=str(tmp_path / "out"), model="small"
    )

    def make_progress(name):
        raise AssertionError("the session begins")

    with pytest.raises(UserError, match=r"images: sample fox/1.jpg has no class of .*wordsworth finetune"):
        evaluate(request, load_folder(small_model), "folder", make_progress)


def test_the_command_prints_a_table_or_json(tmp_path, small_model, wordsworth):
    source = write(tmp_path / "test", 0, 8, load_folder(small_model), lambda number: number < 6)
    said = wordsworth("evaluate", source, "--model", small_model, "--precision", "fp32")
    assert said.returncode == 0, said.stderr
    for words in (
        "8, and 1 that could not be decoded",
        "of the model's 5 classes occur; 2 images without a class are left out",
        "top-1",
        "75.00% (95% interval 40.93% to 92.85%)",
        "balanced",
        "calibration",
        "worst classes",
    ):
        assert words in said.stdout, said.stdout


@pytest.mark.long
def test_a_sample_is_of_all_classes_and_the_same_command_without_it_takes_all(
    tmp_path, local_ray, small_model
):
    model = load_folder(small_model)
    for place, label in enumerate(LABELS):  # a folder that is sorted by class, and a tar of the last class
        if label == LABELS[-1]:
            members = {f"{label}/{number}.jpg": photo(number) for number in range(12)}
            write_tar(tmp_path / "in" / "last.tar", members)
            continue
        for number in range(12):
            path = tmp_path / "in" / "folder" / label / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo(number + 100 * place))
    request = LabelRequest(
        command="label",
        sources=(str(tmp_path / "in" / "folder"), str(tmp_path / "in" / "last.tar")),
        output=str(tmp_path / "out"),
        model="small",
        precision="fp32",
    )
    watchers = [Watcher() for _ in range(4)]

    def run(number: int, **part) -> dict:
        watch = contextlib.nullcontext(watchers[number])
        return evaluate(replace(request, **part), model, "folder", lambda name: watch)

    sampled = run(0, sample=30)
    assert sampled["images"] == 30 and sum(receipt.rows for receipt in watchers[0].receipts) == 30
    table = pq.read_table(tmp_path / "out" / "test" / "predictions").to_pylist()
    drawn = {(row["shard"], row["key"]): row["label"] for row in table}
    assert {key.split("/")[0] for _, key in drawn} == set(LABELS)
    report = verify(str(tmp_path / "out" / "test"), source=True)
    assert [finding.code for finding in report.findings] == ["sample_run"] and report.recounted == 30
    assert run(1, sample=30) == sampled and not watchers[1].receipts
    with pytest.raises(
        UserError, match="holds a sample of 30 images, drawn with --sample-seed 0: ask for that"
    ):
        run(2, sample=30, sample_seed=1)
    assert run(3)["images"] == 60
    assert verify(str(tmp_path / "out" / "test"), source=True).ok
    table = pq.read_table(tmp_path / "out" / "test" / "predictions").to_pylist()
    assert drawn.items() <= {(row["shard"], row["key"]): row["label"] for row in table}.items()
    with pytest.raises(UserError, match="has images from the first on, and no sample"):
        run(2, sample=30)
