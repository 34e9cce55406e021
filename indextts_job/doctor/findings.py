"""What a doctor finds."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from indextts_job.errors import EXIT_CONFIG, EXIT_OK

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    level: Level
    found: str
    advice: str = ""
    exit_code: int = EXIT_CONFIG
    """What an attempt would end with, for an error."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def exit_code(findings: Sequence[Finding]) -> int:
    """That of the first error; 0 if there is none."""
    return next((finding.exit_code for finding in findings if finding.level == "error"), EXIT_OK)
