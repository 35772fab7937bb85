"""Run the `wordsworth` command: find the sub-command, read --config, and end a failure with one line.

Exit codes:
    0: done.
    1: failed.
    2: wrong usage.
    3: done, but over --max-error-rate or --fail-if-flips-over, or with findings.
    130, 143: interrupted by Ctrl-C or by SIGTERM.
"""

import atexit
import io
import logging
import os
import platform
import signal
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter

from wordsworth.jobs.commands import COMMANDS
from wordsworth.jobs.config_file import config_reader
from wordsworth.jobs.terminal import LogFormat, Terminal, asked_log_format, data_text, logging_as
from wordsworth.jobs.usage import check_values, refuse_misread, usage_line
from wordsworth.pipeline.cluster.env_file import refuse_untaken_env_file
from wordsworth.pipeline.cluster.package import package_version
from wordsworth.pipeline.errors import UserError, root_cause, without_secrets, worker_of
from wordsworth.pipeline.storage.patience import expect_a_person
from wordsworth.pipeline.storage.refusals import explanation
from wordsworth.vit_model.config import ModelError

RESUMABLE = ("label", "embed", "compact", "pretrain", "finetune")
LOOPBACK = "127.0.0.1"  # the node's address in a local Ray
GENERAL = Group("Any command", sort_key=9)
AGAIN = "what is done is kept, run the same command again to continue"


def _version() -> str:
    """Return the versions that decide what a command does, and where a model would run here."""
    from wordsworth.pipeline.cluster.cores import cores
    from wordsworth.pipeline.prediction.gpu import own_gpus

    gpus = own_gpus()
    device = f"{gpus} GPU{'s'[: gpus > 1]}" if gpus else f"no GPU, {cores():g} CPU cores"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "timm", "pyarrow"))
    python = f"Python {platform.python_version()}"
    return f"wordsworth {package_version()}\n{python}, {libraries}\n{device}"


app = App(
    name="wordsworth",
    help="Label image buckets with Vision Transformers: each image exactly once, predictions in Parquet.",
    version=_version,
    version_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
    exit_on_error=False,
    print_error=False,
    result_action="return_value",
)
_groups = {
    heading: Group(heading, sort_key=number)
    for number, heading in enumerate(dict.fromkeys(command.group for command in COMMANDS.values()))
}
for _number, (_name, _command) in enumerate(COMMANDS.items()):
    app.command(  # by import path: a command's module is imported when the command is called
        f"wordsworth.jobs.{_name}:{_name}",
        name=_name,
        help=_command.help,
        help_epilogue=f"Example:  {_command.example}",
        group=_groups[_command.group],
        sort_key=_number,
    )


for _flag in ("--help", "--version"):
    app[_flag].group = (GENERAL,)
app.register_install_completion_command(
    help="Let bash, zsh or fish complete commands and options.", group=GENERAL
)


app.meta.suppress_keyboard_interrupt = False  # `run` says how to resume


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[
        Path | None,
        Parameter(
            group=GENERAL,
            help="""TOML or YAML file that gives any option, or the name of a recipe (wordsworth models lists
            them); the command line wins.""",
        ),
    ] = None,
    debug: Annotated[
        bool,
        Parameter(group=GENERAL, help="Show the traceback of a failure.", negative="", show_default=False),
    ] = False,
    log_format: Annotated[
        LogFormat,
        Parameter(group=GENERAL, help="json: each line on stderr is one JSON object (docs/operations.md)."),
    ] = "text",
) -> int | None:
    if tokens and tokens[0] in COMMANDS:
        refuse_misread(list(tokens[1:]), app[tokens[0]].assemble_argument_collection())
    reader = () if config is None else (config_reader(config),)
    app.config = (*reader, check_values)
    return app(tokens)


def option_names(command: str) -> list[str]:
    """Return the options of a command, with their hyphens."""
    return [name for argument in app[command].assemble_argument_collection() for name in argument.names]


class Terminated(KeyboardInterrupt):
    """Report SIGTERM as an exception, so that the command ends like after Ctrl-C."""


def _terminate(signum, frame):
    raise Terminated


def run(arguments: list[str]) -> int:
    """Run one command line and return the exit code.

    A failure is one line on stderr. The traceback comes only with --debug.
    """
    signal.signal(signal.SIGTERM, _terminate)
    expect_a_person()
    with logging_as(asked_log_format(arguments)):
        code = _run(arguments)
        if Terminal.log_format == "json" and not code:
            Terminal(stderr=True).say("done", event="end", exit_code=0)
        return code


def _run(arguments: list[str]) -> int:
    try:
        refuse_untaken_env_file()
        app.config = ()  # of the command before, where a process runs several
        if arguments[:1] == ["help"]:
            arguments = [*arguments[1:2], "--help"]
        return app.meta(arguments) or 0
    except KeyboardInterrupt as interrupt:
        code = 143 if isinstance(interrupt, Terminated) else 130
        again = f": {AGAIN}" if arguments[:1][0] in RESUMABLE else ""
        return _fail(f"interrupted{again}", code)
    except CycloptsError as error:
        return _fail(usage_line(error, arguments), 2)
    except Exception as error:
        if "--debug" in arguments:
            Terminal(stderr=True).print(
                traceback.format_exc(), markup=False, level="error", event="traceback"
            )
        cause = root_cause(error, UserError, ModelError)
        if isinstance(cause, UserError):
            return _fail(str(cause), cause.exit_code)
        if isinstance(cause, ModelError):
            return _fail(str(cause), 1)
        refusal = explanation(error)
        if refusal:
            again = f"; {AGAIN}" if arguments[:1][0] in RESUMABLE else ""
            return _fail(f"a store refused: {refusal}{again}", 1)
        by_ray = type(cause).__module__.startswith("ray.")
        again = f"; {AGAIN}" if by_ray and arguments[:1][0] in RESUMABLE else ""
        where = _worker(error)
        return _fail(f"{_told(cause)}{where} (--debug shows where{again})", 1)


def _told(error: BaseException) -> str:
    """Return what a library says, in our own words where it is about a file."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"cannot use {error.filename}: {error.strerror.lower()}"
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _worker(error: BaseException) -> str:
    """Say in which worker an error was raised, if it was on another machine or on one of several."""
    worker = worker_of(error)
    if worker is None or worker[0] == LOOPBACK:
        return ""
    return f" in process {worker[1]} on node {worker[0]}"


def _fail(message: str, code: int) -> int:
    terminal = Terminal(stderr=True, dated=Terminal.has_dated)
    if terminal.is_json:
        terminal.say(without_secrets(message), level="error", event="end", exit_code=code)
    else:
        terminal.print(f"[bold red]wordsworth:[/] {data_text(without_secrets(message))}")
    return code


def main() -> None:
    """Run the command line of this process and exit."""
    end = _QuickEnd()
    atexit.register(end)
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no letters of a name still gets its line
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _leave(run(sys.argv[1:]), end)


class _QuickEnd:
    """End the process before Python takes its modules apart, which takes a second with torch and Ray.

    Python calls the functions of `atexit` from the last to the first: this one is registered before a command
    imports anything, so what a library wants to do at the end is done.
    """

    def __init__(self) -> None:
        self.code: int | None = None  # None until the command has ended as it should

    def __call__(self) -> None:
        """Leave with the code of the command."""
        if self.code is None:
            return
        logging.shutdown()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:  # a pipe that nobody reads, a full disk: Python says so, and has a code for it
            return
        os._exit(self.code)


def _leave(code: int, end: _QuickEnd) -> NoReturn:
    from wordsworth.pipeline.cluster.session import abandoned

    end.code = code
    if abandoned():  # Ray's own exit hook would wait a minute, and give another code
        end()
    sys.exit(code)
