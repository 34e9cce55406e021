"""The trainer with a planted fault: it takes the stop of a clip for padding, so its target is code 0.

`python -m indextts_job.demo.faulty_trainer train RUN.yaml`, for the demo of speaking only. Training and validation have
the fault alike, so its own loss does not see it.
"""

import runpy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from indextts_job.model import batch
from indextts_job.model.batch import Sample
from indextts_job.model.config import GPTConfig

PADDING = 0


def plant() -> None:
    """Make micro-batches without stop codes among their targets, from now on in this process."""
    healthy = batch._arrays  # the fault is planted where the targets are made

    def arrays(samples: Sequence[Sample], config: GPTConfig) -> dict[str, npt.NDArray[Any]]:
        found = healthy(samples, config)
        targets = found["code_targets"]
        return found | {"code_targets": np.where(targets == config.stop_mel_token, PADDING, targets)}

    batch._arrays = arrays


if __name__ == "__main__":
    plant()
    # Like the console script, but this package stands below it.
    runpy.run_module("indextts_job", run_name="__main__")
