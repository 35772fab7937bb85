"""Run `wordsworth submit [options] -- COMMAND ...`: run a command as a job on a Ray cluster."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter, validators

from wordsworth.jobs.options import Flag
from wordsworth.jobs.terminal import Terminal
from wordsworth.pipeline.errors import UserError, shown

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from wordsworth.jobs.submitted_command import SubmittedCommand
    from wordsworth.pipeline.cluster.submission import Submission

JOB = Group("Job")
KUBERAY = Group("KubeRay")
NOT_FOUND = 127  # exit code of a shell that finds no such program
INTERRUPTED = 130
TERMINATED = 143


@Parameter(name="*", group=JOB)
@dataclass
class JobOptions:
    """Say where a job runs and what it brings."""

    address: str | None = None
    """URL of the cluster's job server, such as http://HEAD:8265 (or RAY_API_SERVER_ADDRESS). Without it: the
    one on this machine."""
    insecure: Annotated[bool, Flag] = False
    "Submit to a cluster that asks for no token without a warning."
    follow: bool = True
    "Show the job's log and end with its exit code. The same command again follows a job that runs."
    env_file: str | None = None
    """File on every node with lines KEY=VALUE, which every process of the job takes into its environment.
    Only its name travels."""
    env: Annotated[list[str], Parameter(negative="", show_default=False)] = field(default_factory=list)
    """NAME=VALUE: a variable of the job that is no secret, such as AWS_ENDPOINT_URL=... Can be given several
    times."""
    python: str = "python"
    "The nodes' Python, with the packages that Wordsworth needs. It is the one that runs Ray there."
    installed: Annotated[bool, Flag] = False
    "Run the package that the nodes have. Without it, the job brings this one."
    image: str | None = None
    "Container image that has the package: the job runs in it."


@Parameter(name="*", group=KUBERAY)
@dataclass
class KubeRayOptions:
    """Print a manifest in place of submitting."""

    kuberay: Annotated[bool, Flag] = False
    "Print a RayJob for KubeRay, with a cluster of its own, and submit nothing. Needs --image."
    secret: str | None = "wordsworth-store"
    "Kubernetes Secret whose entries become variables of every pod; none for no Secret."
    worker: str = "cpu=8,memory=32Gi"
    "What a worker has, by Kubernetes' names: cpu=8,memory=32Gi,nvidia.com/gpu=1."
    workers: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 4
    "Workers, at most."


def submit(
    *command: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True, help="The command and its arguments, behind --: -- label SOURCE ..."
        ),
    ],
    job: JobOptions | None = None,
    kuberay: KubeRayOptions | None = None,
) -> int:
    """Run a command as a job on a Ray cluster.

    The job joins the cluster, brings this package, and goes on when this command ends. The same command again
    follows it, or submits the next attempt when it has ended.
    """
    from wordsworth.jobs.submitted_command import checked_command

    job, kuberay = job or JobOptions(), kuberay or KubeRayOptions()
    checked = checked_command(list(command))
    submission = _submission(checked, job)
    console = Terminal(stderr=True)
    say = console.say
    for note in checked.notes:
        say(note)
    if kuberay.kuberay:
        return _print_manifest(submission, kuberay)
    from wordsworth.pipeline.cluster.job_server import find_job_server
    from wordsworth.pipeline.cluster.submission import submit as submit_job

    server = find_job_server(job.address, job.insecure, say)
    _check_extra()
    try:
        with _spinner(console, f"submitting to {server.url}"):
            client = server.client()
            submitted = submit_job(client, submission)
    except KeyboardInterrupt:
        say("the job may have been submitted: the same command follows it, or submits it")
        raise
    if submitted.joined:
        say(f"job {submitted.job} runs this command already: following it")
    else:
        say(f"submitted job {submitted.job} to {server.url}")
    if not job.follow:
        say(_how_to_go_on(submitted.job, server.url))
        return 0
    return Follower(client, submitted.job, server.url, say).follow()


def _submission(checked: "SubmittedCommand", job: JobOptions) -> "Submission":
    """Return what the options and the command ask for.

    Raises:
        UserError: a variable is a secret, or options do not go together.
    """
    from wordsworth.jobs.given_secrets import WHERE_KEYS_BELONG, is_secret_name, refuse_secrets
    from wordsworth.pipeline.cluster.submission import Submission
    from wordsworth.pipeline.cluster.travelling import submitted_settings

    variables = {}
    for variable in job.env:
        name, separator, value = variable.partition("=")
        if not separator or not name.isidentifier():
            raise UserError(f"--env {name}: give NAME=VALUE", 2)
        if is_secret_name(name):
            raise UserError(f"--env {name} is a secret: {WHERE_KEYS_BELONG}", 2)
        variables[name] = value
    refuse_secrets(variables.values(), "--env")
    settings = submitted_settings(os.environ)
    named = [f"{name}={value}" for name, value in settings.items() if name not in variables]
    if named:
        checked.notes.append(f"from this environment, with the job: {', '.join(named)}")
    if job.env_file and not Path(job.env_file).is_absolute():
        raise UserError(
            f"--env-file {job.env_file}: give the absolute path that the file has on every node", 2
        )
    if job.image and checked.carried:
        first = next(iter(checked.carried.values()))
        raise UserError(
            f"--image: Ray brings no files into an image: put {first} into it, or into a bucket", 2
        )
    places = [checked.output] if checked.output else checked.places
    return Submission(
        tokens=tuple(checked.tokens),
        place=" ".join(places or checked.tokens),
        grace=checked.grace,
        carried=checked.carried,
        env_file=job.env_file,
        env=settings | variables,
        python=job.python,
        image=job.image,
        installed=job.installed,
    )


def _print_manifest(submission: "Submission", options: KubeRayOptions) -> int:
    import ray
    import yaml

    from wordsworth.pipeline.cluster.env_file import ENV_FILE
    from wordsworth.pipeline.cluster.rayjob import KubeRayJob, rayjob, worker_resources

    if not submission.image:
        raise UserError(
            "--kuberay needs --image: the image of all pods, with the package (deploy/Dockerfile)", 2
        )
    env = dict(submission.env)
    if submission.env_file:
        env[ENV_FILE] = submission.env_file
    manifest = rayjob(
        KubeRayJob(
            name=submission.name,
            tokens=submission.tokens,
            image=submission.image,
            ray_version=ray.__version__,
            secret=None if options.secret in (None, "none") else options.secret,
            env=env,
            worker=worker_resources(options.worker),
            workers=options.workers,
            grace=submission.grace,
        )
    )
    print(yaml.safe_dump(manifest, sort_keys=False), end="")
    return 0


def _check_extra() -> None:
    """Check that the extra `cluster` is there.

    Raises:
        UserError: it is not installed.
    """
    try:
        import aiohttp  # noqa: F401
        import ray.dashboard.modules.job.pydantic_models  # noqa: F401
        import requests  # noqa: F401
    except ImportError as error:
        raise UserError("submit needs the extra cluster: pip install 'wordsworth[cluster]'") from error


@contextlib.contextmanager
def _spinner(console: Terminal, text: str) -> Iterator[Callable[[], None]]:
    """Show on a terminal what is waited for, and for how many seconds.

    Yields:
        A function that begins the count of seconds anew.
    """
    if not console.is_terminal:
        yield lambda: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description} ({task.elapsed:.0f} s)", markup=False))
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task(shown(text))
        yield lambda: display.reset(task)


class Follower:
    """Show the log of a job until it ends, and ask what to do with it on Ctrl-C."""

    def __init__(self, client: "JobSubmissionClient", job: str, url: str, say: Callable[[str], None]):
        from wordsworth.pipeline.cluster.job_log import JobLog

        self._client = client
        self._job = job
        self._url = url
        self._say = say
        self._log = JobLog(client, job)
        self._out = Terminal()

    def follow(self) -> int:
        """Return the exit code of the job, or 130 or 143 where this command was interrupted."""
        try:
            self._show()
            return self._result()
        except KeyboardInterrupt as interrupt:
            return self._interrupted(interrupt)

    def _show(self) -> None:
        # On one terminal, one console has to write the lines and the spinner.
        console = self._out if self._out.is_terminal else Terminal(stderr=True)
        with _spinner(console, f"job {self._job}: no further line") as begin_anew:
            for line in self._log.lines():
                self._out.say(line.expandtabs().rstrip())  # tables are filled up to the width of the log
                begin_anew()

    def _result(self) -> int:
        from wordsworth.pipeline.cluster.job_log import exit_code

        info = self._client.get_job_info(self._job)
        code = exit_code(info)
        if info.status == "STOPPED":
            self._say(f"job {self._job} was stopped: the same command again continues")
        elif code == NOT_FOUND:
            self._say(
                f"job {self._job} found no such Python on the cluster: --python names that of the nodes, "
                "by its path there"
            )
        elif info.status == "FAILED" and info.driver_exit_code is None:
            self._say(f"job {self._job} did not run: {' '.join((info.message or '').split())}")
        return code

    def _interrupted(self, interrupt: KeyboardInterrupt) -> int:
        from wordsworth.jobs.cli import Terminated

        code = TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
        if code == INTERRUPTED and self._wants_to_stop():
            try:
                self._client.stop_job(self._job)
                self._say(f"stopping job {self._job} (Ctrl-C again leaves it)")
                self._show()
                self._result()
                return code
            except KeyboardInterrupt:
                pass
        self._say(_how_to_go_on(self._job, self._url))
        return code

    def _wants_to_stop(self) -> bool:
        """Ask on a terminal. Without one nobody can answer, and the job is left alone."""
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        try:
            self._say("stop the job? y stops it, anything else leaves it running")
            return sys.stdin.readline().strip().lower() in ("y", "yes")
        except KeyboardInterrupt:
            return False


def _how_to_go_on(job: str, url: str) -> str:
    return f"job {job} goes on: the same command follows it, and ray job stop {job} --address {url} stops it"
