"""Read images by name, and make of each what a model sees: decoded, cropped and resized as when it labels."""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import fsspec
import numpy as np

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.codec import DecodeError
from wordsworth.pipeline.images.decode import DecodeSettings, crop_for_evaluation, turn_upright
from wordsworth.pipeline.images.sandbox import process_sandbox
from wordsworth.pipeline.sources.source_lists import take_queries
from wordsworth.pipeline.storage.filesystem import StorageOptions, open_filesystem, without_credentials
from wordsworth.pipeline.storage.objects import object_info
from wordsworth.pipeline.storage.refusals import naming
from wordsworth.pipeline.storage.streams import with_retries
from wordsworth.pipeline.storage.whole_object import TooLarge, whole_object

MAX_IMAGES = 64  # of one page, which holds all their figures
LOOK = "give images: files on this disk, s3://, gs://, az://, hf:// or with --allow-http https://"


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """Name an image that is there.

    Attributes:
        name: as it was given, without what gives access.
        fs: its file system.
        path: its path there.
    """

    name: str
    fs: fsspec.AbstractFileSystem
    path: str


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """Hold an image as a model sees it.

    Attributes:
        name: of the image.
        pixels: uint8 (H, W, 3).
        width, height: pixels of the whole image, upright.
    """

    name: str
    pixels: np.ndarray
    width: int
    height: int

    @property
    def short_name(self) -> str:
        """Return the last part of the name."""
        return self.name.rstrip("/").rpartition("/")[2]


def find_images(given: Sequence[str], options: StorageOptions) -> list[ImageFile]:
    """Return the images of these names, for one page, without reading any.

    Raises:
        UserError: one of them is not there, is a folder, or they are too many.
    """
    if len(given) > MAX_IMAGES:
        raise UserError(f"{len(given)} images: one page takes {MAX_IMAGES} at most", exit_code=2)
    return [find_image(name, options) for name in given]


def find_image(given: str, options: StorageOptions) -> ImageFile:
    """Return the image of a name, without reading it.

    Raises:
        UserError: it is not there, or is a folder.
    """
    (given,), options = take_queries([given], options)
    fs, path = open_filesystem(given, options)
    name = without_credentials(given)
    with naming(given):
        try:
            info = with_retries(lambda: object_info(fs, path))
        except OSError as error:
            raise _refused(name, error) from error
    if info["type"] == "directory":
        raise UserError(f"{name} is a folder: {LOOK}", exit_code=2)
    return ImageFile(name=name, fs=fs, path=path)


def _refused(name: str, error: OSError) -> Exception:
    """Return one line about an image that cannot be read, or the error itself if it is of a store."""
    if isinstance(error, FileNotFoundError) or error.errno in (errno.ENOENT, errno.ENOTDIR):
        return UserError(f"{name}: there is no such image")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ENXIO, errno.ENAMETOOLONG, errno.ELOOP):
        return UserError(f"{name} cannot be read: {os.strerror(error.errno)}")
    return error


def read_input(image: ImageFile, settings: DecodeSettings) -> ModelInput:
    """Read an image and make of it what a model sees. It is decoded in the sandbox alone.

    Raises:
        UserError: it cannot be read or decoded.
    """
    with naming_refusals(image.name):
        return decode_input(image.name, read_image(image, settings.limits.max_bytes), settings)


def read_image(image: ImageFile, max_bytes: int) -> bytes:
    """Return the bytes of an image.

    Raises:
        UserError: it cannot be read.
    """
    with naming(image.name):
        try:
            return whole_object(image.fs, image.path, max_bytes, lambda num_bytes: True)
        except (TooLarge, ValueError) as error:
            raise UserError(f"{image.name} cannot be read: {error}") from error
        except OSError as error:
            raise _refused(image.name, error) from error


def decode_input(name: str, data: bytes, settings: DecodeSettings) -> ModelInput:
    """Decode an image in the sandbox, and make of it what a model sees.

    Raises:
        DecodeError: the image is refused.
    """

    def cropped(pixels: np.ndarray, orientation: int, size: tuple[int, int]) -> ModelInput:
        return crop_input(name, turn_upright(pixels, orientation, settings.preprocessing.exif), settings)

    return process_sandbox(settings.sandbox_settings).decode(data, cropped)


def crop_input(name: str, upright: np.ndarray, settings: DecodeSettings) -> ModelInput:
    """Make of decoded pixels, uint8 (h, w, 3), what a model sees."""
    height, width = upright.shape[:2]
    seen = crop_for_evaluation(upright, settings.preprocessing, settings.image_size)
    return ModelInput(name=name, pixels=np.array(seen), width=width, height=height)


@contextlib.contextmanager
def naming_refusals(name: str) -> Iterator[None]:
    """Say of an image that is refused which one it is.

    Raises:
        UserError: in place of DecodeError.
    """
    try:
        yield
    except DecodeError as refusal:
        detail = " ".join(str(refusal).split())
        raise UserError(f"{name} cannot be decoded: {refusal.code}: {detail}") from refusal
