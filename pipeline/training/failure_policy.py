"""Decide which errors end a training: those whose message is for the user, because they would come again."""

from dataclasses import dataclass

from wordsworth.pipeline.cluster.ray_internals import error_of_worker, is_without_room
from wordsworth.pipeline.errors import UserError, root_cause, shown
from wordsworth.pipeline.training.news import NoteNews
from wordsworth.pipeline.training.news_channel import NewsChannel
from wordsworth.vit_model.config import ModelError

REASON_LENGTH = 160  # characters of an error that a note shows
# Words of Ray's about a worker that does not answer, and of Gloo's and NCCL's about a connection to one.
LOSSES = ("health check failed",)
MISSED = ("by peer", "connection was closed", "Connection refused", "remote process exited")


@dataclass(frozen=True)
class FailureJudge:
    """Tell whether workers must not start again, and let the user know of a failure after which they do.

    Ray Train's controller calls it in its own process.

    Attributes:
        news: brings notes to the user.
    """

    news: NewsChannel

    def __call__(self, error: Exception) -> bool:
        """Tell whether an error of Ray Train would come again."""
        if error_for_user(error) is not None:
            return True
        self.news.post(NoteNews(message=failure_note(error)))
        return False


def failure_note(error: Exception) -> str:
    """Say in one line what failed, after which the workers start again."""
    if is_without_room(error):
        return "the cluster has no room for the workers now: waiting for nodes"
    failures = {rank: error_of_worker(one) for rank, one in getattr(error, "worker_failures", {}).items()}
    again = "all start again from the last checkpoint"
    if not failures:
        return f"the training failed ({_reason(error)}): {again}"
    # One lost worker makes all others fail, who miss it, and theirs is often the first error.
    lost = {rank: one for rank, one in failures.items() if _is_loss(one)}
    rank, first = min((lost or failures).items())
    if lost:
        others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        return f"lost: worker {rank}{others} ({_reason(first)}): {again}"
    if any(words in str(first) for words in MISSED):
        return f"lost: a worker or its node, which worker {rank} misses ({_reason(first)}): {again}"
    return f"failed: worker {rank} ({_reason(first)}): {again}"


def _is_loss(error: BaseException) -> bool:
    import ray

    return isinstance(error, ray.exceptions.RayActorError) or any(words in str(error) for words in LOSSES)


def _reason(error: BaseException) -> str:
    """Return what an error says, in one line; of a death, the cause that Ray gives in a later line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "died because" in line or "dead because" in line]
    line = next(iter(causes or lines), type(error).__name__)
    return shown(line[:REASON_LENGTH])


def error_for_user(error: Exception) -> Exception | None:
    """Return the first error, of a worker or of their start, that says what the user can do; None for no
    such error."""
    of_start = getattr(error, "controller_failure", None)
    for failure in [*worker_errors(error), *([of_start] if of_start else [])]:
        cause = root_cause(failure, UserError, ModelError)
        if isinstance(cause, UserError | ModelError):
            return cause
    return None


def worker_errors(error: Exception) -> list[BaseException]:
    """Return what the workers raised, out of an error of Ray Train."""
    failures = getattr(error, "worker_failures", {})
    return [error_of_worker(failure) for failure in failures.values()]
