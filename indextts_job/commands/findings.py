"""What a doctor finds, shown: a line each as it is found, or JSON for programs."""

import json
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from indextts_job.doctor.findings import Finding, exit_code

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
    console = Console(soft_wrap=True)
    seen = []
    for finding in findings:
        seen.append(finding)
        if as_json:
            continue
        console.print(
            Text.assemble((f"{finding.level:<8}", STYLES[finding.level]), f"{finding.subject:<20}", finding.found)
        )
        for line in finding.picture:
            console.print(Text(f"{'':<10}{line}"))
        for detail in finding.details[:details]:
            console.print(Text(f"{'':<10}{detail}", style="dim"))
        if len(finding.details) > details:
            console.print(Text(f"{'':<10}… and {len(finding.details) - details} more", style="dim"))
        if finding.level != "ok" and finding.advice:
            console.print(Text(f"{'':<28}{finding.advice}"))
        sys.stdout.flush()
    if as_json:
        print(json.dumps([finding.to_json() for finding in seen], indent=1))  # noqa: T201
    return exit_code(seen)
