"""`--max-quarantined`: how much of a corpus may be in quarantine before a job no longer ends with success."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_COUNT = re.compile(r"\d+", re.ASCII)
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)


@dataclass(frozen=True)
class QuarantineLimit:
    """A count of records, or a share of all that were read.

    Attributes:
        text: as the user wrote it, `5` or `0.1%`.
        count: entries of quarantine; None where a share is meant.
        share: of the records, in [0, 1], exactly; None where a count is meant.
    """

    text: str
    count: int | None = None
    share: Fraction | None = None

    @staticmethod
    def parse(value: Any) -> "QuarantineLimit":
        """A count such as `5` or a share such as `0.1%`.

        Raises:
            ValueError: neither; says what to write.
        """
        text = "" if isinstance(value, bool) else str(value).strip()
        if _COUNT.fullmatch(text):
            return QuarantineLimit(str(int(text)), count=int(text))
        share = _SHARE.fullmatch(text)
        if share and Fraction(share[1]) <= 100:
            return QuarantineLimit(f"{share[1]}%", share=Fraction(share[1]) / 100)
        raise ValueError(
            "it is neither a count nor a share of the records: write 5 for five records, 0.1% for one in a thousand"
        )

    def exceeded(self, quarantined: int, records: int) -> bool:
        """Whether `quarantined` entries are more than the limit, of `records` that were read."""
        if self.share is not None:
            return quarantined > self.share * records
        return quarantined > (self.count or 0)


def check_limit(value: Any) -> int | str:
    """A limit in its normal form: a count as a number, a share as text with its per cent sign.

    Raises:
        ValueError: it is neither.
    """
    limit = QuarantineLimit.parse(value)
    return limit.text if limit.count is None else limit.count
