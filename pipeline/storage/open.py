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
        UserError: an unknown scheme, or a URI that is invalid or contains a secret.
    """
    scheme, separator, _ = uri.partition("://")
    if not uri:
        raise UserError("The output is empty; give a folder or a URI such as s3://bucket/prefix.")
    refuse_secret(uri, "output")
    if not separator:
        return LocalStorage(Path(uri))
    if scheme == "file":
        return LocalStorage(Path(unquote(urlsplit(uri).path)))
    if scheme in OBJECT_SCHEMES:
        from pipeline.storage.objects import ObjectStorage

        return ObjectStorage(uri.rstrip("/"))
    known = ", ".join(f"{each}://" for each in OBJECT_SCHEMES)
    raise UserError(f"{uri}: output cannot be written to {scheme}://; use a local folder or one of {known}.")
