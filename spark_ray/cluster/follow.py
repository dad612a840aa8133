"""A job's log as it grows, on a line that may be cut: by a tunnel, a dead Wi-Fi, a closed lid."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TextIO, TypeVar, cast

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from spark_ray.cluster.jobs_api import find_job
from spark_ray.core.background import start_thread
from spark_ray.core.errors import ClusterError

Answer = TypeVar("Answer")

_CUT = (aiohttp.ClientError, requests.exceptions.RequestException, OSError, TimeoutError)
_REQUEST_S = 30.0
_BREATH_S = 0.2  # between the end of a log and the news that its job has ended


class Follower:
    """Prints what a job writes until it ends, and takes the line up again whenever it is cut.

    Args:
        client: of the cluster.
        job_id: a submission id.
        silence_s: after so long without a word a new connection is made: a dead one is silent
            too. Each costs the cluster one reading of the log.
        retry_s: pause before another try at a cluster that does not answer.
        patience_s: how long it may be away before we give up; the job goes on all the same.
        output: where the log goes.
    """

    def __init__(
        self,
        client: JobSubmissionClient,
        job_id: str,
        *,
        silence_s: float = 60.0,
        retry_s: float = 3.0,
        patience_s: float = 24 * 3600.0,
        output: TextIO | None = None,
    ) -> None:
        self._client = client
        self._job_id = job_id
        self._silence_s = silence_s
        self._retry_s = retry_s
        self._patience_s = patience_s
        self._output = output or sys.stdout
        self._printed = 0
        self._lost_since: float | None = None

    def follow(self) -> JobDetails:
        """Wait for the end of the job, printing its log.

        Raises:
            ClusterError: the cluster was away for too long, refuses us, or has lost the job.
        """
        while True:
            cut = asyncio.run(self._print_tail())
            try:
                job, rest = self._ended()
                if job is None and cut is not None:
                    raise cut
            except _CUT as error:
                self._lost(error)
                continue
            self._found_again()
            if job is not None:
                self._print(rest[self._printed :])
                return job
            time.sleep(_BREATH_S)

    async def _print_tail(self) -> Exception | None:
        """Print what is new until the job ends, or nothing comes for a while.

        A connection shows the log from its beginning: what was printed before is left out.
        Returns what cut the line, if it was that.
        """
        seen = 0
        tail = cast("AsyncGenerator[str]", self._client.tail_job_logs(self._job_id))
        async with aclosing(tail) as chunks:
            while True:
                try:
                    text = await asyncio.wait_for(anext(chunks), self._silence_s)
                except (StopAsyncIteration, TimeoutError):
                    return None
                except (*_CUT, RuntimeError) as error:  # the latter is Ray's word for it
                    return error if isinstance(error, _CUT) else ConnectionError(str(error))
                self._found_again()
                self._print(text[max(0, self._printed - seen) :])
                seen += len(text)

    def _ended(self) -> tuple[JobDetails | None, str]:
        """The job, if it has ended, and its whole log: a tail may end before its last line."""
        job = self._within(lambda: find_job(self._client, self._job_id))
        if not job.status.is_terminal():
            return None, ""
        return job, self._within(lambda: self._client.get_job_logs(self._job_id))

    def _print(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()
        self._printed += len(text)

    def _within(self, request: Callable[[], Answer]) -> Answer:
        """Ray's client waits for ever on a dead line; we do not."""
        outcome = start_thread(request, "jobs-api")
        try:
            return outcome.result(_REQUEST_S)
        except ClusterError as error:
            cause = error.__cause__
            if cause is None or isinstance(cause, AuthenticationError):
                raise
            raise ConnectionError(str(error)) from cause

    def _lost(self, error: BaseException) -> None:
        now = time.monotonic()
        if self._lost_since is None:
            self._lost_since = now
            print(
                f"connection to {self._client.get_address()} lost; the job goes on, and so does "
                "this when it is back",
                file=sys.stderr,
            )
        if now - self._lost_since > self._patience_s:
            raise ClusterError(
                f"{self._client.get_address()}: has not answered for {self._patience_s:g} s "
                f"({type(error).__name__}); see later with: spark-ray jobs logs {self._job_id} "
                "--follow"
            ) from error
        time.sleep(self._retry_s)

    def _found_again(self) -> None:
        if self._lost_since is not None:
            print("connected again", file=sys.stderr)
            self._lost_since = None


def exit_status(job: JobDetails) -> int:
    """What a followed job's end means for the shell: its own exit status, where it has one."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    return job.driver_exit_code if job.driver_exit_code and job.driver_exit_code > 0 else 1
