"""cores: the cores that count are those a process may run on, within the quota of its container."""

import math
import os
from pathlib import Path

import pytest

from wordsworth.pipeline.cluster import cores as cores_file
from wordsworth.pipeline.cluster.cores import cores, cpu_quota

POD = "kubepods.slice/kubepods-pod7.slice/container.scope"


def make(folder: Path, own: str, **files: str) -> dict[str, Path]:
    """Write control groups as Linux shows them; a file's name stands with "__" for "/" and "-" for "."."""
    (folder / "own").write_text(own)
    for name, text in files.items():
        path = folder / "groups" / name.replace("__", "/").replace("-", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return {"cgroups": folder / "groups", "own_cgroups": folder / "own"}


V1 = "11:cpuset:/\n4:cpu,cpuacct:/docker/12ab\n1:name=systemd:/docker/12ab\n"


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        # a container with a name space of its own: its group is the root that it sees
        ("0::/\n", {"cpu-max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu-max": "50000 100000"}, 0.5),
        ("0::/\n", {"cpu-max": "max 100000"}, math.inf),
        # a service of systemd with CPUQuota, or a process of the host: the groups above count too
        ("0::/a.slice/b.service\n", {"a-slice__b-service__cpu-max": "200000 100000"}, 2),
        ("0::/a/b\n", {"a__cpu-max": "300000 100000", "a__b__cpu-max": "max 100000"}, 3),
        ("0::/a/b\n", {"a__cpu-max": "300000 100000", "a__b__cpu-max": "400000 100000"}, 3),
        # the host's name of a group that the container does not see
        (f"0::/{POD}\n", {"cpu-max": "250000 100000"}, 2.5),
        (f"0::/../../{POD}\n", {"cpu-max": "250000 100000"}, 2.5),
        # version 1
        (V1, {"cpu__cpu-cfs_quota_us": "600000", "cpu__cpu-cfs_period_us": "100000"}, 6),
        (V1, {"cpu__cpu-cfs_quota_us": "-1", "cpu__cpu-cfs_period_us": "100000"}, math.inf),
        (
            V1,
            {
                "cpu,cpuacct__docker__12ab__cpu-cfs_quota_us": "75000",
                "cpu,cpuacct__docker__12ab__cpu-cfs_period_us": "50000",
            },
            1.5,
        ),
        # both versions side by side
        ("4:cpu:/\n0::/\n", {"unified__cpu-max": "700000 100000"}, 7),
        # what nobody can read is no quota
        ("0::/\n", {"cpu-max": ""}, math.inf),
        ("0::/\n", {"cpu-max": "0 100000"}, math.inf),
        ("0::/\n", {}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_the_smallest_quota_of_a_process_and_its_groups_binds(tmp_path, own, files, quota):
    assert cpu_quota(**make(tmp_path, own, **files)) == quota


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path / "none", tmp_path / "none either") == math.inf


@pytest.mark.parametrize(
    ("quota", "counted"), [("150000", 1), ("50000", 1), ("100000", 1), ("99900000", None), ("max", None)]
)
def test_a_containers_quota_bounds_the_cores(tmp_path, monkeypatch, quota, counted):
    """A part of a core does not count, and there is always one. Ray counts the same."""
    found = make(tmp_path, "0::/\n", **{"cpu-max": f"{quota} 100000"})
    monkeypatch.setattr(cores_file, "CGROUPS", found["cgroups"])
    monkeypatch.setattr(cores_file, "OWN_CGROUPS", found["own_cgroups"])
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert cores() == (counted or own)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system tells no one his cores")
def test_cores_are_those_this_process_may_run_on():
    whole = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(whole)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, whole)


def test_ray_counts_what_a_whole_quota_says(tmp_path):
    """Ask Ray's own count of a container's CPUs, which reads the same files."""
    from ray._private.utils import _get_docker_cpus

    found = make(tmp_path, "0::/\n", **{"cpu-max": "300000 100000"})
    absent = str(tmp_path / "absent")
    of_ray = _get_docker_cpus(absent, absent, absent, str(found["cgroups"] / "cpu.max"))
    assert of_ray == cpu_quota(**found) == 3
