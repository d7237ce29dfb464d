"""A child process of `phf doctor`: read a job as JSON on stdin, write its result as JSON on stdout (`children.py`)."""

import json
import os
import sys
from typing import Any


def main() -> None:
    """Run the job; redirect what libraries print to stderr, so that stdout holds only the result."""
    result = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job: dict[str, Any] = json.load(sys.stdin)
    if job["what"] == "torch":
        from scorers.doctor.torch_here import inspect_torch

        found = inspect_torch()
    else:
        from scorers.contract import Execution
        from scorers.doctor.trial import try_scorer
        from scorers.registry import ScorerSpec

        spec, execution = ScorerSpec(**job["spec"]), Execution(**job["execution"])
        found = try_scorer(job["column"], spec, execution, job["seconds"])
    json.dump(found, result, allow_nan=False)
    result.flush()


if __name__ == "__main__":
    main()
