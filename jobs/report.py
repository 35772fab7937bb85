"""Run `wordsworth report OUT`: write one page that shows what a run found, or what a training did."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.filesize import decimal

from wordsworth.jobs.options import JsonFlag, StoreOptions, check_page_name
from wordsworth.jobs.terminal import Terminal, data_text
from wordsworth.pipeline.errors import plural

if TYPE_CHECKING:
    from wordsworth.pipeline.report.page import WrittenReport
    from wordsworth.pipeline.report.truth_tally import Accuracy

MISSING_SHOWN = 3  # reasons for missing images that are printed; the page has all of them


def report(
    run: Annotated[str, Parameter(help="The run folder, or the model folder of a training.")],
    /,
    *,
    output: Annotated[
        str | None, Parameter(alias="-o", help="File to write instead of report.html in the folder.")
    ] = None,
    truth: Annotated[
        str | None,
        Parameter(
            help="Where an image's class stands: cls or another column that --keep kept, json:FIELD, or "
            "folder, the last one of the key. Accuracy, calibration and mistakes are then on the page.",
            show_default=False,
        ),
    ] = None,
    labelled: Annotated[
        str | None,
        Parameter(
            help="For the page of a training: a run of its model over images whose class is known. The "
            "page then has the accuracy, the worst pairs and the mistakes of this run.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, Parameter(help="Of the images, examples and points that are drawn.")] = 0,
    storage: StoreOptions | None = None,
    json_: JsonFlag = False,
) -> int:
    """Write one page that shows what a run found, or how a training went: its curves, its epochs, its model.

    It is one file, and opens without a network.
    """
    storage = storage or StoreOptions()
    if output is not None:
        check_page_name(output)
    storage.check(run, labelled, output=output)
    errors = Terminal(stderr=True)
    from wordsworth.pipeline.errors import UserError, shown

    with errors.status("reading the folder"):
        from wordsworth.pipeline.report.training_page import is_training, write_training_report
        from wordsworth.pipeline.report.validation_section import LabelledRun

        if is_training(run, storage.storage):
            if truth is not None and labelled is None:
                raise UserError(
                    f"--truth {truth}: {run} is the folder of a training, which holds no rows to compare: "
                    "add --labelled RUN, a run of its model over images whose class is known",
                    exit_code=2,
                )
            of_run = None if labelled is None else LabelledRun(output=labelled, truth=truth or "cls")
            path = write_training_report(run, storage.storage, output, of_run)
            print(json.dumps({"path": path}, indent=1) if json_ else shown(path))
            return 0
        if labelled is not None:
            raise UserError(
                f"--labelled {labelled}: {run} is a run and not the folder of a training: leave it out",
                exit_code=2,
            )
        from wordsworth.pipeline.report.page import write_report

        written = write_report(run, file=output, seed=seed, truth=truth, storage_options=storage.storage)
    if json_:
        print(json.dumps(asdict(written), indent=1))
        return 0
    tell_missing(written, errors)
    if written.truth:
        _tell_truth(written.truth)
    rows, images = plural(written.num_rows, "row"), plural(written.num_images, "image")
    size = decimal(written.size_bytes)
    Terminal().print(f"{data_text(written.path)} ({rows}, {images}, {size}, {written.seconds:g} s)")
    return 0


def _tell_truth(found: "Accuracy") -> None:
    """Print how often the labels are right."""
    from wordsworth.pipeline.report.truth_section import accuracy_facts

    for name, value in accuracy_facts(found):
        Terminal().print(f"{name}: {data_text(value)}")


def tell_missing(written: "WrittenReport", terminal: Terminal) -> None:
    """Say which images a page could not show."""
    for reason, count in written.missing[:MISSING_SHOWN]:
        terminal.say(f"{plural(count, 'image is', 'images are')} not on the page: {reason}", level="warning")
    if len(written.missing) > MISSING_SHOWN:
        terminal.say(f"and for {len(written.missing) - MISSING_SHOWN} more reasons, which the page names")
