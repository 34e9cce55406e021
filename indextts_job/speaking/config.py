"""Settings of the free-running check. Pure."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from indextts_job.bounds import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeText:
    """A text without codes that is spoken beside the records."""

    text: str
    language: str = ""
    """Name that inference would be called with."""
    speaker: str = ""
    """Id of the validation record whose voice speaks it; empty = the first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakingLimits:
    """What a checkpoint may not exceed."""

    minimum_records: Annotated[int, Bounds(1, 10**6)] = 8
    """With fewer records a language is measured and never judged. A share counts by its exact one-sided 95 % lower
    bound: of 32 records one or two bad ones are no alarm, three are."""
    no_stop: Annotated[float, Bounds(0, 1)] = 0.02
    """Share of records without a stop within min(1500, 2 x reference + 50) codes."""
    early_stop: Annotated[float, Bounds(0, 1)] = 0.02
    """Share of records shorter than half of their reference."""
    loops: Annotated[float, Bounds(0, 1)] = 0.02
    """Share of records in which up to eight codes are repeated in a row for a second, at least four times."""
    silence: Annotated[float, Bounds(0, 1)] = 0.02
    """Share of records in which one code lasts longer than 1.5 s."""
    special: Annotated[float, Bounds(0, 1)] = 0.0
    """Share of records with a start code inside."""
    length_ratio_least: Annotated[float, Bounds(0, 1e3)] = 0.8
    """Least length of all records together, relative to their references."""
    length_ratio_most: Annotated[float, Bounds(0, 1e3)] = 1.25
    """Largest one."""
    distinct: Annotated[float, Bounds(0, 1)] = 0.95
    """Least number of distinct outputs, relative to distinct pairs of text and output."""
    prefix_same: Annotated[float, Bounds(0, 1)] = 0.3
    """Largest mean common beginning of outputs of different texts, relative to their mean length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakingConfig:
    """Lets the model speak at validations, and judges checkpoints by it: a loss does not see everything."""

    mode: Literal["off", "greedy", "sampled"] = "off"
    """greedy: the likeliest code each time, no penalty; sampled: as inference draws codes, but with one beam."""
    records: Annotated[int, Bounds(1, 4096)] = 32
    """Validation records that are spoken, of each language the first ones by id with different targets; fixed for the
    run."""
    rank: Literal["loss", "agreement"] = "loss"
    """What decides among checkpoints inside the limits: the loss, or how much the codes agree with the references."""
    budget: Annotated[float, Bounds(0, 1)] = 0.02
    """Share of the time since the last validation that the check may take; above it there is a warning."""
    compare_positions: bool = True
    """Also report the agreement with training's positions, which inference shifts by one (greedy only). It takes the
    time of the check a second time."""
    names: tuple[str, ...] = ()
    """Names that inference will be called with where they are not those of the records: `en=am` speaks the records
    labelled en as am."""
    texts: tuple[FreeText, ...] = ()
    """Texts without codes that are spoken too, a list with these keys: text; language, by its name; speaker, the id of
    a validation record whose voice speaks it."""
    limits: SpeakingLimits = field(default_factory=SpeakingLimits)
