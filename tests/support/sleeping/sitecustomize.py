"""Let the model sleep in place of its forward pass, so that few cores carry many nodes.

Python runs this file at the start of every process that has this folder on its path. An image takes
WORDSWORTH_SLEEP_MS milliseconds in an actor, and no CPU; its scores are zeros. A small job gets as many
workers as a large job. All else is the program's own.
"""

import importlib.machinery
import os
import sys
import time

_seconds = float(os.environ.get("WORDSWORTH_SLEEP_MS", 0)) / 1000


def _sleep(module):
    """Change wordsworth.vit_model.inference: a batch takes its time, and nothing else."""
    import torch

    def forward(self, patches):
        time.sleep(_seconds * len(patches))
        config = self.model.config
        return torch.zeros(len(patches), config.num_classes), torch.zeros(len(patches), config.width)

    module.InferenceModel.forward = forward


def _spread(module):
    """Change constants of wordsworth.pipeline.cluster: the small amount of work justifies every worker that
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


CHANGES = {
    "wordsworth.vit_model.inference": _sleep,
    "wordsworth.pipeline.cluster.claims": _spread,
    "wordsworth.pipeline.cluster.resources": _spread,
}
if _seconds:
    sys.meta_path.insert(0, _Finder)
