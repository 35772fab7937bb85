"""Tell a disk that answers at once from one that is slow, such as a mounted bucket: by how long its images
take. Threads cost more than a quick disk's answer, and save most of a slow one's time."""

QUICK_S = 0.001  # seconds for an image of a disk that answers at once, and QUICK_BYTES more
QUICK_BYTES = 500_000  # bytes that such a disk gives in a millisecond
SLOW_IMAGES = 3  # images in a row after which a disk counts as slow
SLOW_ROWS = 64  # rows that are fetched in threads after a disk was slow, before it is tried without again


class DiskPace:
    """Decide from image to image whether a disk is slow.

    Attributes:
        rows_in_threads: rows to come that are to be fetched in threads; 0 for a quick disk
    """

    def __init__(self) -> None:
        self.rows_in_threads = 0
        self._num_slow = 0  # images in a row for which the disk was slow

    def saw(self, seconds: float, num_bytes: int) -> None:
        """Take note of an image that was read without threads."""
        is_slow = seconds > QUICK_S * (1 + num_bytes / QUICK_BYTES)
        self._num_slow = self._num_slow + 1 if is_slow else 0
        if self._num_slow == SLOW_IMAGES:  # one alone may have waited for the processor
            self._num_slow = 0
            self.rows_in_threads = SLOW_ROWS

    def count(self) -> None:
        """Take note of a row that is fetched in threads."""
        self.rows_in_threads = max(0, self.rows_in_threads - 1)
