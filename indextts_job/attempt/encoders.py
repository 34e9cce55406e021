"""Whether the conditions of prepared data were made by the encoders of the base checkpoint."""

from collections.abc import Sequence

from indextts_job.data.dataset import Dataset
from indextts_job.errors import DataError
from indextts_job.model.base_checkpoint import BaseCheckpoint
from indextts_job.model.config import GPTConfig
from indextts_job.model.fingerprint import conditioning_fingerprint
from indextts_job.report.events import Emit, Notice

CONDITIONING = "conditioning"
"""Name of the conditioning encoders of gpt.pth among the encoders of prepared data."""
SHOWN_DIGITS = 16


def demand_encoders(datasets: Sequence[Dataset], base: BaseCheckpoint, model: GPTConfig, emit: Emit) -> None:
    """Refuse data whose conditions come from the encoders of another checkpoint: the model would hear other voices.

    Args:
        datasets: To train and to validate on.
        base: The base checkpoint.
        model: The model in its version.
        emit: Gets a line about data that does not say.

    Raises:
        DataError: A dataset was prepared with other encoders.
    """
    # Of archives and separate files nothing is known, and a sharded dataset of an earlier release does not say.
    said = [part.encoders for dataset in datasets for part in dataset.parts if part.encoders is not None]
    if not all(said):
        message = "sharded data does not say which encoders made it; it is trained on as it is"
        emit(Notice(step=0, topic="data", message=message))
    found = {encoders[CONDITIONING] for encoders in said if CONDITIONING in encoders}
    if not found:
        return
    # Hashing reads all of these tensors, so it is left out for other data.
    expected = conditioning_fingerprint(base.tensors, model)
    if wrong := found - {expected}:
        raise DataError(
            f"the data was prepared with the conditioning encoders of another checkpoint (SHA-256 "
            f"{min(wrong)[:SHOWN_DIGITS]}…, those of the base checkpoint have {expected[:SHOWN_DIGITS]}…). Prepare it "
            "again with this checkpoint, or train from the one that it was prepared with."
        )
