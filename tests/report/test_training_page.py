"""Promises of the page of a training, finished or not: its own figures, and text that is no code."""

import base64
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.builders import photo, write_tar
from tests.support.labelling import rows
from tests.support.labelling import run as label
from wordsworth.jobs.cli import run
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.load_model import load_model
from wordsworth.pipeline.report import training_page
from wordsworth.pipeline.report.training_page import is_training, read_training, write_training_report
from wordsworth.pipeline.training.last_values import write_last_values
from wordsworth.pipeline.training.news import EpochNews, Probe, ProbeNews, Rates, Validation

HOSTILE = "</dd><script>alert(1)</script>\x1b[31m\u202e"


def epoch(number: int, accuracy: float, on_val: float | None) -> EpochNews:
    validation = None
    if on_val is not None:
        validation = Validation(means={"loss": 2 - on_val, "accuracy": on_val}, images=50, errors=0)
    return EpochNews(
        epoch=number,
        step=10 * number,
        means={"loss": 2.5 - accuracy, "accuracy": accuracy, "gradient_norm": 1.0},
        lr=0.001 / number,
        rates=Rates(images_per_second=1234.5, mfu=0.4, data_wait=0.02),
        errors=0,
        validation=validation,
    )


def write_training(folder: Path, model: Path | None, val: bool = True) -> Path:
    """Write what a training of three epochs leaves, whose second epoch is the best on --val."""
    settings = {"objective": "supervised", "epochs": 3, "lr": 0.001, "labels": ["ant", HOSTILE]}
    settings |= {"optimizer": HOSTILE, "augmentation": {"crop_scale": 0.35, "rand_augment": None}}
    if model is not None:
        shutil.copytree(model, folder)
        about = json.loads((folder / "config.json").read_text())
        about["extra"] = {"settings": settings}
        (folder / "config.json").write_text(json.dumps(about))
    else:
        (folder / "_train").mkdir(parents=True)
        (folder / "_train" / "settings.json").write_text(json.dumps(settings))
    values = [(0.5, 0.4), (0.6, 0.8125), (0.7, 0.75)]
    lines = [json.dumps({"kind": "step", "step": 1, "loss": 2.0})]
    for number, (accuracy, on_val) in enumerate(values, 1):
        lines.append(json.dumps(epoch(number, accuracy, on_val if val else None).to_json()))
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "epo']))
    return folder


@pytest.fixture(scope="module")
def finished(small_model, tmp_path_factory) -> Path:
    return write_training(tmp_path_factory.mktemp("trained") / "model", small_model)


def test_the_page_has_the_figures_of_the_training(finished):
    assert is_training(str(finished), {})
    assert write_training_report(str(finished), {}) == str(finished / "report.html")
    page = (finished / "report.html").read_text()
    for text in ("complete after 3 epochs", "1.8000", "70.0%", "75.0%", "81.2%", "epoch 2", "1,234"):
        assert text in page, text
    images = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert len(images) == 3 and all(image.startswith(b"\x89PNG") for image in images)
    assert re.findall(r'<tr><td class="num" data-value="([\d.]+)">', page) == ["1.0", "2.0", "3.0"]
    assert "--labelled RUN --truth cls" in page  # what is missing is said
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_the_command_writes_the_page_into_the_folder_or_where_it_is_told_to(finished, tmp_path, capsys):
    assert run(["report", str(finished)]) == 0
    assert capsys.readouterr().out.strip() == str(finished / "report.html")
    assert run(["report", str(finished), "--output", str(tmp_path / "page.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(tmp_path / "page.html")}
    page = (tmp_path / "page.html").read_text()
    assert page == (finished / "report.html").read_text() and 'id="curves"' in page


def test_what_a_training_is_called_and_set_to_is_text(finished):
    write_training_report(str(finished), {})
    page = (finished / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and page.count("<script") == 1
    assert "\x1b" not in page and "\u202e" not in page
    assert "augmentation: crop scale" in page and "rand augment" not in page


def test_a_training_under_way_says_so_and_shows_its_curves(tmp_path):
    folder = write_training(tmp_path / "begun", None, val=False)
    write_training_report(str(folder), {})
    page = (folder / "report.html").read_text()
    assert "not complete: 3 of 3 epochs are done" in page and "on --val" not in page
    assert page.count("data:image/png") == 1 and "there is no model yet" in page


def test_without_matplotlib_the_page_says_how_to_get_the_figures(finished, monkeypatch):
    monkeypatch.setattr(training_page, "can_draw", lambda: False)
    write_training_report(str(finished), {})
    page = (finished / "report.html").read_text()
    assert "data:image/png" not in page and "pip install" in page and "75.0%" in page


def test_the_best_epoch_of_an_objective_without_classes_has_the_least_loss(tmp_path):
    lines = []
    for number, loss in enumerate((0.9, 0.5, 0.7), 1):
        means = {"loss": loss, "explained": 1 - loss}
        news = epoch(number, 0.0, None).to_json()
        del news["accuracy"]
        lines.append(json.dumps(news | means | {"val_loss": loss, "val_images": 5, "val_errors": 0}))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    best = read_training(str(tmp_path), {}).best
    assert best is not None and best.epoch == 2


def test_what_a_probe_gave_is_a_curve_from_the_random_weights_on(tmp_path):
    before = ProbeNews(probe=Probe(linear=0.2, knn=0.1, images=1234, errors=0))
    lines = [json.dumps(before.to_json())]
    for number in range(1, 5):
        probe = Probe(linear=number / 8, knn=number / 8, images=1234, errors=0)
        means = {"loss": 0.5, "explained": 0.5}
        news = replace(epoch(number, 0.0, None), means=means, probe=probe if number % 2 == 0 else None)
        lines.append(json.dumps(news.to_json()))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    training = read_training(str(tmp_path), {})
    assert [(number, probe.linear) for number, probe in training.probes] == [(0, 0.2), (2, 0.25), (4, 0.5)]
    write_training_report(str(tmp_path), {})
    page = (tmp_path / "report.html").read_text()
    for text in (
        "linear probe",
        "50.0%",
        "of --probe, epoch 4; 1,234 images tried",
        "what random weights see",
    ):
        assert text in page, text
    assert "probe, linear" in page and page.count("0.2500") == 2 and "accuracy on --probe" in page
    (tmp_path / "metrics.jsonl").write_text('{"kind": "probe", "probe_linear": "x"}')
    with pytest.raises(UserError, match="line 1 is no record of a training"):
        read_training(str(tmp_path), {})


WRONG = {
    "no training": (None, "holds no training: metrics.jsonl is missing"),
    "no epoch": ('{"kind": "step", "loss": 1}', "no epoch is done yet"),
    "no number": ('{"kind": "epoch", "epoch": 1, "step": 1, "lr": "x", "errors": 0}', "line 1 is no record"),
    "no epochs": ('\n{"kind": "epoch", "loss": 1}', "line 2 is no record of a training"),
}


@pytest.mark.parametrize(("text", "line"), WRONG.values(), ids=WRONG)
def test_a_folder_that_is_no_training_is_one_line(text, line, tmp_path):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=line) as refusal:
        write_training_report(str(tmp_path), {})
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "report.html").exists()


def test_the_classes_that_are_found_least_come_first(tmp_path):
    means = {"loss": 1.0, "accuracy": 0.5, "balanced_accuracy": 0.5}
    validation = Validation(means=means, images=50, errors=0, recall=(0.9, None, 0.125, 0.5))
    news = replace(epoch(1, 0.5, None), validation=validation)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(news.to_json()))
    (tmp_path / "_train").mkdir()
    (tmp_path / "_train" / "settings.json").write_text(json.dumps({"labels": ["ant", "bee", HOSTILE]}))
    write_training_report(str(tmp_path), {})
    page = (tmp_path / "report.html").read_text()
    table = page.partition('id="classes"')[2].partition("</table>")[0]
    names = re.findall(r'<th scope="row"><bdi>(.*?)</bdi></th><td class="num" data-value="([\d.]+)"', table)
    assert [float(recall) for _, recall in names] == [0.125, 0.5, 0.9]
    assert [name for name, _ in names][1:] == ["class 3", "ant"] and "&lt;script&gt;" in names[0][0]


@pytest.mark.usefixtures("local_ray")
def test_the_mistakes_of_a_labelled_run_stand_on_the_page_of_its_training(finished, tmp_path, capsys):
    members = {}
    for number in range(6):
        members |= {f"{number}.jpg": photo(number), f"{number}.cls": b"4"}
    write_tar(tmp_path / "in" / "a.tar", members)
    model = load_model(str(finished))
    label(tmp_path, model, tmp_path / "in", keep=("cls",))
    wrong = [row for row in rows(tmp_path) if row["label_id"] != 4]
    assert wrong, "the random model is not right on all"
    assert (
        run(
            [
                "report",
                str(finished),
                "--labelled",
                str(tmp_path / "out"),
                "--output",
                str(tmp_path / "p.html"),
            ]
        )
        == 0
    )
    page = (tmp_path / "p.html").read_text()
    mistakes = page.partition('id="mistakes-title"')[2].partition("<h3>")[0]
    assert mistakes.count('class="thumb"') == len(wrong) and mistakes.count("data:image/") == len(wrong)
    assert "--labelled RUN" not in page and page.count("<script") == 1
    capsys.readouterr()

    other = load_model(str(finished), overrides={"crop_pct": 0.5})
    label(tmp_path, other, tmp_path / "in", keep=("cls",), output=str(tmp_path / "other"))
    assert run(["report", str(finished), "--labelled", str(tmp_path / "other")]) == 1
    assert "another model labelled this run" in capsys.readouterr().err
    assert run(["report", str(tmp_path / "out"), "--labelled", str(tmp_path / "other")]) == 2
    assert "not the folder of a training" in capsys.readouterr().err
    assert run(["report", str(finished), "--truth", "cls"]) == 2
    assert "add --labelled RUN" in capsys.readouterr().err


@pytest.mark.parametrize("ends", [(0.575, 0.54), (0.54, 0.575), (0.5, 0.5)])
def test_the_last_values_of_two_curves_do_not_lie_on_each_other(ends):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.7, 3.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    lines = {name: [(1, 0.1), (2, end)] for name, end in zip(("training", "validation"), ends, strict=True)}
    for points in lines.values():
        axis.plot(*zip(*points, strict=True))
    write_last_values(axis, lines, ".3g", {})
    canvas.draw()
    one, other = (text.get_window_extent() for text in axis.texts)
    assert not one.overlaps(other)
    assert {text.get_text() for text in axis.texts} == {f"{end:.3g}" for end in ends}
