"""Tell apart the two names of a kept column: that in the source, and that in the output.

`json` keeps the sidecar json as column json; `label=given` keeps the column label as column given.
"""


def source_name(kept: str) -> str:
    """Return the sidecar or column of the source that --keep names."""
    return kept.rpartition("=")[0] or kept


def output_name(kept: str) -> str:
    """Return the column of the output that holds it."""
    return kept.rpartition("=")[2] or kept


def renamed(column: str, name: str) -> str:
    """Return what keeps a column under another name."""
    return f"{column}={name}"
