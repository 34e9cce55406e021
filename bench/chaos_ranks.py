"""Interruptions of several processes: world sizes that change at every life, random ranks killed or preempted.

Every run is interrupted until it is complete; its samples are compared with an undisturbed run's of one process, and
so are its weights, within float32's rounding. With `--same-plan` a run keeps its number of processes, and has to end
with the bits of an undisturbed run of that number.

    python -m bench.chaos_ranks [--interruptions 20] [--most 4] [--seed 0] [--data one] [--same-plan]
        [--longest-life-s 6]
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from indextts_job.demo.world import make_world
from indextts_job.errors import EXIT_OK, EXIT_STOPPED, EXIT_UNAVAILABLE
from tests.distributed.ranks import KEYS, ended, pid_of_rank, same_samples, started, weights
from tests.support.attempts import attempt
from tests.support.mixed import KINDS, mixture_keys
from tests.support.runs import TINY, config_for, newest, state_of

LONGEST_LIFE_S = 6.0
"""From the start of the processes; they begin to train after about 3, several on a busy machine after 6."""
ENDED_BY = tuple(code for number in (signal.SIGKILL, signal.SIGTERM) for code in (128 + number, -number))
"""Of a rank that a signal reaches where nothing listens: SIGTERM before or after the training. The others end with
`EXIT_UNAVAILABLE`, having lost it, and one of them may be seen first."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interruptions", type=int, default=20)
    parser.add_argument("--most", type=int, default=4, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest-life-s", type=float, default=LONGEST_LIFE_S, help="from the start of the processes")
    parser.add_argument("--data", choices=KINDS, default="one", help="one source, or a mixture of three")
    parser.add_argument("--adapter", type=int, default=0, metavar="RANK", help="train an adapter; 0 = all weights")
    parser.add_argument("--same-plan", action="store_true", help="keep the number of processes, compare bits")
    return parser.parse_args()


def main() -> int:
    """Print what was done and what differed; 0 when nothing did."""
    given = _arguments()
    chance = random.Random(given.seed)  # noqa: S311  # chance is for coverage
    struck: Counter[str] = Counter()
    runs = different = 0
    largest = 0.0
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        world = make_world(folder / "world", TINY)
        undisturbed = folder / "undisturbed"
        data = {**KEYS, **mixture_keys(world, folder / "sources", given.data), "adapter__rank": given.adapter}
        attempt(config_for(world, undisturbed, **data))
        if given.same_plan:
            for count in range(1, given.most + 1):
                ended(started(world, folder / f"undisturbed-{count}", count, None, **data))
        while struck.total() < given.interruptions:
            run = folder / f"run-{runs}"
            runs += 1
            code = -1
            kept = chance.randint(1, given.most)
            while code != EXIT_OK:
                count = kept if given.same_plan else chance.randint(1, given.most)
                # Part of the plan: with three processes and more, shared moments change how sums are rounded.
                keys = {} if given.same_plan else {"hardware__shard_optimizer": chance.choice(["always", "never"])}
                process = started(world, run, count, None, **{**data, **keys})
                time.sleep(chance.uniform(1.0, given.longest_life_s))
                kind = chance.choice([signal.SIGKILL, signal.SIGTERM])
                try:
                    os.kill(process.pid if count == 1 else pid_of_rank(process, chance.randrange(count)), kind)
                    struck[f"{kind.name} of {count}"] += 1
                except (LookupError, ProcessLookupError):
                    pass  # not started yet, or complete already
                code, output = ended(process)
                if code not in (EXIT_OK, EXIT_STOPPED, EXIT_UNAVAILABLE, *ENDED_BY):
                    print(f"{output[-3000:]}exit code {code}")
                    return 1
            apart = float((weights(run) - weights(undisturbed)).abs().max())
            largest = max(largest, apart)
            agree = torch.allclose(weights(run), weights(undisturbed), rtol=1e-4, atol=2e-5)
            if given.same_plan:
                agree = agree and state_of(newest(run)) == state_of(newest(folder / f"undisturbed-{kept}"))
            different += not (same_samples(run, undisturbed) and agree)
            print(
                f"{struck.total()} interruptions of {runs} runs: {different} differ so far", file=sys.stderr, flush=True
            )
            shutil.rmtree(run)
    for what, times in struck.most_common():
        print(f"{times:>6}  {what}")
    print(f"{struck.total()} interruptions of {runs} runs: {different} runs differ; weights within {largest:.1e}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
