"""What a scorer needs installed, said in words that help."""

from importlib.util import find_spec

from scorers.errors import UserError


def require(kind: str, *packages: str, install: str) -> None:
    """Check that packages can be imported, without importing them, which takes some of them seconds.

    Raises:
        UserError: one is missing; the message says what to install.
    """
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"The scorer {kind!r} needs {package}, which is not installed: pip install {install}")
