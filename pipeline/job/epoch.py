"""One driver at a time, without clocks: a driver claims the next epoch, and the newest wins.

Each claim is a file (`job/epochs/00000001.json`, create-if-absent). Before each durable step a driver looks for an
epoch after its own; if there is one, it stops. A driver that was overtaken between its look and its step has done that
step properly: whatever it created first, the newer one finds and keeps.
"""

import secrets
from dataclasses import dataclass

from pipeline.storage.base import Storage
from scorers.errors import IncompleteError, StoppedError

EPOCHS = "job/epochs"
STAGING = "staging"


@dataclass(frozen=True)
class Epoch:
    """A driver's claim to the output folder; the newest claim wins."""

    storage: Storage
    number: int

    @staticmethod
    def claim(storage: Storage) -> "Epoch":
        """Claim the next epoch, which stops every older driver at its next durable step.

        Raises:
            UnsafePathError: a folder or file of the output is a link; nothing was written.
        """
        storage.refuse_links()
        token = secrets.token_hex(16).encode()
        number = newest_epoch(storage) + 1
        while not create(storage, f"{EPOCHS}/{number:08d}.json", token):
            number += 1
        return Epoch(storage, number)

    @property
    def staging(self) -> str:
        """Folder of what this driver's workers stage; no other driver's workers write there."""
        return f"{STAGING}/{self.number:08d}"

    def check(self) -> None:
        """Go on only as the newest driver.

        Raises:
            StoppedError: a newer driver has claimed the output.
            IncompleteError: the claim itself is not there: the output was moved, deleted, or is not mounted any more,
                and what would be written now would go elsewhere.
        """
        # Epochs are claimed without gaps, so that the next one is the only one to look for.
        claims = self.storage.children(EPOCHS)
        if f"{self.number:08d}.json" not in claims:
            raise IncompleteError(
                f"{self.storage.uri} is not the folder any more in which this run began: it was moved, deleted, or is "
                "not mounted now. What is committed stays there; the same command goes on once it is back."
            )
        if f"{self.number + 1:08d}.json" in claims:
            raise StoppedError(
                f"A newer run has taken over {self.storage.uri}; this one stops. Nothing is lost: "
                "the newer run goes on from what is committed."
            )


def newest_epoch(storage: Storage) -> int:
    """Number of the newest epoch that was claimed, 0 if none ever was."""
    stems = (name.removesuffix(".json") for name in storage.children(EPOCHS))
    return max((int(stem) for stem in stems if stem.isdecimal()), default=0)


def create(storage: Storage, path: str, data: bytes) -> bool:
    """Whether it was us who created the file: a retried request may have met its own first attempt."""
    return storage.put_if_absent(path, data) or storage.read(path) == data
