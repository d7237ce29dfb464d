"""Keep the prompts that an attacker proposed, so that an interrupted attack goes on from them."""

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import TypeAdapter

from scorers.stored import read_stored
from training.disk import write_atomically, writing
from training.runs.folder import RunFolder
from training.runs.red_team_report import proposals_path

_PROMPTS = TypeAdapter(list[str])
_LARGEST = 64 << 20  # bytes


@dataclass(frozen=True)
class StoredProposals:
    """The prompts of the rounds of a trial. They are written before they are scored, as text.

    Attributes:
        run: the attacked run.
        trial: counted from 0.
        most: prompts of a round.
    """

    run: RunFolder
    trial: int
    most: int

    def __call__(self, number: int, propose: Callable[[], list[str]]) -> list[str]:
        """Return the prompts of a round; have them proposed if they are not stored."""
        path = proposals_path(self.run, self.trial, number)
        try:
            found = _PROMPTS.validate_json(read_stored(path, _LARGEST), strict=True)
            if len(found) <= self.most and all(found):
                return found
        except (OSError, ValueError):
            pass  # missing or damaged
        prompts = propose()
        with writing(path):
            # Later rounds were proposed from what this one had found.
            for later in path.parent.glob(f"{self.trial:04d}-*.json"):
                if later.name > path.name:
                    later.unlink()
            write_atomically(path, _PROMPTS.dump_json(prompts).decode() + "\n")
        return prompts
