"""Name what a listing passed over and what shows something: raw files, videos, other formats, archives."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

MAX_NAMED = 5  # extensions that a note names


@dataclass(frozen=True)
class UnreadFormat:
    """Describe formats of one kind that are not decoded.

    Attributes:
        what: their name in a note
        advice: what to run instead
        extensions: of such files, with the dot
    """

    what: str
    advice: str
    extensions: frozenset[str]


def _extensions(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


FORMATS = (
    UnreadFormat(
        "raw files of cameras",
        "label the JPEG beside each, or take out the one inside: "
        "exiftool -b -PreviewImage -w _raw.jpg -r FOLDER",
        _extensions(
            "3fr arw cr2 cr3 crw dcr dng erf fff gpr iiq k25 kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl"
            " sr2 srf srw x3f"
        ),
    ),
    UnreadFormat(
        "videos",
        "ffmpeg -i CLIP -vf fps=1 CLIP_%05d.jpg makes images of one",
        _extensions("3gp avi insv lrv m2ts m4v mkv mov mp4 mpeg mpg mts webm wmv"),
    ),
    UnreadFormat(
        "images of formats that are not decoded",
        "magick mogrify -format png FILES converts them",
        _extensions("dcm dds exr hdr ico jxr pbm pgm pnm ppm psb psd svg tga xcf"),
    ),
    UnreadFormat(
        "zip archives, which may hold images",
        "name them as a further source, such as 'FOLDER/**/*.zip', or give --format zip",
        _extensions("zip"),
    ),
)


def unread_notes(ignored: Counter[str]) -> Iterator[str]:
    """Yield a note for each kind of files that a listing ignored and that show something.

    Args:
        ignored: numbers of files by extension, with the dot
    """
    for format in FORMATS:
        found = Counter({name: ignored[name] for name in format.extensions & ignored.keys()})
        if found:
            yield f"passed over {found.total()} {format.what} ({most_common(found)}): {format.advice}"


def without_unread(ignored: Counter[str]) -> Counter[str]:
    """Return the counts of the files that show nothing, so that no note names them."""
    named = frozenset().union(*(format.extensions for format in FORMATS))
    return Counter({name: count for name, count in ignored.items() if name not in named})


def most_common(counts: Counter[str]) -> str:
    """Return the most frequent extensions with their counts, as a note has them."""
    in_order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in in_order[:MAX_NAMED])
