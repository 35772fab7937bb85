"""Decoding where a crash, a hang or a flood of memory costs one image: in a child process that is killed and started again.

The child is `wordsworth.pipeline.images.codec`, run by a fresh interpreter without this process's environment, descriptors
or memory: it knows no
credentials and imports neither Ray nor torch. Bytes go in through a pipe, pixels come back through shared memory; `decoder.py` says
how. The child contains accidents. It is no boundary against an attacker who runs code in it: for that, take network and rights from
the whole worker.
"""

import atexit
import contextlib
import fcntl
import json
import math
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images import codec as decoder
from wordsworth.pipeline.images.codec import MAX_TEXT, PIXELS, READY, REFUSED, REPLY, REQUEST, DecodeError

MiB = 1 << 20
# A pixel takes at most 8 bytes where a decoder holds it twice, 6 as coefficients of a progressive JPEG; the base is for the file.
BYTES_PER_PIXEL, BASE_BYTES = 16, 1024 * MiB
STARTS = 3  # in a row, before the machine is to blame
START_SECONDS = 60
KEEP_BYTES = 32 * MiB  # shared memory that stays allocated between pictures
PIPE_BYTES = MiB
# Where an interpreter finds its shared libraries; nothing else of the environment reaches the child.
PASSED_ON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
FIXED = {"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
BOOT = "import runpy, sys; sys.path += sys.argv[3:]; runpy.run_path(sys.argv[2], run_name='__main__')"

Take = Callable[[np.ndarray, int, tuple[int, int]], Any]


class _Gone(Exception):
    """The child closed its end."""


class _Late(Exception):
    """The child did not answer in time."""


@dataclass(frozen=True)
class GuardSettings:
    """max_pixels, max_side, cover: as in `decoder.Limits`. timeout: seconds for one image. script: the program of the child."""

    max_pixels: int
    max_side: int
    timeout: float
    script: Path = Path(decoder.__file__)
    cover: int = 0
    memory: int | None = None  # bytes that the child may allocate; None: what `max_pixels` can need

    @property
    def child_memory(self) -> int:
        return self.memory or BASE_BYTES + BYTES_PER_PIXEL * self.max_pixels


class Guard:
    """A decoder in a child process. One image at a time; threads take turns."""

    def __init__(self, settings: GuardSettings):
        self.settings = settings
        self.owner = os.getpid()
        self.restarts = 0
        self._lock = threading.Lock()
        self._child: subprocess.Popen | None = None
        self._fd, self._pixels = _shared_memory(3 * settings.max_pixels)

    def decode(
        self, data: bytes, take: Take = lambda pixels, orientation, _: (pixels.copy(), orientation)
    ) -> Any:
        """What `take` makes of the picture as stored, uint8 (height, width, 3), its EXIF orientation (1 to 8) and the (width,
        height) that it has in the file: a copy of the former two unless told. The pixels stand in shared memory, which the next
        picture is written over: `take` keeps no view of them.

        Raises DecodeError: what `decoder.decode` raises, `decoder_crashed` or `decoder_timeout`; and UserError if no child can be
        started.
        """
        with self._lock:
            try:
                return self._decode(data, take)
            except _Gone as gone:
                if str(gone) != "SIGKILL":
                    raise DecodeError("decoder_crashed", f"the decoder ended with {gone}") from gone
            try:  # no picture does that: the kernel did, for want of memory, or a person; once may be an accident
                return self._decode(data, take)
            except _Gone as gone:
                raise DecodeError("decoder_crashed", f"the decoder ended with {gone}, twice") from gone

    def close(self) -> None:
        """End the child and give the shared memory back."""
        with self._lock:
            self._stop()
            with contextlib.suppress(BufferError):
                self._pixels.close()
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    @property
    def pid(self) -> int | None:
        """The child, if one runs."""
        return self._child.pid if self._child else None

    # ---- one image --------------------------------------------------------------------------------------------------------

    def _decode(self, data: bytes, take: Take) -> Any:
        if (
            self._child is None or self._child.poll() is not None
        ):  # it may have died between two images, which is no image's fault
            self._stop()
            self._start()
        try:
            kind, orientation, reduced, width, height, text = self._ask(data)
        except _Gone:
            raise _Gone(self._ending()) from None
        except _Late:
            self._stop()
            raise DecodeError(
                "decoder_timeout", f"no pixels after {self.settings.timeout:g} seconds"
            ) from None
        if kind == REFUSED:
            code, _, detail = text.partition("\n")
            if code == "out_of_memory":
                self._stop()  # what is left of its memory may be in pieces
            raise DecodeError(code, detail)
        shape = decoder.shape(width, height, reduced or 1)
        count = math.prod(shape)
        if kind != PIXELS or not 0 < count <= len(self._pixels):
            self._stop()
            raise DecodeError("decoder_crashed", "the decoder answered nonsense")
        try:
            return take(
                np.frombuffer(self._pixels, np.uint8, count).reshape(shape), orientation, (width, height)
            )
        finally:
            if count > KEEP_BYTES and hasattr(mmap, "MADV_REMOVE"):
                self._pixels.madvise(mmap.MADV_REMOVE, KEEP_BYTES)

    def _ask(self, data: bytes) -> tuple[int, int, int, int, int, str]:
        """Send an image and wait for the reply. The child may refuse to read on, or hang before it has read everything."""
        deadline = time.monotonic() + self.settings.timeout
        poll = select.poll()
        poll.register(self._child.stdout, select.POLLIN)
        poll.register(self._child.stdin, select.POLLOUT)
        unsent = _send(self._child.stdin.fileno(), [REQUEST.pack(len(data)), memoryview(data)])
        while unsent:
            if self._child.stdout.fileno() in dict(
                _wait(poll, deadline)
            ):  # a reply or the end before everything was read
                break
            unsent = _send(self._child.stdin.fileno(), unsent)
        return self._receive(deadline)

    def _receive(self, deadline: float) -> tuple[int, int, int, int, int, str]:
        """One reply: kind, orientation, reduced, width, height, text; of the kind -1 where the child does not keep to the
        protocol."""
        file = self._child.stdout
        poll = select.poll()
        poll.register(file, select.POLLIN)
        said, needed, numbers = b"", REPLY.size, []
        while len(said) < needed:
            _wait(poll, deadline)
            more = os.read(file.fileno(), REPLY.size + MAX_TEXT)
            if not more:
                raise _Gone
            said += more
            if len(said) >= REPLY.size:
                *numbers, length = REPLY.unpack_from(said)
                needed = REPLY.size + length
                if length > MAX_TEXT or not 1 <= numbers[1] <= 8:
                    return -1, 1, 1, 0, 0, ""
        return (
            (*numbers, said[REPLY.size :].decode(errors="replace"))
            if len(said) == needed
            else (-1, 1, 1, 0, 0, "")
        )

    # ---- the child --------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        for _ in range(STARTS):
            with tempfile.TemporaryFile() as complaints:
                self._child = self._spawn(complaints)
                try:
                    if self._receive(time.monotonic() + START_SECONDS)[0] == READY:
                        os.set_blocking(self._child.stdin.fileno(), False)
                        self.restarts += 1
                        return
                    reason = "it answered nonsense"
                except _Late:
                    reason = f"no answer after {START_SECONDS} seconds"
                except _Gone:
                    reason = _last_line(complaints) or f"it ended with {self._ending()}"
                self._stop()
        raise UserError(f"the process that decodes images does not start ({STARTS} attempts): {reason}")

    def _spawn(self, complaints: BinaryIO) -> subprocess.Popen:
        settings = self.settings
        # The kernel's signal follows the thread that started the child: only the main one lives as long as the process.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        start = decoder.Start(
            max_pixels=settings.max_pixels,
            max_side=settings.max_side,
            memory=settings.child_memory,
            seconds=settings.timeout,
            pixels_fd=self._fd,
            pixels_bytes=len(self._pixels),
            parent=parent,
            cover=settings.cover,
        )
        command = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            BOOT,
            json.dumps(vars(start)),
            str(settings.script),
            *_libraries(),
        ]
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            pass_fds=(self._fd,),
            env=FIXED | {name: os.environ[name] for name in PASSED_ON if name in os.environ},
            cwd="/",
            start_new_session=True,  # an interrupt at the keyboard is the parent's to handle
            bufsize=0,
        )
        with contextlib.suppress(
            AttributeError, OSError
        ):  # a picture in one piece, where the system allows it
            fcntl.fcntl(child.stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()

    def _ending(self) -> str:
        """How the child ended: the name of its signal, or its exit code. It is over, or about to be."""
        try:
            code = self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it closed the pipe and goes on
            code = None
        self._stop()
        if code is None:
            return "a closed pipe"
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
        return f"exit code {code}"


def _shared_memory(size: int) -> tuple[int, mmap.mmap]:
    """A nameless file of `size` bytes, mapped. It takes no memory before it is written to, and nobody can change its length."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
        os.ftruncate(fd, size)
        return fd, mmap.mmap(fd, size)
    fd = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd, mmap.mmap(fd, size)


def _libraries() -> list[str]:
    """Where the child finds what it imports, and nothing else."""
    modules = [PIL, np, decoder.simplejpeg]
    return list(
        dict.fromkeys(str(Path(module.__file__).resolve().parents[1]) for module in modules if module)
    )


def _wait(poll: select.poll, deadline: float) -> list[tuple[int, int]]:
    left = deadline - time.monotonic()
    if left <= 0 or not (ready := poll.poll(1000 * left)):
        raise _Late
    return ready


def _send(file: int, parts: list) -> list:
    """What is left of the parts after as much as the pipe takes. A closed pipe takes everything: the reply will say why."""
    try:
        sent = os.writev(file, parts)
    except BlockingIOError:
        return parts
    except BrokenPipeError:
        return []
    left = []
    for part in parts:
        if sent < len(part):
            left.append(memoryview(part)[sent:])
        sent = max(0, sent - len(part))
    return left


def _last_line(complaints: BinaryIO) -> str:
    complaints.seek(0)
    lines = complaints.read(65536).decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


# ---- one guard a process --------------------------------------------------------------------------------------------------

_guard: Guard | None = None
_turns = threading.Lock()


def guard(settings: GuardSettings) -> Guard:
    """This process's guard: Ray uses a process for many tasks, and its child with it. Other settings start another child."""
    global _guard
    with _turns:
        if _guard is not None and _guard.owner != os.getpid():
            _guard = None  # a fork has its parent's pipes, and its parent's child is not its own
        if _guard is None or _guard.settings != settings:
            if _guard is not None:
                _guard.close()
            _guard = Guard(settings)
        return _guard


@atexit.register
def close() -> None:
    """End this process's child, if there is one. Without this it would end too: its pipe closes."""
    global _guard
    if _guard is not None and _guard.owner == os.getpid():
        _guard.close()
    _guard = None
