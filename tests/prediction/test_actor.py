"""actor: the model's own numbers for every good image, nulls for the others, whatever the batch."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.support.standin.device import standin
from wordsworth.pipeline.prediction.actor import Predictor, PredictSettings
from wordsworth.pipeline.unit import SAMPLE, Unit
from wordsworth.vit_model.checkpoint import Checkpoint, random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.head import Head
from wordsworth.vit_model.patches import patchify

CLASSES = 11
PREPROCESSING = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
EXACT = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """Every parameter random: a head of zeros would give every class the same score."""
    config = ViTConfig(
        image_size=(32, 48), patch_size=8, width=32, depth=2, heads=4, mlp_dim=64, num_classes=CLASSES
    )
    made = random_checkpoint(config, PREPROCESSING, 0)
    generator = torch.Generator().manual_seed(1)
    for tensor in made.state.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.2)
    return made


@pytest.fixture(params=["cpu", "cuda"])
def predictor(checkpoint, monkeypatch, request):
    """A function that makes the actor's object as Ray would, with the checkpoint's bytes in the object
    store's place; once on a CPU, and once on the stand-in GPU."""
    threads = torch.get_num_threads()
    monkeypatch.setattr("wordsworth.pipeline.prediction.actor.ray", SimpleNamespace(get=lambda blob: blob))
    monkeypatch.setattr("wordsworth.pipeline.prediction.actor.restart_notes", list)

    def make(model: Checkpoint = checkpoint, **changes) -> Predictor:
        settings = {
            "precision": "fp32",
            "device": request.param,
            "batch_size": 8,
            "top_k": CLASSES,
            "embedding": "float32",
        } | changes
        return Predictor({"ref": model.to_bytes()}, PredictSettings(**settings))

    with standin() if request.param == "cuda" else contextlib.nullcontext():
        yield make
    torch.set_num_threads(threads)


def make_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)


def by_the_model(checkpoint: Checkpoint, images: np.ndarray, preprocessing: Preprocessing = PREPROCESSING):
    """Logits and embedding of the plain model on images normalised as torchvision does it."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    model = checkpoint.model()
    with torch.no_grad():
        tokens = model.forward_features(pixels)
        return model(pixels), model.forward_head(tokens, pre_logits=True)


def scores_by_class(predicted: dict[str, np.ndarray]) -> np.ndarray:
    scores = np.empty_like(predicted["scores"])
    np.put_along_axis(scores, predicted["ids"].astype(int), predicted["scores"], 1)
    return scores


@pytest.mark.slow
def test_predictions_of_patches_are_those_of_the_model_on_normalised_images(predictor, checkpoint):
    images = make_images(19)
    predicted = predictor().predict(patchify(images, 8))
    logits, embedding = by_the_model(checkpoint, images)
    np.testing.assert_allclose(scores_by_class(predicted), logits.softmax(-1), **EXACT)
    np.testing.assert_allclose(predicted["embedding"], embedding, **EXACT)
    assert np.ptp(logits.softmax(-1).numpy(), axis=1).min() > 0.05  # or every class would score alike
    # what the tolerance notices: another normalisation, patches in another order, bfloat16
    for other in (
        by_the_model(checkpoint, images, Preprocessing())[1],
        by_the_model(checkpoint, images[:, :, ::-1].copy())[1],
        predictor(precision="bf16").predict(patchify(images, 8))["embedding"],
    ):
        assert not np.allclose(predicted["embedding"], other, **EXACT)


@pytest.mark.slow
def test_the_best_classes_come_first_and_an_embedding_enters_the_head(predictor, checkpoint):
    predicted = predictor(top_k=3).predict(patchify(make_images(5), 8))
    assert (
        predicted["ids"].shape == predicted["scores"].shape == (5, 3) and predicted["ids"].dtype == np.int32
    )
    assert (np.diff(predicted["scores"], axis=1) <= 0).all()
    head = (
        predicted["embedding"] @ checkpoint.state["head.weight"].numpy().T
        + checkpoint.state["head.bias"].numpy()
    )
    assert np.array_equal(np.argsort(-head, 1)[:, :3], predicted["ids"])


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "rounding"), [("fp32", 1e-5), ("bf16", 0.02)])
def test_the_batch_size_changes_no_label(predictor, precision, rounding):
    patches = patchify(make_images(70), 8)
    one, eight, many = (
        predictor(batch_size=size, precision=precision).predict(patches) for size in (1, 8, 64)
    )
    clear = one["scores"][:, 0] - one["scores"][:, 1] > 2 * rounding
    assert clear.mean() > 0.8
    for other in (eight, many):
        assert np.array_equal(one["ids"][clear, 0], other["ids"][clear, 0])
        np.testing.assert_allclose(scores_by_class(one), scores_by_class(other), atol=rounding)
    shifted = predictor(precision=precision).predict(
        np.roll(patches, 1, axis=0)
    )  # what the tolerance notices
    assert not np.allclose(scores_by_class(one), scores_by_class(shifted), atol=rounding)


@pytest.mark.slow
def test_more_labels_than_classes_are_all_classes(predictor):
    predicted = predictor(top_k=50).predict(patchify(make_images(3), 8))
    assert predicted["ids"].shape == (3, CLASSES) and np.array_equal(
        np.sort(predicted["ids"]), [range(CLASSES)] * 3
    )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "error"), [("float32", 1e-6), ("float16", 1e-3)])
def test_a_normalised_embedding_has_length_one_and_the_same_direction(predictor, kind, error):
    patches = patchify(make_images(6), 8)
    plain = predictor(embedding="float32").predict(patches)["embedding"]
    found = predictor(embedding=kind, normalize=True).predict(patches)["embedding"]
    assert found.dtype == np.dtype(kind)
    assert np.abs(np.linalg.norm(found.astype(float), axis=1) - 1).max() < error
    assert np.abs(np.linalg.norm(plain, axis=1) - 1).min() > 0.1
    np.testing.assert_allclose(found, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=error)


# ---- units -------------------------------------------------------------------------------------------------


def unit_of(good: list[bool]) -> tuple[Unit, np.ndarray]:
    """A decoded unit and its good images, each another."""
    rows = [
        {"key": f"{n}", "index": n, "sidecars": [], "error": None if ok else "empty"}
        for n, ok in enumerate(good)
    ]
    images = make_images(sum(good))
    return Unit(
        "/a.tar", "a", 0, True, 0, 0, 0, pa.Table.from_pylist(rows, schema=SAMPLE), patchify(images, 8)
    ), images


@pytest.mark.slow
@pytest.mark.parametrize(
    "good", [[True] * 3, [False, True, False, True, True, False], [True, False], [False] * 2, []]
)
def test_predictions_stand_in_the_rows_of_their_images_and_nulls_in_the_others(predictor, checkpoint, good):
    unit, images = unit_of(good)
    table = predictor(batch_size=2, top_k=2)(unit.to_arrow())
    found = Unit.from_arrow(table)
    assert found.samples.column_names[len(SAMPLE) :] == ["topk_ids", "topk_scores", "embedding"]
    assert [row["key"] for row in found.samples.to_pylist()] == [f"{n}" for n in range(len(good))]
    logits, embedding = by_the_model(checkpoint, images)
    places = iter(range(len(images)))
    for row, ok in zip(found.samples.to_pylist(), good, strict=True):
        if not ok:
            assert row["topk_ids"] is row["topk_scores"] is row["embedding"] is None
            continue
        place = next(places)
        assert row["topk_ids"] == logits[place].topk(2).indices.tolist()
        np.testing.assert_allclose(row["topk_scores"], logits[place].softmax(-1).topk(2).values, **EXACT)
        np.testing.assert_allclose(row["embedding"], embedding[place], **EXACT)
    assert found.payload.size == 0 and found.seconds["predict"] > 0


@pytest.mark.slow
def test_units_with_and_without_good_images_have_one_schema(predictor):
    make = predictor(top_k=2, embedding="float16")
    schemas = [make(unit_of(good)[0].to_arrow()).schema for good in ([True, False], [False], [])]
    assert schemas[0] == schemas[1] == schemas[2]


@pytest.mark.slow
def test_only_what_is_asked_for_is_there(predictor, checkpoint):
    unit, _ = unit_of([True, False])
    assert "embedding" not in Unit.from_arrow(predictor(embedding=None)(unit.to_arrow())).samples.column_names
    config = ViTConfig(
        image_size=(32, 48), patch_size=8, width=32, depth=2, heads=4, mlp_dim=64, num_classes=0
    )
    headless = random_checkpoint(config, PREPROCESSING, 0)
    samples = Unit.from_arrow(predictor(headless, top_k=0)(unit.to_arrow())).samples
    assert samples.column_names[len(SAMPLE) :] == ["embedding"] and samples["embedding"].null_count == 1


# ---- kinds of heads ----------------------------------------------------------------------------------------


def of_rows(table: pa.Table, name: str) -> list:
    return Unit.from_arrow(table).samples[name].to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize("bytes_together", [1, 1 << 20])
def test_the_classes_of_a_sigmoid_head_are_those_from_the_threshold_on(
    predictor, checkpoint, monkeypatch, bytes_together
):
    monkeypatch.setattr("wordsworth.pipeline.prediction.chosen_classes.SCORE_BYTES", bytes_together)
    good = [True, False, *[True] * 10]
    unit, images = unit_of(good)
    table = predictor(top_k=3, batch_size=4, embedding=None, head="sigmoid", threshold=0.6)(unit.to_arrow())
    scores = by_the_model(checkpoint, images)[0].sigmoid()
    rows = iter(scores)
    counts = set()
    for row in Unit.from_arrow(table).samples.to_pylist():
        if row["error"]:
            assert row["label_ids"] is row["label_scores"] is row["topk_ids"] is None
            continue
        expected = next(rows)
        order = expected.argsort(descending=True)
        assert row["topk_ids"] == order[:3].tolist()
        np.testing.assert_allclose(row["topk_scores"], expected[order[:3]], **EXACT)
        chosen = [number for number in order.tolist() if expected[number] >= 0.6]
        assert row["label_ids"] == chosen
        np.testing.assert_allclose(row["label_scores"], expected[chosen], **EXACT)
        counts.add(len(chosen))
    assert len(counts) > 1
    # what the tolerance notices
    softmax = of_rows(
        predictor(top_k=3, batch_size=4, embedding=None)(unit_of(good)[0].to_arrow()), "topk_scores"
    )
    assert not np.allclose(softmax[0], scores[0].topk(3).values, **EXACT)


@pytest.mark.slow
def test_the_classes_of_a_softmax_head_may_be_chosen_by_a_threshold_too(predictor, checkpoint):
    unit, images = unit_of([True] * 3)
    table = predictor(top_k=0, embedding=None, threshold=0.1)(unit.to_arrow())
    assert Unit.from_arrow(table).samples.column_names[len(SAMPLE) :] == ["label_ids", "label_scores"]
    for found, expected in zip(
        of_rows(table, "label_ids"), by_the_model(checkpoint, images)[0].softmax(-1), strict=True
    ):
        assert sorted(found) == torch.nonzero(expected >= 0.1).flatten().tolist()


@pytest.mark.slow
def test_scores_that_round_to_1_keep_the_order_of_their_logits(predictor, checkpoint):
    state = dict(checkpoint.state)
    state["head.bias"] = state["head.bias"] + 40
    far = replace(checkpoint, state=state)
    predicted = predictor(far, head="sigmoid").predict(patchify(make_images(3), 8))
    assert (predicted["scores"] == 1).all()
    order = by_the_model(far, make_images(3))[0].argsort(descending=True)
    assert np.array_equal(predicted["ids"][:, 0], order[:, 0])


@pytest.mark.slow
def test_a_value_is_the_output_of_the_head(predictor, checkpoint):
    config = replace(checkpoint.config, num_classes=1)
    state = checkpoint.state | {
        "head.weight": checkpoint.state["head.weight"][:1],
        "head.bias": checkpoint.state["head.bias"][:1],
    }
    one = replace(checkpoint, config=config, state=state, head=Head(kind="value"))
    unit, images = unit_of([True, False, True])
    table = predictor(one, top_k=0, embedding=None, head="value", value=True)(unit.to_arrow())
    found = of_rows(table, "value")
    expected = by_the_model(one, images)[0][:, 0]
    assert found[1] is None
    np.testing.assert_allclose([found[0], found[2]], expected, **EXACT)
    assert not np.allclose([found[0], found[2]], expected.sigmoid(), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{"head": "sigmoid", "threshold": 0.5}, {"top_k": 0, "value": True}])
def test_units_with_and_without_good_images_have_one_schema_for_every_kind(predictor, asked):
    make = predictor(**{"top_k": 2, "embedding": None} | asked)
    schemas = [make(unit_of(good)[0].to_arrow()).schema for good in ([True, False], [False], [])]
    assert schemas[0] == schemas[1] == schemas[2]
