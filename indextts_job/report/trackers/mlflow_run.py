"""MLflow. Server and account come from its own environment variables (MLFLOW_TRACKING_URI, …)."""

import time
from collections.abc import Mapping

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from indextts_job.report.trackers.tracker import Tracked

RUN_TAG = "indextts_job.run"
"""Tag by which a later attempt finds the run."""
LONGEST_PARAM = 500
"""Characters of a parameter that every version of its servers takes."""
ENDS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowRun:
    """One run in MLflow."""

    def __init__(self, tracked: Tracked) -> None:
        """Create the run, or go on with it.

        Raises:
            Exception: Whatever its library raises.
        """
        self._client = MlflowClient()
        experiment = self._client.get_experiment_by_name(tracked.project)
        # Two runs that start at the same time: the other one may have created it meanwhile, which raises here and is
        # found at the next event.
        where = experiment.experiment_id if experiment else self._client.create_experiment(tracked.project)
        found = self._client.search_runs([where], f"tags.`{RUN_TAG}` = '{tracked.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        run = self._client.create_run(where, run_name=tracked.name, tags={RUN_TAG: tracked.id})
        self._id = run.info.run_id
        # Once: a parameter cannot be changed, and a resumed attempt may have changed settings.
        params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in tracked.config.items()]
        for first in range(0, len(params), 100):  # a batch has at most a hundred
            self._client.log_batch(self._id, params=params[first : first + 100])

    def known(self) -> Mapping[str, int]:
        """See `Tracker`."""
        histories = {kind: self._client.get_metric_history(self._id, f"{kind}/total") for kind in ("train", "val")}
        return {kind: max(one.step for one in history) for kind, history in histories.items() if history}

    def log(self, step: int, points: Mapping[str, float]) -> None:
        """See `Tracker`."""
        now_ms = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(key, value, now_ms, step) for key, value in points.items()])

    def end(self, outcome: str) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._id, ENDS[outcome])
