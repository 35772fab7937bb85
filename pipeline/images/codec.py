"""Judge an image by its header and decode it to RGB. As a program: the decoder process of the sandbox.

`decode` does all the judging and decoding, in any process. Run as a program, this file is the decoder process
of `wordsworth.pipeline.images.sandbox`. The program is started by its path, so it imports Pillow, numpy and
simplejpeg and nothing of this project, and pillow-heif (an extra) when the first HEIC comes.

The conversation, one image after the other; numbers are little-endian:

    start    argv[1]: the JSON of `Start`; descriptor `pixels_fd` is memory shared with the parent,
    `pixels_bytes` long hello    child -> parent  a reply of kind READY, as soon as the limits are set request
    parent -> child  REQUEST: uint64 number of bytes; then the encoded image reply    child -> parent  REPLY:
    uint8 kind, orientation, reduced, uint32 width, height, length; a text of this length
                              PIXELS: shared memory begins with uint8 (height, width, 3), RGB as stored, each
                                  side divided
                              by `reduced` and rounded up; the text is the decoder
                              REFUSED: the text is the error code, a line feed, and the detail
    end      the parent closes the pipe and the child exits. The child also exits if the parent is gone and
    the image
             takes too long.
"""

import contextlib
import importlib.metadata
import io
import json
import mmap
import os
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL

# Only these plugins are imported: Pillow would import its other 35 to look for one that knows the bytes.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

try:
    import simplejpeg
except ImportError:  # this platform has no wheel: Pillow gives the same pixels, more slowly
    simplejpeg = None

try:
    HEIF = f"pillow-heif {importlib.metadata.version('pillow-heif')}"
except importlib.metadata.PackageNotFoundError:
    HEIF = ""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")  # Pillow's own decoders
PILLOW = f"Pillow {PIL.__version__}"
TURBO = f"simplejpeg {simplejpeg.__version__}" if simplejpeg else ""
DECODER = ", ".join(filter(None, (TURBO, PILLOW, HEIF)))  # part of a run's fingerprint
# Brands of a `ftyp` box: HEIC, its sequences, and the brands of files that may hold any codec.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
JXL_SIGNATURES = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")
# Pillow's modes of 16 bits, which are shifted to 8 bits: Pillow's own conversion would clip the values.
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
UNSUPPORTED = ("F", "I")  # Pillow's modes of float and 32-bit images, which have no agreed range of values
EXIF_ORIENTATION = 0x0112  # EXIF tag
# By EXIF orientation, what takes back the turn by which Pillow makes a TIFF upright when it decodes it.
TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
STRIP_PIXELS = 4 << 20  # pixels converted at a time, so that a large image is never in memory twice
REDUCTIONS = (8, 4, 2)  # what libjpeg can divide the sides of a JPEG by, the largest first

# What files that are no images begin with, in lower case.
KINDS = {
    "HTML or XML": (b"<!doctype", b"<html", b"<?xml", b"<svg", b"<"),
    "JSON": (b"{", b"["),
    "a PDF": (b"%pdf",),
    "an archive": (b"pk\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"rar!", b"7z\xbc\xaf"),
    "a program": (b"\x7felf", b"mz\x90"),
    "a pickle or an array": (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x93numpy"),
}

REQUEST = struct.Struct("<Q")
REPLY = struct.Struct("<BBBIII")
PIXELS, REFUSED, READY = range(3)  # kinds of a reply
MAX_TEXT = 4096  # bytes of a reply's text
MAX_OPEN_FILES = 32  # of the child
MAX_FILE_BYTES = 1 << 20  # of a file that the child may write

# Options of Linux's prctl.
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38


class DecodeError(Exception):
    """Report an image that gives no pixels. The message is the column `error_detail`.

    Attributes:
        code: the column `error`.
    """

    def __init__(self, code: str, detail: str):
        super().__init__(detail)
        self.code = code


class Limits(NamedTuple):
    """Bound what an image may be by its header.

    Attributes:
        max_pixels: pixels; an image with more is refused.
        max_side: pixels of the longer side; a longer image is refused.
        keep_side: pixels that both sides of a JPEG keep when the JPEG is decoded at a half, a quarter or an
            eighth of its size; 0 decodes every JPEG at its full size.
    """

    max_pixels: int
    max_side: int
    keep_side: int = 0


class Decoded(NamedTuple):
    """Describe the pixels of an image.

    Attributes:
        width: pixels of a row of the file, before any turn.
        height: rows of the file, before any turn.
        orientation: EXIF orientation, 1 to 8.
        decoder: name and version of the library that decoded the image.
        reduced: what both sides were divided by: 1, 2, 4 or 8.
    """

    width: int
    height: int
    orientation: int
    decoder: str
    reduced: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (rows, columns, 3) of the pixels."""
        return reduced_shape(self.width, self.height, self.reduced)


Allocate = Callable[[int], memoryview]  # returns memory of this many bytes for the pixels


def reduced_shape(width: int, height: int, reduced: int) -> tuple[int, int, int]:
    """Return (rows, columns, 3) of a JPEG decoded at a fraction of its size: libjpeg rounds up."""
    return -(-height // reduced), -(-width // reduced), 3


# ---- judging and decoding ----------------------------------------------------------------------------------


def decode(data: bytes, limits: Limits, allocate: Allocate) -> Decoded:
    """Decode an image to RGB.

    Args:
        data: the encoded image.
        limits: bounds for the header.
        allocate: called with a number of bytes; the pixels are written into the memory that the last call
            returned, as uint8 `Decoded.shape`.

    Raises:
        DecodeError: the image is refused. Nothing else is raised.
    """
    if not data:
        raise DecodeError("empty", "0 bytes")
    with _only_decode_errors(data), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about sizes that `_judge` decides on
        image = _open(data)
        _judge(image, limits)
        width, height = image.size
        for reduced in _reductions(image, limits.keep_side):
            rows, columns, _ = reduced_shape(width, height, reduced)
            if _decode_turbo(data, image, allocate(rows * columns * 3), (rows, columns)):
                return Decoded(width, height, _orientation(image), TURBO, reduced)
        if image.format == "JPEG2000" and not _has_end_marker(data):
            raise DecodeError("truncated", "the JPEG 2000 codestream has no end marker")
        return _decode_pillow(image, allocate)


def decode_opened(image: Image.Image, limits: Limits, allocate: Allocate) -> Decoded:
    """Copy the pixels of an image that Pillow has opened or made, as `decode` would have them from its bytes.

    Args:
        image: may still have to be decoded.
        limits, allocate: as for `decode`.

    Raises:
        DecodeError: the image is refused. Nothing else is raised.
    """
    with _only_decode_errors(b""):
        _judge(image, limits)
        return _decode_pillow(image, allocate)


def _decode_pillow(image: Image.Image, allocate: Allocate) -> Decoded:
    orientation = _orientation(image)
    stored = _load_as_stored(image, orientation)
    _copy_rgb(stored, allocate(3 * stored.width * stored.height))
    return Decoded(stored.width, stored.height, orientation, HEIF if image.format == "HEIF" else PILLOW)


def _open(data: bytes) -> Image.Image:
    """Read the header of an image; its bytes say which format it has."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS and b"avif" not in data[12:64]:
            return _open_heif(data)
        if data.startswith(JXL_SIGNATURES):
            raise DecodeError(
                "unsupported_format", "JPEG XL is not decoded: convert it, as djxl does"
            ) from None
        raise


def _open_heif(data: bytes) -> Image.Image:
    try:
        import _pillow_heif  # noqa: F401  # pillow_heif hides until the first call that it cannot load this
        import pillow_heif
    except ImportError:
        advice = (
            "HEIC needs pillow-heif on every machine: pip install 'wordsworth[heif]', then --retry-errors"
        )
        raise DecodeError("unsupported_format", advice) from None
    options = pillow_heif.options
    options.DECODE_THREADS = 1  # there is a worker for every core already
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False  # nobody looks at these
    return pillow_heif.HeifImageFile(io.BytesIO(data))


def _reductions(image: Image.Image, keep_side: int) -> list[int]:
    """Return the reductions to try with libjpeg-turbo: the largest allowed one, then none."""
    for reduced in REDUCTIONS:
        if keep_side and min(image.size) // reduced >= keep_side:
            return [reduced, 1]
    return [1]


def _kind_of(data: bytes) -> str:
    """Say what bytes are that are no image. None of them is quoted: a row could tell what a file holds."""
    head = bytes(data[:64])
    for kind, begins in KINDS.items():
        if head.lstrip().lower().startswith(begins):
            return kind
    text = head.decode("utf-8", "ignore")
    is_text = len(text) > len(head) // 4 and all(char.isprintable() or char in "\t\r\n" for char in text)
    return "text" if is_text else "no kind that is known here"


@contextlib.contextmanager
def _only_decode_errors(data: bytes) -> Iterator[None]:
    """Turn everything that a decoder raises into a DecodeError with a short, stable code."""
    try:
        yield
    except DecodeError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DecodeError("not_an_image", f"{len(data)} bytes of {_kind_of(data)}") from error
    except Image.DecompressionBombError as error:
        raise DecodeError("too_many_pixels", str(error)) from error
    except MemoryError as error:
        raise DecodeError(
            "out_of_memory", "the image needs more memory than its size accounts for"
        ) from error
    except Exception as error:  # a decoder may raise anything: struct.error, KeyError, SyntaxError, ...
        message = str(error).lower()
        is_cut = "truncated" in message or "end of file" in message or isinstance(error, EOFError)
        code = "truncated" if is_cut else "corrupt"
        raise DecodeError(code, f"{type(error).__name__}: {error}") from error


def _judge(image: Image.Image, limits: Limits) -> None:
    """Refuse an image by its header alone: size and mode."""
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


def _decode_turbo(data: bytes, image: Image.Image, target: memoryview, size: tuple[int, int]) -> bool:
    """Decode a JPEG with libjpeg-turbo, straight into memory.

    Inverse DCT and upsampling are those of Pillow, so the pixels are the same. CMYK is left to Pillow: its
    conversion differs.

    Args:
        data: the encoded image.
        image: the same image, opened by Pillow.
        target: memory for the pixels.
        size: (rows, columns) to decode at: the size of the image, or a fraction that libjpeg can decode at.

    Returns:
        Whether the pixels are there. libjpeg-turbo refuses every irregular file.
    """
    if simplejpeg is None or image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return False
    pixels = np.frombuffer(target, np.uint8).reshape(*size, 3)
    options: dict[str, int] = {"fastdct": False, "fastupsample": False}
    if size != (image.height, image.width):
        options |= {"min_height": size[0], "min_width": size[1]}
    try:
        return simplejpeg.decode_jpeg(data, "RGB", buffer=pixels, **options).shape == pixels.shape
    except ValueError:
        return False


def _has_end_marker(data: bytes) -> bool:
    """Return whether a JPEG 2000 ends with the marker EOC: OpenJPEG paints tiles that are cut off black."""
    at = 0
    while data[at : at + 2] != b"\xff\x4f":  # SOC: in a JP2 the codestream is a box behind others
        size, kind = struct.unpack_from(">I4s", data, at)
        header = 16 if size == 1 else 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
        at += header if kind == b"jp2c" else max(size, header)
    at += 2
    while data[at : at + 2] != b"\xff\x90":  # SOT: the main header is over
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    while data[at : at + 2] == b"\xff\x90":
        (size,) = struct.unpack_from(">I", data, at + 6)
        if size == 0:  # the last part of a tile may end with the file
            return data.find(b"\xff\xd9", at) >= 0
        at += size
    return data[at : at + 2] == b"\xff\xd9"


def _load_as_stored(image: Image.Image, orientation: int) -> Image.Image:
    """Decode an image with Pillow, and return it as the file has it, before any turn."""
    size = image.size
    image.load()
    if image.size != size:
        raise DecodeError(
            "corrupt", f"{size[0]}x{size[1]} by the header, {image.width}x{image.height} decoded"
        )
    if image.format == "TIFF" and orientation in TURN_BACK:
        return image.transpose(TURN_BACK[orientation])
    return image


def _copy_rgb(image: Image.Image, target: memoryview) -> None:
    """Copy the pixels of a decoded image into memory, strip by strip."""
    width, height = image.size
    strip_rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, strip_rows):
        bottom = min(height, top + strip_rows)
        strip = image if bottom - top == height else image.crop((0, top, width, bottom))
        target[top * width * 3 : bottom * width * 3] = _rgb(strip).tobytes()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BIT:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy an RGB image


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # broken EXIF says nothing about the pixels
        return 1
    for value in range(1, 9):
        if orientation == value:  # a TIFF may write it as a fraction, which Pillow turns by, too
            return value
    return 1


# ---- messages between parent and child ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Start:
    """Tell a new child everything that holds for all images.

    Attributes:
        limits: bounds for the header of an image.
        timeout_s: seconds for one image. The parent ends a late child; the child ends itself only if the
            parent is gone.
        memory_bytes: bytes that the child may allocate, its libraries and the shared memory not counted.
        pixels_fd: descriptor of the shared memory.
        pixels_bytes: bytes of the shared memory.
        parent: id of the process to die with, or 0.
    """

    limits: Limits
    timeout_s: float
    memory_bytes: int
    pixels_fd: int
    pixels_bytes: int
    parent: int

    def to_json(self) -> str:
        """Return the child's first argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Start":
        """Return what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**fields | {"limits": Limits(*fields["limits"])})


class Reply(NamedTuple):
    """Answer a request. The fields of the pixels are those of Decoded.

    Attributes:
        kind: PIXELS, REFUSED or READY.
        text: the decoder, or the error code and the detail, a line each.
    """

    kind: int
    orientation: int = 1
    reduced: int = 1
    width: int = 0
    height: int = 0
    text: str = ""

    def to_bytes(self) -> bytes:
        """Return the reply as it is sent."""
        *numbers, text = self
        encoded = text.encode(errors="replace")[:MAX_TEXT]
        return REPLY.pack(*numbers, len(encoded)) + encoded


# ---- the child ---------------------------------------------------------------------------------------------


def main() -> None:
    """Serve one image after the other until the parent closes the pipe."""
    start = Start.from_json(sys.argv[1])
    pixels = memoryview(mmap.mmap(start.pixels_fd, start.pixels_bytes))
    os.close(start.pixels_fd)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a worker for every core already
    _confine(start)
    requests = os.fdopen(0, "rb")
    replies = os.fdopen(1, "wb")
    # The parent reads stderr only to tell why a start failed. From here on, complaints of libraries go
    # nowhere.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    _send(replies, Reply(READY, text=DECODER))
    try:
        while header := requests.read(REQUEST.size):
            # The timer ends this process, because nothing handles its signal.
            signal.setitimer(signal.ITIMER_REAL, 2 * start.timeout_s + 5)
            _send(replies, _serve(requests.read(*REQUEST.unpack(header)), start.limits, pixels))
            signal.setitimer(signal.ITIMER_REAL, 0)
    except MemoryError:  # not inside `decode` but around it; the parent starts another child
        _send(replies, Reply(REFUSED, text="out_of_memory\nthere is no memory for the file"))


def _serve(data: bytes, limits: Limits, pixels: memoryview) -> Reply:
    try:
        width, height, orientation, decoder, reduced = decode(data, limits, lambda size: pixels[:size])
    except DecodeError as error:
        return Reply(REFUSED, text=f"{error.code}\n{error}")
    return Reply(PIXELS, orientation, reduced, width, height, decoder)


def _send(replies: BinaryIO, reply: Reply) -> None:
    replies.write(reply.to_bytes())
    replies.flush()


def _confine(start: Start) -> None:
    """Limit this process's memory, files and privileges, as far as the system can."""
    import resource

    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
    }
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            used_pages = int(file.read().split()[0])
        limits[resource.RLIMIT_AS] = used_pages * resource.getpagesize() + start.memory_bytes
    for name, value in limits.items():
        _, hard = resource.getrlimit(name)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(name, (value, value))
    if sys.platform.startswith("linux"):
        _confine_linux(start.parent)


def _confine_linux(parent: int) -> None:
    """Give up new privileges, and die with the process `parent` unless that is 0."""
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if parent:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the call
            sys.exit(1)


if __name__ == "__main__":
    main()
