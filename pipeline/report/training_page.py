"""Make the page of a training: its curves, its epochs, what the model has learned, its recipe."""

import json
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import fsspec

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.load_model import load_model
from wordsworth.pipeline.report.charts import bar
from wordsworth.pipeline.report.explained_figures import Figure, filters, positions
from wordsworth.pipeline.report.figure_frame import NEEDED, can_draw
from wordsworth.pipeline.report.html import data_uri, number, percent, render
from wordsworth.pipeline.report.training_figures import Curve, curves_figure
from wordsworth.pipeline.report.validation_section import LabelledRun, mistakes_section, worst_classes
from wordsworth.pipeline.storage.atomic import overwrite
from wordsworth.pipeline.storage.filesystem import (
    StorageOptions,
    absolute_uri,
    join,
    open_filesystem,
    without_credentials,
)
from wordsworth.pipeline.storage.refusals import naming
from wordsworth.pipeline.storage.small_files import read_small_text
from wordsworth.pipeline.storage.streams import with_retries
from wordsworth.pipeline.training.metrics_log import LINES
from wordsworth.pipeline.training.news import EpochNews, Probe, ProbeNews, quality
from wordsworth.pipeline.training.settings import RUN, SETTINGS
from wordsworth.vit_model.attended import layout_of
from wordsworth.vit_model.config import ModelError

PAGE = "report.html"  # name of the file in the training's folder
WEIGHTS = "model.safetensors"  # written last: then the training is complete
MOST_EPOCHS = 400  # rows of the table
RANDOM_WEIGHTS = " Epoch 0 is before the first step: what random weights see."
# Settings that say nothing to a reader, or stand elsewhere in the page.
NOT_TOLD = ("config", "labels", "image_keys", "preprocessing")


@dataclass(kw_only=True)
class Training:
    """Hold what a training's folder tells.

    Attributes:
        fs: its file system.
        path: its path there.
        uri: its address.
        epochs: the epochs that are done, at least one.
        probe_before: what --probe gave before the first step; None without --probe.
        settings: of the training, by name.
        is_complete: whether the model is there.
        notes: what the page does not show, and why.
    """

    fs: fsspec.AbstractFileSystem
    path: str
    uri: str
    epochs: list[EpochNews]
    probe_before: Probe | None
    settings: dict[str, Any]
    is_complete: bool
    notes: list[str] = field(default_factory=list)

    @property
    def last(self) -> EpochNews:
        """Return the last epoch."""
        return self.epochs[-1]

    @property
    def quality(self) -> str:
        """Return the name of the figure beside the loss."""
        return quality(self.last.means)[0]

    @property
    def probes(self) -> list[tuple[int, Probe]]:
        """Return the epochs that were probed, and what each gave; epoch 0 is before the first step."""
        found = [(0, self.probe_before)] if self.probe_before else []
        return found + [(news.epoch, news.probe) for news in self.epochs if news.probe]

    @property
    def best(self) -> EpochNews | None:
        """Return the best epoch on --val, as the training itself chooses it; None without --val."""
        best, highest = None, -math.inf
        for news in self.epochs:
            if news.validation:
                means = news.validation.means
                score = means["accuracy"] if self.quality == "accuracy" else -means["loss"]
                if score > highest:
                    best, highest = news, score
        return best


def is_training(folder: str, options: StorageOptions) -> bool:
    """Return whether a folder holds a training: it has metrics."""
    fs, path = open_filesystem(folder, options)
    with naming(folder):
        return with_retries(lambda: fs.exists(join(path.rstrip("/"), LINES)))


def write_training_report(
    folder: str, options: StorageOptions, file: str | None = None, labelled: LabelledRun | None = None
) -> str:
    """Write the page of a training, and return the file's address.

    Args:
        folder: of the training.
        options: of the stores.
        file: where the page goes; None is report.html in the folder.
        labelled: a run of its model over images whose class is known: then their mistakes are on the page.

    Raises:
        UserError: the folder holds no training, no epoch of it is done, or the run cannot be shown.
    """
    training = read_training(folder, options)
    page = training_page(training, options, labelled).encode()
    fs, path = training.fs, join(training.path, PAGE)
    if file is not None:
        fs, path = open_filesystem(file, options)
    with naming(file or folder):
        overwrite(fs, path, page)
    return without_credentials(absolute_uri(fs, path))


# ---- what the folder tells ---------------------------------------------------------------------------------


def read_training(folder: str, options: StorageOptions) -> Training:
    """Read the metrics and the settings of a training.

    Raises:
        UserError: the folder holds no training, or no epoch of it is done.
    """
    fs, path = open_filesystem(folder, options)
    path = path.rstrip("/")
    name = without_credentials(folder)
    with naming(folder):
        try:
            text = with_retries(partial(read_small_text, fs, join(path, LINES), f"{name}/{LINES}"))
        except FileNotFoundError as error:
            raise UserError(f"{name} holds no training: {LINES} is missing") from error
        epochs, probe_before = _epochs(text, f"{name}/{LINES}")
        if not epochs:
            raise UserError(f"{name}: no epoch is done yet, so there is nothing to show")
        return Training(
            fs=fs,
            path=path,
            uri=name,
            epochs=epochs,
            probe_before=probe_before,
            settings=_settings(fs, path, name),
            is_complete=with_retries(lambda: fs.exists(join(path, WEIGHTS))),
        )


def _epochs(text: str, called: str) -> tuple[list[EpochNews], Probe | None]:
    """Return the epochs of metrics.jsonl, and what the probe before them gave.

    Half a line at its end is of a command that was killed.

    Raises:
        UserError: a line is no record of a training.
    """
    epochs = []
    probe_before = None
    for place, line in enumerate(text.splitlines(), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or record.get("kind") not in (EpochNews.kind, ProbeNews.kind):
            continue
        try:
            if record["kind"] == ProbeNews.kind:
                probe_before = ProbeNews.from_json(record).probe
                continue
            news = EpochNews.from_json(record)
            means = {**news.means, **(news.validation.means if news.validation else {})}
            if not all(isinstance(value, int | float) for value in [news.epoch, news.lr, *means.values()]):
                raise TypeError("a figure is no number")
            _ = news.means["loss"], quality(news.means)
        except (KeyError, TypeError) as error:
            raise UserError(f"{called}: line {place} is no record of a training ({error})") from error
        epochs.append(news)
    return epochs, probe_before


def _settings(fs: fsspec.AbstractFileSystem, path: str, name: str) -> dict[str, Any]:
    """Return the settings of a training, from the model that it made or from its work under way."""
    for file, keys in (("config.json", ("extra", "settings")), (f"{RUN}/{SETTINGS}", ())):
        try:
            found = json.loads(with_retries(partial(read_small_text, fs, join(path, file), f"{name}/{file}")))
            for key in keys:
                found = found[key]
        except (FileNotFoundError, KeyError, TypeError):
            continue
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}/{file} is no JSON: {error}") from error
        if isinstance(found, dict):
            return found
    return {}


# ---- the page ----------------------------------------------------------------------------------------------


def training_page(training: Training, options: StorageOptions, labelled: LabelledRun | None = None) -> str:
    """Return the page of a training as HTML."""
    figures = _figures(training, options)
    labels = [label for label in training.settings.get("labels") or [] if isinstance(label, str)]
    classes = worst_classes(training.epochs, labels)
    truth = None
    if labelled:
        model = load_model(
            absolute_uri(training.fs, training.path), note=lambda text: None, storage_options=options
        )
        truth = mistakes_section(labelled, model, options)
    else:
        training.notes.append(
            "mistakes: the folder does not hold the images. Label some whose class is known, and name the "
            f"run: wordsworth label SOURCE --model {training.uri} --output RUN --keep cls; "
            f"wordsworth report {training.uri} --labelled RUN --truth cls"
        )
    sections = {
        "overview": "Overview",
        "curves": "Curves",
        "epochs": "Epochs",
        "classes": "Classes",
        "truth": "Accuracy",
        "model": "The model",
        "recipe": "Recipe",
    }
    left_out = {name for name, there in (("classes", classes), ("truth", truth)) if not there}
    told = [{"uri": data_uri(one.png), "caption": one.caption, "alt": one.alt} for one in figures]
    return render(
        "training.html.j2",
        name=training.uri,
        lead=_lead(training),
        sections=[entry for entry in sections.items() if entry[0] not in left_out],
        classes=classes,
        truth=truth,
        bar=bar,
        headlines=_headlines(training),
        curves=told[:1] if figures and figures[0].file == "curves.png" else [],
        model_figures=[one for one, figure in zip(told, figures, strict=True) if figure.file != "curves.png"],
        columns=_columns(training),
        rows=_rows(training),
        left_out=max(0, len(training.epochs) - MOST_EPOCHS),
        recipe=_recipe(training.settings),
        labels=labels,
        notes=training.notes,
    )


def _lead(training: Training) -> str:
    asked = training.settings.get("epochs")
    done = training.last.epoch
    objective = training.settings.get("objective", "a training")
    if training.is_complete:
        return f"{objective}, complete after {done} epochs."
    of = f" of {asked}" if isinstance(asked, int) else ""
    return f"{objective}, not complete: {done}{of} epochs are done. The same command continues it."


def _headlines(training: Training) -> list[dict[str, str]]:
    last, name = training.last, training.quality
    found = [
        {"name": "loss", "value": f"{last.means['loss']:.4f}", "note": f"training, epoch {last.epoch}"},
        {"name": name, "value": percent(last.means[name]), "note": f"training, epoch {last.epoch}"},
    ]
    if last.validation:
        value = percent(last.validation.means[name])
        found.append({"name": f"{name} on --val", "value": value, "note": f"epoch {last.epoch}"})
    best = training.best
    if best and best.validation:
        value = percent(best.validation.means[name])
        found.append({"name": f"best {name} on --val", "value": value, "note": f"epoch {best.epoch}"})
    if training.probes:
        epoch, probe = training.probes[-1]
        note = f"of --probe, epoch {epoch}; {number(probe.images)} images tried"
        for called, accuracy in (("linear probe", probe.linear), ("nearest neighbours", probe.knn)):
            found.append({"name": called, "value": percent(accuracy), "note": note})
    found.append({"name": "epochs", "value": number(last.epoch), "note": f"{number(last.step)} steps"})
    if last.rates:
        waits = f"{percent(last.rates.data_wait)} waiting for data"
        found.append({"name": "images/s", "value": number(last.rates.images_per_second), "note": waits})
    return found


def _figures(training: Training, options: StorageOptions) -> list[Figure]:
    """Return the curves, and the figures of the model where it is there."""
    if not can_draw():
        training.notes.append(f"curves and figures of the model: {NEEDED}")
        return []
    figures = [_curves(training)]
    if not training.is_complete:
        training.notes.append("figures of the model: the training is not complete, so there is no model yet")
        return figures
    try:
        where = absolute_uri(training.fs, training.path)
        checkpoint = load_model(where, note=lambda text: None, storage_options=options)
        model = checkpoint.model()
        layout = layout_of(checkpoint, model)
    except (UserError, ModelError) as error:
        training.notes.append(f"figures of the model: {error}")
        return figures
    for figure in (filters(model, layout), positions(checkpoint, model, layout)):
        if isinstance(figure, Figure):
            figures.append(figure)
        else:
            training.notes.append(figure)
    return figures


def _curves(training: Training) -> Figure:
    curves = []
    for name in ("loss", training.quality):
        means = [(news.epoch, news.means[name]) for news in training.epochs if name in news.means]
        lines = {"training": means, "validation": []}
        for news in training.epochs:
            if news.validation and name in news.validation.means:
                lines["validation"].append((news.epoch, news.validation.means[name]))
        curves.append(Curve(name=name, lines=lines))
    if training.probes:
        lines = {
            "linear probe": [(epoch, probe.linear) for epoch, probe in training.probes],
            "nearest neighbours": [(epoch, probe.knn) for epoch, probe in training.probes],
        }
        curves.append(Curve(name="accuracy on --probe", lines=lines))
    rates = [(news.epoch, news.lr) for news in training.epochs]
    curves.append(Curve(name="learning rate", lines={"training": rates}))
    names = ", ".join(curve.name for curve in curves)
    return Figure(
        file="curves.png",
        png=curves_figure(curves, f"{names} by epoch"),
        caption=f"{names.capitalize()} by epoch. Those of training are means over augmented images."
        + (RANDOM_WEIGHTS if training.probe_before else ""),
        alt=f"Curves of {names} over {training.last.epoch} epochs",
    )


def _columns(training: Training) -> list[str]:
    columns = ["epoch", "loss", training.quality]
    if training.best:
        columns += ["val loss", f"val {training.quality}"]
    if training.probes:
        columns += ["probe, linear", "probe, neighbours"]
    return [*columns, "learning rate", "images/s"]


def _rows(training: Training) -> list[list[tuple[str, float]]]:
    """Return (text, number) of each cell of the table, the last MOST_EPOCHS epochs."""
    rows = []
    for news in training.epochs[-MOST_EPOCHS:]:
        values = [news.means.get("loss"), news.means.get(training.quality)]
        if training.best:
            means = news.validation.means if news.validation else {}
            values += [means.get("loss"), means.get(training.quality)]
        if training.probes:
            values += [news.probe.linear, news.probe.knn] if news.probe else [None, None]
        cells = [(str(news.epoch), float(news.epoch))]
        cells += [("–", -math.inf) if value is None else (f"{value:.4f}", float(value)) for value in values]
        rate = news.rates.images_per_second if news.rates else 0.0
        rows.append([*cells, (f"{news.lr:.2e}", news.lr), (number(rate), rate)])
    return rows


def _recipe(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) of the settings that a reader wants; those of a group have its name too."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name in NOT_TOLD:
            continue
        if isinstance(value, dict):
            values |= {f"{name}: {inner}": of_inner for inner, of_inner in value.items()}
        else:
            values[name] = value
    pairs = []
    for name, value in values.items():
        if value is not None:
            told = value if isinstance(value, str) else json.dumps(value)
            pairs.append((name.replace("_", " "), told))
    return pairs
