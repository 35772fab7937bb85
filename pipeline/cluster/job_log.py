"""Follow the log of a Ray job to its end: each line once, whatever becomes of the connection."""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wordsworth.pipeline.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

SILENT_S = 20.0  # seconds without a line, after which the whole log is asked for
RETRY_S = 2.0  # seconds between two tries to reach the server again
GONE_S = 300.0  # seconds without any answer of the server, after which it is given up
STOPPED = 143  # exit code of a job that was stopped: it ended by SIGTERM


class JobLog:
    """Follow one job.

    A connection that breaks is opened again. Ray then sends the log from its beginning, so the characters
    that were given out are counted. A connection can be dead without an error (a port-forward, a load
    balancer): while nothing comes, the whole log is fetched, and the job is asked whether it ended.
    """

    def __init__(self, client: "JobSubmissionClient", job: str):
        self._client = client
        self._job = job
        self._given = 0  # characters of the log that were given out
        self._texts: queue.Queue[str | BaseException | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def lines(self) -> Iterator[str]:
        """Yield the lines of the log without their ends, until the job has ended.

        The caller may stop at any line and call this again later.

        Raises:
            UserError: the server has not answered for minutes, or does not know the job.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="job-log", daemon=True)
            self._thread.start()
        pending = ""
        while True:
            # With a timeout, because a wait without one is not interrupted by Ctrl-C on every system.
            try:
                text = self._texts.get(timeout=1.0)
            except queue.Empty:
                continue
            if isinstance(text, BaseException):
                raise text
            if text is None:
                break
            *complete, pending = (pending + text).split("\n")
            yield from complete
        if pending:
            yield pending

    def _follow(self) -> None:
        try:
            asyncio.run(self._until_the_end())
            self._texts.put(None)
        except BaseException as error:
            self._texts.put(error)

    async def _until_the_end(self) -> None:
        answered = time.monotonic()
        while True:
            with contextlib.suppress(*_broken()):
                await self._tail()
            try:
                if await asyncio.to_thread(self._has_ended):
                    return
                answered = time.monotonic()
            except _broken() as error:
                if "404" in str(error):
                    raise UserError(
                        f"the cluster knows no job {self._job} any more: its head was started anew. "
                        "The same command again submits it, and what is done is kept"
                    ) from error
                if time.monotonic() - answered > GONE_S:
                    raise UserError(
                        f"the job server has not answered for {GONE_S / 60:.0f} minutes: the job "
                        f"{self._job} may go on, and the same command follows it again"
                    ) from error
            await asyncio.sleep(RETRY_S)

    async def _tail(self) -> None:
        """Give out what comes over one connection, until it ends."""
        chunks = self._client.tail_job_logs(self._job)
        received = 0
        try:
            while True:
                following = asyncio.ensure_future(anext(chunks))
                while not (await asyncio.wait({following}, timeout=SILENT_S))[0]:
                    if await asyncio.to_thread(self._has_ended):
                        following.cancel()
                        return
                try:
                    chunk = following.result()
                except StopAsyncIteration:
                    return
                received += len(chunk)
                if received > self._given:
                    self._give(chunk[-(received - self._given) :])
        finally:
            with contextlib.suppress(Exception):
                await chunks.aclose()

    def _has_ended(self) -> bool:
        """Give out what the log has beyond, and tell whether the job has ended.

        The job is asked first: what it wrote before its end is in the log then.
        """
        ended = self._client.get_job_info(self._job).status.is_terminal()
        try:
            self._give(self._client.get_job_logs(self._job)[self._given :])
        except RuntimeError:
            if not ended:
                raise
            # The node of the job is gone, and its log with it.
            self._texts.put("(the rest of the log cannot be read any more)\n")
        return ended

    def _give(self, text: str) -> None:
        if text:
            self._given += len(text)
            self._texts.put(text)


def _broken() -> tuple[type[Exception], ...]:
    """Return what Ray's client raises where the server is away, or answers with an error."""
    import aiohttp
    import requests

    return (
        RuntimeError,
        ConnectionError,
        requests.exceptions.RequestException,
        aiohttp.ClientError,
        TimeoutError,
    )


def exit_code(info: "JobDetails | Any") -> int:
    """Return the exit code of a job that ended, as a shell says it: 128 and the number of a signal."""
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        return STOPPED
    code = info.driver_exit_code
    if code is None:
        return 1
    return code if code >= 0 else 128 - code
