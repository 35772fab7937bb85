"""Apply what depends on Ray's insides only to versions of Ray that it was tried with."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

TRIED_VERSIONS = ("2.60.0",)  # versions of Ray that every entry of this package was tried with
STOCK = "WORDSWORTH_STOCK_RAY"  # environment variable: 1 makes every version an unknown one


def ray_is_known() -> bool:
    """Tell whether the running Ray is a version that the entries of this package were tried with."""
    import ray

    return ray.__version__ in TRIED_VERSIONS and os.environ.get(STOCK) != "1"


@contextlib.contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Give attributes of a module or class other values for the length of a block.

    Raises:
        KeyError: the owner has no attribute of that name.
    """
    before = {name: vars(owner)[name] for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
