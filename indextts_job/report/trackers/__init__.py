"""Experiment trackers: services that show the curves of many runs beside each other. TensorBoard needs none of them.

A tracker reads the event stream in a thread of its own. Whatever it does, and however long it takes, the training does
not wait for it and is not ended by it.
"""

from indextts_job.report.trackers.opening import demand_installed, tracked_run, tracker_readers

__all__ = ["demand_installed", "tracked_run", "tracker_readers"]
