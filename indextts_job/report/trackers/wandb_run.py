"""Weights & Biases. Account, server and offline mode come from its own environment variables (WANDB_API_KEY, …)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from indextts_job.report.points import kind_of
from indextts_job.report.trackers.offline import known_offline
from indextts_job.report.trackers.tracker import Tracked

STEP = "step"
"""Axis of all curves. Its own counter would have to rise, and drops what a resumed attempt sends again."""
LAST = "last_{}_step"
"""Value in the summary: the last step of a kind of point."""


class WandbRun:
    """One run in Weights & Biases."""

    def __init__(self, tracked: Tracked) -> None:
        """Create the run, or go on with it.

        Raises:
            Exception: Whatever its library raises.
        """
        # Neither the output nor the code of the process: who wants them there can start it with their own program.
        settings = wandb.Settings(console="off", disable_git=True, save_code=False, silent=True)
        self._run: Any = wandb.init(
            project=tracked.project,
            id=tracked.id,
            name=tracked.name,
            config=dict(tracked.config),
            resume="allow",
            settings=settings,
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def known(self) -> Mapping[str, int]:
        """See `Tracker`. By the summary that `log` fills; offline by the files that earlier attempts have left."""
        if self._run.offline:
            return known_offline(Path(self._run.dir).parents[1], self._run.id)
        found = {kind: self._run.summary.get(LAST.format(kind)) for kind in ("train", "val")}
        return {kind: int(step) for kind, step in found.items() if step is not None}

    def log(self, step: int, points: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({STEP: step, LAST.format(kind_of(points)): step, **points})

    def end(self, outcome: str) -> None:
        """See `Tracker`."""
        # A stopped run goes on: for its server it is one that crashed until then.
        self._run.finish(exit_code=0 if outcome == "complete" else 1)
