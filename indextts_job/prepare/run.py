"""A preparation from configuration to exit code: work list → encoders → units → dataset."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from indextts_job.data.dataset import Limits
from indextts_job.errors import ConfigError, DataError, StoppedError, findings_message
from indextts_job.hardware.facts import read_facts
from indextts_job.model.config import GPTConfig
from indextts_job.preemption.deadline import Stop
from indextts_job.prepare.assembly import Assembled, Assembly
from indextts_job.prepare.audio_files import AudioFiles
from indextts_job.prepare.changed_audio import counted, outdated
from indextts_job.prepare.claims import Claims
from indextts_job.prepare.compute import Settings
from indextts_job.prepare.config import PrepareConfig
from indextts_job.prepare.ownership import demand_own
from indextts_job.prepare.preparation import Preparation, read_preparation, write_preparation
from indextts_job.prepare.unit_store import UnitStore
from indextts_job.prepare.units import ALGORITHM, Making, Unit, cut
from indextts_job.prepare.utterances import Utterance, read_utterances
from indextts_job.prepare.worker import Tell, Worker
from indextts_job.redaction import redacted
from indextts_job.storage import files
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.urls import absolute
from indextts_job.tokenizer.limits import limits_of, model_of, version_of
from indextts_job.tokenizer.loading import Tokenizer, load_tokenizer
from indextts_job.version import program_version

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkList:
    """What a preparation starts from, read without any model."""

    utterances: Sequence[Utterance]
    model: GPTConfig
    tokenizer: Tokenizer

    @property
    def limits(self) -> Limits:
        """What model and tokenizer demand of samples."""
        return limits_of(self.model, self.tokenizer)


def read_work_list(config: PrepareConfig) -> WorkList:
    """Read configuration of the model, tokenizer and manifests.

    Raises:
        ConfigError: A file is missing or wrong.
        DataError: A manifest is wrong, or utterances have no speaker.
    """
    tokenizer = load_tokenizer(config.model.tokenizer)
    document = files.read_yaml(config.model.config, "model configuration", "model.config")
    model = model_of(document, config.model.config, tokenizer)
    utterances = read_utterances(config, version_of(tokenizer))
    _demand_speakers(utterances)
    return WorkList(utterances=utterances, model=model, tokenizer=tokenizer)


def _demand_speakers(utterances: Sequence[Utterance]) -> None:
    nameless = [f"{one.origin}: {one.id}" for one in utterances if not one.speaker]
    if nameless:
        advice = (
            "A prompt is another utterance of the same speaker. Give each record a `speaker`, or set `speaker: "
            "from_name` where audio files are named SPEAKER_…"
        )
        raise DataError(findings_message(f"{len(nameless)} utterances have no speaker", nameless, advice))


def prepare(config: PrepareConfig, work: WorkList, worker: str, stop: Stop, tell: Tell) -> Assembled:
    """Make all units together with other workers, and assemble the dataset.

    Args:
        config: The settings.
        work: The work list.
        worker: Name of this worker; no other that runs at the same time may have it.
        stop: Gives the stop request.
        tell: Called with (units finished, units in all).

    Raises:
        StoppedError: A stop is requested; finished units are committed.
        DataError: Too much was refused, after all else is done.
        UnavailableError: Storage or audio cannot be reached.
    """
    from indextts_job.prepare.encoders.encoders import load_encoders  # noqa: PLC0415  # torch takes seconds

    device = read_facts(config.device).device
    encoders = load_encoders(config.encoders, config.model.base_checkpoint, work.model, device)
    making = making_of(config, work.model, encoders.fingerprints)
    units = cut(work.utterances, config.unit, making)
    storage = open_storage(config.output, config.storage)
    store, claims = UnitStore(storage), Claims(storage, worker)
    demand_own(store, units)
    write_preparation(storage, _described(config, units, making))
    claims.keep_apart()
    settings = Settings(
        model=work.model, making=making, batch_frames=config.batch_frames, threads=config.threads, worker=claims.worker
    )
    _make_outdated_again(store, units, settings.audio)
    works = Worker(store=store, claims=claims, encoders=encoders, settings=settings, stop=stop, tell=tell)
    works.run(units)
    records = store.records(units)
    while records is None:  # an object was damaged or lost: its unit is unfinished again
        works.run(units)
        records = store.records(units)
    claims.clear()
    store.tidy()
    assembly = _assembly(config, work, units, making, store, stop)
    return assembly.run(records)


def _make_outdated_again(store: UnitStore, units: Sequence[Unit], audio: AudioFiles) -> None:
    again = outdated(store.finished(units), audio)
    if again:
        logger.warning("%d of %d units are made again: %s.", len(again), len(units), ", ".join(counted(again)))
    for name in again:
        store.make_again(name)


def assemble(config: PrepareConfig, work: WorkList, stop: Stop) -> Assembled:
    """Assemble the dataset of finished units: with other texts, tokenizer, split or pairs. No audio is read.

    Raises:
        ConfigError: Units are missing, or the encoders were others.
    """
    storage = open_storage(config.output, config.storage)
    recorded = read_preparation(storage)
    if {key: _placed(key, value) for key, value in recorded.files.items()} != _files(config):
        raise ConfigError(
            f"{redacted(config.output)} was made with other encoder files than the configuration names. Run "
            "`indextts-job prepare` without --assemble: it makes the units again if the encoders differ."
        )
    making = making_of(config, work.model, recorded.encoders)
    units = cut(work.utterances, config.unit, making)
    store = UnitStore(storage)
    unfinished = store.unfinished(units)
    records = None if unfinished else store.records(units)
    if records is None:
        raise ConfigError(
            f"{redacted(config.output)}: {len(unfinished) or 'damaged'} of {len(units)} units are not finished. Run "
            "`indextts-job prepare` without --assemble: it makes what is missing."
        )
    return _assembly(config, work, units, making, store, stop).run(records)


def making_of(config: PrepareConfig, model: GPTConfig, encoders: dict[str, str]) -> Making:
    """What the arrays of all units depend on."""
    return Making(
        encoders=encoders,
        min_seconds=config.audio.min_seconds,
        max_seconds=config.audio.max_seconds,
        most_codes=model.max_mel_tokens,
    )


def _assembly(  # what a preparation consists of
    config: PrepareConfig, work: WorkList, units: Sequence[Unit], making: Making, store: UnitStore, stop: Stop
) -> Assembly:
    def check() -> None:
        if request := stop():
            raise StoppedError(f"{request.reason} while the dataset was assembled: the same command does it again.")

    return Assembly(
        config=config,
        units=units,
        making=making,
        tokenizer=work.tokenizer,
        limits=work.limits,
        store=store,
        check=check,
    )


def _files(config: PrepareConfig) -> dict[str, str]:
    """The files that the encoders come from, with absolute paths: the command may be given in another folder."""
    named = {key: str(value) for key, value in asdict(config.encoders).items()}
    named["base_checkpoint"] = config.model.base_checkpoint
    return {key: _placed(key, redacted(value)) for key, value in named.items()}


def _placed(key: str, value: str) -> str:
    return value if key == "hidden_state" or not value else absolute(value)


def _described(config: PrepareConfig, units: Sequence[Unit], making: Making) -> Preparation:
    return Preparation(
        utterances=sum(len(unit.utterances) for unit in units),
        units=tuple(unit.name for unit in units),
        encoders=dict(making.encoders),
        files=_files(config),
        program=f"{program_version()}, algorithm {ALGORITHM}",
    )
