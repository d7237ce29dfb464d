"""trackio: local, or in a Space of Hugging Face."""

import sys
import uuid
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from training.config import TrackioConfig
from training.trackers.sink import Opening


class Trackio:
    """A run of trackio, which knows a run by its name.

    It has nothing by which a run could go back: another is begun with the lines that count, and the earlier one stays.

    Args:
        config: of the tracker.
        opening: of the run.
    """

    def __init__(self, config: TrackioConfig, opening: Opening) -> None:
        import trackio

        self.goes_on = opening.run_id is not None and not opening.goes_back
        self.run_id = opening.run_id or config.name or ""
        if not self.run_id or opening.goes_back:
            self.run_id = f"{config.name or opening.name}-{uuid.uuid4().hex[:6]}"
        # It prints where it is, and stdout is for what `--json` gives.
        with redirect_stdout(sys.stderr):
            self._run: Any = trackio.init(
                project=config.project,
                name=self.run_id,
                space_id=config.space_id,
                config=dict(opening.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """The numbers of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write or send what is left."""
        with redirect_stdout(sys.stderr):
            self._run.finish()
