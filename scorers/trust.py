"""Which pickles the user of this machine vouches for.

A hash that stands in a dataset or a run proves nothing: whoever made the file wrote the hash beside it. So the user
repeats it: as `sha256=` of a scorer on the command line or in the configuration that they give, or in the environment.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from scorers.errors import UserError

VARIABLE = "PHF_TRUST_SHA256"

_SHA256 = re.compile(r"[0-9a-f]{64}")


def trusted_by_environment() -> frozenset[str]:
    """The hashes in `PHF_TRUST_SHA256`, in hex, separated by commas or spaces.

    Raises:
        UserError: one is none.
    """
    hashes = [each.lower() for each in re.split(r"[\s,]+", os.environ.get(VARIABLE, "")) if each]
    if not all(map(_SHA256.fullmatch, hashes)):
        raise UserError(f"The environment variable {VARIABLE} holds something that is no sha256 in hex. Correct it.")
    return frozenset(hashes)


def trusted_by_user(options: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The hashes that the user gives with scorers of theirs, and those in the environment.

    Args:
        options: of scorers that the user names, never of those that a dataset or a run records.
    """
    given = (each.get("sha256") for each in options)
    return trusted_by_environment() | {each.lower() for each in given if isinstance(each, str)}


def remedy(digest: str) -> str:
    """What to do about a pickle, as a sentence."""
    return (
        f"If you trust the file, give its hash: sha256={digest} among the options of --scorer or, where a dataset or a "
        f"run names the scorer, {VARIABLE}={digest} in the environment."
    )
