"""Make a photographer's disk: what ten cameras write, what programs leave beside it, trash and links.

Each Line is a line of the table in docs/sources.md, with its files and what becomes of them.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.support.samples import encoded, photo

JXL = b"\xff\x0a" + bytes(200)
BYTES = b"of no image"


@dataclass(frozen=True, kw_only=True)
class Line:
    """Hold a line of the table.

    Attributes:
        images: files that give a row, and how they are encoded
        codes: errors of those images that are not labelled, by name
        others: files that give no row
        ignored: numbers of those by extension
        skipped: numbers of those by kind
        links: names of links, and where they lead: from the link's own folder, or from the disk's root
        left_out: how a listing names links, without the disk's root
        note: a part of what the user reads; None where there is nothing to read
    """

    images: dict[str, str] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    ignored: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    note: str | None = None


# By the first cell of the line in docs/sources.md.
LINES = {
    "`.jpg`, `.JPG`, `.jpeg`, `.jpe`, `.jfif`, `.MPO`": Line(
        images={
            "DCIM/100CANON/IMG_0001.JPG": "JPEG",
            "DCIM/100NIKON/DSC_0001.JPG": "JPEG",
            "DCIM/101MSDCF/DSC00001.JPG": "JPEG",
            "DCIM/100OLYMP/P1010001.jpg": "JPEG",
            "DCIM/100_FUJI/DSCF0002.MPO": "MPO",
            "scans/1998 summer.jpe": "JPEG",
            "web/a.jfif": "JPEG",
            "web/b.jpeg": "JPEG",
        }
    ),
    "`.heic`, `.HEIC`, `.heif`, `.HIF`": Line(
        images={
            "phone/IMG_0001.HEIC": "HEIF",
            "phone/IMG_E0001.heic": "HEIF",
            "DCIM/101MSDCF/DSC00002.HIF": "HEIF",
            "web/c.heif": "HEIF",
        }
    ),
    "`.png`, `.tif`, `.webp`, `.gif`, `.bmp`, `.avif`, `.jp2`": Line(
        images={
            "phone/screenshot.png": "PNG",
            "scans/film.tif": "TIFF",
            "scans/map.jp2": "JPEG2000",
            "web/d.webp": "WEBP",
            "web/e.gif": "GIF",
            "web/f.bmp": "BMP",
            "web/g.avif": "AVIF",
        }
    ),
    "`.jxl`": Line(images={"web/h.jxl": "JXL"}, codes={"web/h.jxl": "unsupported_format"}),
    "raw files: `.dng` `.cr2` `.cr3` `.nef` `.arw` `.raf` `.orf` `.rw2` `.gpr` and others": Line(
        others=(
            "DCIM/100CANON/IMG_0001.CR3",
            "DCIM/100CANON/IMG_0002.CR2",
            "DCIM/100NIKON/DSC_0001.NEF",
            "DCIM/101MSDCF/DSC00001.ARW",
            "DCIM/100_FUJI/DSCF0001.RAF",
            "DCIM/100OLYMP/P1010001.ORF",
            "DCIM/110_PANA/P1100001.RW2",
            "DCIM/100GOPRO/GOPR0001.GPR",
            "DCIM/100MEDIA/DJI_0001.DNG",
            "phone/PXL_0001.dng",
        ),
        ignored={".dng": 2}
        | {f".{name}": 1 for name in ("cr3", "cr2", "nef", "arw", "raf", "orf", "rw2", "gpr")},
        note="passed over 10 raw files of cameras (2 .dng, 1 .arw, 1 .cr2, 1 .cr3, 1 .gpr): label the JPEG",
    ),
    "videos: `.mov`, `.mp4`, GoPro's `.lrv`, ...": Line(
        others=(
            "phone/IMG_0001.MOV",
            "DCIM/100GOPRO/GX010001.MP4",
            "DCIM/100GOPRO/GL010001.LRV",
            "PRIVATE/AVCHD/BDMV/STREAM/00000.MTS",
        ),
        ignored={".mov": 1, ".mp4": 1, ".lrv": 1, ".mts": 1},
        note="passed over 4 videos (1 .lrv, 1 .mov, 1 .mp4, 1 .mts): ffmpeg -i",
    ),
    "`.psd`, `.svg`, `.exr`, `.ppm` and others that are images": Line(
        others=("edits/poster.psd", "edits/logo.svg", "edits/light.exr"),
        ignored={".psd": 1, ".svg": 1, ".exr": 1},
        note="passed over 3 images of formats that are not decoded (1 .exr, 1 .psd, 1 .svg): magick",
    ),
    "`.xmp`, `.pp3`, `.aae`, `.dop`, `.thm`, `.srt`, `.lrcat`, `Thumbs.db`, `desktop.ini`": Line(
        others=(
            "DCIM/100CANON/IMG_0001.xmp",
            "DCIM/100CANON/IMG_0001.CR3.xmp",
            "DCIM/100CANON/IMG_0001.CR3.dop",
            "DCIM/100CANON/MVI_0003.THM",
            "DCIM/100_FUJI/DSCF0001.RAF.pp3",
            "DCIM/100MEDIA/DJI_0002.SRT",
            "phone/IMG_0001.AAE",
            "edits/2024.lrcat",
            "edits/Thumbs.db",
            "edits/desktop.ini",
        ),
        ignored={".xmp": 2}
        | {f".{name}": 1 for name in ("dop", "thm", "pp3", "srt", "aae", "lrcat", "db", "ini")},
        note="ignored 10 files of other kinds: 2 .xmp, 1 .aae, 1 .db, 1 .dop, 1 .ini",
    ),
    "`.zip`": Line(others=("phone/album.zip",), ignored={".zip": 1}, note="1 .zip"),
    "`@eaDir/`, `.thumbnails/`": Line(
        others=("scans/@eaDir/film.tif/SYNOPHOTO_THUMB_XL.jpg", ".thumbnails/normal/0f9c.png"),
        skipped={"thumbnails_folder": 2},
        note="2 thumbnails_folder; --include-hidden takes them",
    ),
    "`.DS_Store`, `._IMG_0001.JPG`, `.trashed-1700000000-PXL.jpg`, `.picasaoriginals/`": Line(
        others=(
            "DCIM/.DS_Store",
            "DCIM/100CANON/._IMG_0001.JPG",
            "phone/.trashed-1700000000-PXL.jpg",
            "edits/.picasaoriginals/a.jpg",
        ),
        skipped={"hidden": 2, "hidden_folder": 1, "apple_double": 1},
        note="2 hidden",
    ),
    "`.Trashes/`, `.Trash-1000/`, `$RECYCLE.BIN/`, `#recycle/`": Line(
        others=(
            ".Trashes/501/x.jpg",
            ".Trash-1000/files/x.jpg",
            "$RECYCLE.BIN/S-1-5/x.jpg",
            "#recycle/x.jpg",
        ),
        skipped={"trash_folder": 4},
        note="4 trash_folder",
    ),
    "a link to an image": Line(images={"albums/best.jpg": "JPEG"}, links={"albums/best.jpg": "/keep/b.jpg"}),
    "a link to an image that is gone": Line(
        links={"albums/lost.jpg": "gone.jpg"}, codes={"albums/lost.jpg": "not_found"}
    ),
    "a link to a folder on the same disk, to one above, to another disk": Line(
        links={"albums/again": "../DCIM/100CANON", "albums/loop": "..", "albums/nas": "/keep"},
        others=("DCIM/100CANON/INDEX.HTM",),
        ignored={".htm": 1},
        left_out=(
            "inside: albums/again -> DCIM/100CANON",
            "loop: albums/loop -> .",
            "outside: albums/nas -> keep",
        ),
        note="--follow-links outside takes their files",
    ),
}


def make_disk(root: Path, lines: Iterable[Line]) -> Path:
    """Write the files of lines, and one image that no line has: `own.jpg`. Return the source."""
    disk = root / "disk"
    images = {"own.jpg": "JPEG"}
    for line in lines:
        images |= line.images
        for name in line.others:
            _write(disk / name, encoded(photo(0)) if name.endswith((".jpg", ".png")) else BYTES)
    links = {name: target for line in lines for name, target in line.links.items()}
    (root / "keep").mkdir(parents=True)
    (root / "keep" / "b.jpg").write_bytes(encoded(photo(1)))
    for name, kind in images.items():
        if name not in links:
            _write(disk / name, JXL if kind == "JXL" else encoded(photo(0), kind))
    for name, target in links.items():
        (disk / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(f"{root}{target}" if target.startswith("/") else target, disk / name)
    return disk


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@dataclass(frozen=True)
class Expected:
    """Say what becomes of some lines: the attributes are those of Line, added up."""

    keys: list[str]
    codes: dict[str, str]
    ignored: Counter[str]
    skipped: Counter[str]
    left_out: list[str]


def expected(lines: Iterable[Line]) -> Expected:
    """Return what a listing and a decoder make of lines."""
    lines = list(lines)
    codes = {key: code for line in lines for key, code in line.codes.items()}
    keys = {"own.jpg", *codes, *(key for line in lines for key in line.images)}
    total = partial(sum, start=Counter())
    return Expected(
        keys=sorted(keys),
        codes=codes,
        ignored=total(Counter(line.ignored) for line in lines),
        skipped=total(Counter(line.skipped) for line in lines),
        left_out=sorted(name for line in lines for name in line.left_out),
    )
