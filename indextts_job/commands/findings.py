"""Prints the findings of `doctor`: each as soon as it is known, or all as JSON for programs."""

import json
import sys
from collections.abc import Iterable, Iterator

from rich.text import Text

from indextts_job import terminal
from indextts_job.doctor.findings import Finding, exit_code
from indextts_job.redaction import redacted, redacted_values

DETAILS_SHOWN = 5
STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def report(findings: Iterable[Finding], *, as_json: bool, details: int = DETAILS_SHOWN) -> int:
    """Show findings.

    Args:
        findings: The findings, shown in this order.
        as_json: Print one JSON array at the end instead.
        details: Number of places that are shown of each finding.

    Returns:
        The exit code of the first error; 0 if there is none.
    """
    console = terminal.console()
    seen = []
    for finding in findings:
        seen.append(finding)
        if not as_json:
            for line in _lines(finding, details):
                # Not wrapped: paths stay in one piece and can be copied.
                console.print(line, soft_wrap=True)
            sys.stdout.flush()  # a long examination is followed line by line, also through a pipe
    if as_json:
        print(json.dumps(redacted_values([finding.to_json() for finding in seen]), indent=1))  # noqa: T201
    return exit_code(seen)


def _lines(finding: Finding, details: int) -> Iterator[Text]:
    level = (f"{finding.level:<8}", STYLES[finding.level])
    yield Text.assemble(level, f"{finding.subject:<20}", _clean(finding.found))
    for line in finding.picture:
        yield Text(f"{'':<10}{terminal.one_line(line)}")
    for detail in finding.details[:details]:
        yield Text(f"{'':<10}{_clean(detail)}", style="dim")
    if len(finding.details) > details:
        yield Text(f"{'':<10}… and {len(finding.details) - details} more", style="dim")
    if finding.level != "ok" and finding.advice:
        yield Text(f"{'':<28}{_clean(finding.advice)}")


def _clean(text: str) -> str:
    """Text from files and networks, made safe for a terminal: no secrets, no control sequences; line breaks stay."""
    return terminal.lines(redacted(text))
