"""Are the inputs still there, and are they what they were?"""

import hashlib

from pipeline.corpus.inputs import Source, cannot_read
from pipeline.corpus.streams import SourceFile
from pipeline.dataset.manifest import SourceEntry
from scorers.errors import UserError


def check_input(source: Source, entry: SourceEntry) -> None:
    """Cheaply: it is there, with its size.

    Raises:
        UserError: it is gone, cannot be read, or has another size.
    """
    try:
        with SourceFile(source) as file:
            size = file.size
    except UserError as error:
        place = " Run the command in the folder in which `phf label` was run." if "://" not in source.uri else ""
        raise UserError(f"{error}{place}") from None
    if size != entry.size:
        raise _changed(source)


def check_input_bytes(source: Source, entry: SourceEntry) -> None:
    """Its content is what it was when the job was planned; reads all of it.

    Raises:
        UserError: it is not, or cannot be read.
    """
    found = hashlib.sha256()
    try:
        with SourceFile(source, found.update) as file:
            file.drain()
    except OSError as error:
        raise UserError(cannot_read(source.uri, error)) from None
    if found.hexdigest() != entry.sha256:
        raise _changed(source)


def _changed(source: Source) -> UserError:
    return UserError(
        f"The input {source.uri} has changed since it was labelled. Put the file back as it was, or label the corpus "
        "anew into another output."
    )
