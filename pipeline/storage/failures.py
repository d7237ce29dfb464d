"""Turn failures of a disk or store into errors for the user."""

import contextlib
from collections.abc import Iterator

from pipeline.storage.base import Storage
from scorers.errors import IncompleteError, UserError


@contextlib.contextmanager
def storage_failures(storage: Storage) -> Iterator[None]:
    """Re-raise an `OSError` of the storage as `IncompleteError`, or as `UserError` if it is not a folder."""
    try:
        yield
    except NotADirectoryError:
        raise UserError(f"{storage.uri} is not a folder. Give the --output of a `phf label` run.") from None
    except OSError as error:
        raise IncompleteError(
            f"{storage.uri} failed: {error.strerror or error}. What is committed stays; the same command continues "
            "once that is fixed."
        ) from None
