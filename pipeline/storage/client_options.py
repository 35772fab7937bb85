"""Choose the options of a store's client among the storage options, and refuse those that it does not know.

A key with `://` holds the options of one bucket, or of one kind of store: {"s3://public": {"anon": true}}. So
one command reads from one store and writes to another.
"""

import difflib
import inspect
from typing import Any

import fsspec

from wordsworth.pipeline.errors import UserError

COMMON = (  # options that fsspec itself takes
    "asynchronous",
    "batch_size",
    "listings_expiry_time",
    "loop",
    "max_paths",
    "skip_instance_cache",
    "use_listings_cache",
)
# Options that a client takes without naming them in its constructor, by the first letter of its schemes.
UNNAMED = {
    "s": ("profile", "session_vars", "event_hooks", "include_builtin_handlers"),
    "g": ("retry_timeout", "retry_initial", "retry_maximum", "retry_multiplier"),
}
AZURE = "a"  # what Azure's client does not know it gives to DefaultAzureCredential
OF_ONE_BUCKET = 'an option for one bucket alone stands in {"s3://bucket": {...}}'
OWN = "wordsworth_"  # beginning of the keys of this package


def options_for(uri: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options for one URI: those of all places, of its kind of store, and of its bucket."""
    if not any("://" in key for key in options):
        return options
    scheme, separator, rest = uri.partition("://")
    chosen = {key: value for key, value in options.items() if "://" not in key}
    if not separator:
        return chosen
    for place in (f"{scheme}://", f"{scheme}://{rest.partition('/')[0]}"):
        chosen |= options.get(place, {})
    return chosen


def check_places(options: dict[str, Any]) -> None:
    """Refuse options of a place that are no object, and places that are more than a bucket.

    Raises:
        UserError: a key with `://` is no bucket, or its value is no object.
    """
    for place, value in options.items():
        _, separator, bucket = place.partition("://")
        if separator and ("/" in bucket or not isinstance(value, dict)):
            raise UserError(
                f"--storage-options: {place} must be a bucket without a path and its value an object, as in "
                '{"s3://bucket": {"anon": true}}',
                exit_code=2,
            )


def refuse_unknown_options(scheme: str, options: dict[str, Any]) -> None:
    """Refuse an option that the client of a scheme does not know: Google's would take it and do nothing.

    Raises:
        UserError: there is such an option.
    """
    try:
        client = fsspec.get_filesystem_class(scheme)
    except ImportError:
        return  # who opens the file system says how to install it
    known = {*COMMON, *UNNAMED.get(scheme[0], ())}
    for kind in client.__mro__:
        known |= set(inspect.signature(kind.__init__).parameters) - {"self", "args", "kwargs"}
    for name in options:
        if name in known or name.startswith(OWN):
            continue
        meant = difflib.get_close_matches(name, known, n=1)
        if meant or not scheme.startswith(AZURE):
            hint = f"did you mean {meant[0]}?" if meant else OF_ONE_BUCKET
            raise UserError(
                f"--storage-options: the client of {scheme}:// knows no option {name}: {hint}", exit_code=2
            )
