"""Run the decoder in a child process: start it, send an image, wait for the reply, end it.

The child is `wordsworth.pipeline.images.codec`, run by a fresh interpreter without this process's
environment, descriptors or memory: it knows no credentials and imports neither Ray nor torch. Images go in
through a pipe, pixels come back through shared memory; codec.py describes the messages.
"""

import contextlib
import fcntl
import importlib.util
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import IO, BinaryIO

import numpy as np
import PIL

from wordsworth.pipeline.images import codec
from wordsworth.pipeline.images.codec import MAX_TEXT, READY, REPLY, REQUEST, Reply, Start

START_TIMEOUT_S = 60  # until the child's first reply
END_TIMEOUT_S = 5  # for a child that closed its pipe to exit
PIPE_BYTES = 1 << 20  # of the pipe to the child, so that most images are sent in one piece
COMPLAINT_CHARS = 300  # shown of the last line that a child wrote to stderr
# Environment variables by which an interpreter finds its shared libraries; nothing else of the environment is
# passed on.
PASSED_ON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
FIXED = {"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
BOOT = "import runpy, sys; sys.path += sys.argv[3:]; runpy.run_path(sys.argv[2], run_name='__main__')"
NONSENSE = Reply(kind=-1)  # stands for a reply that does not keep to the protocol

Parts = list[bytes | memoryview]


class ProcessEnded(Exception):
    """Report that the child closed its end of the pipe."""


class ReplyLate(Exception):
    """Report that the child did not answer in time."""


class StartFailed(Exception):
    """Report why a child did not start."""


class DecoderProcess:
    """Hold one child process. One image at a time."""

    def __init__(self, script: Path, start: Start):
        """Start the child and wait until it is ready.

        Args:
            script: the program of the child.
            start: what the child is told once.

        Raises:
            StartFailed: the child is not ready; it has been ended.
        """
        with tempfile.TemporaryFile() as complaints:
            self._process = _spawn(script, start, complaints)
            assert self._process.stdin is not None and self._process.stdout is not None
            self._requests: IO[bytes] = self._process.stdin
            self._replies: IO[bytes] = self._process.stdout
            with contextlib.suppress(AttributeError, OSError):  # not every system can set the size of a pipe
                fcntl.fcntl(self._requests, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            failure = self._wait_until_ready(complaints)
        if failure is not None:
            self.stop()
            raise StartFailed(failure)
        os.set_blocking(self._requests.fileno(), False)

    def _wait_until_ready(self, complaints: BinaryIO) -> str | None:
        """Return why the child is not ready, or None if it is."""
        try:
            reply = self._receive(time.monotonic() + START_TIMEOUT_S)
        except ReplyLate:
            return f"no answer after {START_TIMEOUT_S} seconds"
        except ProcessEnded:
            return _last_line(complaints) or f"it ended with {self.ending()}"
        return None if reply.kind == READY else "it answered nonsense"

    @property
    def pid(self) -> int:
        """Return the id of the child."""
        return self._process.pid

    def is_running(self) -> bool:
        """Return whether the child has not exited."""
        return self._process.poll() is None

    def ask(self, data: bytes | memoryview, timeout_s: float) -> Reply:
        """Send an image and wait for the reply.

        The child may refuse to read on, or hang before it has read everything.

        Raises:
            ReplyLate: the image's time is over.
            ProcessEnded: the child ended; `ending` tells how.
        """
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        poll.register(self._requests, select.POLLOUT)
        unsent = _send(self._requests.fileno(), [REQUEST.pack(len(data)), memoryview(data)])
        while unsent:
            ready = [descriptor for descriptor, _ in _wait(poll, deadline)]
            if self._replies.fileno() in ready:  # a reply, or the end, before everything was read
                break
            unsent = _send(self._requests.fileno(), unsent)
        return self._receive(deadline)

    def _receive(self, deadline: float) -> Reply:
        """Return one reply, or NONSENSE."""
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        received = b""
        needed = REPLY.size
        numbers: list[int] = []
        while len(received) < needed:
            _wait(poll, deadline)
            more = os.read(self._replies.fileno(), REPLY.size + MAX_TEXT)
            if not more:
                raise ProcessEnded
            received += more
            if len(received) >= REPLY.size:
                *numbers, text_bytes = REPLY.unpack_from(received)
                needed = REPLY.size + text_bytes
                if text_bytes > MAX_TEXT or not 1 <= numbers[1] <= 8:
                    return NONSENSE
        if len(received) > needed:
            return NONSENSE
        kind, orientation, reduced, width, height = numbers
        text = received[REPLY.size :].decode(errors="replace")
        return Reply(kind, orientation, reduced, width, height, text)

    def ending(self) -> str:
        """Return how the child ended: the name of a signal, or the exit code. End it if it is still there."""
        try:
            code = self._process.wait(timeout=END_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # the child closed its pipe and runs on
            self.stop()
            return "a closed pipe"
        self.stop()
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
        return f"exit code {code}"

    def stop(self) -> None:
        """End the child, if it is still there, and close the pipes."""
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self._replies.close()


def _spawn(script: Path, start: Start, complaints: BinaryIO) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    arguments = [start.to_json(), str(script), *_library_folders()]
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", BOOT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        pass_fds=(start.pixels_fd,),
        env=FIXED | environment,
        cwd="/",
        start_new_session=True,  # an interrupt at the keyboard is for the parent
        bufsize=0,
    )


def _library_folders() -> list[str]:
    """Return the folders of the libraries that the child imports."""
    folders = [_folder_of(PIL), _folder_of(np)]
    if codec.simplejpeg is not None:
        folders.append(_folder_of(codec.simplejpeg))
    heif = importlib.util.find_spec("pillow_heif")  # not imported: only the child runs its decoder
    if heif is not None and heif.origin is not None:
        folders.append(str(Path(heif.origin).resolve().parents[1]))
    return list(dict.fromkeys(folders))


def _folder_of(package: ModuleType) -> str:
    """Return the folder that a package is imported from."""
    assert package.__file__ is not None
    return str(Path(package.__file__).resolve().parents[1])


def _wait(poll: select.poll, deadline: float) -> list[tuple[int, int]]:
    """Return the descriptors that are ready, with their events.

    Raises:
        ReplyLate: none is ready before the deadline.
    """
    left_s = deadline - time.monotonic()
    ready = poll.poll(1000 * left_s) if left_s > 0 else []
    if not ready:
        raise ReplyLate
    return ready


def _send(descriptor: int, parts: Parts) -> Parts:
    """Write as much as the pipe takes, and return the rest. A closed pipe takes everything."""
    try:
        sent = os.writev(descriptor, parts)
    except BlockingIOError:
        return parts
    except BrokenPipeError:
        return []
    rest: Parts = []
    for part in parts:
        if sent < len(part):
            rest.append(memoryview(part)[sent:])
        sent = max(0, sent - len(part))
    return rest


def _last_line(complaints: BinaryIO) -> str:
    complaints.seek(0)
    lines = complaints.read(65536).decode(errors="replace").strip().splitlines()
    return lines[-1][:COMPLAINT_CHARS] if lines else ""
