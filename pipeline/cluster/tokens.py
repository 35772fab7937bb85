"""Decide whether to show a token to a cluster's head: as the environment says, else as the head asks."""

import contextlib
import os
from pathlib import Path

from wordsworth.pipeline.cluster import ray_internals
from wordsworth.pipeline.cluster.address import HEADS_PORT, REACH_S, in_time
from wordsworth.pipeline.cluster.ray_internals import AUTH_MODE, AuthMode, Head
from wordsworth.pipeline.errors import UserError

TOKEN = "RAY_AUTH_TOKEN"  # environment variables of Ray's
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
TOKEN_FILE = "~/.ray/auth_token"  # where Ray looks for a token that no variable names


def ask(address: str) -> tuple[AuthMode, Head | None]:
    """Return whether to show a token, and what the head says of itself.

    What the environment says comes first, then what the cluster wants.
    """
    from ray.exceptions import AuthenticationError, RayError

    said = os.environ.get(AUTH_MODE, "").lower()
    try:
        head = in_time(lambda: ray_internals.ask_head(address, "disabled"), 2 * REACH_S)
    except AuthenticationError:
        if said == "disabled":
            raise UserError(
                f"the Ray cluster at {address} asks for a token, and {AUTH_MODE}=disabled is set here: "
                f"unset it, and give the token: {_ways()}"
            ) from None
        return "token", _ask_with_token(address)
    except (RayError, TimeoutError) as error:
        raise _no_head(address, error) from error
    if head is None:  # stock Ray
        return mode_of_environment(), None
    if said == "token":
        raise UserError(
            f"the Ray cluster at {address} asks for no token, and {AUTH_MODE}=token is set here, which keeps "
            f"its nodes from answering this command: unset {AUTH_MODE}, or start the cluster with a token"
        )
    return "disabled", head


def _ask_with_token(address: str) -> Head | None:
    from ray.exceptions import AuthenticationError, RayError

    where = token_place()
    if where is None:
        raise UserError(f"the Ray cluster at {address} asks for a token, and there is none here: {_ways()}")
    refuse_unreadable_token(where)
    try:
        return in_time(lambda: ray_internals.ask_head(address, "token"), 2 * REACH_S)
    except AuthenticationError as error:
        raise UserError(
            f"the Ray cluster at {address} refuses the token of {where}: "
            "it is another cluster's, or was replaced: ask the head's operator (there: ray get-auth-token)"
        ) from error
    except (RayError, TimeoutError) as error:
        raise _no_head(address, error) from error


def refuse_unreadable_token(where: str) -> None:
    """Refuse a token's file that cannot be read.

    Args:
        where: place of the token, as `token_place` says it.

    Raises:
        UserError: the file is missing or empty, or holds no text.
    """
    path = token_file()
    if where == TOKEN or path is None:
        return
    try:
        token = path.read_text().strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the token of {where} in {path}: {reason}") from error
    if not token:
        raise UserError(f"{path}, which {where} names, is empty: {_ways()}")


def token_place() -> str | None:
    """Say where Ray finds this process's token; None where there is none."""
    for name in (TOKEN, TOKEN_PATH):
        if os.environ.get(name):
            return name
    path = token_file()
    return TOKEN_FILE if path is not None and path.exists() else None


def token_file() -> Path | None:
    """Return the file in which Ray looks for a token; None for a user without a home."""
    # A container's user may have neither a name nor HOME: then nobody knows what ~ is.
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get(TOKEN_PATH, "") or TOKEN_FILE).expanduser()
    return None


def _ways() -> str:
    return (
        f"set {TOKEN}, or {TOKEN_PATH} to a file with the token, as on the cluster's head "
        "(there, ray get-auth-token prints it)"
    )


def mode_of_environment() -> AuthMode:
    """Return whether to show a token where the cluster cannot be asked."""
    said = os.environ.get(AUTH_MODE, "").lower()
    if said in ("token", "disabled"):
        return "token" if said == "token" else "disabled"
    return "token" if token_place() else "disabled"


def _no_head(address: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [""])[0].removeprefix("RPC error:").strip() or "an unknown call"
    if isinstance(error, TimeoutError):
        reason = f"no answer within {2 * REACH_S:.0f} s"
    return UserError(
        f"what listens at {address} does not answer as a head of a Ray cluster ({reason}): "
        f"give {HEADS_PORT}, and no port of Ray Client or of a node"
    )
