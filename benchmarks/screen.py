"""Record what a command shows on a terminal of 80 columns, with the second of each piece.

    python -m benchmarks.screen FOLDER [--output docs/label.cast]

Labels photographs (.jpg) of FOLDER, presses Ctrl-C when five files are written, gives the same command
again, and verifies. The recording is asciicast v2, which asciinema and its players show.
"""

import argparse
import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchmarks.decode import photographs
from tests.support.builders import write_tar

COLUMNS, LINES = 80, 24
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FRAME_S = 0.5  # seconds between two frames of a bar that are kept
FILES_BEFORE_CTRL_C = 5
IMAGES = 1200
Piece = tuple[float, str]  # seconds since the command began, and what was written then


def record(
    command: list[str], env: dict[str, str], cwd: Path, interrupt: Callable[[], bool] = lambda: False
) -> list[Piece]:
    """Run a command on a terminal of its own, and return what it wrote.

    Args:
        interrupt: asked after each piece; once it says True, Ctrl-C is pressed.
    """
    pieces: list[Piece] = []
    begin = time.time()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        size = {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(LINES)}
        os.execvpe(command[0], command, env | size)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    is_interrupted = False
    while True:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # nobody holds the other end any more
            break
        if not data:
            break
        pieces.append((time.time() - begin, data.decode(errors="replace")))
        if not is_interrupted and interrupt():
            is_interrupted = True
            os.kill(pid, signal.SIGINT)
    os.close(terminal)
    os.waitpid(pid, 0)
    return pieces


def shown(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Return the text of each piece without the commands to the terminal."""
    for at, text in pieces:
        yield at, ESCAPES.sub("", text)


def first(pieces: Iterable[Piece], pattern: str) -> float | None:
    """Return the second at which the first text that matches was shown; None where none was."""
    for at, text in shown(pieces):
        if re.search(pattern, text):
            return at
    return None


# ---- the recording of the documentation --------------------------------------------------------------------


def thinned(pieces: list[Piece]) -> Iterator[Piece]:
    """Return the pieces without most frames of the bar; a piece with a line feed is always kept."""
    last = -FRAME_S
    for number, (at, text) in enumerate(pieces):
        if "\n" in text or at - last >= FRAME_S or number + 1 == len(pieces):
            last = at
            yield at, text


def session(folder: Path, env: dict[str, str]) -> Iterator[Piece]:
    """Run the commands, and return what a person would see of them."""
    label = ["wordsworth", "label", "photographs/", "-o", "labels", "-m", "Ti/16", "--allow-random-weights"]
    verify = ["wordsworth", "verify", "labels", "--source"]
    at = 0.0

    def is_begun() -> bool:
        return len(list(folder.glob("labels/predictions/*.parquet"))) >= FILES_BEFORE_CTRL_C

    for command, interrupt in ((label, is_begun), (label, lambda: False), (verify, lambda: False)):
        yield at, f"$ {' '.join(command)}\r\n"
        pieces = record([sys.executable, "-m", *command], env, folder, interrupt)
        for seconds, text in thinned(pieces):
            yield at + seconds, text
        at += pieces[-1][0] + 1.5
    yield at, "$ "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/label.cast"))
    options = parser.parse_args()
    head = {
        "version": 2,
        "width": COLUMNS,
        "height": LINES,
        "title": "wordsworth label, Ctrl-C, again, verify",
    }
    env = os.environ | {"PYTHONPATH": str(Path.cwd())}
    with tempfile.TemporaryDirectory(prefix="screen-") as name:
        images = photographs(options.folder, IMAGES)
        members = {f"{number:05d}.jpg": images[number % len(images)] for number in range(IMAGES)}
        write_tar(Path(name) / "photographs" / "part-0.tar", members)
        pieces = list(session(Path(name), env))
    lines = [json.dumps(head), *(json.dumps([round(at, 2), "o", text]) for at, text in pieces)]
    options.output.write_text("\n".join(lines) + "\n")
    print(f"{options.output}: {pieces[-1][0]:.0f} s, {options.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
