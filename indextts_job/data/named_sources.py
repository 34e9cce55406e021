"""The training sources that a configuration names: one concatenated source, or several with weights."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from indextts_job.data.manifest import DataConfig
from indextts_job.data.manifest_source import ManifestSource, language_pattern, parse_source
from indextts_job.data.mixture import BLOCK, Change, Mixture
from indextts_job.data.mixture_config import MILLIONTHS, DatasetConfig, WeightsConfig, millionths
from indextts_job.data.order import Order, SampleOrder
from indextts_job.errors import ConfigError
from indextts_job.redaction import redacted

_MAY_HAVE_A_WEIGHT = re.compile(r".*@[0-9.]+", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSources:
    """The sources of a run's training samples."""

    arguments: tuple[str, ...]
    """Manifests or sharded datasets, in their order."""
    names: tuple[str, ...] = ()
    """Names of the sources of a mixture; empty = all arguments are one source."""
    changes: tuple[Change, ...] = ()
    """Their weights from step 0 on, and from later steps on."""

    def order(self, sizes: Sequence[int], seed: int, global_batch_samples: int, epochs: int) -> SampleOrder:
        """The order of the run.

        Args:
            sizes: Number of samples of each argument.
            seed: The run's seed.
            global_batch_samples: Number of samples of a step.
            epochs: Passes over the one source, or over the first of a mixture.
        """
        if not self.names:
            return Order(
                num_samples=sum(sizes),
                seed=seed,
                global_batch_samples=global_batch_samples,
                # Epochs count samples, so the last step of the run may be a short one.
                total_samples=sum(sizes) * epochs,
            )
        return Mixture(
            sizes=tuple(sizes),
            seed=seed,
            global_batch_samples=global_batch_samples,
            changes=self.changes,
            epochs=epochs,
        )


def short_names(names: Sequence[str]) -> list[str]:
    """Names for lines and curves: of paths as many parts from their ends as tell them apart."""
    parts = [name.rstrip("/").split("/") for name in names]
    for count in range(1, max(map(len, parts), default=0)):
        short = ["/".join(one[-count:]) for one in parts]
        if len(set(short)) == len(names):
            return short
    return list(names)


def training_arguments(data: DataConfig) -> tuple[str, ...]:
    """Every training manifest or sharded dataset as an argument, `path::language`, in the order of the sources."""
    named = (
        f"{dataset.manifest}::{dataset.language}" if dataset.language else dataset.manifest for dataset in data.datasets
    )
    return data.train_manifests or tuple(named)


def demand_sources(data: DataConfig) -> None:
    """Refuse a configuration whose training sources are impossible, as far as that shows without reading anything.

    Raises:
        ConfigError: Names the key.
    """
    if not data.train_manifests and not data.datasets:
        raise ConfigError(
            "data.train_manifests is empty. Give at least one paired manifest (--train-manifest), or data.datasets."
        )
    if data.train_manifests and data.datasets:
        raise ConfigError(
            "data.train_manifests and data.datasets are both given. Give one of them; data.train_manifests=[] empties "
            "the other."
        )
    for number, dataset in enumerate(data.datasets):
        _demand_dataset(dataset, f"data.datasets[{number}]")
    _demand_distinct(data)


def _demand_distinct(data: DataConfig) -> None:
    names = Counter(dataset.name for dataset in data.datasets if dataset.name)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise ConfigError(f"data.datasets: {', '.join(repeated)} names several sources. Give each a name of its own.")
    steps = [change.step for change in data.mixture_from_step]
    if steps != sorted(set(steps)):
        raise ConfigError(f"data.mixture_from_step has the steps {', '.join(map(str, steps))}, expected rising ones.")
    if data.datasets:
        named_sources(data, lambda _path: False)  # their weights are known without looking for any file


def _demand_dataset(dataset: DatasetConfig, key: str) -> None:
    if not dataset.manifest.strip():
        raise ConfigError(f"{key}.manifest is empty. Give a paired manifest or the folder of a sharded dataset.")
    if dataset.language and not language_pattern(dataset.language):
        raise ConfigError(f"{key}.language is {dataset.language!r}, expected a language, for example am or az:tt.")
    millionths(dataset.weight, f"{key}.weight")


def named_sources(data: DataConfig, exists: Callable[[str], bool]) -> NamedSources:
    """The sources of a configuration that `demand_sources` accepts.

    Args:
        data: Names them.
        exists: Whether a path or URL exists; called only for arguments that end like a weight.

    Raises:
        ConfigError: The weights are impossible.
    """
    arguments = training_arguments(data)
    weights = _weights(data, exists)
    if len(weights) < 2:
        _demand_no_shares(data, weights, arguments)
        return NamedSources(arguments=arguments)
    changes = (Change(0, tuple(weights)), *(_change(change, len(weights)) for change in data.mixture_from_step))
    _demand_possible(changes)
    sources = [parse_source(argument, exists) for argument in arguments]
    if data.datasets and any(source.weight is not None for source in sources):
        raise ConfigError("data.datasets: a manifest ends with @weight. Give the weight as its key: weight: 15.")
    named = [dataset.name for dataset in data.datasets] or [""] * len(arguments)
    return NamedSources(arguments=arguments, names=_names(sources, named), changes=changes)


def _demand_no_shares(data: DataConfig, weights: Sequence[int], arguments: Sequence[str]) -> None:
    """One source has no share to choose."""
    if data.mixture_from_step:
        raise ConfigError(
            "data.mixture_from_step changes the weights of a mixture, but there is one source. Give its sources "
            "as data.datasets, or their weights as path@weight."
        )
    if 0 in weights:
        raise ConfigError(f"{redacted(arguments[0])} has the weight 0 and is the only source. Leave the weight out.")


def _weights(data: DataConfig, exists: Callable[[str], bool]) -> list[int]:
    """The weight of each source; empty when all are one."""
    if data.datasets:
        return [millionths(dataset.weight, "data.datasets") for dataset in data.datasets]
    given = [_weight(argument, exists) for argument in data.train_manifests]
    if given.count(None) == len(given):
        return []  # several manifests without weights are one source, as ever
    return [MILLIONTHS if weight is None else weight for weight in given]  # 1, as the public recipe has it


def _weight(argument: str, exists: Callable[[str], bool]) -> int | None:
    return parse_source(argument, exists).weight if _MAY_HAVE_A_WEIGHT.fullmatch(argument) else None


def _change(change: WeightsConfig, sources: int) -> Change:
    if len(change.weights) != sources:
        raise ConfigError(
            f"data.mixture_from_step: step {change.step} has {len(change.weights)} weights for {sources} sources."
        )
    return Change(
        change.step,
        tuple(
            millionths(weight, f"data.mixture_from_step: a weight from step {change.step} on")
            for weight in change.weights
        ),
    )


def _demand_possible(changes: Sequence[Change]) -> None:
    for change in changes:
        # The epochs of the run are those of the first source.
        if not change.weights[0]:
            raise ConfigError(f"the weights from step {change.step} on: the first source, the main one, needs one.")
        if sum(map(bool, change.weights)) > BLOCK:
            raise ConfigError(f"{len(change.weights)} sources have a weight; a mixture has at most {BLOCK}.")


def _names(sources: Sequence[ManifestSource], given: Sequence[str]) -> tuple[str, ...]:
    languages = Counter(source.language for source in sources)
    names = [
        name or (source.language if languages[source.language] == 1 and source.language else source.shown)
        for name, source in zip(given, sources, strict=True)
    ]
    taken = Counter(names)
    # Two entries of the same manifest, say.
    return tuple(
        redacted(name) if taken[name] == 1 else f"{redacted(name)} ({number})" for number, name in enumerate(names, 1)
    )
