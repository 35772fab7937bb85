"""Start or join Ray, and divide a cluster among the stages of a run."""
