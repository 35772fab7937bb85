"""Hold what a loaded model promises: the pixels, the rows and the vectors of a run, for images one by one."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import wordsworth
from tests.support.builders import photo, write_tar
from tests.support.labelling import rows, run
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import DecodeSettings, decode_unit
from wordsworth.pipeline.labeling.loaded_model import PLACE
from wordsworth.pipeline.prediction.load_model import load_model
from wordsworth.pipeline.report.explanation import ExplainSettings, explain
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.model_inputs import find_images
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.vit_model.model_folder import save_folder
from wordsworth.vit_model.patches import unpatchify


def turned(image: bytes) -> bytes:
    """Return a photograph as a camera on its side stores it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


GREY = Image.fromarray(np.arange(64 * 48, dtype=np.uint32).reshape(64, 48).astype(np.uint16))
IMAGES = {
    "a.jpg": photo(0),
    "b.jpg": turned(photo(1, (90, 50))),
    "c.png": photo(2, (64, 96), "PNG"),
    "d.jpg": b"no image",
    "e.png": png(GREY),  # 16 bits
    "f.png": png(Image.open(io.BytesIO(photo(3))).convert("RGBA")),
    "g.gif": photo(4, (40, 40), "GIF"),
}
GOOD = [name for name in IMAGES if name != "d.jpg"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, data in IMAGES.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def model(small_model):
    return wordsworth.load_model(small_model, device="cpu", precision="fp32")


def given(folder, name: str) -> list:
    """Return an image in each way in which it can be given."""
    data = IMAGES[name]
    ways = [str(folder / name), folder / name, data, Image.open(io.BytesIO(data))]
    if name in ("c.png", "f.png"):  # without a turn and in 8 bits: the array says all
        ways.append(np.asarray(Image.open(io.BytesIO(data))))
    return ways


def test_the_pixels_are_those_of_a_run_bit_for_bit(folder, model, tmp_path):
    write_tar(tmp_path / "a.tar", IMAGES)
    (shard,) = find_shards([str(tmp_path / "a.tar")]).shards
    (unit,) = read_units(shard, ReadSettings(unit_rows=32))
    settings = DecodeSettings(preprocessing=model.preprocessing, image_size=(32, 32), patch_size=8)
    patches = decode_unit(unit, settings).payload
    assert len(patches) == len(GOOD)
    for name, of_run in zip(GOOD, patches, strict=True):
        expected = unpatchify(of_run[None], (4, 4), 8)[0]
        for way in given(folder, name):
            np.testing.assert_array_equal(model.pixels(way), expected, err_msg=f"{name} {type(way)}")


@pytest.mark.ray
def test_a_prediction_is_the_row_of_a_run(folder, model, tmp_path, local_ray, small_model):
    write_tar(tmp_path / "in" / "a.tar", IMAGES)
    run(tmp_path, load_model(str(small_model)), tmp_path / "in", threshold=0.2, embedding="float32", top_k=3)
    of_run = rows(tmp_path)
    predicted = model.predict([folder / name for name in IMAGES], top_k=3, threshold=0.2)
    vectors = iter(model.embed([folder / name for name in GOOD]))
    assert [row["error"] for row in predicted].count("not_an_image") == 1 and len(of_run) == len(IMAGES)
    for one, other in zip(predicted, of_run, strict=True):
        assert one.keys() == other.keys() - {*PLACE, "embedding"}
        for name in ("width", "height", "label_id", "label", "error", "error_detail"):
            assert one[name] == other[name]
        if one["error"]:
            assert one["topk"] is None and one["score"] is None
            continue
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
        for column in ("topk", "labels"):
            assert [entry["label"] for entry in one[column]] == [entry["label"] for entry in other[column]]
        np.testing.assert_allclose(next(vectors), other["embedding"], atol=1e-5)


def test_an_image_gives_one_answer_and_a_list_gives_as_many(folder, model):
    files = [folder / name for name in GOOD] * 7  # more than are predicted together
    alone = [model.predict(file) for file in files[: len(GOOD)]]
    together = model.predict(files)
    assert len(together) == len(files) and model.predict([]) == []
    for one, other in zip(alone * 7, together, strict=True):
        assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-6)
    assert len(alone[0]["topk"]) == 5 and len(model.predict(files[0], top_k=2)["topk"]) == 2
    assert model.embed(files).shape == (len(files), 32) and model.embed(files[0]).shape == (32,)
    assert model.embed([]).shape == (0, 32) and model.embed([]).dtype == np.float32
    assert model.preprocess(files[:3]).shape == (3, 3, 32, 32) and model.preprocess([]).shape == (
        0,
        3,
        32,
        32,
    )


def test_the_torch_module_takes_what_preprocess_gives(folder, model):
    x = model.preprocess([folder / name for name in GOOD])
    assert x.dtype == torch.float32 and torch.equal(x[0], model.preprocess(folder / GOOD[0]))
    with torch.no_grad():
        scores = model.model()(x).softmax(-1)
    for row, of_module in zip(model.predict([folder / name for name in GOOD]), scores, strict=True):
        assert row["label_id"] == int(of_module.argmax())
        assert row["score"] == pytest.approx(float(of_module.max()), abs=1e-5)


def test_the_attention_rollout_is_that_of_explain(folder, model):
    names = [str(folder / name) for name in GOOD[:2]]
    settings = ExplainSettings(model="m", precision="fp32", device="cpu")
    explained = explain(model.checkpoint, find_images(names, {}), settings)
    for name, labelled in zip(names, explained.images, strict=True):
        share = model.attention_rollout(name)
        assert share.shape == (4, 4) and share.dtype == np.float32
        assert share.min() > 0 and share.max() < 1 and 0.5 < share.sum() < 1
        row, column = np.unravel_index(share.argmax(), share.shape)
        assert (
            f"row {row + 1}" in labelled.figures[0].alt and f"column {column + 1}" in labelled.figures[0].alt
        )


def test_another_way_to_read_the_image_would_be_seen(folder, model):
    as_stored = wordsworth.load_model(model.name, exif="ignore")
    assert not np.array_equal(as_stored.pixels(folder / "b.jpg"), model.pixels(folder / "b.jpg"))
    assert np.array_equal(as_stored.pixels(folder / "a.jpg"), model.pixels(folder / "a.jpg"))


@pytest.mark.parametrize(
    ("image", "said"),
    {
        "missing": ("none.jpg", "none.jpg: there is no such image"),
        "folder": (".", "is a folder: give images"),
        "no image": (b"words", "the image cannot be decoded: not_an_image"),
        "float": (np.zeros((8, 8, 3), np.float32), "array of float32 .* is no image: give uint8"),
        "channels first": (np.zeros((3, 8, 8), np.uint8), r"array of uint8 \(3, 8, 8\) is no image"),
        "tensor": (torch.zeros(3, 8, 8), "Tensor is no image: give a path, bytes"),
        "mode": (Image.new("F", (8, 8)), "unsupported_mode"),
        "too large": (Image.new("1", (20_000, 20_000)), "too_many_pixels"),
    }.values(),
)
def test_what_is_no_image_is_named_in_one_line(image, said, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for ask in (model.pixels, model.preprocess, model.embed, model.attention_rollout):
        with pytest.raises(UserError, match=said):
            ask(image)


def test_a_model_without_classes_embeds_and_says_so(model, tmp_path, folder):
    save_folder(tmp_path / "encoder", model.checkpoint.with_head(0))
    encoder = wordsworth.load_model(tmp_path / "encoder", device="cpu", precision="fp32")
    with pytest.raises(UserError, match="has no classes to label with"):
        encoder.predict(folder / "a.jpg")
    np.testing.assert_allclose(encoder.embed(folder / "a.jpg"), model.embed(folder / "a.jpg"), atol=1e-6)
    assert "no classes" in repr(encoder) and "5 classes" in repr(model)


def test_attention_that_cannot_be_told_is_refused_and_the_labels_stay(tmp_path, folder):
    import timm

    torch.manual_seed(0)
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "w.pth")
    module = wordsworth.load_model("timm:test_convnext", weights=tmp_path / "w.pth", device="cpu")
    assert len(module.predict(folder / "a.jpg")["topk"]) == 5
    with pytest.raises(UserError, match="no attention rollout: it has no layers of attention"):
        module.attention_rollout(folder / "a.jpg")
