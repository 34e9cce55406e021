"""Reads and checks the files that the configuration names, and describes them in a line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from indextts_job.attempt.encoders import demand_encoders
from indextts_job.attempt.foresight import foreseen
from indextts_job.attempt.mixture_report import mixture_lines
from indextts_job.checkpoint.values import OrderRecord, SourceRecord, WeightsRecord
from indextts_job.config import RunConfig
from indextts_job.data.dataset import Dataset, Limits
from indextts_job.data.manifest_source import parse_source
from indextts_job.data.mixture import Mixture
from indextts_job.data.named_sources import NamedSources, named_sources
from indextts_job.data.order import SampleOrder
from indextts_job.data.remembered import WrittenLater
from indextts_job.data.sources import load_dataset
from indextts_job.errors import ConfigError, StoppedError
from indextts_job.model.base_checkpoint import BaseCheckpoint
from indextts_job.model.base_of_run import load_base
from indextts_job.model.config import GPTConfig, gpt_config, of_version
from indextts_job.model.flops import training_flops
from indextts_job.model.languages import language_of
from indextts_job.model.versions import ModelVersion, corrected, version_of_config
from indextts_job.preemption.deadline import Stop
from indextts_job.redaction import redacted
from indextts_job.report.console import ConsoleReport
from indextts_job.report.events import Emit, Notice
from indextts_job.resume.compatibility import Present
from indextts_job.storage import files
from indextts_job.tokenizer.limits import limits_of, version_of
from indextts_job.tokenizer.loading import Tokenizer, demand_base_pieces, load_tokenizer
from indextts_job.training.schedule import total_steps


# Without slots: `cached_property` keeps its value in the object's dictionary.
@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files that the configuration names, read and checked."""

    model_document: Mapping[str, Any]
    model: GPTConfig
    tokenizer: Tokenizer
    base: BaseCheckpoint | None
    """None when the run resumes from a checkpoint of its own."""
    train_set: Dataset
    validation_set: Dataset | None
    sources: NamedSources
    """Where the training samples come from."""
    order: SampleOrder
    total_steps: int
    checks: WrittenLater | None = None
    """Outcomes of the check of the data that the run does not have yet."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Codes of the language rows that training uses; empty where the model has none."""
        if not self.model.version.language_rows:
            return ()
        return tuple(sorted({language_of(label).slot for label in self.train_set.languages}))

    @property
    def longest(self) -> tuple[int, str]:
        """Packed rows of the longest sample, and its id."""
        sets = (self.train_set, self.validation_set) if self.validation_set else (self.train_set,)
        return max(_longest(dataset, self.model) for dataset in sets)

    def present(self, config: RunConfig, document: Mapping[str, Any]) -> Present:
        """The values that a checkpoint is compared with before this attempt resumes from it.

        Args:
            config: The configuration.
            document: The same as it is recorded.
        """
        return Present(
            config=config,
            document=document,
            model_section=self.model_document["gpt"],
            tokenizer=self.tokenizer,
            order=self.order,
            order_record=self.order_record,
            total_steps=self.total_steps,
        )

    @cached_property
    def order_record(self) -> OrderRecord:
        """What decides the samples of a step, as checkpoints record it."""
        return OrderRecord(
            version=self.order.version,
            seed=self.order.seed,
            global_batch_samples=self.order.global_batch_samples,
            num_samples=len(self.train_set),
            dataset_fingerprint=self.train_set.fingerprint,
            sources=tuple(
                SourceRecord(name=name, num_samples=len(part), dataset_fingerprint=fingerprint)
                for name, part, fingerprint in zip(
                    self.sources.names, self.train_set.parts, self.train_set.part_fingerprints, strict=True
                )
            )
            if self.sources.names
            else (),
            weights=tuple(WeightsRecord(step=one.step, weights=one.weights) for one in self.sources.changes),
        )

    def validation_indices(self, max_samples: int, keep: Sequence[str]) -> Sequence[int]:
        """The samples of a validation; none without a validation set.

        Args:
            max_samples: The user's limit; 0 = all.
            keep: Languages that the guard keeps: with them the limit is that of each language.
        """
        if self.validation_set is None:
            return range(0)
        if keep:
            return self.validation_set.first_of_each_language(max_samples)
        count = len(self.validation_set)
        return range(min(count, max_samples or count))

    def validation_records(self, config: RunConfig) -> dict[str, str]:
        """By language, what identifies the records of a validation: SHA-256 over their ids and content, in order."""
        indices = self.validation_indices(config.validation.max_samples, config.guard.keep)
        return self.validation_set.fingerprints_by_language(indices) if self.validation_set else {}

    @property
    def usual(self) -> tuple[int, int]:
        """Mean numbers of text and code tokens of a training sample, rounded."""
        return round(_mean(self.train_set.text_lengths)), round(_mean(self.train_set.code_lengths))

    @property
    def mean_flops(self) -> float:
        """Mean floating-point operations per packed row of the training samples."""
        lengths = np.stack([self.train_set.text_lengths, self.train_set.code_lengths], axis=1)
        flops = training_flops(self.model, self.tokenizer.pieces + 1, lengths)
        return flops / (self.mean_tokens * len(self.train_set))

    @property
    def mean_tokens(self) -> float:
        """Mean packed rows of a training sample."""
        return _mean(self.model.sample_tokens(self.train_set.text_lengths, self.train_set.code_lengths))


def _longest(dataset: Dataset, model: GPTConfig) -> tuple[int, str]:
    """Packed rows of the longest sample, and its id; of several the last one in the order of ids."""
    rows = model.sample_tokens(dataset.text_lengths, dataset.code_lengths)
    most = rows.max()
    return int(most), max(dataset.id_of(index) for index in np.flatnonzero(rows == most).tolist())


def _mean(numbers: npt.NDArray[np.int32]) -> float:
    # Not `mean`, which adds rounded numbers.
    return int(numbers.sum(dtype=np.int64)) / len(numbers)


def warnings_of(config: RunConfig, inputs: Inputs) -> list[str]:
    """Warnings about settings, which need the number of steps and so the dataset."""
    soon = foreseen(
        inputs.total_steps,
        config.schedule,
        config.validation,
        config.checkpoint,
        validates=inputs.validation_set is not None,
    )
    weighted = [
        f"data.validation_manifests: the weight of {redacted(argument)} means nothing: all its records are validated"
        for argument in config.data.validation_manifests
        if parse_source(argument, files.exists).weight is not None
    ]
    return [*soon, *weighted, *_hardly_guarded(config, inputs)]


def _hardly_guarded(config: RunConfig, inputs: Inputs) -> Iterator[str]:
    """Languages to keep that have too few records to be judged by."""
    counts = inputs.validation_set.languages if inputs.validation_set else {}
    most, least = config.validation.max_samples, config.guard.minimum_samples
    for language in config.guard.keep:
        count = min(counts.get(language, 0), most or least)
        if count < least:
            yield (
                f"guard.keep: {language} is validated on {count} records, fewer than guard.minimum_samples ({least}): "
                "its rise is reported and never acted on, and no checkpoint is tagged `good`. Give more records"
            )


def demand_kept(config: RunConfig, inputs: Inputs) -> None:
    """Check that the languages that the guard keeps can be measured.

    Raises:
        ConfigError: The validation set has none of them; names those that it has.
    """
    there = inputs.validation_set.languages if inputs.validation_set else {}
    missing = [language for language in config.guard.keep if language not in there]
    if missing:
        has = ", ".join(name or "no language" for name in there) or "nothing"
        raise ConfigError(
            f"guard.keep: {', '.join(missing)} is not among the languages of the validation set, which has {has}. Add "
            "records of it to data.validation_manifests."
        )


def check_stop(stop: Stop) -> None:
    """Raise when a stop is requested. For the start-up, which has nothing to save.

    Raises:
        StoppedError: A stop is requested.
    """
    request = stop()
    if request:
        raise StoppedError(f"{request.reason} before training began: nothing to save, the last checkpoint stands.")


def read_inputs(  # all by name
    config: RunConfig,
    stop: Stop,
    emit: Emit,
    console: ConsoleReport,
    *,
    needs_base: bool,
    checks: WrittenLater | None = None,
) -> Inputs:
    """Read and check everything that a run starts from, small files first.

    Args:
        config: Names the files.
        stop: Ends the reading early.
        emit: Gets a line about the data.
        console: Shows the progress of the check.
        needs_base: Whether to read the base checkpoint; not needed when the run has a checkpoint of its own.
        checks: Outcomes of earlier checks of the data; without them every array is read.

    Raises:
        ConfigError: A file is missing or does not fit.
        DataError: The dataset is bad.
        StoppedError: A stop was requested meanwhile.
    """
    # Small files first: a typing error shows within a second instead of after the check of the data.
    document = files.read_yaml(config.inputs.model_config, "model configuration", "inputs.model_config")
    model = gpt_config(document, config.inputs.model_config)
    tokenizer = load_tokenizer(config.inputs.tokenizer)
    assert isinstance(document, Mapping)  # noqa: S101  # `gpt_config` has checked it
    base = _base(config, document, model, tokenizer) if needs_base else None
    model = _in_its_version(config, document, model, tokenizer, base, emit)
    if base:
        _tell_of_base(base, model, config, emit)
    load = _Loader(config, limits_of(model, tokenizer, config.data), stop, emit, console, checks)
    sources = named_sources(config.data, files.exists)
    train_set = load(sources.arguments)
    validation_set = load(config.data.validation_manifests) if config.data.validation_manifests else None
    if base:
        demand_encoders([train_set, *([validation_set] if validation_set else [])], base, model, emit)
    sizes = [len(part) for part in train_set.parts]
    order = sources.order(sizes, config.recipe.seed, config.recipe.global_batch_samples, config.schedule.epochs)
    updates = total_steps(order.total_steps, config.schedule)
    emit(Notice(step=0, topic="data", message=_data_text(train_set, validation_set, model.version)))
    if isinstance(order, Mixture):
        for line, warning in mixture_lines(order, sources.names, train_set.code_lengths, updates):
            emit(Notice(step=0, topic="data", message=line, warning=warning))
    return Inputs(
        model_document=corrected(document, model.version),
        model=model,
        tokenizer=tokenizer,
        base=base,
        train_set=train_set,
        validation_set=validation_set,
        sources=sources,
        order=order,
        total_steps=updates,
        checks=checks,
    )


def _base(config: RunConfig, document: Mapping[str, Any], model: GPTConfig, tokenizer: Tokenizer) -> BaseCheckpoint:
    base = load_base(config.inputs.base_checkpoint, model, document, config.inputs.model_config)
    # Before the sizes are compared: with the tokenizer of another version they mean nothing.
    _demand_tokenizer_of(base.version, tokenizer, config)
    demand_base_pieces(tokenizer, base.text_pieces, config.inputs.tokenizer)
    return base


def _demand_tokenizer_of(version: ModelVersion, tokenizer: Tokenizer, config: RunConfig) -> None:
    if version.ranks != (tokenizer.ranks is not None):
        kind = "a file of ranks (.tiktoken)" if tokenizer.ranks is not None else "a SentencePiece model"
        raise ConfigError(
            f"inputs.tokenizer: {redacted(config.inputs.tokenizer)} is {kind}, but "
            f"{redacted(config.inputs.base_checkpoint)} is a checkpoint of {version}, whose tokenizer is "
            f"{version.tokenizer_file} or an extension of it."
        )


def _in_its_version(  # all that tell the version
    config: RunConfig,
    document: Mapping[str, Any],
    model: GPTConfig,
    tokenizer: Tokenizer,
    base: BaseCheckpoint | None,
    emit: Emit,
) -> GPTConfig:
    """The model in the version of its checkpoint; in that of its tokenizer when the checkpoint is not read."""
    version = base.version if base else version_of(tokenizer)
    says = version_of_config(document)
    if says != version:
        source = config.inputs.base_checkpoint if base else config.inputs.tokenizer
        message = (
            f"{redacted(config.inputs.model_config)} describes {says}, but {redacted(source)} is of {version}: "
            f"trained as {version}"
        )
        emit(Notice(step=0, topic="model", message=message, warning=True))
    return of_version(model, version, config.inputs.model_config)


def _tell_of_base(base: BaseCheckpoint, model: GPTConfig, config: RunConfig, emit: Emit) -> None:
    """Warn of what a base checkpoint is not, although its files may let think so."""
    shown = redacted(config.inputs.base_checkpoint)
    messages = []
    if base.text_pieces != model.number_text_tokens:
        messages.append(
            f"{redacted(config.inputs.model_config)} says {model.number_text_tokens} text tokens, {shown} has "
            f"{base.text_pieces}: is it the config.yaml beside it? That of an export knows which rows were trained"
        )
    if base.adapters_left_out:
        messages.append(
            f"{shown} holds {base.adapters_left_out} tensors of adapters that were not merged. They are left out: the "
            "run starts from the weights below them. Merge them first if that is not what you want"
        )
    for message in messages:
        emit(Notice(step=0, topic="model", message=message, warning=True))


@dataclass(frozen=True, slots=True)
class _Loader:
    """Loads and checks datasets; a stop request ends it."""

    config: RunConfig
    limits: Limits
    stop: Stop
    emit: Emit
    console: ConsoleReport
    checks: WrittenLater | None

    def __call__(self, manifests: tuple[str, ...]) -> Dataset:
        data = self.config.data
        dataset = load_dataset(
            manifests,
            self.limits,
            skip_bad_samples=data.skip_bad_samples,
            cache_folder=data.cache_folder,
            cache_free_ratio=data.cache_free_ratio,
            memory=self.checks,
            progress=self._progress,
        )
        # Each of them: a sample that is left out changes what the run trains on.
        for sample in dataset.skipped:
            message = f"skipped bad sample {sample.id}: {sample.reason}"
            self.emit(Notice(step=0, topic="data", message=message, warning=True))
        for note in dataset.notes:
            self.emit(Notice(step=0, topic="data", message=note, warning=True))
        return dataset

    def _progress(self, done: int, total: int) -> None:
        # The check of a large dataset takes minutes, and a stop must not wait for its end.
        check_stop(self.stop)
        self.console.progress("checking data", done, total)


def _data_text(train_set: Dataset, validation_set: Dataset | None, version: ModelVersion) -> str:
    languages = ", ".join(f"{name or 'no language'} {count}" for name, count in train_set.languages.items())
    hours = int(train_set.code_lengths.sum(dtype=np.int64)) / version.codes_per_second / 3600
    validation = f"{len(validation_set)} to validate" if validation_set else "no validation"
    return f"{len(train_set)} samples to train ({languages}; {hours:.1f} h of codes), {validation}"
