"""Errors of ranks, in a module that does not import torch: an import interrupted by a signal cannot be repeated."""

from scorers.errors import UserError


class RankError(UserError):
    """An error of one rank that the others do not have, with the exit status of the underlying error."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
