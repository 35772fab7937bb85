"""`python -m jobs` is `wordsworth`."""

from jobs.cli import main

main()
