"""The pickles that the user of this machine trusts, by sha256.

A hash recorded in a dataset or a run proves nothing: whoever made the file also wrote the hash. So the user has to give
it: as `sha256=` of a scorer on the command line or in their configuration, or in the environment.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from scorers.errors import UserError

VARIABLE = "PHF_TRUST_SHA256"

_SHA256 = re.compile(r"[0-9a-f]{64}")


def trusted_by_environment() -> frozenset[str]:
    """Return the hashes in `PHF_TRUST_SHA256`, which are in hex and separated by commas or spaces.

    Raises:
        UserError: one is not a sha256 in hex.
    """
    hashes = [each.lower() for each in re.split(r"[\s,]+", os.environ.get(VARIABLE, "")) if each]
    if not all(map(_SHA256.fullmatch, hashes)):
        raise UserError(f"The environment variable {VARIABLE} holds something other than sha256 in hex. Correct it.")
    return frozenset(hashes)


def trusted_by_user(options: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the hashes in the options of the user's scorers and those in the environment.

    Args:
        options: options of scorers that the user gives, never of those that a dataset or a run records.
    """
    given = (each.get("sha256") for each in options)
    return trusted_by_environment() | {each.lower() for each in given if isinstance(each, str)}


def remedy(digest: str) -> str:
    """Return a sentence that says how to trust a pickle with this hash."""
    return (
        f"If you trust the file, give its hash: sha256={digest} among the options of --scorer or, if a dataset or a "
        f"run names the scorer, {VARIABLE}={digest} in the environment."
    )
