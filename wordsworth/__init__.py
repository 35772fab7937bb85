"""Label image buckets with Vision Transformers, from Python.

    import wordsworth

    model = "timm:vit_base_patch16_224"
    run = wordsworth.label("s3://bucket/shards/", output="s3://bucket/labels", model=model)
    run.predictions().to_table(columns=["key", "label", "score"])

The functions do what the commands of the same names do. Their options have the names and the defaults of the
command line, with underscores: `--top-k` is `top_k` here; `wordsworth label --help` lists all. They print
nothing: what a person should know goes to the logger "wordsworth". Bad input raises
`wordsworth.pipeline.errors.UserError`, whose text says what is wrong, where, and what to do.

The folders jobs/, pipeline/ and vit_model/ are sub-packages. Installed, they lie in this package; in a
checkout they lie beside it, and this file adds them to the package's path. So a checkout works without an
installation, for example as the working directory of a Ray job.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow.compute
    import pyarrow.dataset

    from wordsworth.pipeline.labeling.loaded_model import LoadedModel
    from wordsworth.pipeline.labeling.pace import RunFigures
    from wordsworth.pipeline.output.records import Receipt, RunPlan, Summary
    from wordsworth.pipeline.report.images import RowImage
    from wordsworth.pipeline.report.page import WrittenReport
    from wordsworth.pipeline.training.news import EpochNews
    from wordsworth.pipeline.verification.report import Report

__all__ = ["Run", "embed", "evaluate", "label", "load_model", "open_run", "pretrain", "report", "verify"]

_CHECKOUT = Path(__file__).resolve().parents[1]
_BESIDE = [_CHECKOUT / name / "__init__.py" for name in ("jobs", "pipeline", "vit_model")]
if (_CHECKOUT / "pyproject.toml").is_file() and all(path.is_file() for path in _BESIDE):
    __path__.append(str(_CHECKOUT))

_LOG = logging.getLogger("wordsworth")


def __getattr__(name: str) -> str:
    """Return `__version__`: the one of pyproject.toml, as the installation or the checkout has it."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wordsworth.pipeline.cluster.package import package_version

    return package_version()


def label(sources: str | Sequence[str], *, output: str | Path, model: str | Path, **options: Any) -> Run:
    """Label every image of the sources into `output`, each exactly once; continue the run if it is there.

    Args:
        sources: files, folders, globs or URLs of tar shards, zip archives, images or tables.
        output: the run folder.
        model: a model folder or file of weights, timm:NAME, hf:NAME, or a variant such as S/16.
        options: the options of `wordsworth label`, such as top_k=5, embeddings=True, keep=["json"].

    Raises:
        UserError: the sources, the model or the output cannot be used, a shard was not read to its end, or
            more rows have an error than max_error_rate allows.
        TypeError: there is no option of that name.
    """
    from wordsworth.jobs import label as command
    from wordsworth.jobs.arguments import command_arguments

    given = command_arguments(command.label, output=output, model=model, **options)
    asked = command.label_request(given["top_k"], given["embeddings"], given["threshold"])
    return _run_labeler("label", sources, given, asked)


def embed(sources: str | Sequence[str], *, output: str | Path, model: str | Path, **options: Any) -> Run:
    """Embed every image of the sources into `output`, each exactly once; continue the run if it is there.

    Args:
        sources, output, model: as for `label`.
        options: the options of `wordsworth embed`, such as dtype="float32", normalize=True.

    Raises:
        UserError, TypeError: as for `label`.
    """
    from wordsworth.jobs import embed as command
    from wordsworth.jobs.arguments import command_arguments

    given = command_arguments(command.embed, output=output, model=model, **options)
    return _run_labeler("embed", sources, given, command.embed_request(given["dtype"], given["normalize"]))


def verify(
    output: str | Path, *, source: bool = False, storage_options: dict[str, Any] | None = None
) -> Report:
    """Count a run again, and with `source` its input too; `report.ok` says whether every sample has one row.

    Raises:
        UserError: there is no run at `output`, or its files cannot be read.
    """
    from wordsworth.pipeline.storage.preflight import check_stores
    from wordsworth.pipeline.verification.verifier import verify as count_again

    check_stores([], [str(output)], storage_options)
    return count_again(str(output), source, storage_options or {})


def report(
    output: str | Path,
    *,
    file: str | Path | None = None,
    seed: int = 0,
    storage_options: dict[str, Any] | None = None,
) -> WrittenReport:
    """Write one page that shows what a run found, and return where it is.

    Args:
        output: the run folder.
        file: where the page goes; None is report.html in the run folder.
        seed: of the images, examples and points that are drawn.
        storage_options: of the stores of the run, of its sources and of `file`.

    Raises:
        UserError: there is no run at `output`, or its files cannot be read.
    """
    from wordsworth.pipeline.report.page import write_report
    from wordsworth.pipeline.storage.preflight import check_stores

    check_stores([], [str(output)], storage_options)
    page = None if file is None else str(file)
    return write_report(str(output), file=page, seed=seed, storage_options=storage_options)


def evaluate(sources: str | Sequence[str], *, model: str | Path, **options: Any) -> dict[str, Any]:
    """Label images whose class is known and return how often the model is right.

    Args:
        sources, model: as for `label`.
        options: the options of `wordsworth evaluate`, such as target="folder", train=["s3://bucket/train/"].

    Raises:
        UserError, TypeError: as for `label`.
    """
    from wordsworth.jobs import evaluate as command
    from wordsworth.jobs.arguments import as_list, command_arguments

    given = command_arguments(command.evaluate, model=model, **options)
    given.pop("json_")
    return command.evaluate_sources(as_list(sources), **given, progress_of=_QuietProgress)


def pretrain(sources: str | Sequence[str], *, output: str | Path, **options: Any) -> EpochNews:
    """Train a Vision Transformer from scratch into the model folder `output`, or continue its training.

    Args:
        sources: as for `label`.
        output: the model folder, which `label` and `load_model` load.
        options: the options of `wordsworth pretrain`, such as variant="S/16", epochs=90, val=["val.tar"].

    Returns:
        The metrics of the last epoch.

    Raises:
        UserError, TypeError: as for `label`.
    """
    from wordsworth.jobs import pretrain as command
    from wordsworth.jobs.arguments import as_list, command_arguments
    from wordsworth.pipeline.training.trainer import train

    given = command_arguments(command.pretrain, output=output, **options)
    request = command.pretrain_request(as_list(sources), **given)
    return train(request, lambda news: _LOG.info("%s", news))


def load_model(
    model: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    storage_options: dict[str, Any] | None = None,
    **options: Any,
) -> LoadedModel:
    """Return a model that labels, embeds and explains images in this process (docs/python.md).

        model = wordsworth.load_model("timm:vit_base_patch16_224")
        model.predict("cat.jpg")["label"]

    `.model()` is the torch module; `.config`, `.preprocessing` and `.labels` belong to it.

    Args:
        model, device, precision: as for `label`.
        storage_options: of the stores of the model and of images.
        options: the other options of the group "Model" of `wordsworth label`, such as labels="names.txt".
            A list of classes or prompts may hold texts with commas.

    Raises:
        UserError: the model cannot be found or read.
        TypeError: there is no option of that name.
    """
    from wordsworth.jobs.arguments import filled
    from wordsworth.jobs.options import ModelOptions
    from wordsworth.pipeline.labeling.loaded_model import LoadedModel

    storage = storage_options or {}
    texts = {name: options.pop(name) for name in ("classes", "prompt") if isinstance(options.get(name), list)}
    asked = dataclasses.replace(filled(ModelOptions, {"model": model, **options}), **texts)
    return LoadedModel(
        name=str(model),
        checkpoint=asked.load(_note, storage),
        precision=precision,
        device=device,
        storage_options=storage,
    )


def open_run(output: str | Path, *, storage_options: dict[str, Any] | None = None) -> Run:
    """Return the run in a folder, complete or not.

    Raises:
        UserError: there is no run.
    """
    from wordsworth.pipeline.output.run_folder import RunFolder
    from wordsworth.pipeline.storage.preflight import check_stores

    check_stores([], [str(output)], storage_options)
    folder = RunFolder(str(output), storage_options)
    plan = folder.plan_of_run()
    return Run(output=str(output), plan=plan, summary=folder.summary(), storage_options=storage_options or {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Hold one run: its folder, its plan and, once the run is complete, its summary.

    Attributes:
        output: the run folder.
        plan: the frozen settings.
        summary: the totals; None for a run that is not complete.
        storage_options: options of the file system.
    """

    output: str
    plan: RunPlan
    summary: Summary | None
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def predictions(self) -> pyarrow.dataset.Dataset:
        """Return the rows that are there now, each once, as a pyarrow dataset."""
        import pyarrow.dataset

        from wordsworth.pipeline.output.run_folder import RunFolder

        folder = RunFolder(self.output, self.storage_options)
        return pyarrow.dataset.dataset(folder.units().row_files(), filesystem=folder.fs, format="parquet")

    def images(
        self, where: pyarrow.compute.Expression | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[RowImage]:
        """Yield the rows with their images, fetched again from the source by their places.

            for image in run.images(pyarrow.compute.field("label") == "cat"):
                PIL.Image.open(io.BytesIO(image.data)).save(...)

        `image.row` is a dict of the columns. `image.data` has the encoded bytes as they are in the source; it
        is None where they cannot be fetched, and `image.reason` says why. Memory holds few images. Only the
        byte ranges of the images are read, but for compressed tars, which are read from their beginning, and
        tables, which are read by row groups.

        Args:
            where: which rows; None for all.
            columns: columns of `row`; None for all but the embedding.

        Raises:
            UserError: there is no such column, or a file of the run is damaged.
        """
        from wordsworth.pipeline.report.images import row_images
        from wordsworth.pipeline.report.rows import RunRows

        return row_images(RunRows.open(self.output, self.storage_options), where, columns)


class _QuietProgress:
    """Follow a run without a display: what the user should know goes to the logger."""

    def __init__(self, title: str = ""):
        self.title = title

    def __enter__(self) -> _QuietProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        """Do nothing: there is no display to close."""

    def planned(
        self, *, shards: int, shards_done: int, bytes_total: int, bytes_done: int, listed: bool
    ) -> None:
        """Log the size of the run."""
        _LOG.info("%d shards, %d of them done before", shards, shards_done)

    def listed(self, *, shards: int, bytes_total: int) -> None:
        """Do nothing: the size of a run that is still being listed is for a display."""

    def note(self, message: str, **fields: Any) -> None:
        """Log what the user should know."""
        _note(message)

    def waiting(self, what: str) -> None:
        """Do nothing: what is waited for is for a display."""

    def working(self, figures: RunFigures) -> None:
        """Do nothing: how far a run is, is for a display."""

    def receipt(self, receipt: Receipt) -> None:
        """Log a shard that the store did not give."""
        if receipt.fault:
            from wordsworth.pipeline.errors import shown

            _LOG.warning("%s could not be read on: %s", shown(receipt.shard), shown(receipt.fault))


def _note(message: str) -> None:
    """Log what the user should know. Names in it come from data."""
    from wordsworth.pipeline.errors import shown

    _LOG.info("%s", shown(message))


def _run_labeler(
    command: str, sources: str | Sequence[str], given: dict[str, Any], asked: dict[str, Any]
) -> Run:
    from wordsworth.jobs.arguments import as_list
    from wordsworth.jobs.label import run_labeler, too_many_errors
    from wordsworth.pipeline.errors import UserError

    output, source, options = given["output"], given["source"], given["run"]
    asked |= given["part"].asked() | {"cluster": given["cluster"].request}
    summary = run_labeler(
        command, as_list(sources), output, given["model"], source, options, asked, _QuietProgress()
    )
    if options.report:
        report(output, storage_options=source.storage)
    excess = too_many_errors(summary, options.max_error_rate)
    if excess:
        raise UserError(excess, exit_code=3)
    return open_run(output, storage_options=source.storage)
