"""Run one command a file: parse the options, call the pipeline, print the result."""
