"""Errors of ranks, apart from what imports torch: an import that a signal has cut off cannot be tried again."""

from scorers.errors import UserError


class RankError(UserError):
    """What one rank cannot do, where the others could. Its exit status is that of the error behind it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
