"""Run the command line: `python -m wordsworth`."""

from wordsworth.jobs.cli import main

main()
