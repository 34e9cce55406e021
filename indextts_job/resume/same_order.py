"""Checks that every step after a checkpoint has the samples that it would have had, by what the checkpoint records."""

from collections.abc import Sequence

from indextts_job.checkpoint.values import CheckpointValues, OrderRecord, SourceRecord, WeightsRecord
from indextts_job.data.mixture import BLOCK, Mixture, shares
from indextts_job.data.mixture_config import MILLIONTHS
from indextts_job.data.order import Order
from indextts_job.errors import ConfigError, DataError

KNOWN = (Order.version, Mixture.version)


def demand_same_order(values: CheckpointValues, present: OrderRecord, step: int, where: str, new_run: str) -> None:
    """Compare the recorded order with that of this attempt.

    Weights from the checkpoint's step on are free to change: no sample was used by them yet. So is the number of
    sources, as long as a new one has no weight before.

    Args:
        values: The values that the checkpoint records.
        present: The order of this attempt.
        step: The checkpoint's step.
        where: The checkpoint, for messages.
        new_run: Advice on how to train on in a new run.

    Raises:
        ConfigError: The weights changed, or the order is of another version.
        DataError: The samples of a source changed.
    """
    recorded = values.order
    # Another version of the order gives other samples to every step, whatever the settings are.
    if recorded.version not in KNOWN:
        raise ConfigError(
            f"{where}: sample order version {recorded.version}, this release has {' and '.join(map(str, KNOWN))}. Use "
            f"the release that wrote it. {new_run}"
        )
    if recorded.version == present.version == Order.version:
        _demand_same_dataset(values, present, where, new_run)
        return
    if not present.sources:
        raise ConfigError(
            f"{where} is of a mixture of {len(recorded.sources)} sources ({_names(recorded.sources)}), and now "
            f"there is one source without a weight. Give all of them again, with their weights. {new_run}"
        )
    _demand_same_sources(values, present, where, new_run)
    _demand_same_weights(recorded, present, step, where)


def _demand_same_dataset(values: CheckpointValues, present: OrderRecord, where: str, new_run: str) -> None:
    recorded = values.order
    if recorded.dataset_fingerprint != present.dataset_fingerprint:
        content = ", with other content" if recorded.num_samples == present.num_samples else ""
        raise DataError(
            f"the dataset is not the one of {where}: {recorded.num_samples} samples then, {present.num_samples} now"
            f"{content}. {_origin(values)} Restore it and start again. {new_run}"
        )


def _demand_same_sources(values: CheckpointValues, present: OrderRecord, where: str, new_run: str) -> None:
    before, now = _sources(values.order), present.sources
    for number, source in enumerate(before, start=1):
        found = now[number - 1] if number <= len(now) else None
        if found is None or found.dataset_fingerprint != source.dataset_fingerprint:
            said = f"{found.name}, {found.num_samples} samples" if found else "none"
            raise DataError(
                f"source {number} of the mixture is not the one of {where}: {source.name or 'the whole dataset'}, "
                f"{source.num_samples} samples then; {said} now, or with other content. {_origin(values)} Restore the "
                f"sources in their order and start again; new ones come last. {new_run}"
            )


def _demand_same_weights(recorded: OrderRecord, present: OrderRecord, step: int, where: str) -> None:
    count = len(present.sources)
    # A run with one source is a mixture in which it has everything.
    before = _before(recorded.weights or (WeightsRecord(step=0, weights=(1,)),), step, count)
    now = _before(present.weights, step, count)
    # Compared as shares: 100 to 15 is the same order as 20 to 3.
    if before != now:
        names = [source.name for source in present.sources]
        earlier = [f"{{step: {one.step}, weights: [{_numbers(one, count)}]}}" for one in recorded.weights if one.step]
        change = ", ".join([*earlier, f"{{step: {step}, weights: [{', '.join('…' * count)}]}}"])
        raise ConfigError(
            f"the shares of the sources are not those of {where} (step {step}): {_text(before, names)} then, "
            f"{_text(now, names)} now. They decide which samples a step holds, so a run keeps them. Restore the "
            f"weights; other ones begin at step {step} or later: 'data.mixture_from_step=[{change}]'. A new "
            "source comes last, with the weight 0 before."
        )


def _numbers(weights: WeightsRecord, count: int) -> str:
    """Recorded weights as a configuration has them, with zeros for sources that came later."""
    return ", ".join(f"{weight / MILLIONTHS:g}" for weight in (*weights.weights, *[0] * (count - len(weights.weights))))


def _sources(order: OrderRecord) -> Sequence[SourceRecord]:
    whole = SourceRecord(name="", num_samples=order.num_samples, dataset_fingerprint=order.dataset_fingerprint)
    return order.sources or (whole,)


def _before(weights: Sequence[WeightsRecord], step: int, count: int) -> list[tuple[int, tuple[int, ...]]]:
    """The shares that hold before a step, each with the step at which it began."""
    padded = [(one.step, (*one.weights, *[0] * (count - len(one.weights)))) for one in weights if one.step < step]
    return [(began, shares(given)) for began, given in padded]


def _text(stretches: Sequence[tuple[int, tuple[int, ...]]], names: Sequence[str]) -> str:
    return "; ".join(f"{shares_text(names, entries)} from step {began}" for began, entries in stretches)


def shares_text(names: Sequence[str], entries: Sequence[int]) -> str:
    """The shares of sources in words."""
    return ", ".join(f"{name} {entry / BLOCK:.1%}" for name, entry in zip(names, entries, strict=True) if entry)


def _names(sources: Sequence[SourceRecord]) -> str:
    return ", ".join(source.name for source in sources)


def _origin(values: CheckpointValues) -> str:
    """What tells the user which data is meant."""
    name = values.config_section("report").get("run_name")
    return f"That run is {name}, trained on {', '.join(values.dataset.manifests)}."
