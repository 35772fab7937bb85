"""Set Ray Data up for the plans of this program."""

import logging
import warnings

from wordsworth.pipeline.cluster.ray_internals import (
    ExecutorProbe,
    RunningPlan,
    keep_driver_small,
    ray_is_known,
)
from wordsworth.pipeline.cluster.sharing import Seat


def configure_ray_data() -> None:
    """Set Ray Data's context, which every dataset takes over that is made afterwards."""
    from ray.data import DataContext

    # There is no other way to say max_retries.
    warnings.filterwarnings("ignore", message=r"`ray_remote_args` is deprecated")
    # A source may have fewer shards than there are workers.
    warnings.filterwarnings("ignore", message=r"The (maximum|minimum) number of concurrent")
    context = DataContext.get_current()
    context.enable_fallback_to_arrow_object_ext_type = False  # never a pickled column
    # Every unit stays a block of its own; None would merge a whole shard.
    context.target_max_block_size = 1  # bytes
    context.target_min_block_size = 1  # bytes
    context.max_consecutive_actor_init_deaths = 3
    # Ray's wrapper loses the original error on the way, and with the error what to tell the user.
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # none: pipeline/cluster/stall.py has a limit, and says more
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    keep_driver_small(context)
    ExecutorProbe.register(context)
    RunningPlan.register(context)
    if ray_is_known() and Seat not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Seat)
    # What ends a run is raised, and told in one line.
    for name in ("ray.data", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
