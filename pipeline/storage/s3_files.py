"""Ask S3 and stores that speak its language: one layer of tries, bounded waits, renewed credentials.

s3fs tries each call five times, botocore each of these five times, and neither ends a body that trickles.
Here a fault that may pass is tried again, with random waits, until the patience of `patience.py` is over.
Whatever asks the store through this class gets that: a listing, a commit, a library.
"""

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import tenacity
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from wordsworth.pipeline.storage import patience
from wordsworth.pipeline.storage.patience import StoreFailure, patience_of
from wordsworth.pipeline.storage.s3_body import MD5, Body, Readings, md5_of
from wordsworth.pipeline.storage.s3_faults import (
    ENDED,
    NO_CODE,
    RENEWED,
    PassingFault,
    code_of,
    may_pass,
    said_by,
)

CONNECTIONS = 64  # open at once, so that as many images can be fetched at once
CALL_S = 60.0  # the longest time of a call, without the bytes that it sends
SLOWEST_UPLOAD_BYTES_S = 50_000
ABORT_S = 5.0  # patience for the end of an upload that failed already
# Objects whose bytes come twice alike and not as their ETag says, before this store's ETags are no MD5.
ENOUGH_DOUBTS = 3


class S3Files(S3FileSystem):
    """Hold the files of one store that speaks S3. Its options are those of s3fs."""

    retries = 1  # of s3fs itself

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.etags_are_md5 = True
        self._doubts = 0
        self._renewing = asyncio.Lock()

    def _prepare_config_kwargs(self) -> dict[str, Any]:
        """Return the settings of botocore's client; the user's own win."""
        ours = {"max_pool_connections": CONNECTIONS, "retries": {"total_max_attempts": 1, "mode": "standard"}}
        return ours | super()._prepare_config_kwargs()

    @property
    def address(self) -> str:
        """Return the address of the store's server, for `patience.py`."""
        return str(self.endpoint_url or self.client_kwargs.get("endpoint_url") or "s3")

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        """Return the answer of the store to a call of its API.

        Raises:
            StoreFailure: it failed until the patience was over.
            OSError: it refused.
        """
        tries = 0

        async def ask_again() -> Any:
            nonlocal tries
            tries += 1
            return await self.ask(method, akwarglist, kwargs)

        try:
            answer = await self.patiently(method, kwargs, ask_again)
        except (FileNotFoundError, FileExistsError):
            # The answer to an earlier try was lost, and the store knows the upload no more.
            is_upload = method == "complete_multipart_upload" and tries > 1
            if is_upload and await self._is_complete(kwargs):
                return {}
            raise
        if method == "get_object":
            answer["Body"] = Body(self, akwarglist, kwargs, answer)
        return answer

    call_s3 = sync_wrapper(_call_s3)

    async def patiently(self, method: str, kwargs: dict[str, Any], ask: Callable[[], Awaitable[Any]]) -> Any:
        """Return what `ask` returns, which is called again after a fault that may pass.

        Args:
            method, kwargs: the call of the API, for the message.
            ask: the call.
        """
        began = time.monotonic()
        seconds = patience.patience_for(self.address)
        backoff = tenacity.wait_random_exponential(patience.FIRST_WAIT_S, patience.LONGEST_WAIT_S)
        retrying = tenacity.AsyncRetrying(
            stop=lambda state: time.monotonic() - began >= seconds,
            # The last try begins when the patience ends.
            wait=lambda state: min(backoff(state), max(0.0, began + seconds - time.monotonic())),
            retry=tenacity.retry_if_exception(may_pass),
            before_sleep=lambda state: self._tell_trouble(state, time.monotonic() - began),
            reraise=True,
        )
        try:
            return await retrying(ask)
        except asyncio.CancelledError:
            if retrying.statistics.get("attempt_number", 1) > 1:  # who asks waited no longer
                patience.note_silence(self.address)
            raise
        except Exception as error:
            if not may_pass(error):
                raise
            patience.note_silence(self.address)
            what = "/".join(str(kwargs[name]) for name in ("Bucket", "Key") if name in kwargs)
            tries = retrying.statistics["attempt_number"]
            counted = f"{tries} tries in {time.monotonic() - began:.0f} s"
            raise StoreFailure(f"{method} of {what} fails: {said_by(error)} ({counted})") from error

    def _tell_trouble(self, state: tenacity.RetryCallState, waited_s: float) -> None:
        error = state.outcome.exception() if state.outcome else None
        patience.tell_trouble(self.address, waited_s, error)

    async def ask(self, method: str, akwarglist: tuple, kwargs: dict[str, Any]) -> Any:
        """Return the answer to one request, or to a second one where other credentials are at hand."""
        client = self._s3
        try:
            return await self._ask_once(method, akwarglist, kwargs)
        except OSError as error:
            if self.anon or code_of(error) not in (*RENEWED, NO_CODE):
                raise
            client = client or self._s3
            told = await self._explained(error, kwargs)
            if self._s3 is client:  # else another task has renewed them since
                await self._renew(client, told)
        client = self._s3
        try:
            return await self._ask_once(method, akwarglist, kwargs)
        except OSError as error:
            told = await self._explained(error, kwargs)
            if code_of(told) in ENDED or (code_of(told) == NO_CODE and self._s3 is not client):
                raise PassingFault(f"the credentials have ended: {said_by(told)}") from told
            raise

    async def _explained(self, error: OSError, kwargs: dict[str, Any]) -> OSError:
        """Return what a GET says in the place of a HEAD that was refused with 400.

        The answer to a HEAD has no body, and so no code: credentials that ended look like a wrong name.
        """
        if code_of(error) != NO_CODE or "Key" not in kwargs:
            return error
        first_byte = {"Bucket": kwargs["Bucket"], "Key": kwargs["Key"], "Range": "bytes=0-0"}
        try:
            answer = await self._ask_once("get_object", (), first_byte)
        except OSError as told:
            return told
        answer["Body"].close()
        return error

    async def _renew(self, client: Any, error: OSError) -> None:
        """Take the credentials that the environment, the files or the programs of AWS give now.

        Args:
            client: the client that was refused.
            error: the refusal, which is raised if other credentials are not to be had or do not help.
        """
        code = code_of(error)
        is_fixed = bool(self.key) or "aws_access_key_id" in self.client_kwargs
        if is_fixed and code in ENDED:
            raise StoreFailure(
                f"the credentials have ended ({said_by(error)}), and those of the storage options are never "
                "renewed: run the same command again with others, or leave them to AWS's own chain"
            ) from error
        if is_fixed or code not in RENEWED:
            raise error
        async with self._renewing:
            if self._s3 is client:
                await self.set_session(refresh=True)

    async def _ask_once(self, method: str, akwarglist: tuple, kwargs: dict[str, Any]) -> Any:
        body = kwargs.get("Body")
        num_bytes = len(body) if isinstance(body, bytes | bytearray | memoryview) else 0
        try:
            async with asyncio.timeout(CALL_S + num_bytes / SLOWEST_UPLOAD_BYTES_S):
                answer = await super()._call_s3(method, *akwarglist, **kwargs)
        except Exception as error:
            if not may_pass(error) and code_of(error) not in RENEWED:
                patience.note_answer(self.address)
            raise
        patience.note_answer(self.address)
        return answer

    # ---- uploads in parts ------------------------------------------------------------------------------

    async def _is_complete(self, kwargs: dict[str, Any]) -> bool:
        """Return whether the object of an upload has the parts of the upload."""
        parts = [part["ETag"].strip('"') for part in kwargs["MultipartUpload"]["Parts"]]
        if not all(MD5.fullmatch(part) for part in parts):
            return False
        whole = md5_of(b"".join(bytes.fromhex(part) for part in parts))
        where = {"Bucket": kwargs["Bucket"], "Key": kwargs["Key"]}
        try:
            found = await self._call_s3("head_object", **where)
        except FileNotFoundError:
            return False
        return bool(found["ETag"].strip('"') == f"{whole}-{len(parts)}")

    async def _abort_mpu(self, bucket: str, key: str, mpu: str) -> None:
        """End an upload that failed. What it failed of is raised, and not that the end fails too."""
        with patience_of(ABORT_S), contextlib.suppress(OSError):
            await super()._abort_mpu(bucket, key, mpu)

    # ---- what fsspec answers with False where the store fails --------------------------------------------

    async def _isfile(self, path: str) -> bool:
        try:
            return bool((await self._info(path))["type"] == "file")
        except StoreFailure:
            raise
        except Exception:
            return False

    # ---- bytes that are not as the ETag says -----------------------------------------------------------

    async def _get_file(self, rpath: str, lpath: str, *args: Any, **options: Any) -> None:
        """Copy an object to a file of this disk, and compare the file with what the store says of it."""
        bucket, key, _ = self.split_path(rpath)
        readings = Readings(self)

        async def fetch() -> None:
            await super(S3Files, self)._get_file(rpath, lpath, *args, **options)
            if os.path.isdir(lpath):
                return
            told = await self.ask("head_object", (), {"Bucket": bucket, "Key": key})
            if os.path.getsize(lpath) != told["ContentLength"]:
                raise PassingFault(f"{os.path.getsize(lpath)} of {told['ContentLength']} bytes came")
            if readings.can_check(told):
                found = await asyncio.to_thread(_md5_of_file, lpath)
                if not readings.check(found, told):
                    self.doubt_etags()

        await self.patiently("get_object", {"Bucket": bucket, "Key": key}, fetch)

    def doubt_etags(self) -> None:
        """Count an object whose bytes came twice alike, and not as its ETag says."""
        self._doubts += 1
        self.etags_are_md5 = self._doubts < ENOUGH_DOUBTS


def _md5_of_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
