"""The finished trials of an earlier measurement, which a new one with the same settings keeps."""

from collections.abc import Callable, Collection
from typing import Any

from scorers.errors import UserError


def finished_trials(
    new: Any, read: Callable[[], Any], *, apart_from: Collection[str] = (), config_apart_from: Collection[str] = ()
) -> list[Any] | None:
    """The trials of an earlier report, at most as many as the new one wants; None if they are of something else.

    A trial depends on the settings and its place alone. So the reports may differ in the number of trials, the version
    of phf, the device and the warnings, and in nothing else. None also if there is no earlier report, or a damaged one.

    Args:
        new: a report with `config` and `trials`.
        read: reads the earlier report.
        apart_from: other fields that may differ.
        config_apart_from: other fields of `config` that may differ.
    """

    def settings(report: Any) -> dict[str, Any]:
        found: dict[str, Any] = report.model_dump(
            exclude={"created_by", "device", "trials", "warnings", "config", *apart_from}
        )
        return found | {"config": report.config.model_dump(exclude={"trials", *config_apart_from})}

    try:
        old = read()
    except UserError:
        return None
    if old is None or settings(old) != settings(new):
        return None
    return list(old.trials[: new.config.trials])
