"""The trackio tracker: local, or in a Hugging Face Space."""

import sys
import uuid
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from training.config import TrackioConfig
from training.trackers.sink import Opening


class Trackio:
    """A trackio run, which is identified by its name.

    A trackio run cannot go back: a new one is started with the current lines, and the earlier one stays.
    """

    def __init__(self, config: TrackioConfig, opening: Opening) -> None:
        import trackio

        self.continues = opening.run_id is not None and not opening.goes_back
        self.run_id = opening.run_id or config.name or ""
        if not self.run_id or opening.goes_back:
            self.run_id = f"{config.name or opening.name}-{uuid.uuid4().hex[:6]}"
        # trackio prints its address, and stdout is reserved for the output of `--json`.
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
        """Log the numbers of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write or send remaining values."""
        with redirect_stdout(sys.stderr):
            self._run.finish()
