"""Run Ray Data around the model: shards in, Parquet files out. Uses vit_model, and knows no command line."""

import os

# Ray, webdataset and gcsfs read these variables when they are imported, so the lines stand before any module
# of this package.
DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray's C++ side writes to stderr, past every logger
    "WDS_SECURE": "1",  # webdataset runs no command and unpickles nothing
    # gcsfs asks Google's gRPC service about a bucket, past endpoint_url, and waits for a minute where nobody
    # answers. Only zonal buckets need this.
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "RAY_task_oom_retries": "10",  # Ray's default is to try for ever what does not fit into a node's memory
    # Milliseconds. Stages claim parts of a CPU, so more workers live than there are CPUs. By default Ray ends
    # a worker that is idle for a second and starts another one a moment later, for three CPU-seconds each.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # Seconds. A training worker that saves a checkpoint waits until Ray Train looks at the workers again.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Ray Train's files of its own log, which nobody reads here, take a second of a controller's start.
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
}
if os.environ.get("WORDSWORTH_ENV_FILE"):  # the clients of stores look for keys when they are made
    from wordsworth.pipeline.cluster.env_file import take_at_start

    take_at_start()
for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
