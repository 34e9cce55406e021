"""Find the checkpoints of the old trainers among the files of a folder. Pure."""

import re
from collections.abc import Iterable

LATEST = "latest.pth"
_NUMBERED = re.compile(r"(?:model_(?:epoch\d+_)?step|full_training_checkpoint_step_)(\d+)\.(?:pth|pt)")
"""`model_step{N}.pth` and `model_epoch{E}_step{N}.pth` of the public trainer and its variants,
`full_training_checkpoint_step_{N}.pt` of the full-layer script."""


def old_checkpoints(names: Iterable[str]) -> list[str]:
    """The checkpoints of an old trainer in a folder, in the order in which they should be tried.

    Args:
        names: Names of the files in the folder.
    """
    found = list(names)
    # The old trainer itself resumed from latest.pth. It wrote the file in place, so a kill may have truncated it: the
    # numbered ones follow, the highest step first.
    numbered = [(int(match[1]), name) for name in found if (match := _NUMBERED.fullmatch(name))]
    return [LATEST] * (LATEST in found) + [name for _, name in sorted(numbered, reverse=True)]


def is_old_checkpoint(source: str) -> bool:
    """Whether a path or URL names a checkpoint file of an old trainer, by its ending."""
    return source.endswith((".pth", ".pt"))
