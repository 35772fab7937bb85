"""Define the exceptions that are meant for people, and find such an exception inside those of Ray."""

import re
import unicodedata

SHOWN_CHARS = 2_000  # of one text on a terminal or in a log
# Says what to do where images have errors.
NAMES_THE_IMAGES = "`wordsworth label SOURCE -o OUT -m MODEL`, then `wordsworth show OUT --errors`, say why"


class UserError(Exception):
    """Report a problem that the user can solve, in one line: what, where, what to do.

    Attributes:
        message: the line.
        exit_code: 1 for a run that failed, 2 for a command that was wrong from the start.
    """

    def __init__(self, message: str, exit_code: int = 1):
        self.message = shown(without_secrets(message))
        super().__init__(self.message)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return self.message  # Ray Data adds lines about its own retries to `args`


_WEB_USER = re.compile(r"(https?://)[^/\s@]*@", re.IGNORECASE)  # user and password of a web server's address
_WEB_QUERY = re.compile(r"""(https?://[^?\n]*)\?[^\s'"<>]*""", re.IGNORECASE)  # a name may hold spaces


def without_secrets(text: str) -> str:
    """Return a text without what gives access: user, password and query of each http address in it.

    A signed URL has its signature in the query. Clients of web servers put whole URLs into their errors.
    """
    return _WEB_QUERY.sub(r"\1", _WEB_USER.sub(r"\1", text)) if "://" in text else text


def shown(text: str) -> str:
    """Return a text from data as a terminal or a line of a log may have it: one line without commands.

    Names in tars, folders, tables and models can hold anything: line feeds, escape sequences that write the
    clipboard or the title, marks that turn the direction of what follows, half of a surrogate pair. Each
    such character is escaped as Python escapes it. A text of thousands of characters keeps its two ends.
    """
    if len(text) > SHOWN_CHARS:
        half = SHOWN_CHARS // 2
        left_out = len(text) - 2 * half
        text = f"{text[:half]} ... {left_out:,} characters ... {text[-half:]}"
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown_character, text))


def _shown_character(char: str) -> str:
    # Spaces of other scripts are harmless, though Python does not call them printable.
    if char.isprintable() or unicodedata.category(char) == "Zs":
        return char
    return char.encode("unicode_escape").decode()


class ClusterGone(UserError):
    """Report that the Ray cluster is gone, so that nobody tries to shut it down."""


# In the first line of Ray's text about an error of a worker.
RAISED_IN = re.compile(r"\(pid=(\d+), ip=([^\s,)]+)")
# A line of Ray's text about an actor's death: the exception that the actor's constructor raised.
CONSTRUCTOR_ERROR = re.compile(r"^(?:[\w.]+\.)?(?:UserError|DeviceLost): (.+)$", re.MULTILINE)


def root_cause(error: BaseException, *wanted: type[BaseException]) -> BaseException:
    """Return the first error of the wanted types, or the innermost cause: Ray wraps an error several times.

    Args:
        error: the outermost error.
        wanted: types of errors to stop at.
    """
    seen: set[int] = set()  # Ray's wrappers can be causes of each other
    while not isinstance(error, wanted) and id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None) or error.__cause__
        # Ray Data adds an empty SystemException as a cause.
        if cause is not None and type(cause).__name__ != "SystemException":
            error = cause
    # Ray's wrapper of a wanted error has the wanted type too, but its text is a traceback.
    cause = getattr(error, "cause", None)
    while isinstance(cause, wanted) and cause is not error:
        error = cause
        cause = getattr(error, "cause", None)
    return _error_of_constructor(error) or error


def worker_of(error: BaseException) -> tuple[str, int] | None:
    """Return the address of the node and the id of the process in which a worker raised an error.

    Ray's wrapper of an error has them in its text alone. None for an error of this process.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        raised = RAISED_IN.search(str(current)) if "RayTaskError" in type(current).__name__ else None
        if raised:
            return raised[2], int(raised[1])
        current = getattr(current, "cause", None) or current.__cause__ or current.__context__
    return None


def _error_of_constructor(error: BaseException) -> UserError | None:
    """Return the error that an actor's constructor raised: Ray keeps only its text."""
    if not getattr(error, "actor_init_failed", False):
        return None
    messages = CONSTRUCTOR_ERROR.findall(str(error))
    return UserError(messages[-1]) if messages else None


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Return a count and its noun: 1 row, 2 rows.

    Args:
        nouns: the noun for another number than one; without it an s is added.
    """
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"
