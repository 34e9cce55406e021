"""Kill workers at random until so many were killed, and compare what they made with an undisturbed run."""

import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.prepare.outcomes import indexes, records
from tests.prepare.worker_process import AWAY_S, start

WORKERS = ("0", "1", "2", "3")
MOST_ROUNDS = 60
LONGEST_S = 120.0


def kill_until(
    settings: dict[str, Any], outputs: list[str], kills: int, folder: Path, environment: Mapping[str, str]
) -> tuple[int, list[str]]:
    """Make one output after another, with kills, until there were enough.

    Returns:
        The number of kills, and the outputs that were made.
    """
    chance = random.Random(kills)
    killed = 0
    made: list[str] = []
    for output in outputs:
        config = folder / f"{len(made)}.yaml"
        config.write_text(yaml.safe_dump({**settings, "output": output}, allow_unicode=True), encoding="utf-8")
        for _ in range(MOST_ROUNDS):
            if killed >= kills:
                break
            killed += _round(config, chance, folder / "log.txt", environment)
        _undisturbed(config, folder / "log.txt", environment)
        made.append(output)
        if killed >= kills:
            break
    return killed, made


def _round(config: Path, chance: random.Random, log: Path, environment: Mapping[str, str]) -> int:
    """Some workers at a time, each with its own death; how many were killed."""
    workers = [
        start(config, name, log, chance.randint(1, 60), environment)
        for name in chance.sample(WORKERS, chance.randint(1, 4))
    ]
    killed = 0
    for worker in workers:
        worker.join(AWAY_S)
        if worker.exitcode is None:
            worker.kill()
            worker.join(LONGEST_S)
        killed += worker.exitcode == -signal.SIGKILL
        assert worker.exitcode in (0, -signal.SIGKILL), log.read_text(encoding="utf-8")
    return killed


def _undisturbed(config: Path, log: Path, environment: Mapping[str, str]) -> None:
    workers = [start(config, name, log, 0, environment) for name in WORKERS]
    for worker in workers:
        worker.join(LONGEST_S)
    assert [worker.exitcode for worker in workers] == [0] * len(WORKERS), log.read_text(encoding="utf-8")


def demand_same(made: list[str], undisturbed: str) -> None:
    expected = indexes(undisturbed)
    assert len(expected) == 2
    for output in made:
        assert records(output) == records(undisturbed)
        assert indexes(output) == expected
