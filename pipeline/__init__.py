"""Run Ray Data around the model: shards in, Parquet files out. Uses vit_model, and knows no command line."""

import os

# Ray and webdataset read these variables when they are imported, so the lines stand before any module of this
# package.
DEFAULTS = {
    "RAY_AUTH_MODE": "token",  # a cluster that is started here is never open to everybody
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray's C++ side writes to stderr, past every logger
    "WDS_SECURE": "1",  # webdataset runs no command and unpickles nothing
    "RAY_task_oom_retries": "10",  # Ray's default is to try for ever what does not fit into a node's memory
    # Milliseconds. Stages claim parts of a CPU, so more workers live than there are CPUs. By default Ray ends
    # a worker that is idle for a second and starts another one a moment later, for three CPU-seconds each.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # Seconds. A training worker that saves a checkpoint waits until Ray Train looks at the workers again.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Ray Train's files of its own log, which nobody reads here, take a second of a controller's start.
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
}
for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
