"""Connections to the Jobs API of a Ray cluster, and their errors as sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infra.submission.place import NoAnswerError
from scorers.deadline import DeadlineExceededError, deadline
from scorers.errors import UserError
from scorers.printing import printable, without_secrets

_ANSWER_S = 60.0
_UNKNOWN = "status code 404"


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to the Jobs API of a cluster.

    Raises:
        UserError: it does not answer, asks for another token, or refuses a request; in one sentence.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        # The client sets no limit of its own.
        with deadline(_ANSWER_S):
            yield JobSubmissionClient(address)
    except UserError:
        raise
    except DeadlineExceededError:
        raise NoAnswerError(f"Ray's Jobs API at {address} has not answered for {_ANSWER_S:.0f} s.") from None
    except AuthenticationError:
        raise UserError(
            f"The Ray cluster {address} requires a token, and none, or another, was sent. Set RAY_AUTH_MODE=token, and "
            "give the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token."
        ) from None
    except OSError:
        raise UserError(
            f"Ray's Jobs API does not answer at {address}. Give the address of the cluster's dashboard with "
            "--ray-api, such as http://head:8265; the head needs ray[default]."
        ) from None
    except Exception as error:  # noqa: BLE001 - the client raises what its libraries raise
        line = next(iter(str(error).strip().splitlines()), "")
        raise UserError(
            f"Ray refuses the request: {printable(without_secrets(line)) or type(error).__name__}."
        ) from None


def find(client: Any, submission: str) -> Any:
    """Return the cluster's record of a submission; None if it does not know it."""
    try:
        return client.get_job_info(submission)
    except RuntimeError as error:
        if _UNKNOWN in str(error):
            return None
        raise
