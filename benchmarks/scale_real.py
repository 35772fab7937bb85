"""Run the labeler over tars with one small image each in a process of its own: the parts `real` of
benchmarks/scale.py, and the memory of a process by the kernel."""

import contextlib
import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

MiB = 1 << 20


# ---- memory of this process alone --------------------------------------------------------------------------


def status(name: str) -> float:
    """Return MiB by the kernel: VmRSS is held now, VmHWM was held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measured(step: Callable[[], Any]) -> dict[str, Any]:
    """Run a step and note its result, its seconds, and its memory at most beyond the memory before."""
    forget_peak()
    before, start, cpu = status("VmRSS"), time.perf_counter(), time.process_time()
    more = step()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_mib": status("VmHWM"),
        "added_mib": status("VmHWM") - before,
        "more": more,
    }


# ---- real: the labeler in a process of its own -------------------------------------------------------------


def make_tars(folder: Path, units: int) -> None:
    folder.mkdir(parents=True)
    for number in range(units):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        with tarfile.open(folder / f"part-{number:06d}.tar", "w") as tar:
            info = tarfile.TarInfo(f"{number:06d}.jpg")
            info.size = buffer.tell()
            tar.addfile(info, io.BytesIO(buffer.getvalue()))


class Watcher:
    """Note when each receipt came, and the memory of this process and of Ray's store at that time."""

    def __init__(self):
        self.times: list[float] = []  # of receipts, by the clock
        self.held: list[tuple[float, float, float]] = []  # time, MiB of this process, MiB in Ray's store
        self.cpu: list[float] = []  # CPU-seconds of this process at each receipt
        self.planned_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def planned(self, **_):
        self.planned_at = time.time()
        self._thread.start()

    def listed(self, **_): ...
    def note(self, *_, **__): ...
    def waiting(self, _): ...
    def working(self, _): ...

    def receipt(self, _):
        self.times.append(time.time())
        self.cpu.append(time.process_time())

    def _sample(self) -> None:
        while not self._stop.wait(0.5):
            self.held.append((time.time(), status("VmRSS"), store_mib()))

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()


def store_mib() -> float:
    """Return the MiB that Ray's object store holds."""
    import ray

    with contextlib.suppress(Exception):
        name = "object_store_memory"
        return (ray.cluster_resources()[name] - ray.available_resources().get(name, 0)) / MiB
    return 0.0


def tree_cpu() -> float:
    """Return the CPU-seconds of this process and of all processes that it started, dead ones included."""
    total, me = 0.0, psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def real(folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the labeler over the tars of a folder, or over the tars that are not labelled yet."""
    from wordsworth.pipeline.cluster.session import ray_session
    from wordsworth.pipeline.labeling.labeler import label
    from wordsworth.pipeline.labeling.request import LabelRequest
    from wordsworth.vit_model.checkpoint import random_checkpoint
    from wordsworth.vit_model.config import Preprocessing, ViTConfig

    config = ViTConfig(image_size=32, patch_size=16, width=16, depth=1, heads=1, mlp_dim=16, num_classes=2)
    asked = {"precision": "fp32", "device": "cpu", "top_k": 1, "unit_rows": 1}
    request = LabelRequest(
        command="label", sources=(f"{folder}/tars",), output=f"{folder}/out", model="random", **asked
    )
    checkpoint, watcher = random_checkpoint(config, Preprocessing(), 0), Watcher()
    created = psutil.Process().create_time()
    if Path(folder, "out/_run/summary.json").exists():  # nothing to do, which takes no Ray
        before = status("VmRSS")
        label(request, checkpoint, watcher)
        found = {"seconds": time.time() - created, "cpu_seconds": time.process_time()}
        yield (
            "nothing to do",
            {**found, "peak_mib": status("VmHWM"), "added_mib": status("VmHWM") - before, "more": None},
        )
        return
    what = "one unit is left" if Path(folder, "out").exists() else "label"
    with ray_session():
        ready, cpu, before = time.time(), tree_cpu(), status("VmRSS")
        summary = label(request, checkpoint, watcher)
        end, cpu = time.time(), tree_cpu() - cpu
        watcher.close()
    yield (
        what,
        {
            "seconds": end - created,
            "cpu_seconds": cpu,
            "peak_mib": status("VmHWM"),
            "added_mib": status("VmHWM") - before,
            "more": {
                "rows": summary.rows,
                "session_seconds": round(ready - created, 2),
                **about(watcher, ready, end),
            },
        },
    )


def about(watcher: Watcher, ready: float, end: float) -> dict[str, Any]:
    """Describe the parts of a run by its watcher's notes: seconds from the session on, then rates and
    memory by quarters."""
    times, (first, last) = watcher.times, (watcher.times[0], watcher.times[-1])
    parts = {
        "planning_seconds": watcher.planned_at - ready,
        "first_receipt_seconds": first - ready,
        "labelling_seconds": last - first,
        "finishing_seconds": end - last,
    }
    found = {name: round(value, 2) for name, value in parts.items()}
    if last == first:
        return found
    cuts = [first + (last - first) * quarter / 4 for quarter in range(5)]
    between = [(low <= np.array(times)) & (np.array(times) < high) for low, high in pairwise(cuts)]
    held = [
        [sample for sample in watcher.held if low <= sample[0] <= high] or watcher.held[-1:]
        for low, high in pairwise(cuts)
    ]
    return {
        **found,
        "driver_cpu_ms_a_unit": round(1000 * (watcher.cpu[-1] - watcher.cpu[0]) / (len(times) - 1), 2),
        "units_per_second": [round(float(within.sum()) * 4 / (last - first), 1) for within in between],
        "driver_mib": [round(max(mib for _, mib, _ in samples), 1) for samples in held],
        "store_mib": [round(max(mib for _, _, mib in samples), 1) for samples in held],
    }
