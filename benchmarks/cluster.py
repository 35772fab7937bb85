"""Measure what a cluster costs: its start, its refusals, its nodes.

    python -m benchmarks.cluster start [--rounds 3]
    python -m benchmarks.cluster refusals
    python -m benchmarks.cluster nodes [--raylets 1 2 4] [--sleep-ms 50] [--rounds 3]

Each part writes its rows into cluster.csv, and all rows into the table of docs/performance.md.

The clusters are real: `ray start --head` and `ray start --address` on loopback, with a job server and a
token. All nodes share the cores of one machine.

start: four hundred small images by a model that computes almost nothing, through `wordsworth submit`, through
`label --address` and on a local Ray, in turn. Seconds from the command to the first file and to its end.

refusals: a command that cannot join, or may not begin, and the seconds until it says so.

nodes: a model that sleeps in place of its forward pass (tests/faults/plugin), two actors a node, 2,400
images a node in units of 20. Everything else is the program's own: listing, reading, decoding, writing, the
driver. rate: images/s while the middle of the units is written, from 30% to 90% of them: before, some actors
still start on the shared cores, and behind, some have nothing more to do. ratio: of the rate of one node, a
node.

Expected: the first file 15 s after `label --address` and after a local start, 10 s later by a job; a refusal
in 10 s; ratios of 0.9 and more, since the sleep leaves both cores free.
"""

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import machine, write_between, write_rows
from tests.faults.jobs import PLUGIN
from tests.support.builders import make_model, photo, write_tar
from tests.support.ray_cluster import TOKEN, RayCluster, free_ports, ray_cluster

ROOT = Path(__file__).parents[1]
CSV = Path(__file__).with_suffix(".csv")
FIELDS = ("what", "nodes", "seconds", "rate", "ratio", "sleep_ms", "note", "machine")
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- begin: python -m benchmarks.cluster -->", "<!-- end: cluster -->"
NOTHING = {"image_size": 32, "patch_size": 16, "width": 8, "depth": 1, "heads": 1, "mlp_dim": 8}
NODE = {"num_cpus": 6, "memory": 4 << 30, "object_store_memory": 100 << 20}
ACTORS_ON_NODE = 2
UNIT_ROWS = 20
IMAGES_ON_NODE = 2400
MIDDLE = (0.3, 0.9)  # shares of the units between which the rate is measured
IMAGES_IN_TAR = 100
LONGEST_S = 900.0  # seconds after which a command counts as hanging

Row = dict[str, Any]


def write_images(folder: Path, images: int) -> Path:
    """Write small images in tars, and return their folder."""
    pixels = [photo(seed, (64, 64)) for seed in range(IMAGES_IN_TAR)]
    for number in range(images // IMAGES_IN_TAR):
        names = {f"{number}/{place:03d}.jpg": data for place, data in enumerate(pixels)}
        write_tar(folder / f"part-{number:04d}.tar", names)
    return folder


def label(source: Path, out: Path, model: Path, *more: str) -> list[str]:
    """Return the arguments of a command that labels."""
    given = ["--output", str(out), "--model", str(model), "--unit-rows", str(UNIT_ROWS), "--json"]
    return ["label", str(source), *given, *more]


def sleeping_env(sleep_ms: float) -> dict[str, str]:
    """Return the environment in which an image takes its time in an actor, and no CPU."""
    return {"PYTHONPATH": os.pathsep.join([str(PLUGIN), str(ROOT)]), "WORDSWORTH_SLEEP_MS": str(sleep_ms)}


def run(
    arguments: list[str], env: dict[str, str], check: bool = True
) -> tuple[float, subprocess.CompletedProcess]:
    """Run the command line, and return its seconds and the finished process."""
    command = [sys.executable, "-m", "wordsworth", *arguments]
    begin = time.monotonic()
    done = subprocess.run(
        command,
        env=os.environ | env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        stdin=subprocess.DEVNULL,
    )
    if check and done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.monotonic() - begin, done


# ---- start ------------------------------------------------------------------------------------------------


def measure_start(rounds: int, **_: Any) -> Iterator[Row]:
    """Return the seconds to the first file and to the end, by the way in which a command is started."""
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="cluster-") as scratch:
        folder = Path(scratch)
        source, model = write_images(folder / "in", 400), make_model(folder / "model", **NOTHING)
        with ray_cluster([NODE], head={"num_cpus": 0}) as cluster:
            ways: dict[str, tuple[list[str], list[str]]] = {
                "submit": (["submit", "--address", cluster.jobs, "--python", sys.executable, "--"], []),
                "label --address": ([], ["--address", cluster.address]),
                "local Ray": ([], []),
            }
            for number in range(rounds):
                for way, (before, behind) in ways.items():
                    out = folder / f"{way.replace(' ', '-')}-{number}"
                    env = {} if way == "local Ray" else cluster.env
                    began = time.time()
                    seconds, _ = run([*before, *label(source, out, model, *behind)], env)
                    first = min(path.stat().st_mtime for path in out.glob("predictions/*.parquet"))
                    found.setdefault(way, []).append((first - began, seconds))
                    print(
                        f"{way}: {first - began:.1f} s to the first file, {seconds:.1f} s in all", flush=True
                    )
    for way, times in found.items():
        for what, place in (("first file", 0), ("end", 1)):
            values = sorted(one[place] for one in times)
            yield {
                "what": f"{way}: {what}",
                "nodes": 1,
                "seconds": round(median(values), 1),
                "note": f"{values[0]:.1f} to {values[-1]:.1f} s, {len(values)} rounds",
            }


# ---- refusals ---------------------------------------------------------------------------------------------


def measure_refusals(**_: Any) -> Iterator[Row]:
    """Return the seconds until a command says why it does not begin."""
    with tempfile.TemporaryDirectory(prefix="cluster-") as scratch:
        folder = Path(scratch)
        source, model = write_images(folder / "in", 100), make_model(folder / "model", **NOTHING)
        arguments = label(source, folder / "out", model)

        def refused(what: str, nodes: int, env: dict[str, str], address: str) -> Row:
            seconds, done = run([*arguments, "--address", address], env, check=False)
            line = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
            assert done.returncode, f"{what}: the command ran: {line}"
            assert not (folder / "out").exists(), f"{what}: the refused command wrote {folder / 'out'}"
            note = line.partition("wordsworth: ")[2].replace(str(folder), "FOLDER")
            note = note.replace(f"({socket.gethostname()})", "(HOST)")
            return {"what": f"refused: {what}", "nodes": nodes, "seconds": round(seconds, 1), "note": note}

        (nobody,) = free_ports(1)
        yield refused("auto, of a cluster that is gone", 0, _stale(folder, nobody), "auto")
        with ray_cluster([], head=NODE) as cluster:
            yield refused("nobody at the address", 1, cluster.env, f"127.0.0.1:{nobody}")
            for what, env, address in _wrong_ways(cluster):
                yield refused(what, 1, env, address)
        with ray_cluster([{"env": _without_package(folder), **NODE}], head={"num_cpus": 0}) as cluster:
            yield refused("a node without the package", 2, cluster.env, cluster.address)


def _stale(folder: Path, port: int) -> dict[str, str]:
    """Return the environment of a command that finds the note of a Ray that is gone."""
    noted = folder / "stale" / "ray"  # where Ray keeps the address that "auto" stands for
    noted.mkdir(parents=True)
    (noted / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
    return {"RAY_TMPDIR": str(noted.parent), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


def _wrong_ways(cluster: RayCluster) -> Iterator[tuple[str, dict[str, str], str]]:
    """Return what is wrong, the environment and the address of commands that cannot join."""
    token = "RAY_AUTH_TOKEN"
    yield "wrong token", cluster.env | {token: "0" * 64}, cluster.address
    without = {name: value for name, value in cluster.env.items() if name not in (token, "RAY_AUTH_MODE")}
    yield "no token", without, cluster.address
    yield "ray:// in place of a job", cluster.env, f"ray://{cluster.address}"


def _without_package(folder: Path) -> dict[str, str]:
    """Return the environment of a node that finds no package of this name."""
    hiding = folder / "hiding"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text("import sys\n\nsys.modules['wordsworth'] = None\n")
    return {"PYTHONPATH": str(hiding)}


# ---- nodes ------------------------------------------------------------------------------------------------


def measure_nodes(raylets: list[int], sleep_ms: float, rounds: int, **_: Any) -> Iterator[Row]:
    """Return images/s by the number of nodes, with a model that sleeps."""
    found: dict[int, list[dict[str, Any]]] = {nodes: [] for nodes in raylets}
    env = sleeping_env(sleep_ms)
    for number in range(rounds):
        for nodes in raylets:
            with tempfile.TemporaryDirectory(prefix="cluster-") as scratch:
                folder = Path(scratch)
                source = write_images(folder / "in", IMAGES_ON_NODE * nodes)
                model = make_model(folder / "model", **NOTHING)
                with ray_cluster([NODE] * nodes, head={"num_cpus": 0}, env=env) as cluster:
                    actors = ["--max-actors", str(ACTORS_ON_NODE * nodes), "--address", cluster.address]
                    _, done = run(label(source, folder / "out", model, *actors), cluster.env)
                told = json.loads(done.stdout)
                assert told["rows"] == IMAGES_ON_NODE * nodes, f"{told['rows']} rows"
                found[nodes].append(told["last_command"] | {"middle": middle_rate(folder / "out")})
                print(f"round {number}, {nodes} nodes: {found[nodes][-1]}", flush=True)
    rates = {nodes: [one["middle"] for one in told] for nodes, told in found.items()}
    alone = median(rates[raylets[0]]) / raylets[0]
    for nodes, values in rates.items():
        busy = median(one["busy"].get("predict", 0) for one in found[nodes])
        yield {
            "what": "sleeping model",
            "nodes": nodes,
            "seconds": round(median(one["seconds"] for one in found[nodes]), 1),
            "rate": round(median(values), 1),
            "ratio": round(median(values) / nodes / alone, 3),
            "sleep_ms": sleep_ms,
            "note": f"{min(values):.1f} to {max(values):.1f} images/s, {len(values)} rounds; "
            f"{busy:.2f} of {ACTORS_ON_NODE * nodes} actors busy from the first unit to the last; "
            f"the sleep alone allows {1000 / sleep_ms * ACTORS_ON_NODE * nodes:.0f} images/s",
        }


def middle_rate(out: Path) -> float:
    """Return the images/s while the middle of a run's units was written."""
    written = sorted(path.stat().st_mtime for path in out.glob("predictions/*.parquet"))
    first, last = (int(share * (len(written) - 1)) for share in MIDDLE)
    return round((last - first) * UNIT_ROWS / (written[last] - written[first]), 1)


# ---- rows -------------------------------------------------------------------------------------------------


def keep(path: Path, row: Row) -> None:
    """Write a row into the file, in the place of an earlier row of the same thing."""
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    same = ("what", "nodes", "sleep_ms")
    rows = [old for old in rows if any(str(old[name]) != str(row.get(name, "")) for name in same)]
    write_rows(path, [*rows, row | {"machine": machine()}], FIELDS)


def table(path: Path) -> str:
    """Return the rows of the file as a table of Markdown."""
    lines = [
        "| what | nodes | seconds | images/s | of one node's, a node | sleep | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in csv.DictReader(path.read_text().splitlines()):
        sleep = f"{float(row['sleep_ms']):g} ms" if row["sleep_ms"] else ""
        note = row["note"].replace("|", "\\|")
        cells = [row["what"], row["nodes"], row["seconds"], row["rate"], row["ratio"], sleep, note]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


PARTS: dict[str, Callable[..., Iterator[Row]]] = {
    "start": measure_start,
    "refusals": measure_refusals,
    "nodes": measure_nodes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--raylets", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--sleep-ms", type=float, default=50.0)
    parser.add_argument("--output", type=Path, default=CSV)
    options = vars(parser.parse_args())
    output = options.pop("output")
    for row in PARTS[options.pop("part")](**options):
        keep(output, row)
        print(*(f"{name}: {row[name]}" for name in FIELDS if name in row), sep=", ", flush=True)
    if output == CSV:
        write_between(PAGE, BEGIN, END, table(CSV))


if __name__ == "__main__":
    main()
