"""Look at a node of the cluster: whether this program can work there, and what it sees.

This module is sent to nodes by value, also to nodes without this package: it imports Python's own modules,
and nothing else at its top.
"""

import hashlib
import importlib
import importlib.util
import os
import platform
import socket
from importlib import metadata
from typing import Any

PACKAGE = "wordsworth"
PARTS = ("pipeline", "vit_model")  # folders of the package whose code works on nodes
NUMERIC = ("torch", "torchvision", "pillow", "numpy", "simplejpeg")  # distributions that can alter a number


def probe(modules: tuple[str, ...], looks: tuple[Any, ...], code: str) -> dict[str, Any]:
    """Return what there is on this node.

    Args:
        modules: names of modules that must be there.
        looks: references to functions of this package, each without arguments; what each returns is "seen".
        code: hash of the package's code where the command runs; with other code nothing is looked at.
    """
    import ray

    importlib.invalidate_caches()
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "ray": ray.__version__,
        "python": platform.python_version(),
        "missing": missing,
    }
    if not missing:
        found |= {"version": package_version(), "numeric": numeric_versions()}
    if not missing and code_digest() == code:
        # References, because a node without the package could not take the functions as arguments.
        found["seen"] = [look() for look in ray.get(list(looks))]
    return found


def package_version() -> str:
    """Return the version of this package; "" for a folder that was never installed."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return ""


def code_digest() -> str:
    """Return a hash of the package's code that works on nodes, wherever it lies."""
    package = importlib.import_module(PACKAGE)
    digest = hashlib.sha256()
    for part in PARTS:
        for root in package.__path__:
            if os.path.isdir(os.path.join(root, part)):
                _add_folder(digest, os.path.join(root, part), part)
                break
    return digest.hexdigest()


def _add_folder(digest: Any, folder: str, name: str) -> None:
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        if entry.is_dir() and not entry.name.startswith((".", "__")):
            _add_folder(digest, entry.path, f"{name}/{entry.name}")
        elif entry.name.endswith(".py"):
            with open(entry.path, "rb") as file:
                digest.update(f"{name}/{entry.name}\n".encode())
                digest.update(file.read())


def numeric_versions() -> dict[str, str]:
    """Return the versions of the distributions that can alter a number."""
    versions = {}
    for name in NUMERIC:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions
