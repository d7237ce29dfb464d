"""The share of samples of Python that compile. Nothing is executed, and a child process compiles.

Python's compiler takes gigabytes for some short texts, and can end its process on others. A child with limits does the
work, and is started again for the next sample if a sample ends it.
"""

import os
import select
import subprocess
from collections.abc import Sequence
from typing import IO, cast

from scorers import interpreter
from training import statistics
from training.evaluation.compiling_child import COMPILES, SIZE_BYTES, UNDECIDED
from training.runs.report import CompilingFacts, Estimate
from training.scoring import judged_text

_SECONDS = 60.0  # for one sample, with room for a busy machine; a sample takes about a millisecond


def measure_compiling(texts: Sequence[str], ended: Sequence[bool]) -> CompilingFacts | None:
    """The share of samples that compile as a module of this version of Python, with Wilson's interval.

    A sample that was cut is judged up to the end of its last whole statement, because the cut is no fault of the model:
    lines are left out from its end for as long as Python calls its input incomplete. Samples without code, and cut ones
    of which nothing is left, are left out. A sample that needs more than a minute or 2 GB does not compile. None if no
    sample is left.

    Args:
        texts: the decoded samples.
        ended: whether each ended by itself; the others were cut.
    """
    judged = [
        (judged_text(text, "python", ended=by_itself), by_itself) for text, by_itself in zip(texts, ended, strict=True)
    ]
    verdicts = [verdict for verdict in _compile(judged) if verdict != UNDECIDED]
    share = Estimate.of(statistics.share(verdicts.count(COMPILES), len(verdicts)))
    return None if share is None else CompilingFacts(samples=len(verdicts), share=share)


def _compile(samples: Sequence[tuple[str, bool]]) -> list[bytes]:
    """The verdict of each sample; empty for one that ended its process or took too long."""
    verdicts: list[bytes] = []
    while len(verdicts) < len(samples):
        with subprocess.Popen(  # noqa: S603 - our own interpreter and module
            interpreter.command("training.evaluation.compiling_child"),
            env=interpreter.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        ) as child:
            try:
                for sample in samples[len(verdicts) :]:
                    verdicts.append(_ask(child, *sample))
                    if not verdicts[-1]:
                        break
            finally:
                child.kill()
    return verdicts


def _ask(child: "subprocess.Popen[bytes]", text: str, ended: bool) -> bytes:
    stdin, stdout = cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)
    content = text.encode("utf-8", "surrogatepass")
    left = memoryview(bytes([ended]) + len(content).to_bytes(SIZE_BYTES, "little") + content)
    try:
        while left:
            left = left[stdin.write(left) :]
    except BrokenPipeError:
        return b""
    ready, _, _ = select.select([stdout], [], [], _SECONDS)
    return os.read(stdout.fileno(), 1) if ready else b""
