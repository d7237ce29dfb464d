"""The child processes of `phf doctor`: a job as JSON on stdin, its result as JSON on stdout. See `children.py`."""

import json
import os
import sys
from typing import Any


def main() -> None:
    """Do the job; what libraries print goes to stderr, not among the result."""
    result = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job: dict[str, Any] = json.load(sys.stdin)
    if job["what"] == "torch":
        from scorers.doctor.torch_here import look

        found = look()
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
