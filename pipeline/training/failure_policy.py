"""Decide which errors end a training: those whose message is for the user, because they would come again."""

from wordsworth.pipeline.cluster.ray_internals import error_of_worker
from wordsworth.pipeline.errors import UserError, root_cause
from wordsworth.vit_model.config import ModelError


def is_final(error: Exception) -> bool:
    """Tell whether workers must not start again. Ray Train's controller calls this in its own process."""
    return error_for_user(error) is not None


def error_for_user(error: Exception) -> Exception | None:
    """Return the first worker's error that says what the user can do; None if no worker's error does."""
    for failure in worker_errors(error):
        cause = root_cause(failure, UserError, ModelError)
        if isinstance(cause, UserError | ModelError):
            return cause
    return None


def worker_errors(error: Exception) -> list[BaseException]:
    """Return what the workers raised, out of an error of Ray Train."""
    failures = getattr(error, "worker_failures", {})
    return [error_of_worker(failure) for failure in failures.values()]
