"""Work out how far a run is, how fast it is and how long it will take, from receipts and signs of workers."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from wordsworth.pipeline.cluster.signs import UnitSign
from wordsworth.pipeline.output.records import Receipt

WINDOW_S = 60.0  # seconds over which the rate is taken, at least
WINDOW_SHARE = 0.33  # of the time so far, where that is more
POINTS = 60  # points of a window, about
LEAST_TIME_S = 5.0  # seconds of the model's work before a rate is told
LEAST_UNITS = 3  # written units before a rate is told
LONG_ENOUGH_S = 30.0  # seconds of the model's work after which a rate is told without them
KEPT_UNITS = 10_000  # units whose receipts are remembered
FORGOTTEN_S = 900.0  # seconds without a sign after which a unit without a receipt counts no more
DECODE_SHARE = 0.1  # of the work on an image, before anything is known of it
ALMOST = 0.999  # the most that can be done before the last receipt


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """Say how a run goes.

    Attributes:
        images: images that were worked on by this command: those of written units, and of units under way as
            far as these are. Work is decoding and predicting, each by the seconds that it takes.
        decoded: images of units under way that are decoded.
        predicted: images of units under way that are predicted.
        written: images of written units.
        units: written units.
        errors: rows with an error, by code.
        start_seconds: from the command's begin to the model's first image; None before that.
        images_per_second: over the last minute or more, the start left out; None at first.
        share: how much of the run is done, from 0 to 1; None where its size is not known.
        seconds_left: None where nobody can say.
        stage_seconds: seconds of each stage over the written units.
        bytes_read: bytes of the source of the written units.
        seconds_since_unit: since a unit was written, or since the work began.
    """

    images: int
    decoded: int
    predicted: int
    written: int
    units: int
    errors: dict[str, int]
    start_seconds: float | None
    images_per_second: float | None
    share: float | None
    seconds_left: float | None
    stage_seconds: dict[str, float]
    bytes_read: int
    seconds_since_unit: float


@dataclass
class _UnitWork:
    """Hold how far a unit without a receipt is."""

    rows: int
    size_bytes: int
    decoded: float = 0.0
    predicted: float = 0.0
    seen: float = 0.0

    def share(self, decode_share: float) -> float:
        decoded = 1.0 if self.predicted else self.decoded
        return decode_share * decoded + (1 - decode_share) * self.predicted


@dataclass
class Pace:
    """Count a run's receipts and the units under way. Any thread may call it.

    Attributes:
        clock: returns seconds.
        command_began: when the command began, by the clock; None where nobody knows.
        total: bytes of all shards; 0 where the size of the run is not known.
        base: bytes of the shards that were complete before.
        rows_left: images after which the command stops; None where it goes on to the end of its shards.
    """

    clock: Callable[[], float] = time.monotonic
    command_began: float | None = None
    total: int = 0
    base: int = 0
    rows_left: int | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[str, _UnitWork] = {}
        self._last_signs: dict[bytes, UnitSign] = {}
        self._points: deque[tuple[float, float, float]] = deque()  # (time, images, bytes) of the work so far
        self._finished: dict[str, None] = {}  # units whose receipts came last, in their order
        self._began: float | None = None  # when the first work was seen
        self._model_began: float | None = None  # when the model began on the first image
        self._last_unit = self.clock()
        self._share = 0.0
        self._images = 0.0
        self.written = 0
        self.units = 0
        self.bytes_read = 0
        self.errors: Counter[str] = Counter()
        self.stage_seconds: Counter[str] = Counter()
        self._sign_seconds: dict[str, tuple[float, float]] = {}  # stage -> (seconds, images) of signs

    # ---- what comes in ----

    def receipt(self, receipt: Receipt) -> None:
        """Count a unit that is done, or that the store did not give."""
        with self._lock:
            self._note_begin(self._last_unit)
            self._note_model(receipt.seconds.get("predict", 0.0) + receipt.seconds.get("write", 0.0))
            unit = receipt.file.removesuffix(".parquet").removesuffix("-end")
            self._under_way.pop(unit, None)
            self._finished[unit] = None
            if len(self._finished) > KEPT_UNITS:
                del self._finished[next(iter(self._finished))]
            self._last_unit = self.clock()
            self.written += receipt.rows
            self.units += not receipt.fault
            self.bytes_read += receipt.bytes_read
            self.errors.update(receipt.errors)
            self.stage_seconds.update(receipt.seconds)

    def signs(self, signs: Iterable[tuple[bytes, UnitSign | None]]) -> None:
        """Take how far the units under way are, by worker. A sign that did not change is no news."""
        with self._lock:
            for worker, sign in signs:
                if sign is None or self._last_signs.get(worker) == sign:
                    continue
                self._last_signs[worker] = sign
                if sign.unit not in self._finished:  # a sign may be seen after the receipt
                    self._add_sign(sign)

    def _add_sign(self, sign: UnitSign) -> None:
        self._note_begin(self.clock())
        work = self._under_way.setdefault(sign.unit, _UnitWork(rows=sign.rows, size_bytes=sign.size_bytes))
        work.seen = self.clock()
        if sign.stage == "predict":
            self._note_model(sign.seconds)
            work.predicted = max(work.predicted, sign.share)
        else:
            work.decoded = max(work.decoded, sign.share)
        self._sign_seconds[sign.stage] = (sign.seconds, sign.share * sign.rows)

    def _note_begin(self, at: float) -> None:
        if self._began is None:
            self._began = at

    def _note_model(self, worked_s: float) -> None:
        if self._model_began is None:
            self._model_began = max(self._began or 0.0, self.clock() - worked_s)

    # ---- what comes out ----

    @property
    def has_begun(self) -> bool:
        """Tell whether any work was seen."""
        return self._began is not None

    def figures(self) -> RunFigures:
        """Return how the run goes now. Its images and its share never become less."""
        with self._lock:
            now = self.clock()
            images, num_bytes = self._work(now)
            rate, bytes_rate = self._rates(now, images, num_bytes)
            left = None
            if self.rows_left is not None:
                self._reach(images, self.written, self.rows_left)
                left = _seconds(self.rows_left - images, rate)
            elif self.total:
                self._reach(self.base + num_bytes, self.base + self.bytes_read, self.total)
                left = _seconds(self.total - self.base - num_bytes, bytes_rate)
            return RunFigures(
                images=int(images),
                decoded=int(sum(work.rows * work.decoded for work in self._under_way.values())),
                predicted=int(sum(work.rows * work.predicted for work in self._under_way.values())),
                written=self.written,
                units=self.units,
                errors=dict(self.errors),
                start_seconds=self._start(),
                images_per_second=rate,
                share=self._share if self.total or self.rows_left else None,
                seconds_left=left,
                stage_seconds=dict(self.stage_seconds),
                bytes_read=self.bytes_read,
                seconds_since_unit=now - self._last_unit,
            )

    def _start(self) -> float | None:
        if self.command_began is None or self._model_began is None:
            return None
        return max(0.0, self._model_began - self.command_began)

    def _reach(self, done: float, written: float, total: float) -> None:
        """Move the share on. It reaches 1 with the last receipt alone."""
        if total:
            self._share = max(self._share, min(done / total, 1.0 if written >= total else ALMOST))

    def _work(self, now: float) -> tuple[float, float]:
        """Return the images and the bytes of the source that were worked on."""
        for unit in [unit for unit, work in self._under_way.items() if now - work.seen > FORGOTTEN_S]:
            del self._under_way[unit]
        decode_share = self._decode_share()
        images = float(self.written)
        num_bytes = float(self.bytes_read)
        for work in self._under_way.values():
            share = work.share(decode_share)
            images += share * work.rows
            num_bytes += share * work.size_bytes
        self._images = max(self._images, images)
        return self._images, num_bytes

    def _decode_share(self) -> float:
        """Return the share of decoding in the seconds that an image takes, as far as that is known."""
        if not self._stages_are_known:
            return DECODE_SHARE
        decode, predict = (self._seconds_of_image(stage) for stage in ("decode", "predict"))
        return decode / (decode + predict) if decode + predict else DECODE_SHARE

    @property
    def _stages_are_known(self) -> bool:
        return bool(self.units) or len(self._sign_seconds) == 2

    def _seconds_of_image(self, stage: str) -> float:
        if self.written:
            return self.stage_seconds[stage] / self.written
        seconds, images = self._sign_seconds.get(stage, (0.0, 0.0))
        return seconds / images if images else 0.0

    def _rates(self, now: float, images: float, num_bytes: float) -> tuple[float | None, float | None]:
        """Return images and bytes a second over the window; None until something is known of every stage."""
        if self._began is None or not self._stages_are_known:
            return None, None
        if not self._points:
            # Before the first sign of a model, images that were decoded are a guess of the work that is done.
            begin = (self._model_began or now, 0.0, 0.0) if self.units else (now, images, num_bytes)
            self._points.append(begin)
        window = max(WINDOW_S, WINDOW_SHARE * (now - self._began))
        if now - self._points[-1][0] >= window / POINTS:
            self._points.append((now, images, num_bytes))
        while len(self._points) > 2 and now - self._points[1][0] >= window:
            self._points.popleft()
        then, images_then, bytes_then = self._points[0]
        seconds = now - then
        if seconds < (LEAST_TIME_S if self.units >= LEAST_UNITS else LONG_ENOUGH_S):
            return None, None
        return max(0.0, images - images_then) / seconds, max(0.0, num_bytes - bytes_then) / seconds


def _seconds(amount: float, rate: float | None) -> float | None:
    """Return the seconds that an amount takes at a rate; None where there is no rate."""
    return max(0.0, amount) / rate if rate else None
