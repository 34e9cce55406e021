"""The trackers by name, and the readers of a run."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from indextts_job.errors import ConfigError
from indextts_job.hashing import identity_hash
from indextts_job.report.attempts import Attempt
from indextts_job.report.points import points_of
from indextts_job.report.trackers.tracker import Open, Point, Tracked, TrackerReader


def demand_installed(trackers: Sequence[str]) -> None:
    """Refuse a tracker whose package is missing, before a training relies on it.

    Raises:
        ConfigError: Names what to install.
    """
    missing = [name for name in trackers if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"report.trackers: {', '.join(missing)} is not installed. Install it: pip install "
            f"'indextts-job[{','.join(missing)}]'; or leave it out."
        )


def tracked_run(run: str, project: str, config: Mapping[str, Any], every: Sequence[Attempt], number: int) -> Tracked:
    """The run as trackers know it.

    Args:
        run: Its URL, without secrets.
        project: The tracker's project.
        config: Its configuration by dotted key, without secrets.
        every: Its attempts with their curves, oldest first.
        number: This one.
    """
    unique = every[0].record.unique if every else ""
    return Tracked(
        # The record of the first attempt may be lost; then the run is known by where it lies.
        id=unique or identity_hash(run.encode())[:32],
        name=run.rstrip("/").rpartition("/")[2] or run,
        project=project,
        config=config,
        earlier=_points([attempt for attempt in every if attempt.number < number]),
    )


def _points(attempts: Sequence[Attempt]) -> list[Point]:
    """The points of attempts, each once."""
    # A step that several attempts have computed has the same values in all of them.
    found: dict[tuple[int, str], Mapping[str, float]] = {}
    for attempt in attempts:
        for logged in (*attempt.train_lines, *attempt.validations):
            found[logged.event.step, type(logged.event).__name__] = points_of(logged.event)
    return [(step, found[step, kind]) for step, kind in sorted(found)]


def tracker_readers(trackers: Sequence[str], tracked: Callable[[], Tracked]) -> list[TrackerReader]:
    """A reader for each tracker."""
    return [TrackerReader(name, _opener(name), tracked) for name in trackers]


def _opener(name: str) -> Open:
    """Imports the package in the reader's thread: that takes seconds, which the first step need not wait for."""

    def opened(tracked: Tracked) -> Any:  # noqa: ANN401  # a Tracker
        if name == "wandb":
            from indextts_job.report.trackers.wandb_run import WandbRun  # noqa: PLC0415

            return WandbRun(tracked)
        from indextts_job.report.trackers.mlflow_run import MlflowRun  # noqa: PLC0415

        return MlflowRun(tracked)

    return opened
