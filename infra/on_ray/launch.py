"""`phf train --on ray`: Ray Train places the ranks on a cluster and restarts them when one is lost.

The driver does not train: it passes signals on, prints the output of the ranks, and exits with their status, as it does
with ranks on its own machine (`training.distributed.launch`).
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from infra.on_ray.mailbox import STDOUT, Mailbox, Messages
from infra.on_ray.rank import RankJob
from infra.on_ray.ray_train import Losses, Outcome, fit
from pipeline.labelling.on_ray.cluster import check_address, ray_cluster
from pipeline.labelling.on_ray.head import HeadWatch, ask_with_timeout
from scorers.amounts import format_count
from scorers.errors import IncompleteError, StoppedError, UserError
from scorers.printing import refuse_secret
from scorers.stopping import asking
from training.distributed.launch import Launch, describe_loss, give_up_error, restart_message

_POLL_S = 0.2
# Seconds for the mailbox to answer; `HeadWatch` notices a lost head.
_ANSWER_S = 5.0
# Seconds without a rank after which the driver prints that the cluster may have no room.
_PATIENCE_S = 60.0


def launch(request: Launch) -> int:
    """Run the ranks on a Ray cluster until they are done or end deliberately.

    Returns:
        0, or the exit status of the ranks (2, 4 or 75).

    Raises:
        UserError: the cluster cannot be joined, has no GPUs for the ranks, or does not share its folders.
        IncompleteError: ranks were lost more than `max_restarts` times, or the cluster was lost.
        StoppedError: a request to stop came before any rank was started.
    """
    if request.address is not None:
        refuse_secret(request.address, "address")
        if request.address.startswith("ray://"):
            raise UserError(
                f"Cannot train through a Ray client ({request.address}): start the command on a machine of the "
                "cluster, with --address auto."
            )
        check_address(request.address)
    received: list[int] = []
    with ray_cluster(request.address, _own_cpus(request), code=_code()) as resources, asking(received.append):
        gpus = _gpus(request, resources)
        return _Run(request, gpus, received).wait()


def _own_cpus(request: Launch) -> int:
    # Ray counts cores without binding processes to them, so this machine may run more ranks than it has cores.
    return max(len(os.sched_getaffinity(0)), request.ranks * request.cpus)


def _code() -> list[Path]:
    """Return the code to send to the nodes of a cluster: all of phf, since ranks run `python -m phf`."""
    import infra
    import phf
    import training

    return [*(Path(package.__path__[0]) for package in (training, infra)), Path(str(phf.__file__))]


def _gpus(request: Launch, resources: Mapping[str, float]) -> int:
    available = int(resources.get("GPU", 0))
    gpus = min(1, available) if request.gpus is None else request.gpus
    # Do not check a cluster that was joined: it may grow.
    if request.address is None and request.ranks * gpus > available:
        raise UserError(
            f"There are {available} GPUs here, too few for {format_count(request.ranks, 'rank')} with one each. "
            "Start fewer ranks, or use --gpus-per-rank 0 to train on the CPU."
        )
    return gpus


class _Run:
    """One run on a connected cluster; `received` are the signals so far."""

    def __init__(self, request: Launch, gpus: int, received: list[int]) -> None:
        import ray

        self._request, self._gpus, self._received = request, gpus, received
        context = ray.get_runtime_context()
        # Keep the mailbox and the Ray Train task on the driver's node: otherwise losing another machine could end the
        # run. A soft affinity sometimes places them elsewhere.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
        self._placement: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here}
        self._mailbox: Any = ray.remote(Mailbox).options(**self._placement).remote()
        self._head = HeadWatch(context.gcs_address)
        self._forwarded = 0
        self._restarts = 0

    def wait(self) -> int:
        """Wait until the ranks have ended, and return their exit status."""
        self._request.report(f"Ray Train starts {self._describe_request()}.")
        late = time.monotonic() + _PATIENCE_S
        with tempfile.TemporaryDirectory(prefix="phf-ray-train-", ignore_cleanup_errors=True) as scratch:
            outcome = self._start(scratch)
            while not outcome.done():
                time.sleep(_POLL_S)
                self._head.check()
                self._forward_signals()
                messages = self._collect()
                if messages is None:
                    continue
                self._print(messages)
                if self._received:
                    self._stop_unless_running(messages)
                if messages.running or messages.ends:
                    late = time.monotonic() + _PATIENCE_S
                elif time.monotonic() > late:
                    self._request.report(
                        f"Still waiting: the Ray cluster may have no room for {self._describe_request()}."
                    )
                    late = float("inf")
        error = outcome.exception()
        brief = f"its task was lost ({type(error).__name__})"
        return self._conclude(outcome.result() if error is None else Outcome(problem=brief))

    def _start(self, scratch: str) -> "Future[Outcome]":
        import ray

        job = RankJob(
            arguments=tuple(self._request.arguments),
            folder=str(Path.cwd()),
            output=str(self._request.output),
            environment={"COLUMNS": str(shutil.get_terminal_size().columns)},
            gpu=bool(self._gpus),
            mailbox=self._mailbox,
        )
        needs = {"CPU": self._request.cpus} | ({"GPU": self._gpus} if self._gpus else {})
        task: Any = ray.remote(fit).options(max_retries=0, **self._placement)
        ref = task.remote(job, self._request.ranks, needs, self._request.max_restarts, scratch)
        outcome: Future[Outcome] = ref.future()
        return outcome

    def _describe_request(self) -> str:
        each = f"{self._request.cpus} CPU" + (f" and {self._gpus} GPU" if self._gpus else "")
        return f"{format_count(self._request.ranks, 'rank')} of {each} each"

    def _stop_unless_running(self, messages: Messages) -> None:
        """After a request to stop, do not wait for ranks that Ray Train has no room to start or restart."""
        if messages.running or len(messages.ends) == self._request.ranks:
            return
        if messages.losses:
            raise give_up_error(_describe(messages.losses[-1]), self._restarts, asked_to_stop=True)
        if not messages.started:
            raise StoppedError("stopped before any rank was started. The same command continues.")

    def _forward_signals(self) -> None:
        for number in self._received[self._forwarded :]:
            self._mailbox.add_signal.remote(number)
            self._forwarded += 1

    def _collect(self) -> Messages | None:
        import ray

        def collect() -> Messages:
            messages: Messages = ray.get(self._mailbox.collect.remote())
            return messages

        return ask_with_timeout(collect, _ANSWER_S)

    def _print(self, messages: Messages) -> None:
        for stream, piece in messages.output:
            target = sys.stdout if stream == STDOUT else sys.stderr
            target.write(piece.decode(errors="replace"))
            target.flush()
        for loss in messages.losses[self._restarts : self._request.max_restarts]:
            self._restarts += 1
            if not self._received:
                self._request.report(restart_message(_describe(loss), self._restarts, self._request.max_restarts))

    def _conclude(self, outcome: Outcome) -> int:
        messages = self._collect()
        if messages is None:
            raise IncompleteError("The Ray cluster does not answer any more. The same command continues.")
        self._print(messages)
        if messages.problems:
            places = "; ".join(f"on {node}, {problem}" for node, problem in sorted(messages.problems.items()))
            raise UserError(f"Folders must be on a file system that all nodes of the Ray cluster share: {places}.")
        if outcome.problem is not None:
            raise IncompleteError(f"Ray Train failed: {outcome.problem}. The same command continues.")
        if outcome.lost is not None:
            raise give_up_error(_describe(outcome.lost), self._request.max_restarts, asked_to_stop=bool(self._received))
        if len(messages.ends) < self._request.ranks:
            lost = _describe(messages.losses[-1]) if messages.losses else "Not all ranks were started"
            raise give_up_error(lost, self._restarts, asked_to_stop=bool(self._received))
        return next((status for status in messages.ends.values() if status), 0)


def _describe(losses: Losses) -> str:
    """Describe the likely first loss: a signal or a machine that is gone; an error may only follow from one."""
    order = sorted(losses.items(), key=lambda loss: (loss[1] is not None, loss[1] or 0, loss[0]))
    killed = [loss for loss in order if loss[1] is not None and loss[1] < 0]
    rank, status = (killed or order)[0]
    return f"Rank {rank} was lost with its Ray worker or its machine" if status is None else describe_loss(status, rank)
