"""Open the storage at a path or URI: a local folder or an object store."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from scorers.errors import UserError
from scorers.printing import refuse_secret

OBJECT_SCHEMES = ("s3", "gs", "az")


def open_storage(uri: str) -> Storage:
    """Open the storage at a local path, `file://`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://…`.

    Object stores take their credentials from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …) or from
    the machine's role. Nothing is read or written yet.

    Raises:
        UserError: an unknown scheme, a URI that is invalid or contains a secret, or incomplete credentials.
    """
    place = _place(uri)
    if isinstance(place, Path):
        return LocalStorage(place)
    from pipeline.storage.objects import ObjectStorage

    return ObjectStorage(place)


def is_local(uri: str) -> bool:
    """Return whether a path or URI, of an input or an output, names a place in this machine's file system."""
    scheme, separator, _ = uri.partition("://")
    return not separator or scheme == "file"


def storage_uri(uri: str) -> str:
    """Return the `uri` of the storage that `open_storage` opens, without its credentials.

    Raises:
        UserError: an unknown scheme, or a URI that is invalid or contains a secret.
    """
    place = _place(uri)
    return LocalStorage(place).uri if isinstance(place, Path) else place


def _place(uri: str) -> Path | str:
    """Return the local path, or the checked URI in an object store."""
    scheme, separator, _ = uri.partition("://")
    if not uri:
        raise UserError("The output is empty; give a folder or a URI such as s3://bucket/prefix.")
    refuse_secret(uri, "output")
    if not separator:
        return Path(uri)
    if scheme == "file":
        return Path(unquote(urlsplit(uri).path))
    if scheme not in OBJECT_SCHEMES:
        known = ", ".join(f"{each}://" for each in OBJECT_SCHEMES)
        raise UserError(f"{uri}: output cannot be written to {scheme}://; use a local folder or one of {known}.")
    if not urlsplit(uri).netloc:
        raise UserError(f"{uri} names no bucket; give something like {scheme}://bucket/prefix.")
    return uri.rstrip("/")
