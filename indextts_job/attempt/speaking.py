"""Prepares the free-running check of an attempt, and keeps what was spoken beside the run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from indextts_job.attempt.inputs import Inputs
from indextts_job.checkpoint.history import History, SpeakingResult
from indextts_job.config import RunConfig
from indextts_job.errors import ConfigError, IndexTTSJobError
from indextts_job.report.events import Emit, Notice
from indextts_job.speaking.check import Outcome, SpeakingCheck
from indextts_job.speaking.metrics import Scale, tail_codes
from indextts_job.speaking.script import Script, Source, make_script, training_codes
from indextts_job.storage.run_storage import RunStorage
from indextts_job.training.engine import Engine
from indextts_job.training.evaluate import evaluating, on_device

FOLDER = "speaking"
"""Folder of a run with a file for each check, `speaking-STEP.jsonl`."""
TAIL_RECORDS = 200
"""Training records whose tails are looked at."""
TAIL_S = 0.4
"""Length of a tail."""


def script_of(config: RunConfig, inputs: Inputs) -> Script | None:
    """What the model speaks at validations; None where the check is off.

    Raises:
        ConfigError: A setting of the check is wrong.
    """
    if config.speaking.mode == "off" or inputs.validation_set is None:
        return None
    source = Source(inputs.validation_set, inputs.train_set, inputs.model, inputs.tokenizer)
    return make_script(source, config.speaking)


def demand_same_script(history: History, script: Script | None) -> None:
    """Check that what was spoken before can be compared with what is spoken now.

    Raises:
        ConfigError: It is another script.
    """
    if script and history.speaking and history.speaking.records != script.fingerprint:
        raise ConfigError(
            "what the model speaks at validations is not what it spoke so far in this run, so checkpoints could not be "
            "compared. Restore speaking.mode, .records, .names and .texts, the validation set and the tokenizer; or "
            "set speaking.mode=off; or start a new run."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recitals:
    """Speaks with an engine, and hands what was spoken to its keeper."""

    check: SpeakingCheck
    keep: Callable[[Outcome], None]

    def __call__(
        self, engine: Engine, step: int, interrupted: Callable[[int], bool]
    ) -> tuple[str, SpeakingResult] | None:
        """Fingerprint of the script, and figures; None when interrupted."""
        with evaluating(engine):
            outcome = self.check(engine.model, partial(on_device, engine), engine.group, step, interrupted)
        if outcome is None:
            return None
        self.keep(outcome)
        return self.check.script.fingerprint, outcome.result


def recitals(
    config: RunConfig, inputs: Inputs, script: Script | None, storage: RunStorage | None, emit: Emit
) -> Recitals | None:
    """The check of an attempt; None where it is off.

    Args:
        config: The run's.
        inputs: Its data.
        script: What is spoken.
        storage: Gets a file for each check; None on ranks that write nothing.
        emit: Gets a line about the script, and warnings.
    """
    if script is None:
        return None
    emit(Notice(step=0, topic="speaking", message=script.described()))
    scale = _scale(inputs)
    return Recitals(
        check=SpeakingCheck(script, config.speaking, scale, config.recipe.seed), keep=partial(_keep, storage, emit)
    )


def _scale(inputs: Inputs) -> Scale:
    model = inputs.model
    rate = model.version.codes_per_second
    codes = list(training_codes(inputs.train_set, TAIL_RECORDS))
    return Scale(
        codes_per_second=rate,
        first_special=model.start_mel_token,
        tails=tail_codes(codes, round(TAIL_S * rate), model.number_codes),
    )


def _keep(storage: RunStorage | None, emit: Emit, outcome: Outcome) -> None:
    if storage is None:
        return
    step = outcome.result.step
    try:
        storage.write(f"{FOLDER}/speaking-{step:08d}.jsonl", "".join(outcome.lines()).encode())
    # A side record: the figures are in the history, and nothing reads the codes but people.
    except (OSError, IndexTTSJobError) as error:
        message = f"what was spoken at step {step} was not kept: {error}"
        emit(Notice(step=step, topic="speaking", message=message, warning=True))
