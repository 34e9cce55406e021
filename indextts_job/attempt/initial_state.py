"""Fills the first state: from the base checkpoint, a checkpoint of a run, or one of the old trainer."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from indextts_job.attempt.inputs import Inputs
from indextts_job.attempt.takeover import install, take_over
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.checkpoint.tensor_names import BASE, FIRST_MOMENT, TEXT_TABLES, WEIGHTS, below
from indextts_job.config import RunConfig
from indextts_job.data.order import derive_seed
from indextts_job.errors import ConfigError, UnavailableError, findings_message
from indextts_job.legacy.adoption import Imported
from indextts_job.model.adapter import Adapter
from indextts_job.model.adapter_config import AdapterConfig
from indextts_job.model.base_checkpoint import (
    LANGUAGE_TABLE,
    BaseCheckpoint,
    carried_tensors,
    split_rows,
)
from indextts_job.model.config import GPTConfig
from indextts_job.model.initial_values import Given, initialise
from indextts_job.model.languages import TRAINED, row_of
from indextts_job.model.merge import published
from indextts_job.model.peft_folder import AdapterFolder, fitted, read_adapter_folder
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX, Vocabulary
from indextts_job.report.events import Emit
from indextts_job.resume.points import ResumePoint
from indextts_job.resume.select import Selection
from indextts_job.training.recipe import RecipeConfig
from indextts_job.training.state import Carried, TrainState, stored_base


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The source of the first state's values: a checkpoint's exact position, or a base."""

    vocabulary: Vocabulary
    point: ResumePoint | None = None
    """The checkpoint whose exact position the attempt resumes at."""
    base: BaseCheckpoint | None = None
    """Weights to start from, without a position; None when `point` is set."""
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    """Trained vocabulary rows that follow those of the base, by name of the text table."""
    imported: Imported | None = None
    """The state of the old trainer, if its position is taken over."""
    adapter: Adapter | None = None
    """What trains in place of all weights; None = these."""
    start: AdapterFolder | None = None
    """An adapter to start from."""
    source: str = ""
    """Path or URL of the old trainer's file; empty otherwise."""

    @property
    def holds_moments(self) -> bool:
        """Whether the values include all moments. A checkpoint of step 0 holds none."""
        point = self.point
        return point is not None and point.name.step > 0 and any(key.startswith(FIRST_MOMENT) for key in point.tensors)


def origin_of(config: RunConfig, inputs: Inputs, selection: Selection, emit: Emit) -> Origin:
    """Determine the source of the first state.

    Args:
        config: The run's URL and its accepted differences (`resume.accept`).
        inputs: The base checkpoint and the tokenizer.
        selection: The checkpoint to start from, if any, and how.
        emit: Gets lines about what is taken over from the old trainer.

    Raises:
        ConfigError: The old trainer's checkpoint does not fit.
        UnavailableError: The run's checkpoints disappeared during the start.
    """
    point = selection.point
    if point and not selection.weights_only:
        values = point.manifest.values
        adapter = Adapter(config.adapter, values.adapter.language_rows) if values.adapter else None
        return Origin(vocabulary=Vocabulary.recorded(values.vocabulary), point=point, adapter=adapter)
    adapter, start = new_adapter(config.adapter, inputs)
    if point:
        base = _weights_as_base(point, inputs)
        rows = _trained_rows(point)
        return Origin(vocabulary=_on(base, inputs), base=base, rows=rows, adapter=adapter, start=start)
    # The base was not read because the run had checkpoints a moment ago. Another start will read it.
    if inputs.base is None:
        raise UnavailableError(f"{config.run}: its checkpoints vanished while it was being started. Start again.")
    if selection.legacy:
        return _of_old_trainer(config, inputs, selection, inputs.base, emit)
    # An export of a run may serve as base: its own base rows stay frozen, the rows behind them go on training.
    base, rows = split_rows(inputs.base)
    return Origin(vocabulary=_on(base, inputs), base=base, rows=rows, adapter=adapter, start=start)


def _of_old_trainer(
    config: RunConfig, inputs: Inputs, selection: Selection, base: BaseCheckpoint, emit: Emit
) -> Origin:
    if config.adapter.rank:
        raise ConfigError(
            "adapter.rank: a checkpoint of the old trainer goes on with all weights. Take it over without an adapter, "
            "export it, and start with an adapter from that export."
        )
    base, imported, source = take_over(config.resume.accept, inputs, selection, base, emit)
    return Origin(vocabulary=_on(base, inputs), base=base, imported=imported, source=source)


def new_adapter(config: AdapterConfig, inputs: Inputs) -> tuple[Adapter | None, AdapterFolder | None]:
    """The adapter of a new run, with the rows of languages that the release was not trained on; and what it starts as.

    Raises:
        ConfigError: There is no adapter to start from, or this run does not adapt what that one does.
        DataError: It is damaged.
    """
    if not config.rank:
        if config.start:
            raise ConfigError("adapter.start without an adapter: give adapter.rank too.")
        return None, None
    start = read_adapter_folder(config.start, inputs.model) if config.start else None
    rows = {row_of(slot) for slot in inputs.slots if slot not in TRAINED}
    adapter = Adapter(config, tuple(sorted(rows | set(start.language_rows if start else ()))))
    if start:
        _demand_adapted(start, adapter, inputs.model)
        fitted(start, config)  # raises where its rank or scale does not fit
    return adapter, start


def _demand_adapted(start: AdapterFolder, adapter: Adapter, model: GPTConfig) -> None:
    """Refuse an adapter of projections that this run does not adapt."""
    first = model.layers - adapter.config.last_blocks if adapter.config.last_blocks else 0
    others = [
        name
        for name in sorted(start.factors)
        if int(name.split(".")[2]) < first or name.split(".", 3)[3].rpartition(".")[0] not in adapter.config.targets
    ]
    if others:
        advice = "Give adapter.targets and adapter.last_blocks that hold them."
        raise ConfigError(findings_message(f"{adapter.config.start} adapts what this run does not", others, advice))


def _on(base: BaseCheckpoint, inputs: Inputs) -> Vocabulary:
    return Vocabulary(
        pieces=inputs.tokenizer.pieces,
        base_pieces=base.text_pieces,
        inserted_at=inputs.tokenizer.new_pieces_at(base.text_pieces),
    )


def trained_languages(origin: Origin, inputs: Inputs) -> tuple[str, ...]:
    """Codes of the language rows that this run and those before it train."""
    before = origin.point.manifest.values.trained_languages if origin.point else ()
    if origin.base:
        before = origin.base.languages
    if origin.start:
        before = (*before, *origin.start.languages())
    return tuple(sorted({*before, *inputs.slots}))


def _language_starts(base: BaseCheckpoint, slots: Collection[str], how: str) -> dict[int, Tensor]:
    """Start values of the rows of languages that nobody has trained yet, by row."""
    fresh = [slot for slot in slots if slot not in TRAINED and slot not in base.languages]
    if how == "own" or not fresh:
        return {}
    table = base.tensors[LANGUAGE_TABLE]
    models = TRAINED if how == "mean" else (how,)
    start = table[[row_of(code) for code in models]].float().mean(dim=0)
    return {row_of(slot): start for slot in fresh}


def fill(  # by name what an empty state needs
    state: TrainState, origin: Origin, recipe: RecipeConfig, own: CheckpointStore, slots: Collection[str] = ()
) -> None:
    """Put the values of an origin into an empty state.

    Args:
        state: The state, on the device.
        origin: The source of the values.
        recipe: Start of new vocabulary rows, and the seed.
        own: The run's checkpoints. Base tensors that they hold are not written again.
        slots: Codes of the language rows that the training set uses.
    """
    if origin.point:
        _restore(state, origin.point, own, moments=origin.holds_moments)
    elif origin.imported:
        install(state, origin.imported, recipe.global_batch_samples)
    elif origin.base:
        languages = _language_starts(origin.base, slots, recipe.language_start)
        factors: Mapping[str, Tensor] = {}
        if origin.start and origin.adapter:
            languages |= origin.start.language_rows
            factors = fitted(origin.start, origin.adapter.config)
        given = Given(new_rows=origin.rows, language_rows=languages, factors=factors)
        initialise(state.model, origin.base, recipe.new_rows, derive_seed(recipe.seed), given)
        state.carried = Carried(tensors=carried_tensors(state.model, origin.base))


def _restore(state: TrainState, point: ResumePoint, own: CheckpointStore, *, moments: bool) -> None:
    values = point.manifest.values
    state.load_weights(point.tensors)
    if moments:
        state.load_moments(point.tensors, point.name.step)
    # The precision may have changed with the hardware; a scale has a meaning in float16 only.
    if values.scaler and state.scaler.is_enabled():
        state.scaler.load_state_dict(dict(values.scaler))
    state.step = point.name.step
    # Saved whole, so that means and validations go on as without an interruption.
    state.history = values.history
    if point.store is own:
        state.carried = stored_base(point.manifest)
    else:
        # Another run: this one must not depend on its folder, so the base tensors are written here once more.
        tensors = point.store.load(point.manifest, (BASE,))
        state.carried = Carried(tensors=below(BASE, tensors))


def _weights_as_base(point: ResumePoint, inputs: Inputs) -> BaseCheckpoint:
    """The weights of a checkpoint as a base; its frozen rows stay those of its own base."""
    tensors = point.store.load(point.manifest, (BASE,))
    # New rows have no place in the base's tables and come on their own.
    weights = {key: value for key, value in below(WEIGHTS, point.tensors).items() if not key.endswith(NEW_ROWS_SUFFIX)}
    values = point.manifest.values
    full = published(weights, below(BASE, tensors), Vocabulary.recorded(values.vocabulary), values.adapter)
    return BaseCheckpoint(
        full,
        full["text_embedding.weight"].shape[0] - 1,
        version=inputs.model.version,
        languages=point.manifest.values.trained_languages,
    )


def _trained_rows(point: ResumePoint) -> dict[str, Tensor]:
    return {
        key: point.tensors[WEIGHTS + key + NEW_ROWS_SUFFIX]
        for key in TEXT_TABLES
        if WEIGHTS + key + NEW_ROWS_SUFFIX in point.tensors
    }
