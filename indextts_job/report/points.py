"""The figures of an event as points of curves, under the tags of the old trainer. Pure."""

from collections.abc import Mapping

from indextts_job.checkpoint.history import LanguageLoss, Losses
from indextts_job.report.events import Event, Figures, Spoke, TrainLine, Validated
from indextts_job.report.speech import by_language, speech_values


def points_of(event: Event) -> dict[str, float]:
    """Values by tag; empty for an event without figures."""
    if isinstance(event, TrainLine):
        return _of_line(event)
    if isinstance(event, Validated):
        points = _losses("val", event.losses)
        for loss in event.languages:
            points |= _of_language(loss)
        return points
    if isinstance(event, Figures):
        return {f"command/{name}": value for name, value in event.values.items()}
    return _of_speech(event) if isinstance(event, Spoke) else {}


def kind_of(points: Mapping[str, float]) -> str:
    """The kind of the points of an event: `train`, `val`, `speaking` or `command`."""
    return next(iter(points)).partition("/")[0]


def _of_line(line: TrainLine) -> dict[str, float]:
    points = _losses("train", line.losses)
    points |= {"train/lr": line.learning_rate, "train/grad_norm": line.grad_norm}
    points |= {"train/samples_per_s": line.samples_per_s, "train/tokens_per_s": line.tokens_per_s}
    points |= {f"train/{source}/mel_loss": loss for source, loss in line.sources.items()}
    return points if line.mfu is None else {**points, "train/mfu": line.mfu}


def _of_language(loss: LanguageLoss) -> dict[str, float]:
    points = {f"val/{loss.language}/mel_loss": loss.mel_loss}
    return points if loss.rise is None else {**points, f"val/{loss.language}/rise": loss.rise}


def _of_speech(event: Spoke) -> dict[str, float]:
    return {
        f"speaking/{language}/{name}": value
        for language, speech in by_language(event).items()
        for name, value in speech_values(speech).items()
    }


def _losses(kind: str, losses: Losses) -> dict[str, float]:
    return {f"{kind}/{name}": getattr(losses, name) for name in ("text_loss", "mel_loss", "mel_top1", "total")}
