"""Read the columns that stand in the path of a partitioned table, as Hive, Spark and pyarrow write them.

Every row of `t/label=cat/part-0.parquet` has the value `cat` in a column `label` that is not in the file.
"""

from urllib.parse import unquote

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # stands for null


def path_columns(path: str) -> dict[str, str | None]:
    """Return the values that the folders of a path give to columns; the last folder of a name counts."""
    found: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        name, separator, value = folder.partition("=")
        if name and separator:
            found[unquote(name)] = None if value == NO_VALUE else unquote(value)
    return found
