"""The run as TensorBoard curves: one per tag over all restarts, under the tags of the old trainer.

Every attempt writes a file of its own into the same folder and declares the step that it resumed at; TensorBoard
drops what an earlier attempt wrote beyond it, so the curve never runs twice over the same steps.
"""

import logging
import tempfile
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from indextts_job import files
from indextts_job.checkpoint.storage import RunStorage
from indextts_job.report.events import AttemptEnded, Event, TrainLine, Validated
from indextts_job.training.history import Losses

FOLDER = "logs"


class TensorBoardCurves:
    """Writes train lines and validations as scalars.

    A run in an object store gets a copy of the attempt's file after every point: the writer needs a local file.
    """

    def __init__(self, storage: RunStorage, run_name: str, resumed_at: int) -> None:
        self._storage = storage
        self._folder = f"{FOLDER}/{run_name}"
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if files.is_local(storage.url):
            folder = files.local_path(storage.url) / self._folder
        else:
            self._temporary = tempfile.TemporaryDirectory(prefix="indextts-job-")
            folder = Path(self._temporary.name)
        # Points at the resumed step were written before its checkpoint: everything after it is written anew.
        purge = resumed_at + 1 if resumed_at else None
        logging.getLogger("tensorboard").setLevel(logging.ERROR)
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def __call__(self, event: Event) -> None:
        """Write the points of one event."""
        if isinstance(event, TrainLine):
            self._losses("train", event.losses, event.step)
            self._scalar("train/lr", event.learning_rate, event.step)
            self._scalar("train/grad_norm", event.grad_norm, event.step)
            self._scalar("train/samples_per_s", event.samples_per_s, event.step)
            self._flush()
        elif isinstance(event, Validated):
            self._losses("val", event.losses, event.step)
            self._flush()
        elif isinstance(event, AttemptEnded):
            self._flush()
            self._writer.close()
            if self._temporary:
                self._temporary.cleanup()

    def _losses(self, kind: str, losses: Losses, step: int) -> None:
        for name in ("text_loss", "mel_loss", "mel_top1", "total"):
            self._scalar(f"{kind}/{name}", getattr(losses, name), step)

    def _scalar(self, tag: str, value: float, step: int) -> None:
        self._writer.add_scalar(tag, value, step)

    def _flush(self) -> None:
        self._writer.flush()
        if self._temporary:
            for path in Path(self._temporary.name).iterdir():
                self._storage.write(f"{self._folder}/{path.name}", path.read_bytes())
