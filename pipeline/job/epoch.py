"""Ensure one driver at a time without clocks: a driver claims the next epoch, and the newest epoch wins.

Each claim is a file (`job/epochs/00000001.json`, create-if-absent). Before each durable step a driver checks for a
newer epoch, and stops if there is one. A step that an older driver completes after its check, while another claims the
next epoch, is still valid: whatever it created first, the newer driver finds and keeps.
"""

import secrets
from dataclasses import dataclass

from pipeline.storage.base import Storage
from scorers.errors import IncompleteError, StoppedError

EPOCHS = "job/epochs"
STAGING = "staging"


@dataclass(frozen=True)
class Epoch:
    """A driver's claim to the output; the newest claim wins."""

    storage: Storage
    number: int

    @staticmethod
    def claim(storage: Storage) -> "Epoch":
        """Claim the next epoch, which stops every older driver at its next durable step.

        Raises:
            UnsafePathError: a folder or file in the output is a link; nothing was written.
        """
        storage.refuse_links()
        token = secrets.token_hex(16).encode()
        number = newest_epoch(storage) + 1
        while not create(storage, f"{EPOCHS}/{number:08d}.json", token):
            number += 1
        return Epoch(storage, number)

    @property
    def staging(self) -> str:
        """Folder for parts that this driver's workers stage; no other driver's workers write there."""
        return f"{STAGING}/{self.number:08d}"

    def check(self) -> None:
        """Raise unless this is the newest driver.

        Raises:
            StoppedError: a newer driver has claimed the output.
            IncompleteError: this claim is missing: the output was moved, deleted or unmounted, so that further writes
                would go elsewhere.
        """
        # Epochs have no gaps, so only the next one needs to be checked.
        claims = self.storage.children(EPOCHS)
        if f"{self.number:08d}.json" not in claims:
            raise IncompleteError(
                f"{self.storage.uri} is no longer the folder in which this run began: it was moved, deleted or "
                "unmounted. What is committed stays there; the same command continues once it is back."
            )
        if f"{self.number + 1:08d}.json" in claims:
            raise StoppedError(
                f"A newer run has taken over {self.storage.uri}; this one stops. Nothing is lost: "
                "the newer run continues from what is committed."
            )


def newest_epoch(storage: Storage) -> int:
    """Number of the newest claimed epoch, 0 if there is none."""
    stems = (name.removesuffix(".json") for name in storage.children(EPOCHS))
    return max((int(stem) for stem in stems if stem.isdecimal()), default=0)


def create(storage: Storage, path: str, data: bytes) -> bool:
    """Create a file if absent; return whether this call created it, also if a retried request found its own attempt."""
    return storage.put_if_absent(path, data) or storage.read(path) == data
