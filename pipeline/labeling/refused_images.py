"""Say early that images are refused which a table names, and which option allows them."""

import re
from collections import Counter

import pyarrow.compute as pc
import pyarrow.parquet as pq

from wordsworth.pipeline.labeling.label_run import LabelRun
from wordsworth.pipeline.output.records import Receipt

CODE = "refused_uri"
_OPTION = re.compile(r"\((--allow-uris [^)]*|--allow-http)")  # of an error's detail


class RefusedImages:
    """Add a note at the first unit whose images are refused and could be allowed by an option.

    Args:
        run: the run
    """

    def __init__(self, run: LabelRun):
        self._run = run
        self._is_said = False

    def look(self, receipt: Receipt) -> None:
        """Look at the rows of a unit, if none of those before was refused."""
        if self._is_said or not receipt.errors.get(CODE):
            return
        path = self._run.folder.path("predictions", receipt.file)
        with self._run.folder.fs.open(path, "rb") as file:
            rows = pq.read_table(file, columns=["error", "error_detail"])
        details = rows.filter(pc.equal(rows["error"], CODE))["error_detail"].to_pylist()
        options = Counter(option[1] for detail in details if (option := _OPTION.search(detail or "")))
        if not options:
            return
        self._is_said = True
        commonest, count = options.most_common(1)[0]
        self._run.progress.note(
            f"{count:,} of {receipt.rows:,} images of a file are refused, and more may be: {commonest} "
            "allows them, and --retry-errors with it fetches them"
        )
