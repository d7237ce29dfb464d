"""`--max-quarantined`: how much of a corpus may be quarantined for a job to succeed."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_COUNT = re.compile(r"\d+", re.ASCII)
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)


@dataclass(frozen=True)
class QuarantineLimit:
    """A number of records, or a share of all records.

    Attributes:
        text: the normalised setting, such as `5` or `0.1%`.
        count: the largest number of quarantine entries; None if the limit is a share.
        share: the largest share, exactly, in [0, 1]; None if the limit is a count.
    """

    text: str
    count: int | None = None
    share: Fraction | None = None

    @staticmethod
    def parse(value: Any) -> "QuarantineLimit":
        """Parse a count such as `5` or a share such as `0.1%`.

        Raises:
            ValueError: it is neither; the message gives examples.
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

    def exceeded(
        self, quarantined: int, records: int, *, cut: int = 0, unread: int = 0, size: int = 0, lost: int = 0
    ) -> bool:
        """Whether more was lost than the limit allows.

        A count limits the quarantined records plus the inputs that were not read completely. A share limits the share
        of quarantined records plus the share of unread bytes; it never allows an input of which nothing was read.

        Args:
            quarantined: quarantined records.
            records: all records.
            cut: inputs that were not read completely.
            unread: unread bytes of the inputs.
            size: bytes of all inputs.
            lost: inputs of which nothing was read.
        """
        if self.share is None:
            return quarantined + cut > (self.count or 0)
        of_records = Fraction(quarantined, records) if records else Fraction(bool(quarantined))
        of_bytes = min(Fraction(1), Fraction(unread, size)) if size else Fraction(bool(unread))
        return lost > 0 or of_records + of_bytes > self.share


def check_limit(value: Any) -> int | str:
    """Normalise a limit: a count becomes a number, a share a string with a per cent sign.

    Raises:
        ValueError: it is neither.
    """
    limit = QuarantineLimit.parse(value)
    return limit.text if limit.count is None else limit.count
