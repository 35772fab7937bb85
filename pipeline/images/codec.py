"""What happens to the bytes of an image: the header is judged, then the picture is decoded to RGB. Also a program of its own.

`decode` is all there is of judging and decoding, in this process or in another. Run as a program, this file is the guarded child of
`wordsworth.pipeline.images.sandbox`: it is started by its path, so it imports Pillow, numpy and simplejpeg and nothing of
this project.

The conversation, one image after the other; numbers are little-endian:

    start    argv: JSON with the fields of `Start`; descriptor `pixels_fd` is memory shared with the parent, `pixels_bytes` long
    hello    child -> parent  a reply of kind READY, as soon as the limits stand
    request  parent -> child  REQUEST: uint64 the number of bytes; then the encoded image
    reply    child -> parent  REPLY: uint8 kind, orientation, reduced, uint32 width, height, length; a text of that length
                              PIXELS: shared memory begins with uint8 (height, width, 3), RGB as stored, each side divided by
                              `reduced` and rounded up; the text is the decoder
                              REFUSED: the text is the code, a line feed, and the detail
    end      parent closes the pipe; the child leaves. It leaves too if the parent is gone and the picture takes too long.
"""

import contextlib
import io
import json
import mmap
import os
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL
from PIL import (  # noqa: F401 - named, so that Pillow never imports its other 36 to look for one that knows the bytes
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: Pillow gives the same pixels, later
    simplejpeg = None

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
PILLOW = f"Pillow {PIL.__version__}"
TURBO = f"simplejpeg {simplejpeg.__version__}" if simplejpeg else None
DECODER = f"{TURBO}, {PILLOW}" if TURBO else PILLOW
# 16 bits are shifted to 8 (Pillow's own conversion clips them); float and 32-bit pictures have no agreed range.
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
UNSUPPORTED = ("F", "I")
EXIF_ORIENTATION = 0x0112
STRIP_PIXELS = 4 << 20  # converted at a time: of a large picture a second copy is never needed

REQUEST = struct.Struct("<Q")
REPLY = struct.Struct("<BBBIII")
PIXELS, REFUSED, READY = range(3)
MAX_TEXT = 4096

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


class DecodeError(Exception):
    """An image that gives no pixels. `code` is what the column `error` says, the message is `error_detail`."""

    def __init__(self, code: str, detail: str):
        super().__init__(detail)
        self.code = code


class Limits(NamedTuple):
    """A picture with more pixels, or with a longer side, is refused by its header. cover: a JPEG is decoded at a half, a quarter or
    an eighth where both sides stay as long as this; 0: never."""

    max_pixels: int
    max_side: int
    cover: int = 0


class Decoded(NamedTuple):
    """width, height: as stored, before any turn. orientation: EXIF's, 1 to 8. decoder: the library that gave the pixels. reduced:
    there is a pixel for so many in a row of the file, and for so many rows."""

    width: int
    height: int
    orientation: int
    decoder: str
    reduced: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        return shape(self.width, self.height, self.reduced)


def shape(width: int, height: int, reduced: int) -> tuple[int, int, int]:
    """Of the pixels that a JPEG gives at a fraction of its size: libjpeg rounds up."""
    return -(-height // reduced), -(-width // reduced), 3


Room = Callable[[int], memoryview]


# ---- judging and decoding -------------------------------------------------------------------------------------------------


def decode(data: bytes, limits: Limits, room: Room) -> Decoded:
    """Bytes -> RGB, uint8 `Decoded.shape`, written into what `room(bytes)` gives. Raises DecodeError and nothing else."""
    if not data:
        raise DecodeError("empty", "0 bytes")
    with _named_refusals(data), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what we judge ourselves
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _judge(image, limits)
        for reduced in sorted({_reduced(image, limits.cover), 1}, reverse=True):
            rows, columns, _ = shape(*image.size, reduced)
            if _turbo(data, image, room(rows * columns * 3), (rows, columns)):
                return Decoded(*image.size, _orientation(image), TURBO, reduced)
        return Decoded(*image.size, _orientation(image), _pillow(image, room(image.width * image.height * 3)))


def _reduced(image: Image.Image, cover: int) -> int:
    return next((by for by in (8, 4, 2) if cover and min(image.size) // by >= cover), 1)


@contextlib.contextmanager
def _named_refusals(data: bytes) -> Iterator[None]:
    """Whatever a decoder raises, as a DecodeError with a short, stable code."""
    try:
        yield
    except DecodeError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DecodeError("not_an_image", f"{len(data)} bytes that begin with {data[:8]!r}") from error
    except Image.DecompressionBombError as error:
        raise DecodeError("too_many_pixels", str(error)) from error
    except MemoryError as error:
        raise DecodeError(
            "out_of_memory", "the picture needs more memory than its size accounts for"
        ) from error
    except Exception as error:  # a decoder may raise anything: struct.error, KeyError, SyntaxError, ...
        truncated = "truncated" in str(error).lower() or isinstance(error, EOFError)
        raise DecodeError(
            "truncated" if truncated else "corrupt", f"{type(error).__name__}: {error}"
        ) from error


def _judge(image: Image.Image, limits: Limits) -> None:
    """The header alone: size and mode."""
    width, height = image.size
    if width * height > limits.max_pixels:
        raise DecodeError("too_many_pixels", f"{width}x{height}, the limit is {limits.max_pixels} pixels")
    if max(width, height) > limits.max_side:
        raise DecodeError(
            "too_many_pixels", f"{width}x{height}, the limit is {limits.max_side} pixels a side"
        )
    if min(width, height) < 1:
        raise DecodeError("corrupt", f"{width}x{height} has no pixels")
    if image.mode in UNSUPPORTED:
        raise DecodeError(
            "unsupported_mode", f"{image.format} of mode {image.mode} has no agreed range of values"
        )


def _turbo(data: bytes, image: Image.Image, target: memoryview, size: tuple[int, int]) -> bool:
    """libjpeg-turbo straight into the target, at a size (rows, columns) that is a fraction of the picture's or its own; False
    where it is not asked or refuses, which it does for any irregularity.

    Inverse DCT and upsampling are the ones that Pillow uses: the pixels are the same. CMYK is not asked: the conversion differs.
    """
    if simplejpeg is None or image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return False
    pixels = np.frombuffer(target, np.uint8).reshape(*size, 3)
    smaller = {} if size == (image.height, image.width) else {"min_height": size[0], "min_width": size[1]}
    try:
        found = simplejpeg.decode_jpeg(
            data, "RGB", fastdct=False, fastupsample=False, buffer=pixels, **smaller
        )
        return found.shape == pixels.shape
    except ValueError:
        return False


def _pillow(image: Image.Image, target: memoryview) -> str:
    image.load()
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        strip = image if bottom - top == height else image.crop((0, top, width, bottom))
        target[top * width * 3 : bottom * width * 3] = _rgb(strip).tobytes()
    return PILLOW


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BIT:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # broken EXIF says nothing about the pixels
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


# ---- the child ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """What the parent says once. memory: bytes that the child may allocate, its libraries and the shared memory not counted.
    seconds: for one image; the parent enforces it, the child only if the parent is gone. parent: the process to die with, or 0."""

    max_pixels: int
    max_side: int
    memory: int
    seconds: float
    pixels_fd: int
    pixels_bytes: int
    parent: int
    cover: int = 0


def main() -> None:
    """Serve one image after the other until the parent closes the pipe."""
    start = Start(**json.loads(sys.argv[1]))
    pixels = memoryview(mmap.mmap(start.pixels_fd, start.pixels_bytes))
    os.close(start.pixels_fd)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a worker for every core already
    _confine(start)
    requests, replies = os.fdopen(0, "rb"), os.fdopen(1, "wb")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # what libraries complain about goes nowhere: the parent only reads why a start failed
    os.close(null)
    _reply(replies, READY, text=DECODER)
    limits = Limits(start.max_pixels, start.max_side, start.cover)
    try:
        while header := requests.read(REQUEST.size):
            signal.setitimer(signal.ITIMER_REAL, 2 * start.seconds + 5)  # kills: there is no handler
            _serve(requests.read(*REQUEST.unpack(header)), limits, pixels, replies)
            signal.setitimer(signal.ITIMER_REAL, 0)
    except MemoryError:  # not in the picture but around it; the parent starts another child
        _reply(replies, REFUSED, text="out_of_memory\nthere is no memory for the file")


def _serve(data: bytes, limits: Limits, pixels: memoryview, replies: BinaryIO) -> None:
    try:
        width, height, orientation, decoder, reduced = decode(data, limits, lambda count: pixels[:count])
    except DecodeError as error:
        _reply(replies, REFUSED, text=f"{error.code}\n{error}")
    else:
        _reply(replies, PIXELS, orientation, reduced, width, height, decoder)


def _reply(
    replies: BinaryIO,
    kind: int,
    orientation: int = 1,
    reduced: int = 1,
    width: int = 0,
    height: int = 0,
    text: str = "",
) -> None:
    said = text.encode(errors="replace")[:MAX_TEXT]
    replies.write(REPLY.pack(kind, orientation, reduced, width, height, len(said)) + said)
    replies.flush()


def _confine(start: Start) -> None:
    """Memory, files and privileges; what a system does not have is left out, the parent's deadline stays."""
    import resource

    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 32, resource.RLIMIT_FSIZE: 1 << 20}
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            limits[resource.RLIMIT_AS] = int(file.read().split()[0]) * resource.getpagesize() + start.memory
    for name, value in limits.items():
        _, hard = resource.getrlimit(name)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))
    if sys.platform.startswith("linux"):
        import ctypes

        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if start.parent:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != start.parent:  # it died before we asked
                sys.exit(1)


if __name__ == "__main__":
    main()
