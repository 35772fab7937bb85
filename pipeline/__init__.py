"""Ray Data around the model: units in, receipts out. Knows vit_model, knows no command line."""

import os

# Ray and webdataset read these when they are imported, so they stand before any module of this package.
os.environ.setdefault("RAY_AUTH_MODE", "token")  # never an open cluster by default
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side writes to stderr, past every logger
os.environ.setdefault("WDS_SECURE", "1")  # webdataset runs no command and unpickles nothing
os.environ.setdefault(
    "RAY_task_oom_retries", "10"
)  # Ray would try for ever what does not fit into a node's memory
# Stages claim parts of a CPU, so more workers live than there are CPUs. Ray would end those that are idle for a second and start
# them anew a moment later, for three CPU-seconds each.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
