"""Name the machine that a figure was measured on, and write figures into a CSV file."""

import csv
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MEASURED = ("part", "model", "arm", "machine")  # columns that say what was measured, of files whose rows stay


def machine() -> str:
    """Return the machine in one line, such as "AMD EPYC 9B45, 2 cores, 24 GiB, Linux, torch 2.15.0"."""
    import torch  # here: who only writes rows needs none

    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = names[0] if names else platform.processor() or platform.machine()
    version = torch.__version__.split("+")[0]
    return f"{cpu}, {cores} cores, {memory:.0f} GiB{gpu}, {platform.system()}, torch {version}"


def write_rows(path: Path, rows: Iterable[dict[str, Any]], fields: Iterable[str] | None = None) -> None:
    """Write a CSV with a line for each row.

    Args:
        fields: the columns, in order; None for all columns that a row has.
    """
    rows = list(rows)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fields or dict.fromkeys(name for row in rows for name in row))
        writer.writeheader()
        writer.writerows(rows)


def merge_rows(path: Path, measured: Iterable[dict[str, Any]]) -> None:
    """Write rows into a CSV. They replace the file's rows of the same part, model, arm and machine."""
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    for row in measured:
        rows = [old for old in rows if any(old[name] != row[name] for name in MEASURED)]
        rows.append(row)
    write_rows(path, rows)


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two markers of a page."""
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
