"""Fetch one image that a table names, and tell what the image is to blame for from a store that fails."""

import errno
import re
from collections.abc import Callable
from concurrent.futures import Future

import fsspec

from wordsworth.pipeline.errors import UserError, without_secrets
from wordsworth.pipeline.sources.byte_budget import ByteBudget
from wordsworth.pipeline.sources.lost_objects import loss_of
from wordsworth.pipeline.sources.samples import EncodedSample
from wordsworth.pipeline.storage.filesystem import is_local, is_web
from wordsworth.pipeline.storage.whole_object import HasRoom, NoRoom, TooLarge, Unreachable, whole_object

_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")  # a character in a URL
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
# Errors of clients about a name, and codes of S3 and Azure.
_NAME_ERRORS = ("ParamValidationError", "InvalidURL", "LocationParseError")
_NAME_CODES = ("InvalidBucketName", "InvalidURI", "KeyTooLongError", "InvalidResourceName", "InvalidUri")
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


class ImageFetch:
    """Hold one sample and the fetch of its image.

    Attributes:
        sample: the sample; the image is read into it
        number: place of the sample among those that wait for their images
        fs, path: where the image lies
        refusal: why the URI is refused if nothing is there; None for a URI that may be followed
        refused: the error of a store that does not let the image be read
        unreachable: the error of a web server that did not give the image
        read: done when the sample is complete; None where nothing is to be fetched
    """

    def __init__(self, sample: EncodedSample, number: int = 0):
        self.sample = sample
        self.number = number
        self.fs: fsspec.AbstractFileSystem = None
        self.path = ""
        self.refusal: str | None = None
        self.refused: PermissionError | None = None
        self.unreachable: Unreachable | None = None
        self.read: Future[None] | None = None

    def load(self, max_bytes: int, budget: ByteBudget, expected_bytes: int) -> None:
        """Read the image into the sample. An image that is missing or too large makes the sample an error.

        An image for which there is no room is asked for again as soon as there is.

        Args:
            max_bytes: bytes that it may have
            budget: bytes that all images may hold
            expected_bytes: bytes that it may well have: its read begins when there is room for them
        """
        num_bytes = expected_bytes
        while True:
            budget.wait(self.number, num_bytes)
            try:
                self.load_now(max_bytes, lambda wanted: budget.claim(self.number, wanted))
            except NoRoom as no_room:
                budget.settle(self.number, 0)
                num_bytes = no_room.num_bytes
                continue
            budget.settle(self.number, len(self.sample.data))
            return

    def load_now(self, max_bytes: int, has_room: HasRoom = lambda wanted: True) -> None:
        """Read the image into the sample.

        Raises:
            NoRoom: there is no room for it now.
        """
        self._attempt(lambda: self._take(whole_object(self.fs, self.path, max_bytes, has_room)))

    def is_beside(self, other: "ImageFetch") -> bool:
        """Return whether both images lie in one bucket, or on this machine."""
        if type(self.fs) is not type(other.fs) or self.path in ("", other.path):
            return False
        return is_local(self.fs) or self.path.split("/")[0] == other.path.split("/")[0]

    def fail(self, error: str, detail: str) -> None:
        """Make the sample an error."""
        self.sample.error = error
        self.sample.detail = without_secrets(detail)

    def _attempt(self, step: Callable[[], None]) -> None:
        """Do a step.

        What says something about the URI becomes an error of the sample; a store's fault is raised.
        """
        try:
            step()
        except TooLarge as error:
            self.sample.size = error.size
            self.fail("too_many_bytes", str(error))
        except _MISSING:
            if self.refusal:
                self.fail("refused_uri", self.refusal)
            else:
                self.fail("not_found", _nothing_at(self.path, is_web(self.path)))
        except (ValueError, UserError) as error:
            self.fail("refused_uri", str(error))
        except PermissionError as error:
            self._refuse(error)
        except OSError as error:
            if isinstance(error, Unreachable):
                self.unreachable = error
            elif error.errno in _NO_PATH and is_local(self.fs):
                self.fail("refused_uri", str(error.strerror))
            elif is_about_name(error):
                self.fail("refused_uri", "the store takes no such name")
            else:
                raise

    def _refuse(self, error: PermissionError) -> None:
        if is_web(self.path):  # links die, so a web server's refusal is about the link
            self.fail("not_found", str(error))
            return
        loss = loss_of(error, self.fs, self.path)
        if loss and loss.code == "archived":
            self.fail(*loss)
        else:
            self.refused = error

    def _take(self, data: bytes) -> None:
        self.sample.size = len(data)
        self.sample.data = data


def is_about_name(error: BaseException) -> bool:
    """Return whether a client's error says that no object can have such a name."""
    cause = error.__cause__ or error
    response = getattr(cause, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return type(cause).__name__ in _NAME_ERRORS or (code or getattr(cause, "error_code", None)) in _NAME_CODES


def _nothing_at(path: str, is_address: bool) -> str:
    """Return what to say of a name that names nothing, and why that may be."""
    if is_address:
        return "there is no such object"
    name = path.rpartition("/")[2]
    if "\\" in name:
        return "there is no such object: between folders stands /, not \\"
    if _ESCAPE.search(name):
        return "there is no such object: names are taken as they are written, %20 is no space"
    return "there is no such object"
