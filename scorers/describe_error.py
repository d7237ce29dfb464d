"""Describe an exception without its message, which may quote the corpus."""

import traceback
from pathlib import Path


def describe(error: BaseException) -> str:
    """Return the type of an exception and where it was raised, without its message, which may quote the document."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
