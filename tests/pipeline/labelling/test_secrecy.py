"""Output and core dumps of a worker process, and exceptions that are not `Exception`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.labelling.workers.scoring import SCORER_ERROR, score_documents
from scorers.contract import Document, Scorer, ScoringError
from scorers.deadline import DeadlineExceededError
from scorers.stopping import StopRequest
from tests.pipeline.label_job import ROOT
from tests.pipeline.toy_scorers import Results, ToyScorer


class Panic(BaseException):
    """An error like a panic from Rust bindings."""


class PanickingScorer(ToyScorer):
    """Raises a given error on documents that contain `PANIC`."""

    error: BaseException = Panic("cannot bear the text PANIC")

    def score(self, documents: "list[Document]") -> Results:  # type: ignore[override]
        if any("PANIC" in each.text for each in documents):
            raise self.error
        return super().score(documents)


def documents(*texts: str) -> list[Document]:
    return [Document(text, np.array([len(text)], np.int32)) for text in texts]


def test_a_panic_of_a_library_costs_the_document_and_no_other() -> None:
    scorer: Scorer = PanickingScorer("toy")
    first, bad, last = score_documents(scorer, documents("One.", "PANIC", "Two."))
    assert isinstance(first, np.ndarray)
    assert isinstance(last, np.ndarray)
    assert isinstance(bad, ScoringError)
    assert (bad.reason, "PANIC" in bad.detail, bad.detail[:5]) == (SCORER_ERROR, False, "Panic")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), StopRequest("SIGTERM"), DeadlineExceededError()])
def test_exit_and_deadlines_are_not_blamed_on_a_document(error: BaseException) -> None:
    scorer = PanickingScorer("toy")
    scorer.error = error
    with pytest.raises(type(error)):
        score_documents(scorer, documents("One.", "PANIC"))


def test_discarded_output_and_core_dumps_contain_nothing() -> None:
    code = (
        "import json, logging, os, subprocess, sys, warnings\n"
        "from pathlib import Path\n"
        "from pipeline.labelling.workers.secrecy import forbid_core_dumps, discard_output\n"
        "stdout = os.dup(1)\n"
        "sys.stdout.write('before ')\n"
        "forbid_core_dumps(); discard_output()\n"
        "print('text'); print('text', file=sys.stderr); warnings.warn('text'); logging.error('text')\n"
        "os.system('echo text; echo text >&2')\n"
        "limits = subprocess.run(['cat', '/proc/self/limits', '/proc/self/coredump_filter'], stdout=subprocess.PIPE)\n"
        "os.write(stdout, json.dumps(limits.stdout.decode()).encode())\n"
        "os.abort()\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == -6
    assert done.stderr == b""
    before, _, limits = done.stdout.decode().partition(" ")
    assert before == "before"
    *lines, core_filter = json.loads(limits).splitlines()
    (core,) = [line.split() for line in lines if line.startswith("Max core file size")]
    assert core[4] == "0", "a child inherits it"
    assert int(core_filter, 16) == 0
    assert not list(Path(ROOT).glob("core*"))
