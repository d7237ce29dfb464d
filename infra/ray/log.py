"""The log of a job on a Ray cluster: what is new, as Ray streams it."""

import asyncio
import logging
import threading
from queue import Empty, SimpleQueue

from infra.ray.client import connect
from infra.submission.place import Log


class JobLog(Log):
    """Receives a log from Ray in a thread, again from its start if the connection was lost; what was read is left out.

    Once the job has ended the whole log is asked for: nobody can say whether the stream has brought all of it.
    """

    def __init__(self, api: str, submission: str) -> None:
        self._api, self._submission = api, submission
        self._read = 0
        self._skip = 0
        self._pieces: SimpleQueue[str] = SimpleQueue()
        self._receiving: threading.Thread | None = None

    def read(self, *, ended: bool) -> bytes:  # noqa: D102 - see Log
        text = self._rest() if ended else self._received()
        self._read += len(text)
        return text.encode(errors="replace")

    def _rest(self) -> str:
        with connect(self._api) as client:
            text: str = client.get_job_logs(self._submission)
        return text[self._read :]

    def _received(self) -> str:
        if self._receiving is None or not self._receiving.is_alive():
            self._pieces, self._skip = SimpleQueue(), self._read
            self._receiving = threading.Thread(target=self._receive, args=(self._pieces,), daemon=True, name="log")
            self._receiving.start()
        found: list[str] = []
        while True:
            try:
                piece = self._pieces.get_nowait()
            except Empty:
                return "".join(found)
            new = piece[self._skip :]
            self._skip -= len(piece) - len(new)
            found.append(new)

    def _receive(self, pieces: "SimpleQueue[str]") -> None:
        async def receive() -> None:
            from ray.job_submission import JobSubmissionClient

            # It logs how each stream ended.
            logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)
            async for piece in JobSubmissionClient(self._api).tail_job_logs(self._submission):
                pieces.put(piece)

        try:
            asyncio.run(receive())
        except Exception:  # noqa: BLE001 - whatever its libraries raise: `phf jobs` reports it when it asks for the status
            return
