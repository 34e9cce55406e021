"""The demo of the free-running check: three faults that no loss shows, and what the model says when it speaks."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from indextts_job.demo.stage import Headings, command, demand, demand_own_folder, trained
from indextts_job.demo.world import World, WorldSize, make_world
from indextts_job.errors import EXIT_OK, EXIT_SOFTWARE
from indextts_job.model.base_checkpoint import LANGUAGE_TABLE
from indextts_job.model.languages import CODES, TRAINED, row_of
from indextts_job.model.versions import V2_5
from indextts_job.report.journal import EVENTS
from indextts_job.tokenizer.encoding import encode
from indextts_job.tokenizer.loading import load_tokenizer

STEPS, INTERVAL = 400, 80
SWITCH = 240
"""Step at which a run goes on with the faulty trainer: the healthy one has learned to speak, and its loss still
falls."""
LONGER_STEPS = 480
"""Of the run with padded tails, whose clips have twice as many codes."""
LANGUAGE, WRONG = "am", "lb"
PAUSE, LONGEST_PAUSE = 7, 2
"""Code of the pause that clips begin with, and its most codes. Without it the place of a code in its clip would tell
its place in the text, and upstream's shift of positions would cost this toy more than a fault does."""
SILENCE, TAIL = 3, 40
"""Code and length of a padded tail: 1.6 s at 25 Hz."""
UNTRAINED_STD = 0.3
"""Of the language rows that nobody has trained. In the release they are far from the trained ones too."""
AS_GOOD = 1.02
"""A loss that is at most so many times another one does not show a fault."""
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Heard:
    """The end of a run, as its log has it."""

    total: float
    """Its own validation loss, faults included."""
    broken: tuple[str, ...]
    """Limits that its speech breaks, in words."""
    figures: Mapping[str, Any]

    def breaks(self, *names: str) -> bool:
        """Whether each of these limits is broken."""
        return all(any(f": {name} " in text for text in self.broken) for name in names)


def run_demo(folder: Path, seed: int = 7) -> int:
    """Run the demo.

    Args:
        folder: Working folder; must be new, or the folder of an earlier demo, which is removed.
        seed: Seed of texts, voices and weights.

    Returns:
        0 when the check hears each fault and nothing else, otherwise 70.
    """
    console = Console(highlight=False, soft_wrap=True)
    demand_own_folder(folder)
    heading = Headings(console)
    heading("A healthy run that speaks at each validation")
    world = make_speaking_world(folder / "world", seed)
    healthy = _run(console, folder, world, "healthy")
    heading(f"The same run, whose trainer is updated at step {SWITCH}: the new one takes stops for padding")
    console.print("  Its check at the start notices that the same state has another loss; it is told to go on.")
    origin = next((folder / "healthy/checkpoints").glob(f"step-{SWITCH:08d}-*.json"))
    stops = _run(
        console,
        folder,
        world,
        "stops",
        {"resume": {"source": str(origin), "checks": "warn"}},
        "indextts_job.demo.faulty_trainer",
    )
    heading(f"Clips that were encoded in padded batches, with {TAIL} codes of silence behind each")
    padded = rewritten(world, "tails", with_tail, LANGUAGE)
    tails = _run(console, folder, padded, "tails", {"schedule": _schedule(LONGER_STEPS)})
    heading(f"Texts that were stored as {WRONG}, and are spoken by their name, {LANGUAGE}")
    wrong = _run(
        console,
        folder,
        rewritten(world, "wrong", lambda codes: codes, WRONG),
        "wrong",
        {"speaking": {**_SPEAKING, "names": [f"{WRONG}={LANGUAGE}"]}},
    )
    heading("What does the loss show, and what is heard?")
    return _verdict(console, folder, {"healthy": healthy, "stops": stops, "tails": tails, "wrong": wrong})


@dataclass(frozen=True, slots=True)
class Spoken:
    """A world and its manifests."""

    world: World
    train: Path
    validation: Path


def make_speaking_world(folder: Path, seed: int) -> Spoken:
    """Data of one language, and a base whose language rows are as in a release.

    Args:
        folder: Gets the files.
        seed: Seed of texts, voices and weights.
    """
    world = make_world(folder, WorldSize(samples=240, validation_samples=48, version=V2_5, archives=False), seed)
    base: dict[str, torch.Tensor] = torch.load(world.base_checkpoint, weights_only=True)
    noise = torch.randn(base[LANGUAGE_TABLE].shape, generator=torch.Generator().manual_seed(seed)) * UNTRAINED_STD
    untrained = [row_of(code) for code in CODES if code not in TRAINED]
    base[LANGUAGE_TABLE][untrained] = noise[untrained]
    torch.save(base, world.base_checkpoint)
    random = np.random.default_rng(seed)

    def with_pause(codes: Codes) -> Codes:
        pause = np.full(random.integers(LONGEST_PAUSE, endpoint=True), PAUSE, np.int32)
        return np.concatenate([pause, codes])

    return rewritten(Spoken(world, world.train_manifest, world.validation_manifest), "clips", with_pause, LANGUAGE)


def with_tail(codes: Codes) -> Codes:
    """A clip with the silence of a padded batch behind it."""
    return np.concatenate([codes, np.full(TAIL, SILENCE, np.int32)])


def rewritten(spoken: Spoken, name: str, change: Callable[[Codes], Codes], language: str) -> Spoken:
    """The same texts and voices, as another preprocessing would store them.

    Args:
        spoken: What there is.
        name: Name of the new manifests.
        change: Makes the codes of a clip.
        language: Label of the records, whose token is the first id of each text.
    """
    tokenizer = load_tokenizer(str(spoken.world.tokenizer))
    manifests = []
    for manifest in (spoken.train, spoken.validation):
        folder, lines = manifest.parent, []
        for record in map(json.loads, manifest.read_text(encoding="utf-8").splitlines()):
            arrays = {
                "text_ids": np.array(encode(tokenizer, f"<|{language}|> {record['target_text']}"), np.int32),
                "codes": change(np.load(folder / record["target_codes_path"])),
            }
            for use, values in arrays.items():
                path = Path(f"{name}_{use}/{record['id']}.npy")
                (folder / path).parent.mkdir(exist_ok=True)
                np.save(folder / path, values)
                record[f"target_{use}_path"] = str(path)
            lengths = {"target_text_len": len(arrays["text_ids"]), "target_code_len": len(arrays["codes"])}
            lines.append(json.dumps(record | lengths | {"target_language": language}, ensure_ascii=False) + "\n")
        path = folder / f"{name}_{'train' if manifest == spoken.train else 'val'}.jsonl"
        path.write_text("".join(lines), encoding="utf-8")
        manifests.append(path)
    return Spoken(spoken.world, *manifests)


_SPEAKING: Mapping[str, Any] = {
    "mode": "greedy",
    "budget": 1.0,  # a step of this toy takes as long as one code
    "compare_positions": False,
}


def _run(  # the demo's stage, and what a run is
    console: Console,
    folder: Path,
    spoken: Spoken,
    name: str,
    keys: Mapping[str, Any] | None = None,
    module: str = "indextts_job",
) -> Heard:
    run, world = folder / name, spoken.world
    document = {
        "run": str(run),
        "inputs": {
            "model_config": str(world.model_config),
            "base_checkpoint": str(world.base_checkpoint),
            "tokenizer": str(world.tokenizer),
        },
        "data": {"train_manifests": [str(spoken.train)], "validation_manifests": [str(spoken.validation)]},
        "recipe": {"global_batch_samples": 16},
        "schedule": _schedule(STEPS),
        "validation": {"interval_steps": INTERVAL},
        "speaking": dict(_SPEAKING),
        "checkpoint": {"interval_steps": SWITCH, "keep": 100},
        "report": {"log_interval_steps": INTERVAL},
        **(keys or {}),
    }
    demand(trained(console, folder, document, module), EXIT_OK, run)
    return _heard(run)


def _schedule(steps: int) -> dict[str, Any]:
    return {"learning_rate": 3e-3, "warmup_steps": 20, "epochs": 1000, "max_steps": steps}


def _heard(run: Path) -> Heard:
    last: dict[str, Any] = {}
    for log in sorted((run / EVENTS).iterdir()):
        for event in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
            last[event["event"]] = event
    spoke = last["Spoke"]
    return Heard(last["Validated"]["losses"]["total"], tuple(spoke["broken"]), spoke["languages"][0])


def checks_of(runs: Mapping[str, Heard]) -> list[tuple[bool, str]]:
    """What has to be seen, each with a sentence.

    Args:
        runs: By name the ends of the four runs.
    """
    healthy = runs["healthy"]
    blind = [run.total <= AS_GOOD * healthy.total for name, run in runs.items() if name != "healthy"]
    return [
        (not healthy.broken, "the healthy run breaks no limit"),
        (all(blind), f"the losses of the faulty runs are within {AS_GOOD - 1:.0%} of it, or lower"),
        (runs["stops"].breaks("no_stop", "length_ratio"), "stops taken for padding: it never stops"),
        (runs["tails"].breaks("silence", "loops"), "padded tails: it is silent for more than 1.5 s"),
        (runs["wrong"].breaks("length_ratio", "distinct"), "the wrong language row: too short, texts sound alike"),
    ]


def explained_by(lines: Sequence[str], best: int, lowest: int) -> bool:
    """Whether `checkpoints best --explain` names the lowest loss and why it is not the best.

    Args:
        lines: What it printed.
        best: Step of the best checkpoint.
        lowest: Step of the lowest loss.
    """
    told = any(line.startswith(f"step {lowest} has a lower loss") and "no_stop" in line for line in lines)
    return best != lowest and told


def _verdict(console: Console, folder: Path, runs: Mapping[str, Heard]) -> int:
    for name, run in runs.items():
        found = run.figures
        told = "; ".join(text.partition(": ")[2].split(",")[0] for text in run.broken) or "inside all limits"
        console.print(
            f"  {name:<8} loss {run.total:.4f}  length {found['length_ratio']:.2f}  agreement "
            f"{found['agreement']:.2f}  {told}"
        )
    arguments = ["checkpoints", "best", str(folder / "stops")]
    program = [sys.executable, "-m", "indextts_job", *arguments]
    output = subprocess.run([*program, "--json"], capture_output=True, text=True, check=True).stdout
    rows = json.loads(output)["validations"]
    lowest = min(rows, key=lambda row: float(row["total"]))["step"]
    best = next(row["step"] for row in rows if row["best"])
    explanation = subprocess.run([*program, "--explain"], capture_output=True, text=True, check=True).stdout
    checks = [
        *checks_of(runs),
        (
            explained_by(explanation.splitlines(), best, lowest),
            f"of the run with the updated trainer step {best} is the best, not {lowest} with the lowest loss, and "
            "--explain says why",
        ),
    ]
    for good, text in checks:
        console.print(f"  {'[green]yes[/]' if good else '[red]NO[/]'}  {text}")
    console.print(
        f"\n  Look around:  {command('indextts-job')} {' '.join(arguments)} --explain\n"
        f"                {command('indextts-job')} status {folder / 'stops'} --html {folder / 'stops.html'}\n"
        f"                {folder / 'wrong/speaking'} has every code that was spoken\n"
        "  A toy: it shows what the check hears, not how a real voice sounds."
    )
    return EXIT_OK if all(good for good, _ in checks) else EXIT_SOFTWARE
