"""Check that a scorer's packages and device are there."""

from importlib.util import find_spec

from scorers.errors import UserError


def require(kind: str, *packages: str, install: str) -> None:
    """Check that packages are installed, without importing them, which takes seconds for some.

    Raises:
        UserError: one is missing; the message says what to install.
    """
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"The scorer {kind!r} needs {package}, which is not installed: pip install {install}")


def require_device(device: str) -> None:
    """Check that torch sees a CUDA device; import torch only if `device` is one.

    Raises:
        UserError: torch does not see it.
    """
    if not device.startswith("cuda"):
        return
    count = 0
    if find_spec("torch") is not None:
        import torch

        count = torch.cuda.device_count()
    number = device.partition(":")[2] or "0"
    if not number.isdecimal() or int(number) >= count:
        raise UserError(f"There is no device {device!r}: torch sees {count} CUDA devices here. Use the device cpu.")
