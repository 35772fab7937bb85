"""Chain the stages of a run, and start, continue, update or retry it."""
