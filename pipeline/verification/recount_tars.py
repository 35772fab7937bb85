"""Read tars again for verify, by Python's tarfile and without code of the reader."""

import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, cast

from wordsworth.pipeline.verification.recount_compressed import ByteStream
from wordsworth.pipeline.verification.recount_keys import Part, Sample, samples_of
from wordsworth.pipeline.verification.recount_names import is_skipped_member

MAX_EXTENSION_BYTES = 1 << 20  # bytes of a pax or GNU extension header, which tarfile holds in memory


class WholeFile:
    """Read a file that must not end before its known size: a store that answers short is no cut tar."""

    def __init__(self, file: BinaryIO, size: int):
        self.file = file
        self.left = size

    def read(self, size: int) -> bytes:
        data = self.file.read(min(size, self.left))
        self.left -= len(data)
        if not data and self.left:
            raise OSError(f"the store ended it {self.left} bytes early")
        return data


class StrictHeader(tarfile.TarInfo):
    """Demand the end blocks of a tar and forgive no damage.

    tarfile takes any end for the end, and with ignore_zeros it steps over damage. But tarfile asks this class
    about every header block up to the last one of the object. Use a subclass for each tar: the counts are of
    the class.
    """

    zeros = 0  # blocks of zeros since the last header
    asked = False  # set when tarfile asks for a header: the member before has gone by as a whole

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "StrictHeader":
        cls.asked = True
        is_blank = not buf.strip(b"\0")
        is_full = len(buf) == tarfile.BLOCKSIZE
        is_zero_block = is_blank and is_full
        is_end_after_zeros = is_blank and cls.zeros > 0
        if not is_zero_block and (cls.zeros == 1 or (not is_full and not is_end_after_zeros)):
            raise tarfile.ReadError("the end blocks are missing")
        cls.zeros = cls.zeros + 1 if is_blank else 0
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if is_blank:
                raise  # tarfile reads the next block, or ends
            raise tarfile.ReadError(str(error)) from error
        if header.type in b"xXgLK" and header.size > MAX_EXTENSION_BYTES:
            raise tarfile.ReadError("an extension header that is too large")
        return header


def _members(file: ByteStream) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of a tar, each after its last block has gone by.

    Raises:
        tarfile.ReadError: the tar is cut or damaged.
    """

    class Header(StrictHeader):
        """Count the zero blocks of this tar."""

    held: tarfile.TarInfo | None = None  # the member whose blocks are going by
    try:
        with tarfile.open(
            fileobj=cast(BinaryIO, file),
            mode="r|",
            bufsize=1 << 16,
            ignore_zeros=True,
            tarinfo=Header,
            encoding="utf-8",
            errors="surrogateescape",
        ) as archive:
            while True:
                member = archive.next()
                if member is None:
                    break
                archive.members.clear()  # type: ignore[attr-defined]  # a list that would keep every member
                if held is not None and held.isreg():
                    yield held
                held = member
                Header.asked = False
    except (tarfile.TarError, ValueError, LookupError) as error:  # a damaged pax header can raise any of them
        if held is not None and held.isreg() and Header.asked:
            yield held
        raise tarfile.ReadError(str(error)) from error
    if held is not None and held.isreg():
        yield held


def _is_part(name: str, include_hidden: bool) -> bool:
    """Return whether a member belongs to a sample. One whose name has no extension belongs to none."""
    has_extension = re.fullmatch(r"\.*[^.].*\..*", name.split("/")[-1], re.DOTALL)
    return has_extension is not None and (include_hidden or not is_skipped_member(name))


def tar_samples(
    file: ByteStream, image_keys: list[str], key_rule: str, include_hidden: bool = False
) -> list[Sample]:
    """Return the samples of a tar in order.

    A sample is the members in a row with one key; a repeated extension begins the next sample. A cut is one
    sample more, without a key. The sample that the cut goes through counts if its image had gone by.
    """
    cuts: list[str] = []
    samples = list(samples_of(_parts(file, cuts, include_hidden), image_keys, key_rule))
    if cuts:
        if samples and samples[-1].error:
            samples.pop()
        samples.append(Sample(None, None, None, "shard_truncated"))
    return samples


def _parts(file: ByteStream, cuts: list[str], include_hidden: bool) -> Iterator[Part]:
    """Yield the members that are part of a sample. Where the tar is cut, they end, and `cuts` says why."""
    try:
        for member in _members(file):
            name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if _is_part(name, include_hidden):
                yield Part.of(name, member.offset_data, member.size)
    except tarfile.ReadError as error:
        cuts.append(str(error))
