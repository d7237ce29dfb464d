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
    """The share of samples that compile, with Wilson's interval; None if no sample can be judged.

    The arguments are those of `which_compile`.
    """
    known = [each for each in which_compile(texts, ended) if each is not None]
    share = Estimate.of(statistics.share(sum(known), len(known)))
    return None if share is None else CompilingFacts(samples=len(known), share=share)


def which_compile(
    texts: Sequence[str], ended: Sequence[bool], prompts: Sequence[str] | None = None
) -> list[bool | None]:
    """Whether each sample compiles as a module of this version of Python; None if it cannot be judged.

    A sample that was cut is judged up to the end of its last whole statement, because the cut is no fault of the model:
    lines are left out from its end for as long as Python calls its input incomplete. Samples without code, and cut ones
    of which nothing is left, cannot be judged. A sample that needs more than a minute or 2 GB does not compile.

    Args:
        texts: the decoded samples.
        ended: whether each ended by itself; the others were cut.
        prompts: what each continues; it is compiled with its prompt, as its first statement may begin there.
    """
    before = [""] * len(texts) if prompts is None else prompts
    verdicts = _compile(
        [
            (judged_text(prompt + text, "python", ended=by_itself), by_itself, len(prompt))
            for prompt, text, by_itself in zip(before, texts, ended, strict=True)
        ]
    )
    return [None if verdict == UNDECIDED else verdict == COMPILES for verdict in verdicts]


def _compile(samples: Sequence[tuple[str, bool, int]]) -> list[bytes]:
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


def _ask(child: "subprocess.Popen[bytes]", text: str, ended: bool, prompt: int) -> bytes:
    stdin, stdout = cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)
    content = text.encode("utf-8", "surrogatepass")
    sizes = b"".join(each.to_bytes(SIZE_BYTES, "little") for each in (prompt, len(content)))
    left = memoryview(bytes([ended]) + sizes + content)
    try:
        while left:
            left = left[stdin.write(left) :]
    except BrokenPipeError:
        return b""
    ready, _, _ = select.select([stdout], [], [], _SECONDS)
    return os.read(stdout.fileno(), 1) if ready else b""
