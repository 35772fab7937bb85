"""Submit a command as a Ray job: once for each output, and again after it has ended."""

import hashlib
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wordsworth.pipeline.cluster.env_file import ENV_FILE
from wordsworth.pipeline.cluster.package import package_version, stage_files, stage_package
from wordsworth.pipeline.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # Ray kills a job so many seconds after SIGTERM: three, if not set
STOP_EXTRA_S = 30  # beyond the command's own grace, for what it writes and says at its end
LOG_COLUMNS = "200"  # of the job's log, which is no terminal: tables would be cut at 80
NAME_CHARS = 28  # of an output's name in a submission id: KubeRay takes names of 47 characters


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Hold what a job is to run, and on what.

    Attributes:
        tokens: the command and its arguments, such as ("label", "s3://a", "--output", "s3://b").
        place: what the submission id is made from: the output, or what else the command works on.
        grace: seconds in which the command ends when it is told to.
        carried: files of this machine, by their names in the job's working directory.
        env_file: file on the nodes with further variables.
        env: further variables, none of them a secret.
        python: the nodes' interpreter.
        image: container image in which the job runs; it has the package.
        installed: use the package that the nodes have, and bring none.
    """

    tokens: Sequence[str]
    place: str
    grace: float = 0.0
    carried: Mapping[str, Path] = field(default_factory=dict)
    env_file: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    python: str = "python"
    image: str | None = None
    installed: bool = False

    @property
    def entrypoint(self) -> str:
        """Return the line that a shell of the cluster runs. Every character of an argument arrives."""
        return shlex.join([self.python, "-m", "wordsworth", *self.tokens])

    @property
    def name(self) -> str:
        """Return the first submission id of this command on this output, such as label-labels-3f2a1c07."""
        command = self.tokens[0]
        digest = hashlib.sha256(f"{command}\0{self.place.rstrip('/')}".encode(errors="surrogatepass"))
        last = re.split(r"[/\\]+", self.place.rstrip("/"))[-1]
        readable = re.sub(r"[^A-Za-z0-9]+", "-", last).strip("-").lower()[:NAME_CHARS]
        return "-".join(filter(None, (command, readable, digest.hexdigest()[:8])))

    @property
    def digests(self) -> dict[str, str]:
        """Return what tells this job from one with the same command line: of its variables, and its files."""
        variables = [*sorted(self.env.items()), self.env_file, self.image, self.installed]
        files = hashlib.sha256()
        for name, path in sorted(self.carried.items()):
            parts = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
            for part in parts:
                files.update(f"{name}\0{part.relative_to(path)}\0{part.stat().st_size}\0".encode())
                files.update(part.read_bytes())
        return {
            "variables": hashlib.sha256(repr(variables).encode()).hexdigest()[:16],
            "files": files.hexdigest()[:16],
        }

    def runtime_env(self, folder: Path) -> dict[str, Any]:
        """Return the job's runtime environment, with what it brings laid out in an empty folder."""
        variables = {STOP_WAIT: str(int(self.grace) + STOP_EXTRA_S), "COLUMNS": LOG_COLUMNS, **self.env}
        if self.env_file:
            variables[ENV_FILE] = self.env_file
        runtime_env: dict[str, Any] = {"env_vars": variables}
        if self.image:
            runtime_env["image_uri"] = self.image
        elif not self.installed:
            runtime_env["py_modules"] = [str(path) for path in stage_package(folder)]
        if self.carried:
            working_dir = folder / "working_dir"
            working_dir.mkdir()
            stage_files(dict(self.carried), working_dir)
            runtime_env["working_dir"] = str(working_dir)
        return runtime_env


@dataclass(frozen=True, kw_only=True)
class SubmittedJob:
    """Hold a job of a cluster.

    Attributes:
        job: its submission id.
        joined: the job ran already.
    """

    job: str
    joined: bool


def submit(client: "JobSubmissionClient", submission: Submission) -> SubmittedJob:
    """Submit a command, or find the job that runs the same command on the same output already.

    Raises:
        UserError: another command works on this output, or the cluster refuses the job.
    """
    for _ in range(2):  # the second time finds the job of somebody who was faster
        attempts = _attempts(client, submission.name)
        for job in attempts.values():
            if not job.status.is_terminal():
                difference = _difference(job, submission)
                if difference:
                    raise UserError(
                        f"job {job.submission_id} works on {submission.place} with other {difference}: wait "
                        f"for its end, or stop it (ray job stop {job.submission_id})"
                    )
                return SubmittedJob(job=job.submission_id, joined=True)
        number = max(attempts, default=0) + 1
        job_id = submission.name if number == 1 else f"{submission.name}-{number}"
        with tempfile.TemporaryDirectory(prefix="wordsworth-submit-") as folder:
            try:
                client.submit_job(
                    entrypoint=submission.entrypoint,
                    submission_id=job_id,
                    runtime_env=submission.runtime_env(Path(folder)),
                    metadata={"job_name": job_id, "wordsworth": package_version(), **submission.digests},
                )
            except (RuntimeError, ValueError) as error:
                if "already exists" in str(error):
                    continue
                raise _refused(error) from error
        return SubmittedJob(job=job_id, joined=False)
    raise UserError(f"others submit {submission.name} at the same time: try again")


def _difference(job: "JobDetails | Any", submission: Submission) -> str | None:
    """Say in which way a job that runs is another one than a submission on the same output; None for none."""
    if _arguments(job.entrypoint) != _arguments(submission.entrypoint):
        return "options"
    told = job.metadata or {}
    mine = submission.digests
    if told.get("variables", mine["variables"]) != mine["variables"]:
        return "variables (--env, --env-file, or settings of stores in this environment)"
    if told.get("files", mine["files"]) != mine["files"]:
        return f"contents of {', '.join(submission.carried) or 'the files that it brought'}"
    return None


def _arguments(entrypoint: str) -> list[str]:
    """Return the words of a command. An output is the same with and without a slash at its end."""
    words = shlex.split(entrypoint)
    return [
        word.rstrip("/") if before == "--output" or word.startswith("--output=") else word
        for before, word in zip(["", *words], words, strict=False)
    ]


def _attempts(client: "JobSubmissionClient", name: str) -> dict[int, Any]:
    """Return the jobs of a command on an output, by the number of the attempt."""
    attempts = {}
    for job in client.list_jobs():
        match = re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", job.submission_id or "")
        if match:
            attempts[int(match[1] or 1)] = job
    return attempts


def _refused(error: Exception) -> UserError:
    """Return the last line of the server's answer, which is a traceback."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
    reason = next(filter(None, reversed(lines)), type(error).__name__)
    if "Entity Too Large" in str(error):
        reason = "what travels with the job is too large for the cluster's head"
    return UserError(f"the cluster refuses the job: {reason}")
