"""Watch a command and its processes while it runs: what listens, what is said of it, what it writes."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LOOK_S = 0.4  # seconds between two looks, which take as long as the parse of some files of /proc
DECODER = "codec"  # stands in the arguments of the child that decodes


@dataclass
class Watched:
    """Hold what was seen of a command.

    Attributes:
        done: the finished command, its output as text.
        listening: addresses that its processes listened at, with the process's name.
        modes: permissions of the session folders.
        arguments: command lines of its child processes, each ended by the process's name.
        decoders: environments of the children that decode.
        files: what Ray's session folder held, by the path, the last state of every file.
        left: what is left of the session folders after the end.
    """

    done: subprocess.CompletedProcess | None = None
    listening: set[tuple[str, str]] = field(default_factory=set)
    modes: set[int] = field(default_factory=set)
    arguments: set[str] = field(default_factory=set)
    decoders: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def watched(*arguments: object, env: dict[str, str], timeout_s: float = 240) -> Watched:
    """Run the command line in a process of its own and watch it.

    Args:
        arguments: of the command.
        env: variables beside those of this process.
        timeout_s: seconds after which the command is killed.
    """
    seen = Watched()
    command = [sys.executable, "-m", "wordsworth", *map(str, arguments)]
    with _short_folder() as sessions, _short_folder() as kept:
        env = {**os.environ, **env, "TMPDIR": str(sessions), "RAY_TMPDIR": str(sessions)}
        out, err = kept / "stdout", kept / "stderr"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=env)
            end = time.monotonic() + timeout_s
            links: dict[str, Path] = {}
            try:
                while process.poll() is None and time.monotonic() < end:
                    _look_at_processes(psutil.Process(process.pid), seen)
                    _keep_files(sessions, kept, links, seen)
                    time.sleep(LOOK_S)
            finally:
                process.kill()
                process.wait()
        seen.done = subprocess.CompletedProcess(
            command, process.returncode, out.read_text(errors="replace"), err.read_text(errors="replace")
        )
        seen.files = {name: link.read_bytes() for name, link in links.items()}
        seen.left = [str(path) for path in sessions.glob("wordsworth-*")]
    return seen


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    """Make a folder whose name leaves room for the names of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="w", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _look_at_processes(root: psutil.Process, seen: Watched) -> None:
    with contextlib.suppress(psutil.Error):
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                _look_at_process(process, process == root, seen)


def _look_at_process(process: psutil.Process, is_root: bool, seen: Watched) -> None:
    name = process.name()
    for socket in process.net_connections(kind="inet"):
        if not socket.raddr:
            seen.listening.add((socket.laddr.ip.removeprefix("::ffff:"), name))
    if is_root:
        return
    command = process.cmdline()
    seen.arguments.add(f"{' '.join(command)} ({name})")
    if any(DECODER in argument for argument in command):
        seen.decoders.append(process.environ())


def _keep_files(sessions: Path, kept: Path, links: dict[str, Path], seen: Watched) -> None:
    """Link every new file of the session folders into another folder, where it outlives the session."""
    for parent, _, names in os.walk(sessions):
        if Path(parent).parent == sessions and Path(parent).name.startswith("wordsworth-"):
            with contextlib.suppress(FileNotFoundError):
                seen.modes.add(os.stat(parent).st_mode & 0o777)
        for name in names:
            path = os.path.join(parent, name)
            if path in links:
                continue
            with contextlib.suppress(OSError):
                if not os.path.isfile(path) or os.path.islink(path):
                    continue
                link = kept / str(len(links))
                os.link(path, link)
                links[path] = link
