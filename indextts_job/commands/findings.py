"""What a doctor finds, shown: a line each as it is found, or JSON for programs."""

import json
import sys
from collections.abc import Iterable

from rich.text import Text

from indextts_job import terminal
from indextts_job.doctor.findings import Finding, exit_code
from indextts_job.redaction import redacted, redacted_values

DETAILS_SHOWN = 5
STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def report(findings: Iterable[Finding], *, as_json: bool, details: int = DETAILS_SHOWN) -> int:
    """Show findings.

    Args:
        findings: As they come.
        as_json: One array at the end.
        details: Places shown of each finding.

    Returns:
        The exit code of the first error; 0 if there is none.
    """
    console = terminal.console()
    seen = []
    for finding in findings:
        seen.append(finding)
        if as_json:
            continue
        level = (f"{finding.level:<8}", STYLES[finding.level])
        console.print(Text.assemble(level, f"{finding.subject:<20}", _clean(finding.found)), soft_wrap=True)
        for line in finding.picture:
            console.print(Text(f"{'':<10}{terminal.one_line(line)}"), soft_wrap=True)
        for detail in finding.details[:details]:
            console.print(Text(f"{'':<10}{_clean(detail)}", style="dim"), soft_wrap=True)
        if len(finding.details) > details:
            console.print(Text(f"{'':<10}… and {len(finding.details) - details} more", style="dim"))
        if finding.level != "ok" and finding.advice:
            console.print(Text(f"{'':<28}{_clean(finding.advice)}"), soft_wrap=True)
        sys.stdout.flush()
    if as_json:
        print(json.dumps(redacted_values([finding.to_json() for finding in seen]), indent=1))  # noqa: T201
    return exit_code(seen)


def _clean(text: str) -> str:
    """What a finding says of files and networks: without secrets, line breaks kept, and no terminal command."""
    return terminal.lines(redacted(text))
