"""Check on a machine with one GPU what the model, the labeler and training do there, in six minutes at most.

    make gpu-check [PYTHON=python3] [WHEELS=FOLDER] [OPTIONS="--only label train"]
    python -m benchmarks.gpu_check [--only PART ...] [--again] [--wheels FOLDER] [--state FOLDER]
        [--limit SECONDS] [--device cpu]

* tests, 30 s: every test that is marked gpu. Goal: all pass, none is skipped.
* forward, 40 s: matrix products; the forward pass of B/16, L/16, S/16 and Ti/16. Goal: 0.60 of the matrix
  peak, by CUDA graphs.
* gains, 50 s: each mode of pipeline/prediction/gpu_modes.py, a rung of the ladder, for B/16 and Ti/16. Goal:
  1.03 times the rung below.
* label, 75 s: 20,000 JPEGs, linked until they take ten seconds, through `label` with B/16. Goal: each image
  once, no errors; 0.95 of the slower of two rates, decoding and the model alone; the GPU busy for 0.95 of the
  time where the model is the slower one.
* embed, 50 s: the same images through `embed` with S/16.
* train, 95 s: `pretrain` of B/16 and L/16. Goal: MFU 0.45.

Another 20 s are for the wheels and a first look at the machine. The time that a part does not use is added to
the next parts. Each part is a process of its own (benchmarks/gpu_parts.py). A part that fails or takes too
long does not stop the other parts. A part that lacks a package has failed, and its result names the package.

The check needs a Python with torch, and neither a network nor an installed wordsworth: --wheels installs a
folder of wheels into the state folder. The state folder (build/gpu-check) gets a JSON and a log of each part,
and summary.md. The same command again runs the parts that have not passed on this machine; --only runs the
named parts, passed or not. Rows go into benchmarks/gpu.csv.

`--device cpu` rehearses the same parts with a few images on a machine without a GPU. The figures of a
rehearsal mean nothing. So a rehearsal has no goals and a state folder of its own (build/gpu-check-cpu), and
writes its rows there.

Exit codes: 0 every part passed and every goal is met, 1 a part failed, 2 wrong usage, 3 a goal is not met.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import merge_rows

ROOT = Path(__file__).parents[1]
CSV = Path(__file__).with_name("gpu.csv")
START_SECONDS = {"cuda": 20.0, "cpu": 10.0}  # for the wheels, and for torch to tell what machine it is
PATIENCE = {
    "cuda": 1.0,
    "cpu": 2.0,
}  # times its budget that a part may take: beside a rehearsal other programs may run
ASK_MACHINE = """
import json, torch
from benchmarks.machine import machine
print(json.dumps([machine(), torch.cuda.is_available()]))
"""
LAST_LINES = 12  # of the log of a part that failed, which the summary shows
ENDING_SECONDS = 8.0  # that a part's processes get to end by themselves
ALWAYS_NEEDED = ("torch", "numpy", "psutil")  # packages without which no part runs


@dataclass(frozen=True)
class Part:
    """Name a part of the check.

    Attributes:
        seconds: the part's budget, by device.
        needs: packages, beside ALWAYS_NEEDED; None for all packages that wordsworth requires.
    """

    name: str
    seconds: dict[str, float]
    needs: tuple[str, ...] | None = None


PARTS = (
    Part("tests", {"cuda": 30.0, "cpu": 25.0}, ("pytest", "pillow")),
    Part("forward", {"cuda": 40.0, "cpu": 25.0}, ("safetensors",)),
    Part("gains", {"cuda": 50.0, "cpu": 25.0}, ("safetensors",)),
    Part("label", {"cuda": 75.0, "cpu": 65.0}),
    Part("embed", {"cuda": 50.0, "cpu": 45.0}),
    Part("train", {"cuda": 95.0, "cpu": 50.0}),
)


@dataclass(frozen=True)
class Goal:
    """Compare a figure of a part with its goal.

    Attributes:
        what: name of the figure.
        figure: value with its unit.
        goal: the value that the figure should have; "" where there is no goal.
        met: whether the goal is met; None where there is no goal.
    """

    what: str
    figure: str
    goal: str = ""
    met: bool | None = None


@dataclass
class Result:
    """Keep the result of a part, as a JSON in the state folder.

    Attributes:
        seconds: time that the part took.
        limit: seconds that the part could have taken.
        machine: as in benchmarks/machine.py.
        why: the reason why a part failed.
        last_lines: last lines of the log of a part that failed.
        rows: for gpu.csv.
    """

    part: str
    passed: bool
    seconds: float
    limit: float
    machine: str
    why: str = ""
    last_lines: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def write(self, state: Path) -> None:
        (state / f"{self.part}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, state: Path, part: str) -> "Result | None":
        """Return the last result of a part; None if the part was never run."""
        path = state / f"{part}.json"
        if not path.exists():
            return None
        values = json.loads(path.read_text())
        return cls(**values | {"goals": [Goal(**goal) for goal in values["goals"]]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, help="run these parts, passed or not")
    parser.add_argument("--again", action="store_true", help="forget what has passed")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that this Python lacks")
    parser.add_argument("--state", type=Path, help="default: build/gpu-check, or build/gpu-check-cpu")
    parser.add_argument("--limit", type=float, help="seconds of every part, in place of its budget")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    began = time.monotonic()
    state = (
        options.state or ROOT / "build" / ("gpu-check" if options.device == "cuda" else "gpu-check-cpu")
    ).resolve()
    (state / "logs").mkdir(parents=True, exist_ok=True)
    for part in PARTS if options.again else ():
        (state / f"{part.name}.json").unlink(missing_ok=True)
    signal.signal(
        signal.SIGTERM,
        lambda *_: sys.exit("terminated: the same command runs the parts that have not passed"),
    )
    check = Check(state, options.device, options.limit, began)
    check.prepare(options.wheels)
    check.run(
        [part for part in PARTS if not options.only or part.name in options.only], resume=not options.only
    )
    sys.exit(check.told())


class Check:
    """Run parts one after the other and keep their results."""

    def __init__(self, state: Path, device: str, limit: float | None, began: float):
        """Open the state folder.

        Args:
            state: the folder of results.
            device: "cuda" or "cpu".
            limit: seconds of every part; None keeps the budgets.
            began: when the command began, by the monotonic clock.
        """
        self.state, self.device, self.limit, self.began = state, device, limit, began
        self.site = state / "site"
        paths = [str(self.site), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
        self.machine = ""
        self.old: list[str] = []  # packages that are older than pyproject.toml asks for

    # ---- the machine ----

    def prepare(self, wheels: Path | None) -> None:
        """Make this Python ready, and look at the machine."""
        shutil.rmtree(self.site, ignore_errors=True)  # it may be for another Python
        if wheels:
            self._install(wheels)
        sys.path.insert(0, str(self.site))
        self._describe_wordsworth()
        asked = subprocess.run(
            [sys.executable, "-c", ASK_MACHINE], capture_output=True, text=True, cwd=ROOT, env=self.env
        )
        if asked.returncode:
            sys.exit(f"{sys.executable} cannot import torch: {asked.stderr.strip().splitlines()[-1]}")
        self.machine, has_gpu = json.loads(asked.stdout.splitlines()[-1])
        if self.device == "cuda" and not has_gpu:
            sys.exit("no CUDA GPU that torch can use: use a machine with one, or rehearse with --device cpu")
        print(f"{self.machine}, Python {sys.version.split()[0]}", flush=True)
        for part in PARTS:
            result = Result.read(self.state, part.name)
            if result and result.machine != self.machine:
                print(f"{part.name} was run on {result.machine}: forgotten", flush=True)
                (self.state / f"{part.name}.json").unlink()

    def _install(self, wheels: Path) -> None:
        files = sorted(map(str, wheels.glob("*.whl")))
        if not files:
            sys.exit(f"--wheels {wheels}: there is no wheel")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--no-cache-dir",
        ]
        pip += ["--disable-pip-version-check", "--target", str(self.site)]
        if subprocess.run([*pip, *files]).returncode:
            sys.exit(f"--wheels {wheels}: pip could not install them")
        print(f"{len(files)} wheels installed into {self.site}", flush=True)

    def _describe_wordsworth(self) -> None:
        """Let Python know wordsworth's version where it runs from its folder and is not installed: runs
        write it down."""
        installed = [
            path for path in sys.path if Path(path or ".").resolve() != ROOT
        ]  # of a build there workers know nothing
        if any(importlib.metadata.distributions(name="wordsworth", path=installed)):
            return
        about = self.site / "wordsworth.dist-info"
        about.mkdir(parents=True, exist_ok=True)
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: wordsworth\nVersion: {_project()['version']}\n"
        )

    def _missing(self, part: Part) -> list[str]:
        """Return the packages that a part needs and this Python lacks. Packages older than required are
        noted."""
        required = {re.match(r"[\w-]+", line)[0]: line for line in _project()["dependencies"]}
        missing = []
        for name in dict.fromkeys((*ALWAYS_NEEDED, *(required if part.needs is None else part.needs))):
            try:
                found = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                missing.append(name)
                continue
            least = re.search(r">=([\d.]+)", required.get(name, ""))
            if (
                least
                and _numbers(found) < _numbers(least[1])
                and (told := f"{name} {found}, not {least[1]}") not in self.old
            ):
                self.old.append(told)
        return missing

    # ---- the parts ----

    def run(self, parts: list[Part], resume: bool) -> None:
        """Run parts.

        Args:
            resume: leave out the parts that have passed.
        """
        if resume:
            before = {part.name: Result.read(self.state, part.name) for part in parts}
            done = [name for name, result in before.items() if result and result.passed]
            if done:
                print(f"passed before: {', '.join(done)} (--again runs them too)", flush=True)
            parts = [part for part in parts if part.name not in done]
        ends = self.began + START_SECONDS[self.device]
        for part in parts:
            ends += part.seconds[self.device]
            limit = self.limit or PATIENCE[self.device] * (ends - time.monotonic())
            print(f"{part.name}: {limit:.0f} s at most ...", flush=True)
            (self.state / f"{part.name}.json").unlink(missing_ok=True)
            result = self._run(part, limit)
            result.write(self.state)
            if result.rows:
                merge_rows(CSV if self.device == "cuda" else self.state / "gpu.csv", result.rows)
            print(
                f"{part.name}: {'passed' if result.passed else result.why}, {result.seconds:.0f} s",
                flush=True,
            )
        shutil.rmtree(self.state / "data", ignore_errors=True)

    def _run(self, part: Part, limit: float) -> Result:
        if missing := self._missing(part):
            why = f"cannot run: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
            return Result(part.name, passed=False, seconds=0.0, limit=limit, machine=self.machine, why=why)
        log, found, work = (
            self.state / "logs" / f"{part.name}.log",
            self.state / f"{part.name}.found",
            self.state / "work",
        )
        found.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu_parts",
            part.name,
            "--state",
            str(self.state),
            "--device",
            self.device,
        ]
        began, why = time.monotonic(), ""
        with open(log, "w") as said:
            settings = {
                "cwd": ROOT,
                "env": self.env,
                "start_new_session": True,
            }  # a group of its own, which `end` ends
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, **settings)
            try:
                if code := process.wait(limit):
                    why = f"failed with exit code {code}"
            except subprocess.TimeoutExpired:
                why = f"took longer than {limit:.0f} s and was ended"
            finally:
                end(process)
        shutil.rmtree(work, ignore_errors=True)
        seconds = round(time.monotonic() - began, 1)
        result = Result(
            part.name, passed=not why, seconds=seconds, limit=round(limit, 1), machine=self.machine, why=why
        )
        lines = found.read_text().split("\n")[:-1] if found.exists() else []  # the last may be half a line
        for line in map(json.loads, lines):
            if "goal" in line:
                result.goals.append(Goal(**line["goal"]))
            else:
                result.rows.append(line["row"] | {"machine": self.machine})
        found.unlink(missing_ok=True)
        if why:
            result.last_lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return result

    # ---- the end ----

    def told(self) -> int:
        """Write and print the summary; return the exit code."""
        results = [result for part in PARTS if (result := Result.read(self.state, part.name))]
        text = (
            "\n".join(summary(results, self.device, self.machine, time.monotonic() - self.began, self.old))
            + "\n"
        )
        (self.state / "summary.md").write_text(text)
        print(f"\n{text}\nThis is {self.state / 'summary.md'}.", flush=True)
        if not all(result.passed for result in results):
            return 1
        return 3 if any(goal.met is False for result in results for goal in result.goals) else 0


def end(process: subprocess.Popen) -> None:
    """End a part and every process that it started, if one still runs: a part that was killed leaves a
    command behind."""
    import psutil

    process.poll()
    started = _started(process.pid)
    if not started:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)  # commands of ours shut down the Ray that they began
    _, left = psutil.wait_procs(started, timeout=ENDING_SECONDS)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def _started(group: int) -> list[Any]:
    """Return a part's processes: its group, and the processes that the group started in other groups, as
    Ray does."""
    import psutil

    found = set()
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(one.pid) == group:
                found |= {one, *one.children(recursive=True)}
    return list(found)


def summary(
    results: list[Result], device: str, machine: str, seconds: float, old: list[str]
) -> Iterator[str]:
    """Return the page as lines: goals, parts, failures."""
    title = "the GPU does" if device == "cuda" else "a rehearsal without a GPU did: its figures mean nothing"
    yield f"# What {title}"
    yield f"\n{machine}. This command: {seconds:.0f} s.\n"
    yield "| part | what | figure | goal | met |\n|---|---|---|---|---|"
    for result in results:
        for goal in result.goals:
            met = {True: "yes", False: "**no**", None: ""}[goal.met]
            yield f"| {result.part} | {goal.what} | {goal.figure} | {goal.goal} | {met} |"
    yield "\n| part | seconds | budget | result |\n|---|---|---|---|"
    by_name = {result.part: result for result in results}
    for part in PARTS:
        result, budget = by_name.get(part.name), part.seconds[device]
        if result is None:
            yield f"| {part.name} | | {budget:.0f} | not run |"
            continue
        verdict = "passed" if result.passed else f"**{result.why}**"
        yield f"| {part.name} | {result.seconds:.0f} | {budget:.0f} | {verdict} |"
    yield f"| together | {sum(result.seconds for result in results):.0f} | {_budget(device):.0f} | |"
    if old:
        yield f"\nOlder than pyproject.toml asks for: {'; '.join(old)}."
    for result in results:
        if not result.passed:
            lines = "\n".join(result.last_lines)
            yield f"\n{result.part} {result.why}." + (
                f" The end of its log:\n\n```\n{lines}\n```" if lines else ""
            )


def _budget(device: str) -> float:
    return START_SECONDS[device] + sum(part.seconds[device] for part in PARTS)


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.match(r"[\d.]*\d", version)[0].split(".")))


if __name__ == "__main__":
    main()
