"""Which finished units are made again, because audio of theirs was missing and is there now, or is another one now.

Opens no audio. What has vanished meanwhile changes nothing: the arrays that were made of it are as good as before.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from indextts_job.errors import DataError
from indextts_job.prepare.audio import NOT_FOUND
from indextts_job.prepare.audio_files import MISSING, AudioFiles, place_of
from indextts_job.prepare.records import UnitRecord, UtteranceRecord
from indextts_job.prepare.units import Unit
from indextts_job.prepare.utterances import Utterance
from indextts_job.redaction import redacted

FOUND, MOVED, CHANGED = "was missing and is there now", "lies elsewhere now", "has changed"


def outdated(units: Iterable[tuple[Unit, UnitRecord]], audio: AudioFiles) -> dict[str, str]:
    """The units to make again: name and reason.

    Args:
        units: Finished units with their records.
        audio: The audio files as they are now.

    Raises:
        DataError: All audio lies elsewhere now, and none of it is there.
    """
    found: dict[str, str] = {}
    every = [(unit, list(zip(unit.utterances, record.utterances, strict=True))) for unit, record in units]
    _demand_some([pair for _, pairs in every for pair in pairs], audio)
    for unit, pairs in every:
        reason = next(filter(None, (_reason(utterance, known, audio) for utterance, known in pairs)), "")
        if reason:
            found[unit.name] = reason
    return found


def _reason(utterance: Utterance, known: UtteranceRecord, audio: AudioFiles) -> str:
    """Why the audio of an utterance has to be read again; empty if it has not."""
    if known.missing or known.reason == NOT_FOUND:  # records of earlier releases have the reason alone
        return FOUND if audio.is_there(utterance.url) else ""
    version = audio.version(utterance.url)
    if version == MISSING:
        return ""
    if known.place not in ("", place_of(utterance.url)):
        return MOVED
    return CHANGED if _differ(version, known.audio_version) else ""


def _differ(version: str | None, recorded: str) -> bool:
    """Whether two versions are known to differ."""
    return bool(version and recorded) and version != recorded


def _demand_some(pairs: Sequence[tuple[Utterance, UtteranceRecord]], audio: AudioFiles) -> None:
    """Refuse a wrong folder: nothing that was used lies where it did, and next to nothing where it should now."""
    used = [(one, known) for one, known in pairs if known.audio_sha256]
    moved = [one for one, known in used if known.place not in ("", place_of(one.url))]
    missing = [one.url for one in moved if audio.version(one.url) == MISSING]
    # A few may have been left behind on purpose, and a wrong folder may have a file of the same name.
    if len(moved) == len(used) and 2 * len(missing) > len(moved) + 1:
        raise nothing_there(missing)


def nothing_there(urls: Sequence[str]) -> DataError:
    """The error for a unit of which no audio file is there."""
    folder, _, name = place_of(urls[0]).rpartition("/")
    return DataError(
        f"{redacted(folder)}: not one of {len(urls)} audio files that the manifest names one after another is there; "
        f"the first is {redacted(name)}. Check audio.folder, and whether the share is mounted; then run the same "
        "command again. Nothing was recorded about them."
    )


def counted(reasons: Mapping[str, str]) -> Iterator[str]:
    """Reasons with the number of units, in words."""
    for reason, count in sorted(Counter(reasons.values()).items()):
        yield f"{count} because audio of theirs {reason}"
