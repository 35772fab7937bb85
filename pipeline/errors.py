"""The one exception that is meant for people."""

import re


class UserError(Exception):
    """Something the user can put right. The message is one line: what, where, what to do.

    `exit_code` is 1 for a run that failed and 2 for a command that was wrong from the start.
    """

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.message, self.exit_code = message, exit_code

    def __str__(self) -> str:
        return self.message  # Ray Data adds lines about its own retries to `args`


class ClusterGone(UserError):
    """There is no Ray any more that could be shut down."""


def root_cause(error: BaseException, *meant: type[BaseException]) -> BaseException:
    """Return the first error that is `meant` for people, else the innermost cause: Ray wraps what a task raised several times."""
    seen: set[int] = set()  # Ray's wrappers can be causes of each other
    while not isinstance(error, meant) and id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None) or error.__cause__ or error
        error = (
            error if type(cause).__name__ == "SystemException" else cause
        )  # Ray Data hangs that on errors; it says nothing
    while isinstance(cause := getattr(error, "cause", None), meant) and cause is not error:
        error = cause  # Ray's wrapper is of the same kind, and its text is a traceback
    return _of_constructor(error) or error


TOLD = re.compile(r"^(?:[\w.]+\.)?(?:UserError|DeviceLost): (.+)$", re.MULTILINE)


def _of_constructor(error: BaseException) -> UserError | None:
    """Return what the constructor of an actor had to tell: of that Ray keeps the text alone."""
    told = TOLD.findall(str(error)) if getattr(error, "actor_init_failed", False) else []
    return UserError(told[-1]) if told else None
