"""What a weighted mixture means for a run, in words: shares of samples and of codes, epochs of each source. Pure."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from indextts_job.data.mixture import Mixture

MOST_EPOCHS = 10
"""A replay source that is repeated more often is learned by heart instead of kept alive."""


def mixture_lines(
    mixture: Mixture, names: Sequence[str], code_lengths: npt.NDArray[np.int32], total_steps: int
) -> Iterator[tuple[str, bool]]:
    """Lines about a run, each with whether it is a warning.

    Args:
        mixture: The order of its samples.
        names: Names of the sources.
        code_lengths: [samples] number of codes of every sample, source after source.
        total_steps: Updates of the whole run.
    """
    turns = mixture.counts(total_steps * mixture.global_batch_samples)
    yield f"mixture over {total_steps} steps: {_described(mixture, names, turns, code_lengths)}", False
    for change in mixture.changes[1:]:
        if change.step < total_steps:
            given = ", ".join(f"{name} {weight / 1e6:g}" for name, weight in zip(names, change.weights, strict=True))
            yield f"mixture: other weights from step {change.step} on: {given}", False
    for number, name in enumerate(names):
        if not any(change.weights[number] for change in mixture.changes):
            yield f"{name} has the weight 0 from the first step to the last: it is not used", True
    for name, size, count in list(zip(names, mixture.sizes, turns, strict=True))[1:]:
        if count > MOST_EPOCHS * size:
            yield (
                f"{name}: its {size} samples are repeated {count / size:.3g} times in this run, and may stand twice "
                "in one step. Give it more samples or a lower weight.",
                True,
            )


def _described(
    mixture: Mixture, names: Sequence[str], turns: Sequence[int], code_lengths: npt.NDArray[np.int32]
) -> str:
    """Shares and epochs of all sources."""
    ends = np.cumsum(mixture.sizes)[:-1]
    means = [float(lengths.mean()) for lengths in np.split(code_lengths, ends)]
    codes = [count * mean for count, mean in zip(turns, means, strict=True)]
    sources = zip(names, mixture.sizes, turns, codes, strict=True)
    return "; ".join(
        f"{name} {count / sum(turns):.1%} of the samples, {code / sum(codes):.1%} of the codes, "
        f"{count / size:.3g} epochs of {size}"
        for name, size, count, code in sources
    )
