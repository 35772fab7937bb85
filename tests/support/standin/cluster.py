"""Start raylets with declared GPUs whose torch has the stand-in device, and a driver that labels on them.

The module is the handle of the cluster. As a program (`python -m tests.support.standin.cluster ADDRESS`) this
file is the driver: it joins the cluster once, and answers every order that it reads, one JSON a line.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults.machines import Machines

ROOT = Path(__file__).parents[3]
NOTE = "note: "  # how a line of the driver begins that is no answer: a note of the run, as JSON


def plugged(folder: Path, **faults: Any) -> dict[str, str]:
    """Return the environment in which torch finds the stand-in device, as torch finds a vendor's device.
    `set_faults` changes the device's behaviour."""
    about = folder / "standin-1.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: standin\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[torch.backends]\nstandin = tests.support.standin.gpu:register\n"
    )
    set_faults(folder, **faults)
    paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "STANDIN": str(folder / "faults.json")}


def set_faults(folder: Path, **faults: Any) -> None:
    """Set the faults of the device in processes that look for it from now on, and forget what earlier
    processes left."""
    shutil.rmtree(folder / "seen", ignore_errors=True)
    (folder / "seen").mkdir()
    faults["seen"] = str(folder / "seen")
    new = folder / "faults.new"
    new.write_text(json.dumps({"present": True} | faults))
    new.replace(folder / "faults.json")


class GpuCluster:
    """Hold a head and `nodes` - 1 more nodes, each with `gpus` GPUs and `cpus` CPUs, and a driver that has
    joined them."""

    def __init__(self, folder: Path, nodes: int = 1, cpus: int = 4, gpus: float = 1):
        self.folder = folder
        self.env = plugged(folder)
        size = {"num_cpus": cpus, "num_gpus": gpus, "memory": 8 << 30}
        self.machines = Machines(nodes - 1, env=self.env, **size)
        self.env |= self.machines.env
        self.notes: list[str] = []  # of all orders, as they come
        self.driver = subprocess.Popen(
            [sys.executable, "-m", "tests.support.standin.cluster", self.machines.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self.env,
            cwd=ROOT,
        )

    def set_faults(self, **faults: Any) -> None:
        set_faults(self.folder, **faults)

    def seen(self) -> list[dict[str, Any]]:
        """Return, for every process that waited for the device since the last `set_faults`, its threads,
        the most threads at a time, and its node. A process of before `set_faults` may be among them."""
        return [json.loads(path.read_text()) for path in (self.folder / "seen").glob("*.json")]

    def actors(self) -> list[dict[str, Any]]:
        """Return the same for the actors alone. An actor gets its units in other threads than the thread
        that made it."""
        return [one for one in self.seen() if one["threads"] > 1]

    def label(self, output: Path, model: Path, *sources: Path, **asked: Any) -> dict[str, Any]:
        """Return {"summary", "notes", "receipts"}, or {"error", "notes"} of a run that was refused or
        failed."""
        return self._order(
            "label", output=str(output), model=str(model), sources=list(map(str, sources)), **asked
        )

    def evaluate(self, output: Path, model: Path, *sources: Path, **asked: Any) -> dict[str, Any]:
        return self._order(
            "evaluate", output=str(output), model=str(model), sources=list(map(str, sources)), **asked
        )

    def train(self, output: Path, *sources: Path, **asked: Any) -> dict[str, Any]:
        return self._order("train", output=str(output), sources=list(map(str, sources)), **asked)

    def _order(self, what: str, **arguments: Any) -> dict[str, Any]:
        self.driver.stdin.write(json.dumps({"order": what, **arguments}) + "\n")
        self.driver.stdin.flush()
        for line in self.driver.stdout:
            if line.startswith(NOTE):
                self.notes.append(json.loads(line.removeprefix(NOTE)))
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the driver ended with {self.driver.wait()} at the order {what}")

    def close(self) -> None:
        self.driver.kill()
        self.driver.wait()
        self.driver.stdin.close()
        self.driver.stdout.close()
        self.machines.close()


# ---- the program -------------------------------------------------------------------------------------------


def _label(output: str, model: str, sources: list[str], **asked: Any) -> dict[str, Any]:
    from tests.support.labelling import Watcher
    from wordsworth.pipeline.images.limits import DecodeLimits
    from wordsworth.pipeline.labeling import labeler
    from wordsworth.pipeline.labeling.request import LabelRequest
    from wordsworth.pipeline.prediction.load_model import load_model

    class Telling(Watcher):
        def note(self, message: str, **fields: Any) -> None:
            super().note(message, **fields)
            print(NOTE + json.dumps(message), flush=True)

    watcher = Telling()
    asked = {"command": "label", "precision": "fp32", "storage_options": {}} | asked
    asked["limits"] = DecodeLimits(**asked.get("limits", {}))
    request = LabelRequest(sources=tuple(sources), output=output, model="small", **_tuples(asked))
    try:
        summary = labeler.label(request, load_model(model), watcher)
    except Exception as error:
        return {"error": _told(error), "notes": watcher.notes}
    receipts = [asdict(receipt) for receipt in watcher.receipts]
    return {"summary": summary.to_dict(), "notes": watcher.notes, "receipts": receipts}


def _evaluate(output: str, model: str, sources: list[str], target: str, **asked: Any) -> dict[str, Any]:
    from tests.support.labelling import Watcher
    from wordsworth.pipeline.labeling.evaluate import evaluate
    from wordsworth.pipeline.labeling.request import LabelRequest
    from wordsworth.pipeline.prediction.load_model import load_model

    watcher = Watcher()
    request = LabelRequest(
        command="label", sources=tuple(sources), output=output, model="small", precision="fp32", **asked
    )
    return {
        "figures": evaluate(request, load_model(model), target, lambda name: contextlib.nullcontext(watcher)),
        "notes": watcher.notes,
    }


def _train(output: str, sources: list[str], config: dict[str, Any], **asked: Any) -> dict[str, Any]:
    from wordsworth.pipeline.training.request import TrainRequest
    from wordsworth.pipeline.training.trainer import train
    from wordsworth.vit_model.config import Preprocessing, ViTConfig

    heard: list[dict[str, Any]] = []
    start = asked.pop("start", None)
    if start:
        from wordsworth.pipeline.prediction.load_model import load_model

        asked["start"] = load_model(start)
    config = ViTConfig(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    )
    request = TrainRequest(
        sources=tuple(sources), output=output, config=config, preprocessing=Preprocessing(), **asked
    )
    try:
        last = train(request, lambda news: heard.append(news.to_json()))
    except Exception as error:
        return {"error": _told(error), "heard": heard}
    return {"last": last.to_json(), "heard": heard}


def _tuples(asked: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}


def _told(error: Exception) -> str:
    from wordsworth.pipeline.errors import UserError, root_cause

    cause = root_cause(error, UserError)
    return str(cause) if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"


def main(address: str) -> None:
    import ray

    from wordsworth.pipeline.cluster.ray_internals import without_cluster_actors
    from wordsworth.pipeline.cluster.request import ClusterRequest
    from wordsworth.pipeline.cluster.session import ray_session

    orders = {"label": _label, "evaluate": _evaluate, "train": _train}
    with ray_session(ClusterRequest(address=address)), contextlib.ExitStack() as one_machine:
        if len(ray.nodes()) == 1:
            one_machine.enter_context(without_cluster_actors())
        for line in sys.stdin:
            order = json.loads(line)
            print(json.dumps(orders[order.pop("order")](**order), default=str), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
