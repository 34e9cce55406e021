"""What `simulate` predicts against what happened: real runs, killed at random instants, goodput of both.

The simulation gets the run's mean pace and how long its attempts lived, nothing else.

    python -m bench.simulation [--runs 3] [--steps 500] [--seed 0]
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from indextts_job.demo.world import WorldSize, make_world
from indextts_job.errors import EXIT_OK
from indextts_job.report.attempts import attempts
from indextts_job.simulation.measured import lives_of, measured_goodput, pace_of
from indextts_job.simulation.world import simulate
from indextts_job.storage.remote_storage import open_storage
from tests.support.runs import config_for

SIZE = WorldSize(samples=200, validation_samples=8, width=128, layers=4)
LIFE_S = (8.0, 25.0)
INTERVAL_STEPS = 10
"""One boundary more or less decides over this many steps: short against the run, so that chance is not measured."""


def main() -> int:
    """Print measured and predicted goodput of each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)  # noqa: S311  # chance is for coverage
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="simulation-") as name:
        folder = Path(name)
        world = make_world(folder / "world", SIZE)
        for number in range(given.runs):
            run, path = folder / f"run-{number}", folder / f"run-{number}.yaml"
            config = config_for(
                world,
                run,
                schedule__max_steps=given.steps,
                schedule__epochs=1000,
                recipe__global_batch_samples=16,
                hardware__capacity_tokens=1000,
                validation__interval_steps=100,
                checkpoint__interval_steps=INTERVAL_STEPS,
                report__sample_log=False,
            )
            path.write_text(yaml.safe_dump(config.to_json()), encoding="utf-8")
            kills = lived(path, chance)
            rows = attempts(open_storage(str(run)))
            pace, steps, _ = pace_of(rows)
            measured = measured_goodput(rows)
            predicted = simulate(steps, INTERVAL_STEPS, pace, lives_of(rows))
            worst = max(worst, abs(predicted.goodput - measured))
            print(
                f"run {number}: {kills} kills, measured {measured:.1%}, predicted {predicted.goodput:.1%}, "
                f"{predicted.redone_steps:.0f} steps done again predicted; step {pace.step_s:.3f} s, "
                f"start {pace.start_s:.1f} s",
                flush=True,
            )
    print(f"at most {worst:.1%} apart")
    return 0


def lived(config: Path, chance: random.Random) -> int:
    """Run and kill until it is complete; how often."""
    kills = 0
    command = [sys.executable, "-m", "indextts_job", "train", str(config)]
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, env={**os.environ})
        life_s = chance.uniform(*LIFE_S)
        try:
            code = process.wait(life_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        if code != EXIT_OK:
            raise RuntimeError(f"the trainer ended with {code}")
        return kills


if __name__ == "__main__":
    sys.exit(main())
