"""Count the CPU cores that this process may use: those it may run on, within the quota of its container."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")  # where Linux shows the control groups
OWN_CGROUPS = Path("/proc/self/cgroup")  # names the groups of this process, one a line


def cores() -> int:
    """Count the CPU cores that this process may use; at least 1.

    A container's quota of 1.5 cores counts as 1, as Ray counts it (`ray._private.utils.get_num_cpus`).
    """
    may_run_on = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(may_run_on, cpu_quota())))


def cpu_quota(cgroups: Path | None = None, own_cgroups: Path | None = None) -> float:
    """Return the cores that the control groups of this process allow; infinite without a quota.

    Every group counts, from the process's own up to the outermost one that can be seen: the smallest quota
    binds. Inside a container the names of the groups may be those of the host, which are not there; then the
    groups above them count.

    Args:
        cgroups: folder in place of CGROUPS.
        own_cgroups: file in place of OWN_CGROUPS.
    """
    cgroups = cgroups or CGROUPS
    quotas = [math.inf]
    for folder in _own_folders(cgroups, own_cgroups or OWN_CGROUPS):
        quotas.append(_quota_v2(folder))
        quotas.append(_quota_v1(folder))
    return min(quotas)


def _own_folders(cgroups: Path, own_cgroups: Path) -> Iterator[Path]:
    """Yield the folders of the groups of this process that may hold a quota of CPUs."""
    try:
        lines = own_cgroups.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":  # version 2, alone or beside version 1
            roots = [cgroups, cgroups / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [cgroups / "cpu", cgroups / controllers]
        else:
            continue
        group = PurePosixPath(name.lstrip("/"))
        for root in roots:
            yield from (root / part for part in (group, *group.parents))


def _quota_v2(folder: Path) -> float:
    text = _read(folder / "cpu.max")  # such as "150000 100000", or "max 100000"
    quota, _, period = text.partition(" ")
    return _ratio(quota, period)


def _quota_v1(folder: Path) -> float:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float:
    """Return the quota in cores; infinite where the texts say none: "", "max", "-1"."""
    if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
        return int(quota) / int(period)
    return math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
