"""Make processes die, wait, count and sleep for the tests of faults and for benchmarks of clusters.

Python runs this file at the start of every process that has this folder on its path. Writers die at armed
points, and wait when the run has written as many units as it may. Every decoded unit takes its time, so that
faults can meet it, and leaves a line, so that repeated units can be counted. A small job gets as many workers
as a large job.

With WORDSWORTH_SLEEP_MS, the model sleeps in place of its forward pass, so that few cores carry many nodes:
an image takes so many milliseconds in an actor, and no CPU; its scores are zeros.

A point is a file in the folder WORDSWORTH_TEST_ARMED. The process that comes to the point removes the file
and dies, so that each file kills once. The file `allowed` beside the folder has the number of units that may
be written; without the file a run goes to its end.
"""

import functools
import importlib.machinery
import os
import signal
import sys
import time

_link, _armed = os.link, os.environ.get("WORDSWORTH_TEST_ARMED")
_pace = float(os.environ.get("WORDSWORTH_TEST_PACE", 0))
_sleep_s = float(os.environ.get("WORDSWORTH_SLEEP_MS", 0)) / 1000  # an image


def _die_if_armed(point):
    try:
        os.unlink(os.path.join(_armed, point))
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _wait_until_allowed(folder):
    while True:
        try:
            with open(os.path.join(os.path.dirname(_armed), "allowed")) as file:
                allowed = int(file.read())
        except FileNotFoundError:
            return
        if sum(name.endswith(".parquet") for name in os.listdir(folder)) < allowed:
            return
        time.sleep(0.1)


def _dying_link(source, target, **options):
    if "/predictions/" not in os.fspath(target):
        return _link(source, target, **options)
    _wait_until_allowed(os.path.dirname(target))
    _die_if_armed("before-link")
    _link(source, target, **options)
    _die_if_armed("after-link")


def _count(module):
    """Change wordsworth.pipeline.labeling.stages: every unit leaves a line in the file `decoded` beside the
    armed points, and takes its time."""
    stage = module.decode_stage

    @functools.wraps(stage)  # so that Ray still sends it by its name
    def counted(table, *arguments, **options):
        row = table.slice(0, 1).select(["shard_name", "number"]).to_pylist()[0]
        with open(os.path.join(os.path.dirname(_armed), "decoded"), "a") as file:
            file.write(f"{row['shard_name']}-{row['number']}\n")
        time.sleep(_pace)
        return stage(table, *arguments, **options)

    module.decode_stage = counted


def _sleep(module):
    """Change wordsworth.vit_model.inference: a batch takes its time, and nothing else."""
    import torch

    def forward(self, patches):
        time.sleep(_sleep_s * len(patches))
        config = self.model.config
        return torch.zeros(len(patches), config.num_classes), torch.zeros(len(patches), config.width)

    module.InferenceModel.forward = forward


def _spread(module):
    """Change wordsworth.pipeline.cluster.claims: the small amount of work justifies every worker that
    there can be."""
    module.ACTOR_START = module.TASK_START = 1e-6


class _Changed(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        CHANGES[module.__name__](module)


class _Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = _Changed(name, spec.origin)
        return spec


CHANGES = {}
if _armed:
    os.link = _dying_link
    CHANGES["wordsworth.pipeline.labeling.stages"] = _count
if _sleep_s:
    CHANGES["wordsworth.vit_model.inference"] = _sleep
if CHANGES:
    CHANGES["wordsworth.pipeline.cluster.claims"] = _spread
    sys.meta_path.insert(0, _Finder)
