"""Promises of `wordsworth explain`: figures of what the model sees, the label of `label`, one page."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.builders import photo
from wordsworth.jobs.cli import run
from wordsworth.pipeline.images.decode import DecodeSettings, crop_for_evaluation, open_image
from wordsworth.pipeline.prediction.actor import Predictor, PredictSettings
from wordsworth.pipeline.report.explained_figures import Figure, filters, positions
from wordsworth.pipeline.sources import model_inputs
from wordsworth.pipeline.sources.model_inputs import find_images, read_input
from wordsworth.vit_model.attended import layout_of
from wordsworth.vit_model.model_folder import load_folder, save_folder
from wordsworth.vit_model.patches import patchify

LINE = re.compile(r"wordsworth: .+\n")
HOSTILE_NAME = "<script>alert(1)</script>\x1b[31m\u202e$x^$.jpg".replace("/", "∕")
HOSTILE_LABEL = "</h3><script>alert(2)</script>\x1b]0;title\x07 $\\frac{$"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "a.jpg").write_bytes(photo(1))
    (folder / "b.png").write_bytes(photo(2, (60, 90), "PNG"))
    return folder


@pytest.fixture(scope="module")
def explained(images, small_model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("explained") / "figures"
    command = ["explain", str(images / "a.jpg"), str(images / "b.png"), "--model", str(small_model)]
    assert run([*command, "--output", str(output), "--precision", "fp32", "--device", "cpu"]) == 0
    return output


def page_of(output: Path) -> str:
    return (output / "explain.html").read_text()


def test_every_figure_is_a_file_and_stands_in_the_page(explained):
    of_image = ("heads-layer-02", "patches", "rollout")
    names = [f"image-{number:03d}-{name}.png" for number in (1, 2) for name in of_image]
    names += ["distances.png", "filters.png", "positions.png"]
    assert sorted(path.name for path in explained.iterdir()) == sorted([*names, "explain.html"])
    page = page_of(explained)
    for name in names:
        data = (explained / name).read_bytes()
        assert Image.open(io.BytesIO(data)).format == "PNG"
        assert f'src="data:image/png;base64,{base64.b64encode(data).decode()}"' in page
    assert len(re.findall(r"<img [^>]*alt=\"[^\"]+\"", page)) == len(names)
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)  # no request to anyone


def test_the_label_and_the_score_are_those_of_label(images, small_model, tmp_path, capsys):
    command = ["explain", str(images / "a.jpg"), str(images / "b.png"), "--model", str(small_model)]
    assert run([*command, "--output", str(tmp_path / "o"), "--precision", "fp32", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    checkpoint = load_folder(small_model)
    settings = DecodeSettings(preprocessing=checkpoint.preprocessing, image_size=(32, 32), patch_size=8)
    patches = []
    for name in ("a.jpg", "b.png"):
        pixels = open_image((images / name).read_bytes(), settings)
        patches.append(patchify(crop_for_evaluation(pixels, checkpoint.preprocessing, (32, 32)), 8))
    threads = torch.get_num_threads()
    predictor = Predictor(checkpoint, PredictSettings(precision="fp32", device="cpu", batch_size=2))
    torch.set_num_threads(threads)
    found = predictor.predict(np.stack(patches))
    for number, one in enumerate(told["images"]):
        labels = [entry["label"] for entry in one["best"]]
        assert labels == [checkpoint.labels[place] for place in found["ids"][number]]
        scores = [entry["score"] for entry in one["best"]]
        np.testing.assert_allclose(scores, found["scores"][number], rtol=1e-4)
    assert [one["width"] for one in told["images"]] == [96, 60]
    assert told["files"][0].endswith("/explain.html") and all(Path(file).is_file() for file in told["files"])


def test_the_command_names_the_labels_and_the_files(images, small_model, tmp_path, capsys):
    output = tmp_path / "o"
    command = ["explain", str(images / "a.jpg"), "--model", str(small_model), "--output", str(output)]
    assert run([*command, "--layer", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".*a\.jpg: (ant|bee|cat|dog|elk) \d+\.\d%", lines[0])
    assert lines[1] == str(output / "explain.html")
    assert str(output / "image-001-heads-layer-01.png") in lines
    assert len(lines) == 1 + len(list(output.iterdir()))


def test_an_image_is_upright_and_cropped_as_the_model_sees_it(tmp_path, small_model):
    upright = Image.open(io.BytesIO(photo(3, (64, 40), "PNG")))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    preprocessing = load_folder(small_model).preprocessing
    settings = DecodeSettings(preprocessing=preprocessing, image_size=(32, 32), patch_size=8)
    [file] = find_images([str(tmp_path / "turned.png")], {})
    found = read_input(file, settings)
    expected = crop_for_evaluation(np.asarray(upright.convert("RGB")), preprocessing, (32, 32))
    np.testing.assert_array_equal(found.pixels, expected)
    assert (found.width, found.height) == (64, 40)
    ignoring = replace(settings, preprocessing=replace(preprocessing, exif="ignore"))
    assert read_input(file, ignoring).height == 64


def test_hostile_names_and_labels_are_text_everywhere(tmp_path, small_model, capfd):
    checkpoint = load_folder(small_model)
    save_folder(tmp_path / "model", replace(checkpoint, labels=(HOSTILE_LABEL,) * 5))
    (tmp_path / HOSTILE_NAME).write_bytes(photo(4))
    command = ["explain", str(tmp_path / HOSTILE_NAME), "--model", str(tmp_path / "model")]
    assert run([*command, "--output", str(tmp_path / "o")]) == 0
    printed = "".join(capfd.readouterr())
    page = page_of(tmp_path / "o")
    for text in (printed, page):
        assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "alert(2)" in page
    assert page.count("<script") == 1  # the page's own
    assert "Glyph" not in printed and "<script>alert(1)" in printed
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


REFUSALS = {
    "no image": ("explain --model {m} --output {o}", 2, "IMAGES"),
    "missing file": ("explain {p}/none.jpg --model {m} --output {o}", 1, "there is no such image"),
    "folder": ("explain {p} --model {m} --output {o}", 2, "is a folder: give images"),
    "not an image": ("explain {p}/text.jpg --model {m} --output {o}", 1, "cannot be decoded: not_an_image"),
    "cut image": ("explain {p}/cut.jpg --model {m} --output {o}", 1, "cannot be decoded: truncated"),
    "no weights": ("explain {p}/a.jpg --model S/16 --output {o}", 2, "--allow-random-weights"),
    "no such layer": ("explain {p}/a.jpg --model {m} --output {o} --layer 3", 2, "the layers 1 to 2"),
    "layer 0": ("explain {p}/a.jpg --model {m} --output {o} --layer 0", 2, "the layers 1 to 2"),
    "output is a file": ("explain {p}/a.jpg --model {m} --output {p}/a.jpg", 2, "is a file: name a folder"),
    "scheme": ("explain pipe:ls --model {m} --output {o}", 2, "cannot read pipe:ls"),
    "web": ("explain http://127.0.0.1:1/a.jpg --model {m} --output {o}", 2, "--allow-http"),
}


@pytest.mark.parametrize(("command", "code", "line"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_one_line_and_writes_nothing(command, code, line, images, small_model, tmp_path, capsys):
    place = tmp_path / "images"
    shutil.copytree(images, place)
    (place / "text.jpg").write_text("these are words")
    (place / "cut.jpg").write_bytes(photo(1)[:-200])
    output = tmp_path / "o"
    assert run(command.format(p=place, m=small_model, o=output).split()) == code
    printed = capsys.readouterr()
    assert line in printed.err and LINE.fullmatch(printed.err.splitlines(keepends=True)[-1])
    assert len(printed.err.splitlines()) == 1 and not printed.out and not output.exists()


def test_too_many_images_are_refused_before_any_is_read(monkeypatch):
    monkeypatch.setattr(model_inputs, "find_image", lambda *given: pytest.fail("an image was looked for"))
    with pytest.raises(model_inputs.UserError, match="65 images: one page takes 64"):
        find_images(["a.jpg"] * 65, {})


def test_a_module_without_attention_gives_its_label_its_filters_and_the_reason(images, tmp_path, capsys):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "w.pth")
    command = ["explain", str(images / "a.jpg"), "--model", "timm:test_convnext"]
    weights = ["--weights", str(tmp_path / "w.pth")]
    assert run([*command, *weights, "--output", str(tmp_path / "o"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model_figures"] == ["filters.png"] and told["images"][0]["best"]
    assert any(note.startswith("no attention is drawn: ") for note in told["notes"])
    assert any(note.startswith("no positions are drawn: ") for note in told["notes"])
    page = page_of(tmp_path / "o")
    assert "Not drawn" in page and "no attention is drawn" in page


def test_the_figures_of_a_model_alone_need_no_image(small_model):
    checkpoint = load_folder(small_model)
    layout = layout_of(checkpoint, checkpoint.model())
    assert isinstance(filters(checkpoint.model(), layout), Figure)
    assert isinstance(positions(checkpoint, checkpoint.model(), layout), Figure)
    without = replace(checkpoint.config, position="none")
    state = {name: tensor for name, tensor in checkpoint.state.items() if name != "pos_embed"}
    plain = replace(checkpoint, config=without, state=state)
    refusal = positions(plain, plain.model(), layout)
    assert isinstance(refusal, str) and refusal.startswith("no positions are drawn: ")
