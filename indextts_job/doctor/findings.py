"""A finding of `indextts-job doctor`: a check with its result and the advice that follows from it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from indextts_job.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    subject: str
    level: Level
    found: str
    advice: str = ""
    details: tuple[str, ...] = ()
    """The places of a fault, one each: file, line, id."""
    picture: tuple[str, ...] = ()
    """A histogram as lines of text."""
    exit_code: int = EXIT_CONFIG
    """The exit code that an attempt would have; of use for an error only."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; findings that are no errors have no exit code."""
        return {**asdict(self), "exit_code": self.exit_code if self.level == "error" else None}


def data_finding(subject: str, level: Level, found: str, advice: str = "", details: Sequence[str] = ()) -> Finding:
    """A finding about data: as an error it has exit code 65, as training would."""
    return Finding(
        subject=subject, level=level, found=found, advice=advice, details=tuple(details), exit_code=EXIT_DATA
    )


def exit_code(findings: Sequence[Finding]) -> int:
    """The exit code of the first error; 0 if there is none."""
    return next((finding.exit_code for finding in findings if finding.level == "error"), EXIT_OK)
