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
    """What an attempt would end with; counts for an error only."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is no error ends nothing and has no exit code."""
        return {**asdict(self), "exit_code": self.exit_code if self.level == "error" else None}


def data_finding(subject: str, level: Level, found: str, advice: str = "", details: Sequence[str] = ()) -> Finding:
    """About data: training would end with 65."""
    return Finding(
        subject=subject, level=level, found=found, advice=advice, details=tuple(details), exit_code=EXIT_DATA
    )


def exit_code(findings: Sequence[Finding]) -> int:
    """That of the first error; 0 if there is none."""
    return next((finding.exit_code for finding in findings if finding.level == "error"), EXIT_OK)
