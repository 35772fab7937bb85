"""submit: how a person leaves or stops a job that is followed, and how its end ends the command."""

import io
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from wordsworth.jobs.cli import Terminated
from wordsworth.jobs.submit import Follower, _spinner
from wordsworth.jobs.terminal import Terminal
from wordsworth.pipeline.cluster.package import stage_package


class Person:
    """Stand in for a terminal: what a person types, or an interrupt while they are asked."""

    def __init__(self, *answers: str | BaseException):
        self.answers = list(answers)

    def isatty(self) -> bool:
        return bool(self.answers)

    def readline(self) -> str:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Client:
    """Stand in for Ray's client of one job."""

    def __init__(self, status: str = "RUNNING", code: int | None = None, message: str | None = None):
        self.info = SimpleNamespace(status=status, driver_exit_code=code, message=message)

    def stop_job(self, job: str) -> None:
        self.info.status = "STOPPED"

    def get_job_info(self, job: str) -> SimpleNamespace:
        return self.info


def followed(
    client: Client, log: list[str | BaseException], person: Person, monkeypatch
) -> tuple[int, list[str]]:
    """Follow a job whose log has these lines and interrupts; the exit code, and what was said."""
    said: list[str] = []
    follower = Follower(client, "label-out-1", "http://head:8265", said.append)
    rest = iter(log)

    def lines():
        for line in rest:
            if isinstance(line, BaseException):
                raise line
            yield line

    follower._log = SimpleNamespace(lines=lines)
    monkeypatch.setattr(sys, "stdin", person)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    return follower.follow(), said


def test_ctrl_c_asks_and_stops_the_job(monkeypatch, capsys):
    client = Client()
    code, said = followed(client, ["one", KeyboardInterrupt(), "interrupted"], Person("y\n"), monkeypatch)
    assert (code, client.info.status) == (130, "STOPPED")
    assert said[0].startswith("stop the job?")
    assert "the same command again continues" in said[-1]
    assert capsys.readouterr().out.split() == ["one", "interrupted"]


@pytest.mark.parametrize("answer", ["\n", "n\n", "", KeyboardInterrupt()])
def test_any_other_answer_leaves_the_job(answer, monkeypatch):
    client = Client()
    code, said = followed(client, [KeyboardInterrupt()], Person(answer), monkeypatch)
    assert (code, client.info.status) == (130, "RUNNING")
    assert "ray job stop label-out-1 --address http://head:8265" in said[-1]


def test_a_second_ctrl_c_leaves_a_job_that_is_being_stopped(monkeypatch):
    log = [KeyboardInterrupt(), "one", KeyboardInterrupt(), "two"]
    code, said = followed(Client(), log, Person("y\n"), monkeypatch)
    assert code == 130
    assert "goes on" in said[-1]


def test_without_a_terminal_nobody_is_asked(monkeypatch):
    for interrupt, expected in ((KeyboardInterrupt(), 130), (Terminated(), 143)):
        client = Client()
        code, said = followed(client, [interrupt], Person(), monkeypatch)
        assert (code, client.info.status, len(said)) == (expected, "RUNNING", 1)


def test_a_person_sees_for_how_long_a_job_has_said_nothing(capsys):
    screen = io.StringIO()
    console = Terminal(file=screen, force_terminal=True, width=80)
    with _spinner(console, "job label-out-1: no further line") as begin_anew:
        end = time.monotonic() + 30
        while "(1 s)" not in screen.getvalue() and time.monotonic() < end:
            time.sleep(0.05)
        begin_anew()
        console.say("a line")
    shown = screen.getvalue()
    assert "job label-out-1: no further line (0 s)" in shown
    assert shown.index("(1 s)") < shown.index("a line")
    with _spinner(Terminal(file=io.StringIO()), "in a file") as begin_anew:
        begin_anew()
    assert capsys.readouterr().out == ""


def test_lines_of_a_table_take_no_second_line_of_a_terminal(monkeypatch, capsys):
    followed(Client("SUCCEEDED", 0), ["rows  12" + " " * 190], Person(), monkeypatch)
    assert capsys.readouterr().out == "rows  12\n"


@pytest.mark.parametrize(
    ("client", "code", "says"),
    [
        (Client("SUCCEEDED", 0), 0, ""),
        (Client("FAILED", 3), 3, ""),
        (Client("FAILED", 127), 127, "--python"),
        (Client("FAILED", None, "runtime_env setup failed:\n no space"), 1, "setup failed: no space"),
        (Client("STOPPED"), 143, "was stopped"),
    ],
)
def test_the_end_of_a_job_is_the_end_of_the_command(client, code, says, monkeypatch):
    found, said = followed(client, ["one"], Person(), monkeypatch)
    assert found == code
    assert says in " ".join(said)


@pytest.mark.slow
def test_a_python_without_the_dependencies_is_one_line(tmp_path):
    """Return what a job says whose nodes have Ray and not what this package needs."""
    stage_package(tmp_path)
    command = [sys.executable, "-S", "-m", "wordsworth", "label"]
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"wordsworth: \S+ on \S+ has no package \w+: .*--python\)\n", done.stderr)
