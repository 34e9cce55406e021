"""Reads and checks the files that the configuration names, and describes them in a line."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from indextts_job.attempt.foresight import foreseen
from indextts_job.config import RunConfig
from indextts_job.data.dataset import Dataset, Limits
from indextts_job.data.order import Order
from indextts_job.data.remembered import WrittenLater
from indextts_job.data.sources import load_dataset
from indextts_job.errors import StoppedError
from indextts_job.model.base_checkpoint import BaseCheckpoint, frozen_pieces
from indextts_job.model.base_of_run import load_base
from indextts_job.model.config import GPTConfig, gpt_config
from indextts_job.model.flops import training_flops
from indextts_job.preemption.deadline import Stop
from indextts_job.report.console import ConsoleReport
from indextts_job.report.events import Emit, Notice
from indextts_job.resume.compatibility import Present
from indextts_job.storage import files
from indextts_job.tokenizer.loading import Tokenizer, demand_base_pieces, load_tokenizer
from indextts_job.training.schedule import total_steps

CODES_PER_HOUR = 50 * 3600
"""Semantic codes in an hour of audio: the codec gives 50 per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The files that the configuration names, read and checked."""

    model_document: Mapping[str, Any]
    model: GPTConfig
    tokenizer: Tokenizer
    base: BaseCheckpoint | None
    """None when the run resumes from a checkpoint of its own."""
    train_set: Dataset
    validation_set: Dataset | None
    order: Order
    total_steps: int
    checks: WrittenLater | None = None
    """Outcomes of the check of the data that the run does not have yet."""

    @property
    def longest(self) -> tuple[int, str]:
        """Packed rows of the longest sample, and its id."""
        sets = (self.train_set, self.validation_set) if self.validation_set else (self.train_set,)
        return max(_longest(dataset, self.model) for dataset in sets)

    def present(self, config: RunConfig) -> Present:
        """The values that a checkpoint is compared with before this attempt resumes from it."""
        return Present(
            config=config,
            model_section=self.model_document["gpt"],
            tokenizer=self.tokenizer,
            dataset_fingerprint=self.train_set.fingerprint,
            order=self.order,
            total_steps=self.total_steps,
        )

    def validation_samples(self, max_samples: int) -> int:
        """Number of samples of a validation; 0 without a validation set.

        Args:
            max_samples: The user's limit; 0 = all.
        """
        count = len(self.validation_set) if self.validation_set else 0
        return min(count, max_samples or count)

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
    return list(
        foreseen(
            inputs.total_steps,
            config.schedule,
            config.validation,
            config.checkpoint,
            validates=inputs.validation_set is not None,
        )
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
    base = _base(config, document, model, tokenizer) if needs_base else None
    load = _Loader(config, Limits(model, tokenizer.pieces), stop, emit, console, checks)
    train_set = load(config.data.train_manifests)
    validation_set = load(config.data.validation_manifests) if config.data.validation_manifests else None
    order = Order(
        num_samples=len(train_set),
        seed=config.recipe.seed,
        global_batch_samples=config.recipe.global_batch_samples,
        # Epochs count samples, so the last step of the run may be a short one.
        total_samples=len(train_set) * config.schedule.epochs,
    )
    emit(Notice(step=0, topic="data", message=_data_text(train_set, validation_set)))
    assert isinstance(document, Mapping)  # noqa: S101  # `gpt_config` has checked it
    return Inputs(
        model_document=document,
        model=model,
        tokenizer=tokenizer,
        base=base,
        train_set=train_set,
        validation_set=validation_set,
        order=order,
        total_steps=total_steps(order.total_steps, config.schedule),
        checks=checks,
    )


def _base(config: RunConfig, document: object, model: GPTConfig, tokenizer: Tokenizer) -> BaseCheckpoint:
    base = load_base(config.inputs.base_checkpoint, model)
    demand_base_pieces(tokenizer, base.text_pieces, config.inputs.tokenizer)
    if base.frozen_pieces is None and isinstance(document, Mapping):
        # A `gpt.pth` does not say how many of its rows were frozen; the config.yaml that an export writes does.
        base = replace(base, frozen_pieces=frozen_pieces(document, config.inputs.model_config))
    return base


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
        return dataset

    def _progress(self, done: int, total: int) -> None:
        # The check of a large dataset takes minutes, and a stop must not wait for its end.
        check_stop(self.stop)
        self.console.progress("checking data", done, total)


def _data_text(train_set: Dataset, validation_set: Dataset | None) -> str:
    languages = ", ".join(f"{name or 'no language'} {count}" for name, count in train_set.languages.items())
    hours = int(train_set.code_lengths.sum(dtype=np.int64)) / CODES_PER_HOUR
    validation = f"{len(validation_set)} to validate" if validation_set else "no validation"
    return f"{len(train_set)} samples to train ({languages}; {hours:.1f} h of codes), {validation}"
