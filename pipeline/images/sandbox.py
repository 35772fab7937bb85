"""Decode images where a crash, a hang or a flood of memory costs one image.

Images are decoded in a child process, which is ended and started again when it misbehaves. The sandbox
contains accidents. It is no boundary against an attacker who runs code in the child: for that, take network
and rights from the whole worker.
"""

import atexit
import contextlib
import fcntl
import math
import mmap
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images import codec
from wordsworth.pipeline.images.codec import PIXELS, REFUSED, DecodeError, Limits, Reply, Start
from wordsworth.pipeline.images.decoder_process import (
    DecoderProcess,
    ProcessEnded,
    ReplyLate,
    StartFailed,
)
from wordsworth.pipeline.images.limits import DecodeLimits

MiB = 1 << 20
# Bytes of the child's memory per pixel: 8 where a decoder holds an image twice, 6 as coefficients of a
# progressive JPEG.
BYTES_PER_PIXEL = 16
BASE_BYTES = 1024 * MiB  # of the child's memory, for the encoded image
STARTS = 3  # attempts to start a child, before the machine is to blame
KEEP_BYTES = 32 * MiB  # of shared memory that stay allocated between two images

# Gets the pixels as stored, uint8 (height, width, 3), the EXIF orientation (1 to 8) and the (width, height)
# in the file. The pixels stand in shared memory, which the next image overwrites: keep no view of them.
OnPixels = Callable[[np.ndarray, int, tuple[int, int]], Any]


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """Tell a sandbox how to decode.

    Attributes:
        limits: what one image may take.
        keep_side: as in `codec.Limits`.
        script: the program of the child.
        memory_bytes: bytes that the child may allocate; None: what `limits.max_pixels` can need.
    """

    limits: DecodeLimits = field(default_factory=DecodeLimits)
    keep_side: int = 0
    script: Path = Path(codec.__file__)
    memory_bytes: int | None = None

    @property
    def child_memory_bytes(self) -> int:
        """Return the bytes that the child may allocate."""
        return self.memory_bytes or BASE_BYTES + BYTES_PER_PIXEL * self.limits.max_pixels

    def start_message(self, pixels_fd: int, pixels_bytes: int) -> Start:
        """Return what a new child is told."""
        # Linux ends the child with the thread that started it: only the main thread lives as long as the
        # process.
        in_main_thread = threading.current_thread() is threading.main_thread()
        return Start(
            limits=header_limits(self.limits, self.keep_side),
            timeout_s=self.limits.timeout_s,
            memory_bytes=self.child_memory_bytes,
            pixels_fd=pixels_fd,
            pixels_bytes=pixels_bytes,
            parent=os.getpid() if in_main_thread else 0,
        )


def header_limits(limits: DecodeLimits, keep_side: int = 0) -> Limits:
    """Return the part of the limits that an image's header is judged by."""
    return Limits(limits.max_pixels, limits.max_side, keep_side)


def copy_pixels(pixels: np.ndarray, orientation: int, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Return a copy of the pixels, and the orientation."""
    return pixels.copy(), orientation


class Sandbox:
    """Hold a decoder in a child process. One image at a time; threads take turns.

    Attributes:
        settings: how to decode.
        owner: id of the process that made the sandbox.
        restarts: children that were started.
    """

    def __init__(self, settings: SandboxSettings):
        self.settings = settings
        self.owner = os.getpid()
        self.restarts = 0
        self._lock = threading.Lock()
        self._process: DecoderProcess | None = None
        self._pixels_fd, self._pixels = _shared_memory(3 * settings.limits.max_pixels)

    def decode(
        self, data: bytes | memoryview, on_pixels: OnPixels = copy_pixels, timeout_s: float | None = None
    ) -> Any:
        """Decode an image, and return what `on_pixels` returns.

        Args:
            data: the encoded image.
            on_pixels: gets the pixels.
            timeout_s: seconds that the image may take; None is the time of the settings.

        Raises:
            DecodeError: an error of `codec.decode`, or `decoder_crashed`, or `decoder_timeout`.
            UserError: no child can be started.
        """
        timeout_s = timeout_s or self.settings.limits.timeout_s
        with self._lock:
            try:
                return self._decode(data, on_pixels, timeout_s)
            except ProcessEnded as ended:
                if str(ended) != "SIGKILL":
                    raise DecodeError("decoder_crashed", f"the decoder ended with {ended}") from ended
            # No image sends SIGKILL: the kernel did, because memory was short, or a person did. Once may be
            # an accident.
            try:
                return self._decode(data, on_pixels, timeout_s)
            except ProcessEnded as ended:
                raise DecodeError("decoder_crashed", f"the decoder ended with {ended}, twice") from ended

    def close(self) -> None:
        """End the child and give the shared memory back."""
        with self._lock:
            self._stop()
            with contextlib.suppress(BufferError):
                self._pixels.close()
            if self._pixels_fd >= 0:
                os.close(self._pixels_fd)
                self._pixels_fd = -1

    @property
    def pid(self) -> int | None:
        """Return the id of the child, or None if there is none."""
        return self._process.pid if self._process else None

    def _decode(self, data: bytes | memoryview, on_pixels: OnPixels, timeout_s: float) -> Any:
        reply = self._ask(data, timeout_s)
        shape = codec.reduced_shape(reply.width, reply.height, reply.reduced or 1)
        num_bytes = math.prod(shape)
        if reply.kind != PIXELS or not 0 < num_bytes <= len(self._pixels):
            self._stop()
            raise DecodeError("decoder_crashed", "the decoder answered nonsense")
        pixels = np.frombuffer(self._pixels, np.uint8, num_bytes).reshape(shape)
        try:
            return on_pixels(pixels, reply.orientation, (reply.width, reply.height))
        finally:
            if num_bytes > KEEP_BYTES and hasattr(mmap, "MADV_REMOVE"):
                self._pixels.madvise(mmap.MADV_REMOVE, KEEP_BYTES)

    def _ask(self, data: bytes | memoryview, timeout_s: float) -> Reply:
        """Return the child's reply.

        Raises:
            ProcessEnded: the child ended; the message tells how.
            DecodeError: the child refused the image, or is late.
        """
        process = self._running_process()
        try:
            reply = process.ask(data, timeout_s)
        except ProcessEnded:
            ending = process.ending()
            self._stop()
            raise ProcessEnded(ending) from None
        except ReplyLate:
            self._stop()
            raise DecodeError("decoder_timeout", f"no pixels after {timeout_s:g} seconds") from None
        if reply.kind == REFUSED:
            code, _, detail = reply.text.partition("\n")
            if code == "out_of_memory":
                self._stop()  # what is left of the child's memory may be in pieces
            raise DecodeError(code, detail)
        return reply

    def _running_process(self) -> DecoderProcess:
        # A child may have died between two images, which is no image's fault.
        if self._process is None or not self._process.is_running():
            self._stop()
            self._process = self._start()
        return self._process

    def _start(self) -> DecoderProcess:
        reason = ""
        for _ in range(STARTS):
            start = self.settings.start_message(self._pixels_fd, len(self._pixels))
            try:
                process = DecoderProcess(self.settings.script, start)
            except StartFailed as failure:
                reason = str(failure)
                continue
            self.restarts += 1
            return process
        raise UserError(f"the process that decodes images does not start ({STARTS} attempts): {reason}")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


def _shared_memory(num_bytes: int) -> tuple[int, mmap.mmap]:
    """Return a nameless file, mapped. It takes no memory before it is written to."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, num_bytes)
        return descriptor, mmap.mmap(descriptor, num_bytes)
    descriptor = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, num_bytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor, mmap.mmap(descriptor, num_bytes)


# ---- the sandbox of this process ---------------------------------------------------------------------------


class _ProcessSandbox:
    """Keep one sandbox for this process: Ray uses a process for many tasks, and its child with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sandbox: Sandbox | None = None

    def get(self, settings: SandboxSettings) -> Sandbox:
        """Return the sandbox with these settings; one with other settings is closed."""
        with self._lock:
            if self._sandbox is not None and self._sandbox.owner != os.getpid():
                self._sandbox = (
                    None  # a forked process has its parent's pipes, and must not talk to its parent's child
                )
            if self._sandbox is not None and self._sandbox.settings != settings:
                self._sandbox.close()
                self._sandbox = None
            if self._sandbox is None:
                self._sandbox = Sandbox(settings)
            return self._sandbox

    def close(self) -> None:
        """End the child of this process, if there is one."""
        if self._sandbox is not None and self._sandbox.owner == os.getpid():
            self._sandbox.close()
        self._sandbox = None


_process_sandbox = _ProcessSandbox()


def process_sandbox(settings: SandboxSettings) -> Sandbox:
    """Return the sandbox of this process. Other settings start another child."""
    return _process_sandbox.get(settings)


@atexit.register
def close_process_sandbox() -> None:
    """End the child of this process, if there is one. Else it exits a little later, when its pipe closes."""
    _process_sandbox.close()
