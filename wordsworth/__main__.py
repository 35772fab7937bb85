"""Run the command line: `python -m wordsworth`."""

import sys

try:
    from wordsworth.jobs.cli import main
except ModuleNotFoundError as error:  # a job that brings this package runs on the Python of a node
    if str(error.name).partition(".")[0] == "wordsworth":
        raise
    import socket

    sys.exit(
        f"wordsworth: {sys.executable} on {socket.gethostname()} has no package {error.name}: install what "
        "wordsworth needs there (pip install wordsworth), or name another Python (wordsworth submit --python)"
    )
main()
