"""Find the predictions of runs that lie below a source, as where --output is a folder of it."""

import fsspec

from wordsworth.pipeline.sources.file_kinds import base_name
from wordsworth.pipeline.storage.objects import object_info
from wordsworth.pipeline.storage.streams import with_retries

PREDICTIONS = "predictions"  # folder of a run's files
PLAN = "_run/plan.json"  # lies beside it


class RunOutputs:
    """Tell tables that a run wrote from tables of images. A listing has many files of one folder in a row.

    Args:
        fs: file system of the source
    """

    def __init__(self, fs: fsspec.AbstractFileSystem):
        self.fs = fs
        self._last: tuple[str, bool] = ("", False)  # the folder that was judged last, and the verdict

    def holds(self, path: str) -> bool:
        """Return whether a table is a file of predictions.

        Raises:
            OSError: the store fails.
        """
        folder = path.rpartition("/")[0]
        if base_name(folder) != PREDICTIONS:
            return False
        if folder != self._last[0]:
            self._last = (folder, self._is_there(f"{folder.rpartition('/')[0]}/{PLAN}"))
        return self._last[1]

    def _is_there(self, path: str) -> bool:
        try:
            with_retries(lambda: object_info(self.fs, path))
        except (FileNotFoundError, PermissionError):
            return False
        return True
