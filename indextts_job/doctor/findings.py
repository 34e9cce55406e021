"""What a doctor finds."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from indextts_job.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    level: Level
    found: str
    advice: str = ""
    details: tuple[str, ...] = ()
    """Each place by itself: file, line, id."""
    picture: tuple[str, ...] = ()
    """Lines of text to look at."""
    exit_code: int = EXIT_CONFIG
    """What an attempt would end with, for an error."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def data_finding(subject: str, level: Level, found: str, advice: str = "", details: Sequence[str] = ()) -> Finding:
    """About data: training would end with 65."""
    return Finding(
        subject=subject, level=level, found=found, advice=advice, details=tuple(details), exit_code=EXIT_DATA
    )


def exit_code(findings: Sequence[Finding]) -> int:
    """That of the first error; 0 if there is none."""
    return next((finding.exit_code for finding in findings if finding.level == "error"), EXIT_OK)
