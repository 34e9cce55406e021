"""Pictures of what the program prints, as SVG: docs/demo.svg and docs/status.svg. `make pictures`."""

import contextlib
import io
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.support.warm_parent import REPOSITORY

COLUMNS = 110
LAST_LINES = 26
"""Of the demo: its verdict, and the curves."""


def printed(*arguments: str) -> str:
    """What a command prints on a terminal, with its colours."""
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    command = [sys.executable, "-m", "indextts_job", *arguments]
    chunks = []
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        with contextlib.suppress(OSError):  # the end of a terminal
            while chunk := os.read(parent, 65536):
                chunks.append(chunk)
    os.close(parent)
    if process.returncode:
        raise RuntimeError(b"".join(chunks).decode())
    # As with an active virtual environment.
    return b"".join(chunks).decode().replace("\r\n", "\n").replace(".venv/bin/", "")


def draw(text: str, title: str, path: Path) -> None:
    """Write an SVG of a terminal."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(text), soft_wrap=True)
    path.write_text(console.export_svg(title=title, unique_id=path.stem), encoding="utf-8")
    print(path, path.stat().st_size, "bytes")  # noqa: T201


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "demo"
        lines = printed("demo", "--folder", str(folder)).rstrip().splitlines()
        draw("\n".join(lines[-LAST_LINES:]).replace(name, "~"), "indextts-job demo", REPOSITORY / "docs/demo.svg")
        runs = sorted(path.parent for path in folder.rglob("attempts"))
        interrupted = max(runs, key=lambda run: len(list((run / "attempts").iterdir())))
        text = printed("status", str(interrupted)).replace(name, "~")
        draw(text, "indextts-job status", REPOSITORY / "docs/status.svg")


if __name__ == "__main__":
    main()
