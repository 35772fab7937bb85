"""Label from and to real stores that fail, again and again, and count lost rows: rows of stores.csv.

    python -m benchmarks.stores [--rounds 2] [--seed 1] [--fault NAME ...]

Three processes label the tars of a small run and are killed wherever a seeded plan says
(tests/faults/protocol.py). They reach the store through a proxy that disturbs their requests
(tests/faults/proxy.py). In the end the rows must be those of an undisturbed run, and `verify --source` must
find nothing. Stores: Ceph with its S3 gateway, and rclone, which knows no conditional writes. The predictions
are made up, so the rate is that of the requests and of the workers' new starts.

storm: every request is answered 503 for a minute, in the middle of a longer run without kills. The note says
after how many seconds the writes were back at 90 % of the rate before.
killed: Ceph's daemons get SIGKILL in the middle of such a run, and start again on their disk.
"""

import argparse
import csv
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, write_rows
from benchmarks.store_reading import FIELDS
from tests.faults import protocol, servers
from tests.faults.protocol import Result, run_rounds
from tests.faults.proxy import Arrival, Faults, Proxy
from tests.faults.servers import Backend, through

CSV = Path(__file__).with_suffix(".csv")
SERVERS: dict[str, Callable[[], AbstractContextManager[Backend]]] = {
    "ceph": servers.ceph,
    "rclone": servers.rclone,
}
MIXED = Faults(
    slow=0.05, burst=3, broken=0.02, reset=0.03, lost=0.2, conflict=0.1, truncated=0.05, short=0.05
)
FAULTS = {
    "none": Faults(),
    "503 in bursts of 5": Faults(slow=0.05, burst=5),
    "500": Faults(broken=0.1),
    "reset": Faults(reset=0.1),
    "acknowledgement lost": Faults(lost=0.5),
    "409": Faults(conflict=0.3),
    "body breaks off": Faults(truncated=0.2),
    "body short": Faults(short=0.2),
    "hang": Faults(hang=0.01),
    "trickle": Faults(trickle=0.03),
    "all": replace(MIXED, hang=0.002),
    "none, 50 ms": Faults(delay=0.05),
    "all, 50 ms": replace(MIXED, delay=0.05),
}
ON_RCLONE = ("none", "acknowledgement lost", "all")
STORM_S, BEFORE_S = 60.0, 15.0  # seconds of the storm, and of the run before it
WINDOW_S = 5.0  # seconds over which a rate is taken
LONG = {"lives": 1, "shards": 36, "pace": 0.8}
PATIENCE_S = 900.0  # for one round, on a machine that does other things too


def row_of(store: str, fault: str, faults: Faults, result: Result, asked: int, note: str) -> dict[str, Any]:
    """Return a row of stores.csv."""
    return {
        "store": store,
        "fault": fault,
        "latency_ms": round(1000 * faults.delay),
        "source": "tar",
        "rounds": result.rounds,
        "rows_exact": result.exact and not result.failures,
        "seconds": round(result.seconds, 1),
        "requests_per_image": round(asked / max(1, result.rows_in), 2),
        "rate": round(result.rows_in / result.seconds, 1),
        "note": f"{note}; {machine()}",
    }


def rounds_of(store: Backend, fault: str, rounds: int, seed: int) -> dict[str, Any]:
    faults = FAULTS[fault]
    with through(store, faults, seed) as behind:
        result = run_rounds(seed, rounds, behind)
        met = ", ".join(f"{count} {kind}" for kind, count in sorted(behind.met.items()) if count)
        note = f"workers killed: {result.kills} kills, {result.rows_in} rows; faults met: {met or 'none'}"
        return row_of(store.name, fault, faults, result, behind.proxy.requests.total(), note)


def rate_of(arrivals: list[Arrival], begin: float, end: float) -> float:
    """Return the writes a second that met no fault."""
    good = [
        one for one in arrivals if one.operation == "PUT" and not one.fault and begin <= one.seconds < end
    ]
    return len(good) / (end - begin)


def recovery_s(proxy: Proxy, began: float, ended: float) -> float | None:
    """Return the seconds from the end of the storm until the writes had 90 % of their rate before."""
    before = rate_of(proxy.arrivals, began - 2 * WINDOW_S, began)
    for tenth in range(int(10 * (proxy.arrivals[-1].seconds - ended))):
        at = ended + tenth / 10
        if rate_of(proxy.arrivals, at, at + WINDOW_S) >= 0.9 * before:
            return at + WINDOW_S - ended
    return None


def storm(store: Backend, seed: int) -> dict[str, Any]:
    with through(store, Faults(), seed) as behind, ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_rounds, seed, 1, behind, **LONG)
        while not behind.proxy.requests["PUT"] > 30:
            time.sleep(0.1)
        time.sleep(BEFORE_S)
        began, behind.proxy.faults = time.monotonic(), Faults(slow=1.0)
        time.sleep(STORM_S)
        ended, behind.proxy.faults = time.monotonic(), Faults()
        result = running.result()
        arrivals = behind.proxy.arrivals
        asked = Counter(int((one.seconds - began) / 10) for one in arrivals if began <= one.seconds < ended)
        before = sum(began - 10 <= one.seconds < began for one in arrivals)
        back = recovery_s(behind.proxy, began, ended)
        note = (
            f"storm: all requests 503 for {STORM_S:g} s; {before} requests in the 10 s before, then in each "
            f"10 s {[asked[tenth] for tenth in range(6)]}; "
            f"90 % of the writes after {back and round(back, 1)} s"
        )
        return row_of(store.name, "503 storm", Faults(), result, behind.proxy.requests.total(), note)


def killed(seed: int) -> dict[str, Any]:
    with servers.ceph(durable=True) as store, through(store, Faults(), seed) as behind:
        done: list[Result] = []
        running = threading.Thread(target=lambda: done.append(run_rounds(seed, 1, behind, **LONG)))
        running.start()
        while not behind.proxy.requests["PUT"] > 30:
            time.sleep(0.1)
        began = time.monotonic()
        store.ceph.kill()
        time.sleep(5)
        store.ceph.start_again()
        away = time.monotonic() - began
        running.join()
        note = f"killed: the daemons were away for {away:.0f} s, no worker was killed"
        return row_of(store.name, "store killed", Faults(), done[0], behind.proxy.requests.total(), note)


def merge(row: dict[str, Any]) -> None:
    """Write a row into the file, in the place of the row of the same store, fault and latency."""
    print({name: value for name, value in row.items() if name != "note"}, row["note"], flush=True)

    def what(one: dict[str, Any]) -> tuple[str, ...]:
        return one["store"], one["fault"], str(one["latency_ms"]), one["note"].partition(":")[0]

    old = list(csv.DictReader(CSV.read_text().splitlines())) if CSV.exists() else []
    write_rows(CSV, [*(one for one in old if what(one) != what(row)), row], FIELDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", nargs="+", choices=[*FAULTS, "storm", "killed"])
    options = parser.parse_args()
    protocol.PATIENCE = PATIENCE_S
    chosen = options.fault or [*FAULTS, "storm", "killed"]
    for name, server in SERVERS.items():
        with server() as store:
            for fault in chosen:
                if fault in FAULTS and (name == "ceph" or fault in ON_RCLONE):
                    merge(rounds_of(store, fault, options.rounds, options.seed))
                elif fault == "storm" and name == "ceph":
                    merge(storm(store, options.seed))
    if "killed" in chosen:
        merge(killed(options.seed))


if __name__ == "__main__":
    main()
