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

    def exceeded(
        self, quarantined: int, records: int, *, cut: int = 0, unread: int = 0, size: int = 0, lost: int = 0
    ) -> bool:
        """Whether more is lost than the limit allows.

        A count counts entries: records in quarantine, and inputs that were not read whole. A share is that of the
        records in quarantine plus that of the bytes that were not read; it excuses no input of which nothing was read.

        Args:
            quarantined: records in quarantine.
            records: that were read.
            cut: inputs that were not read whole.
            unread: bytes of the inputs that were not read.
            size: bytes of all inputs.
            lost: inputs of which nothing was read.
        """
        if self.share is None:
            return quarantined + cut > (self.count or 0)
        of_records = Fraction(quarantined, records) if records else Fraction(bool(quarantined))
        of_bytes = min(Fraction(1), Fraction(unread, size)) if size else Fraction(bool(unread))
        return lost > 0 or of_records + of_bytes > self.share


def check_limit(value: Any) -> int | str:
    """A limit in its normal form: a count as a number, a share as text with its per cent sign.

    Raises:
        ValueError: it is neither.
    """
    limit = QuarantineLimit.parse(value)
    return limit.text if limit.count is None else limit.count
