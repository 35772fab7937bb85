"""Read files that torch.save wrote, without running a line of code from them.

torch reads such a file with `weights_only`: tensors and plain containers are made, and any other class or
function that the pickle names is refused. A checkpoint of a training names many that have nothing to do with
the weights: argparse.Namespace, numpy's scalars, paths, the settings of Lightning or Hydra, sometimes the
whole model. Here each such name stands for an empty class of ours (`StandIn`). What the name means elsewhere
is never looked up or imported, so it does not matter what that would do. numpy's own classes are not made
either: a forged dtype could corrupt memory.
"""

import pickle
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from wordsworth.vit_model.config import ModelError

# Names of Python's own library that settings and models hold. Any other name of the library, such as
# builtins.eval or subprocess.Popen, is a reason to distrust the file.
HARMLESS = re.compile(
    r"argparse\.Namespace"
    r"|builtins\.(bool|bytes|dict|float|frozenset|int|list|object|range|slice|str|tuple|type)"
    r"|collections\.(defaultdict|deque)"
    r"|copyreg\._reconstructor"
    r"|datetime\.(date|datetime|time|timedelta|timezone)"
    r"|(decimal\.Decimal|fractions\.Fraction|functools\.partial|types\.SimpleNamespace|uuid\.UUID)"
    r"|pathlib(\._local)?\.\w*Path"
    r"|typing\.\w+"
)
# A file of torch before 1.6 cannot be searched for names; these are the names that such files hold.
USUAL_NAMES = (
    "argparse.Namespace",
    "pathlib.PosixPath",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
# Tensors that lie on several processes: a stand-in would lose them.
DISTRIBUTED = "torch.distributed.tensor."
REFUSED_NAME = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")
# What torch says of a stand-in for a subclass of dict or list, into which the pickle puts items.
FILLED_STAND_IN = re.compile(r"Can only (SETITEMS?|append|extend) .* got <class 'stand-in\.(.+)'>")


class StandIn:
    """Stand for an object of a class that is not made.

    Attributes:
        called: the name of the class in the file.
        content: the object's attributes in the file.
    """

    called = ""
    content: Any = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Leave the arguments alone."""

    def __setstate__(self, content: Any) -> None:
        self.content = content


def _stand_in(name: str, container: type | None) -> tuple[Any, str]:
    """Return the class that stands for a name, and the name. A pickle puts items into a container."""
    members: dict[str, Any] = {"called": name, "__module__": "stand-in"}
    if container:
        members["__new__"] = lambda cls, *arguments, **named: container()
    return type(name, (StandIn,), members), name


def read_torch(path: Path) -> Any:
    """Return the content of a file of torch.save, with a `StandIn` for every object that is no data.

    Raises:
        ModelError: the file names code, or holds tensors that are spread over processes.
        RuntimeError, ValueError, pickle.UnpicklingError, OSError: the file is damaged, or of another format.
    """
    names = set(USUAL_NAMES)
    if zipfile.is_zipfile(path):
        names.update(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    for name in sorted(names):
        _check_name(name, path)
    containers: dict[str, type] = {"collections.defaultdict": OrderedDict}
    while True:
        try:
            return _read(path, [_stand_in(name, containers.get(name)) for name in names])
        except pickle.UnpicklingError as error:
            refused = REFUSED_NAME.search(str(error))
            if refused:
                raise _holds_code(refused[1], path) from error
            filled = FILLED_STAND_IN.search(str(error))
            if not filled or filled[2] in containers:
                raise
            containers[filled[2]] = OrderedDict if "SETITEM" in filled[1] else list


def _read(path: Path, stand_ins: list[tuple[Any, str]]) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
        warnings.simplefilter("ignore")  # torch warns of pickles of another protocol
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_name(name: str, path: Path) -> None:
    """Raise ModelError where a name means code, or tensors that are not whole."""
    if name.startswith(DISTRIBUTED):
        advice = "gather them, with torch.distributed.checkpoint.state_dict.get_model_state_dict"
        raise ModelError(
            f"{path} holds tensors that are spread over processes ({name}): {advice} and full_state_dict=True"
        )
    library = name.partition(".")[0]
    if library in sys.stdlib_module_names and not HARMLESS.fullmatch(name):
        raise _holds_code(name, path)


def _holds_code(name: str, path: Path) -> ModelError:
    return ModelError(
        f"{path} names {name}, code that weights do not need, and was not opened; "
        "if you trust whoever made it, let them save its state_dict alone (safetensors is best)"
    )
