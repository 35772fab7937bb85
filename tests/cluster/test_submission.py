"""submission: a job is sent once, followed to its end, and gives its exit code."""

import asyncio
import http.server
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from wordsworth.pipeline.cluster import job_log, job_server
from wordsworth.pipeline.cluster.env_file import take_env_file
from wordsworth.pipeline.cluster.job_log import JobLog, exit_code
from wordsworth.pipeline.cluster.job_server import find_job_server, job_server_url
from wordsworth.pipeline.cluster.submission import Submission, submit
from wordsworth.pipeline.errors import UserError

TOKENS = ("label", "s3://photos/in", "--output", "s3://photos/My labels/")


class Status(str):
    def is_terminal(self) -> bool:
        return self in ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass
class Job:
    submission_id: str | None
    entrypoint: str = ""
    status: Status = field(default_factory=lambda: Status("RUNNING"))
    driver_exit_code: int | None = None
    message: str | None = None
    metadata: dict[str, str] | None = None


@dataclass
class Cluster:
    """Stand in for Ray's client: jobs, and a log that comes in pieces with faults between them.

    A piece is a text, or an exception that the connection ends with. The log has all texts; what a connection
    sends begins with the first one.
    """

    jobs: list[Job] = field(default_factory=list)
    pieces: list[str | Exception | None] = field(default_factory=list)
    sent: dict[str, Any] = field(default_factory=dict)
    faster: bool = False  # somebody else submits the same a moment before
    there: int = 0  # pieces that the log has by now

    def list_jobs(self) -> list[Job]:
        return list(self.jobs)

    def submit_job(self, **request: Any) -> str:
        job = Job(request["submission_id"], request["entrypoint"], metadata=request["metadata"])
        self.jobs.append(job)
        if self.faster:
            self.faster = False
            raise RuntimeError(
                f"Job with submission_id {job.submission_id} already exists. Please use another"
            )
        self.sent = request
        return request["submission_id"]

    def get_job_info(self, job: str) -> Job:
        (found,) = [one for one in self.jobs if one.submission_id == job]
        return found

    def get_job_logs(self, job: str) -> str:
        return "".join(piece for piece in self.pieces[: self.there] if isinstance(piece, str))

    async def tail_job_logs(self, job: str):
        for number, piece in enumerate(self.pieces):
            if isinstance(piece, str):
                self.there = max(self.there, number + 1)
                yield piece
            elif number >= self.there:
                self.there = number + 1
                if piece is None:
                    await asyncio.sleep(3600)  # a connection that is dead without an error
                raise piece
        self.jobs[0].status = Status("SUCCEEDED")


def submission(*more: str) -> Submission:
    return Submission(tokens=(*TOKENS, *more), place=TOKENS[-1], installed=True)


# ---- one job for one output -----------------------------------------------------------------------------


def test_the_id_is_readable_and_follows_from_command_and_output():
    name = submission().name
    assert name.startswith("label-my-labels-")
    assert name == submission("--top-k", "3").name
    assert name != Submission(tokens=("embed",), place=TOKENS[-1]).name
    assert name != Submission(tokens=TOKENS, place="s3://other/My labels").name
    assert name == Submission(tokens=TOKENS, place=TOKENS[-1].rstrip("/")).name


def test_the_same_submission_twice_follows_the_first():
    cluster = Cluster()
    first = submit(cluster, submission())
    assert not first.joined
    second = submit(cluster, submission())
    assert (second.job, second.joined) == (first.job, True)
    assert len(cluster.jobs) == 1


@pytest.mark.parametrize("end", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_after_an_end_the_next_attempt_is_submitted(end):
    cluster = Cluster()
    first = submit(cluster, submission())
    cluster.jobs[0].status = Status(end)
    second = submit(cluster, submission())
    assert (second.job, second.joined) == (f"{first.job}-2", False)
    cluster.jobs[1].status = Status("FAILED")
    assert submit(cluster, submission()).job == f"{first.job}-3"


def test_another_command_on_the_same_output_waits_for_the_first():
    cluster = Cluster()
    first = submit(cluster, submission())
    with pytest.raises(UserError, match=f"{first.job} works on .* with other options"):
        submit(cluster, submission("--top-k", "3"))


def test_an_output_with_a_slash_at_its_end_is_the_same_output():
    cluster = Cluster()
    submit(cluster, submission())
    tokens = (*TOKENS[:-1], TOKENS[-1].rstrip("/"))
    again = Submission(tokens=tokens, place=tokens[-1], installed=True)
    assert submit(cluster, again).joined
    other = Submission(tokens=("label", "s3://photos/in/", *tokens[2:]), place=tokens[-1], installed=True)
    with pytest.raises(UserError, match="with other options"):
        submit(cluster, other)


def test_the_same_command_with_other_variables_or_files_does_not_follow_the_first(tmp_path):
    cluster, config = Cluster(), tmp_path / "run.toml"
    config.write_text("top-k = 5\n")
    about = {"tokens": TOKENS, "place": TOKENS[-1], "installed": True, "carried": {"run.toml": config}}
    env = {"AWS_ENDPOINT_URL": "http://a"}
    submit(cluster, Submission(**about, env=env))
    assert submit(cluster, Submission(**about, env=env)).joined
    with pytest.raises(UserError, match="with other variables"):
        submit(cluster, Submission(**about, env={"AWS_ENDPOINT_URL": "http://b"}))
    config.write_text("top-k = 6\n")
    with pytest.raises(UserError, match=r"with other contents of run\.toml"):
        submit(cluster, Submission(**about, env=env))
    cluster.jobs[0].metadata = None  # of a version that did not say so
    assert submit(cluster, Submission(**about, env=env)).joined


def test_two_at_the_same_moment_are_one_job():
    cluster = Cluster(jobs=[Job(None, "a driver that nobody submitted")], faster=True)
    job = submit(cluster, submission())
    assert job.joined
    assert len(cluster.jobs) == 2


def test_ray_waits_with_its_kill_for_longer_than_the_commands_grace(tmp_path):
    longer = Submission(tokens=TOKENS, place="x", grace=90.0, installed=True, env_file="/run/keys.env")
    variables = longer.runtime_env(tmp_path)["env_vars"]
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > 90
    assert variables["WORDSWORTH_ENV_FILE"] == "/run/keys.env"


def test_an_answer_of_the_cluster_is_one_line():
    class Full(Cluster):
        def submit_job(self, **request: Any) -> str:
            raise RuntimeError(
                "Request failed with status code 400: Traceback\n  File x\nValueError: no room."
            )

    with pytest.raises(UserError, match=r"^the cluster refuses the job: ValueError: no room$"):
        submit(Full(), submission())


# ---- the log --------------------------------------------------------------------------------------------


def lines_of(*pieces: str | Exception | None, monkeypatch) -> list[str]:
    monkeypatch.setattr(job_log, "RETRY_S", 0.01)
    monkeypatch.setattr(job_log, "SILENT_S", 0.05)
    return list(JobLog(Cluster(jobs=[Job("j")], pieces=list(pieces)), "j").lines())


def test_the_log_comes_line_by_line(monkeypatch):
    assert lines_of("one\ntwo\nth", "ree\n", "last", monkeypatch=monkeypatch) == [
        "one",
        "two",
        "three",
        "last",
    ]


def test_a_broken_connection_loses_and_doubles_no_line(monkeypatch):
    broken = [RuntimeError("WebSocket error"), ConnectionError("gone"), TimeoutError()]
    pieces = ["one\ntw", broken[0], "o\nthree\n", broken[1], broken[2], "four\n"]
    assert lines_of(*pieces, monkeypatch=monkeypatch) == ["one", "two", "three", "four"]


def test_a_dead_connection_is_noticed_by_the_log_that_grows(monkeypatch):
    monkeypatch.setattr(job_log, "RETRY_S", 0.01)
    monkeypatch.setattr(job_log, "SILENT_S", 0.05)
    cluster = Cluster(jobs=[Job("j")], pieces=["one\n", None, "two\n", "three\n"])
    lines = JobLog(cluster, "j").lines()
    assert next(lines) == "one"
    cluster.there = 3
    assert next(lines) == "two"
    cluster.there, cluster.jobs[0].status = 4, Status("FAILED")
    assert list(lines) == ["three"]


def test_a_server_that_stays_away_is_given_up(monkeypatch):
    class Away(Cluster):
        def get_job_info(self, job: str) -> Job:
            raise ConnectionError("refused")

    monkeypatch.setattr(job_log, "RETRY_S", 0.01)
    monkeypatch.setattr(job_log, "GONE_S", 0.1)
    away = Away(jobs=[Job("j")], pieces=["one\n", RuntimeError("closed")])
    lines = JobLog(away, "j").lines()
    assert next(lines) == "one"
    with pytest.raises(UserError, match="the same command follows it again"):
        next(lines)


def test_a_job_of_a_head_that_was_started_anew_is_submitted_again(monkeypatch):
    class Anew(Cluster):
        async def tail_job_logs(self, job: str):
            yield "one\n"
            raise RuntimeError("closed")

        def get_job_info(self, job: str) -> Job:
            raise RuntimeError(f"Request failed with status code 404: Job {job} does not exist.")

    lines = JobLog(Anew(), "j").lines()
    assert next(lines) == "one"
    with pytest.raises(UserError, match=r"knows no job j any more.* The same command again submits it"):
        next(lines)


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", 130, 130),
        ("FAILED", 143, 143),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 143),
    ],
)
def test_the_exit_code_of_the_job_is_that_of_the_command(status, driver, code):
    assert exit_code(Job("j", status=Status(status), driver_exit_code=driver)) == code


# ---- the server -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.internal", "https://ray.internal"),
        ("head", "http://head:8265"),
        ("head:80", "http://head:80"),
        ("auto", "http://127.0.0.1:8265"),
        ("http://head:8265/#/jobs/label-1", "http://head:8265"),
    ],
)
def test_an_address_is_completed(address, url):
    assert job_server_url(address) == url


@pytest.mark.parametrize("address", ["ray://head:10001", "ftp://head", "http://", "http://[::1"])
def test_an_address_of_another_kind_is_answered_with_the_right_one(address):
    with pytest.raises(UserError, match="job server") as error:
        job_server_url(address)
    assert error.value.exit_code == 2


def test_the_environment_names_the_server_as_ray_reads_it(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://b:8265")
    assert job_server_url(None) == "http://b:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://a:8265")
    assert job_server_url(None) == "http://a:8265"
    assert job_server_url("http://c:8265") == "http://c:8265"


def test_an_old_address_of_the_environment_is_named_by_its_variable(monkeypatch):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, and nobody listens
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(UserError, match=r"^RAY_ADDRESS names a cluster, and --address none: no Ray job"):
            find_job_server(None, False, print)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS ray://head:10001 is for Ray's own client"):
        find_job_server(None, False, print)


def test_nobody_there_is_said_at_once():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, and nobody listens
        started = time.monotonic()
        with pytest.raises(UserError, match="no Ray job server answers there"):
            find_job_server(f"127.0.0.1:{held.getsockname()[1]}", False, print)
    assert time.monotonic() - started < 5


def test_a_proxy_in_between_is_named(answering, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("HTTP_PROXY", answering(text=b"<html>").replace("//", "//me:THESECRET@"))
    with pytest.raises(UserError, match=r"through the proxy .*NO_PROXY=head") as error:
        find_job_server("http://head:8265", True, print)
    assert "THESECRET" not in str(error.value)


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(job_server, "ANSWER_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UserError, match="no Ray job server answers within"):
            find_job_server(f"127.0.0.1:{silent.getsockname()[1]}", False, print)


class Answers(http.server.BaseHTTPRequestHandler):
    """Answer as a job server with a token, or as `text` says."""

    asked: ClassVar[list[str | None]] = []  # tokens that came
    token: str | None = None
    text = b'{"ray_version": "2.60.0"}'

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        self.asked.append(given)
        code = 200 if self.token is None or given == f"Bearer {self.token}" else 403 if given else 401
        self.send_response(code)
        self.end_headers()
        self.wfile.write(self.text)

    def log_message(self, *message: object) -> None:
        """Say nothing."""


@pytest.fixture
def answering():
    """Start a server that answers as a handler does; its address."""
    servers = []

    def start(**changes: Any) -> str:
        handler = type("Handler", (Answers,), changes)
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def without_token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_server_that_asks_for_no_token_is_warned_of_once(answering, without_token):
    notes: list[str] = []
    url = answering()
    assert find_job_server(url, False, notes.append).token is None
    assert len(notes) == 1 and "asks for no token" in notes[0]
    find_job_server(url, True, notes.append)
    assert len(notes) == 1


def test_no_token_goes_to_a_server_that_asks_for_none(answering, monkeypatch):
    asked: list[str | None] = []
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    find_job_server(answering(asked=asked), True, print)
    assert asked == [None]


def test_a_missing_and_a_wrong_token_are_one_line_with_the_ways(
    answering, without_token, monkeypatch, tmp_path
):
    url = answering(token="right")
    with pytest.raises(UserError, match=r"asks for a token: give .*RAY_AUTH_TOKEN"):
        find_job_server(url, False, print)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(UserError, match="refuses the token of RAY_AUTH_TOKEN: "):
        find_job_server(url, False, print)
    (tmp_path / "token").write_text("right\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert find_job_server(url, False, print).token == "right"


def test_a_tokens_file_that_is_missing_is_named(answering, without_token, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=f"of RAY_AUTH_TOKEN_PATH in {tmp_path}/gone: No such file"):
        find_job_server(answering(token="right"), False, print)


def test_a_user_without_a_home_is_asked_for_a_token(answering, without_token, monkeypatch):
    """Let a container's user have neither a name nor HOME."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])
    with pytest.raises(UserError, match="asks for a token"):
        find_job_server(answering(token="right"), False, print)


def test_a_cluster_with_an_older_ray_is_one_line(answering):
    with pytest.raises(UserError, match=r"has Ray 2\.9\.0; wordsworth needs 2\.60"):
        find_job_server(answering(text=b'{"ray_version": "2.9.0"}'), True, print)


def test_another_server_is_said_to_be_none(answering):
    with pytest.raises(UserError, match="is no Ray job server"):
        find_job_server(answering(text=b"<html>"), False, print)


# ---- the file of variables ------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch):
    """Let a test change the environment as it likes."""
    for name in ("A", "B", "C", "WORDSWORTH_ENV_FILE"):
        monkeypatch.setenv(name, "before")
    return monkeypatch


def test_lines_of_a_file_become_variables(tmp_path, environment):
    import os

    (tmp_path / "keys.env").write_text("# of the store\n\nA=one\nexport B='two = 2'\nC=\n")
    take_env_file(str(tmp_path / "keys.env"))
    assert (os.environ["A"], os.environ["B"], os.environ["C"]) == ("one", "two = 2", "")
    assert os.environ["WORDSWORTH_ENV_FILE"] == str(tmp_path / "keys.env")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=one\r\nB=two\r\n", "one"),
        ("\ufeffA=one\n", "one"),
        ("export\tA=one", "one"),
        ("  export A = one  ", "one"),
        ('A=\'{"type": "x # y"}\'', '{"type": "x # y"}'),
        ('A="it\'s"', "it's"),
        ("A=one#two==", "one#two=="),
        ("A=$HOME\\n", "$HOME\\n"),
    ],
)
def test_a_file_of_another_editor_or_shell_gives_the_same_variables(tmp_path, environment, text, value):
    import os

    (tmp_path / "keys.env").write_bytes(text.encode())
    take_env_file(str(tmp_path / "keys.env"))
    assert os.environ["A"] == value


@pytest.mark.parametrize("line", ["A='SECRET", 'A="SECRET" # mine', "A=SECRET # mine", "A='SEC'RET'", "A='"])
def test_a_value_that_programs_read_differently_is_refused_by_its_line(tmp_path, environment, line):
    (tmp_path / "keys.env").write_text(f"B=1\n{line}\n")
    with pytest.raises(UserError, match="line 2: ") as error:
        take_env_file(str(tmp_path / "keys.env"))
    assert "SEC" not in str(error.value)


def test_a_folder_has_a_file_for_each_variable_as_kubernetes_mounts_them(tmp_path, environment):
    import os

    (tmp_path / "A").write_bytes(b"one\r\n")
    (tmp_path / "..data").mkdir()
    take_env_file(str(tmp_path))
    assert (os.environ["A"], os.environ["B"]) == ("one", "before")


@pytest.mark.parametrize("text", ["A=1\nTHESECRET\n", "1A=THESECRET", "THE SECRET=1", "A=1\0"])
def test_a_line_that_is_no_variable_is_named_and_not_shown(tmp_path, environment, text):
    (tmp_path / "keys.env").write_text(text)
    with pytest.raises(UserError, match=f"{socket.gethostname()}") as error:
        take_env_file(str(tmp_path / "keys.env"))
    assert "SECRET" not in str(error.value)


def test_a_missing_file_names_the_node(environment):
    with pytest.raises(UserError, match=f"on {socket.gethostname()}: no such file"):
        take_env_file("/nowhere/keys.env")
