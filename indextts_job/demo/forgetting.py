"""The demo of forgetting: a base learns English, then Amharic alone and with English replayed; which one is kept?"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from indextts_job.demo.stage import Headings, command, demand, demand_own_folder, shown, sparkline, trained
from indextts_job.demo.world import World, WorldSize, make_world
from indextts_job.errors import EXIT_OK, EXIT_RULE, EXIT_SOFTWARE
from indextts_job.report.journal import EVENTS

OLD, NEW = "en", "am"
REPLAY = 0.15
"""Weight of the old language beside 1 for the new one: that of the public recipe for IndexTTS-2.5."""
BOUND = 0.05
PATIENCE = 3
"""Validations. New text rows begin as means of the old ones, so their first steps pull at what all rows share; replay
takes a hundred steps to bring that back."""
VALIDATION_SAMPLES = 64
"""Of each language: as many as the guard wants before it acts."""
ERRORS = 2
"""Standard errors by which a rise has to exceed the bound. Not the guard's own constant: the demo judges the guard."""
AS_GOOD = 1.01
"""Losses of the new language that differ by less are equal."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a sweep varies; the defaults are those of the demo."""

    learning_rate: float = 1e-3
    new_rows_factor: float = 3.0
    rank: int = 0
    """Of an adapter; 0 = all weights are trained."""
    replay: float = REPLAY


@dataclass(frozen=True, slots=True)
class Validation:
    """One validation of a run, as its log has it."""

    step: int
    new: float
    """Code loss of the new language."""
    rise: float
    """Of the old language's code loss above the base's."""
    error: float
    """Standard error of the rise."""

    @property
    def above(self) -> bool:
        """Whether the rise is above the bound beyond doubt."""
        return self.rise - ERRORS * self.error > BOUND


def run_demo(folder: Path, seed: int = 7) -> int:
    """Run the demo.

    Args:
        folder: Working folder; must be new, or the folder of an earlier demo, which is removed.
        seed: Seed of texts, voices and weights.

    Returns:
        0 when the old language is forgotten without replay and kept with it, otherwise 70.
    """
    console = Console(highlight=False, soft_wrap=True)
    demand_own_folder(folder)
    heading = Headings(console)
    heading("A base that speaks English")
    worlds = make_base(console, folder, seed)
    heading("Amharic alone: to the end, and once more with a guard that stops the run")
    alone = train(console, folder, worlds, "alone", Settings(replay=0))
    stopped = train(console, folder, worlds, "guarded", Settings(replay=0), action="stop")
    heading(f"Amharic with {REPLAY:.0%} of English, and the same guard")
    replayed = train(console, folder, worlds, "replayed", Settings(), action="stop")
    heading("What is left of English?")
    return _verdict(console, folder, (alone, stopped, replayed))


def make_base(console: Console, folder: Path, seed: int) -> tuple[World, World]:
    """Data of both languages, and a base in `folder`/base that has learned the old one.

    Returns:
        The old language and the new one.
    """
    size = WorldSize(samples=240, validation_samples=VALIDATION_SAMPLES)
    old = make_world(folder / "english", replace(size, extended=False, language=OLD), seed)
    new = make_world(folder / "amharic", replace(size, language=NEW), seed + 1)
    document = {
        "run": str(folder / "learned-english"),
        "inputs": _inputs(old.folder / "checkpoints", old.base_tokenizer),
        "data": {"train_manifests": [str(old.train_manifest)], "validation_manifests": [str(old.validation_manifest)]},
        "schedule": {"learning_rate": 3e-3, "warmup_steps": 20, "epochs": 20},
        **_COMMON,
    }
    demand(trained(console, folder, document), EXIT_OK, document["run"])
    arguments = ["export", str(document["run"]), "--output-dir", str(folder / "base")]
    demand(shown(console, [sys.executable, "-m", "indextts_job", *arguments]), EXIT_OK, "the export")
    return old, new


_COMMON: Mapping[str, Any] = {
    "recipe": {"global_batch_samples": 16},
    "validation": {"interval_steps": 50},
    "checkpoint": {"interval_steps": 0},
    "report": {"log_interval_steps": 50},
}


def train(  # the demo's stage, and what a run is
    console: Console,
    folder: Path,
    worlds: tuple[World, World],
    name: str,
    settings: Settings,
    action: str = "warn",
) -> Sequence[Validation]:
    """Train the new language from the base.

    Args:
        console: Gets the output.
        folder: Holds the base and gets the run.
        worlds: The old language and the new one.
        name: Name of the run.
        settings: How to train.
        action: What the guard does.

    Returns:
        The run's validations.

    Raises:
        IndexTTSJobError: It ended with another code than 0, or 79 of the guard.
    """
    old, new = worlds
    manifests = [str(new.train_manifest)]
    if settings.replay:
        manifests.append(f"{old.train_manifest}@{settings.replay:g}")
    run = folder / name
    document = {
        "run": str(run),
        "inputs": _inputs(folder / "base", new.tokenizer),
        "data": {
            "train_manifests": manifests,
            "validation_manifests": [str(new.validation_manifest), str(old.validation_manifest)],
        },
        "schedule": {
            "learning_rate": settings.learning_rate,
            "warmup_steps": 20,
            "epochs": 20,
            "new_rows_factor": settings.new_rows_factor,
        },
        "adapter": {"rank": settings.rank},
        "guard": {"keep": [OLD], "bound": BOUND, "patience": PATIENCE, "action": action},
        **_COMMON,
    }
    code = trained(console, folder, document)
    if code != EXIT_RULE:
        demand(code, EXIT_OK, document["run"])
    return _validations(run)


def _inputs(base: Path, tokenizer: Path) -> dict[str, str]:
    return {
        "model_config": str(base / "config.yaml"),
        "base_checkpoint": str(base / "gpt.pth"),
        "tokenizer": str(tokenizer),
    }


def _validations(run: Path) -> list[Validation]:
    lines = [line for log in sorted((run / EVENTS).iterdir()) for line in log.read_text(encoding="utf-8").splitlines()]
    found = []
    for event in map(json.loads, lines):
        if event["event"] == "Validated":
            of = {one["language"]: one for one in event["languages"]}
            found.append(Validation(event["step"], of[NEW]["mel_loss"], of[OLD]["rise"], of[OLD]["rise_error"]))
    return found


def due_stop(validations: Sequence[Validation]) -> int | None:
    """The step at which a guard has to stop a run, found from the whole run; None if it may go on to its end."""
    in_a_row = 0
    for one in validations:
        in_a_row = in_a_row + 1 if one.above else 0
        if in_a_row == PATIENCE:
            return one.step
    return None


def kept(replayed: Sequence[Validation], alone: Sequence[Validation]) -> bool:
    """Whether a run with replay kept the old language at equal loss of the new one."""
    return not replayed[-1].above and replayed[-1].new <= AS_GOOD * alone[-1].new


def _verdict(console: Console, folder: Path, runs: tuple[Sequence[Validation], ...]) -> int:
    alone, stopped, replayed = runs
    due = due_stop(alone)
    checks = [
        (alone[-1].above, f"alone: English is forgotten, {alone[-1].rise:+.3f} nats per code, bound {BOUND:g}"),
        (due == stopped[-1].step, f"the guard stops that run at step {stopped[-1].step}; by its whole history, {due}"),
        (due_stop(replayed) is None, "with replay the guard lets the run go on to its end"),
        (kept(replayed, alone), f"with replay: English {replayed[-1].rise:+.3f}, Amharic as good as alone or better"),
    ]
    for name, run in (("alone", alone), ("replayed", replayed)):
        rises, losses = ([getattr(one, key) for one in run] for key in ("rise", "new"))
        error = run[-1].error
        console.print(f"  {name:<9} English  {sparkline(rises)} {rises[-1]:+.3f} ± {error:.3f} nats above the base")
        console.print(f"            Amharic  {sparkline(losses)} {losses[-1]:.4f} mel_loss")
    for good, text in checks:
        console.print(f"  {'[green]yes[/]' if good else '[red]NO[/]'}  {text}")
    console.print(
        f"\n  Look around:  {command('indextts-job')} status {folder / 'replayed'} --html {folder / 'replayed.html'}\n"
        f"                {command('indextts-job')} checkpoints best {folder / 'replayed'} --explain\n"
        "  A toy: it shows that the parts work together, not how much replay a real language wants."
    )
    return EXIT_OK if all(good for good, _ in checks) else EXIT_SOFTWARE
