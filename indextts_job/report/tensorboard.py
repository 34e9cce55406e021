"""Writes the run as TensorBoard curves: one per tag over all restarts, under the tags of the old trainer.

Every attempt writes a file of its own into the same folder and declares the step that it resumed at; TensorBoard
drops the points that an earlier attempt wrote beyond it, so each step has one point. Files are named by the attempt and
not by the clock, as TensorBoard's own writer does: readers take them in the order of their names, and the clocks of two
nodes may differ.
"""

import io
import time
from typing import TYPE_CHECKING

from indextts_job.report.events import Event
from indextts_job.report.points import points_of
from indextts_job.storage.run_storage import RunStorage

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event as Record

# ruff: noqa: PLC0415  # TensorBoard takes a sixth of a second to import, which the first step need not wait for

FOLDER = "logs"
FILE_VERSION = "brain.Event:2"
"""First record of every event file; from version 2 on readers honour session starts."""


class TensorBoardCurves:
    """Writes train lines and validations as scalars, each point as soon as it is known."""

    def __init__(self, storage: RunStorage, run_name: str, attempt: int, resumed_at: int) -> None:
        self._storage = storage
        # `tfevents` in the name makes readers take it for an event file; padded numbers sort as text.
        self._key = f"{FOLDER}/{run_name}/events.out.tfevents.{attempt:010d}.attempt"
        self._resumed_at = resumed_at
        self._begun = False

    def __call__(self, event: Event) -> None:
        """Write the points of one event."""
        if points := points_of(event):
            self._points(event.step, points)

    def _begin(self) -> None:
        """Write the records that an event file begins with."""
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._begun = True
        # Points at the resumed step were written before its checkpoint and stay; all later ones are written again.
        start = SessionLog(status=SessionLog.START)
        self._append(
            Record(file_version=FILE_VERSION, wall_time=time.time()),
            Record(step=self._resumed_at + 1, session_log=start, wall_time=time.time()),
        )

    def _points(self, step: int, points: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.summary_pb2 import Summary

        if not self._begun:
            self._begin()
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()])
        self._append(Record(step=step, wall_time=time.time(), summary=summary))

    def _append(self, *records: "Record") -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        # Framed in memory: the writer of TensorBoard wants a file, and the storage has appends only.
        framed = io.BytesIO()
        writer = RecordWriter(framed)
        for record in records:
            writer.write(record.SerializeToString())
        self._storage.append(self._key, framed.getvalue())
