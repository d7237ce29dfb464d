"""Turn failures of a disk or a store into errors for people."""

import contextlib
from collections.abc import Iterator

from pipeline.storage.base import Storage
from scorers.errors import IncompleteError, UserError


@contextlib.contextmanager
def storage_failures(storage: Storage) -> Iterator[None]:
    """Tell a failing disk or store to the user as what it is: the job is incomplete, and goes on later."""
    try:
        yield
    except NotADirectoryError:
        raise UserError(f"{storage.uri} is no folder. Give the --output of a `phf label` run.") from None
    except OSError as error:
        raise IncompleteError(
            f"{storage.uri} failed: {error.strerror or error}. What is committed stays; the same command goes on once "
            "that is mended."
        ) from None
