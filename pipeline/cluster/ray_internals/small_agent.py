"""Run the agent of a local Ray's node without its services, as where the packages for them are not installed.

Ray runs this file as a program, with the path and the arguments of its own agent; nothing of ours is loaded.
"""

import runpy
import sys


def main() -> None:
    """Run Ray's agent, which loads no module."""
    from ray.dashboard import utils

    sys.path.pop(0)  # this folder, whose files have common names
    utils.get_all_modules = lambda kind: []
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
