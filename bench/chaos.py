"""Interruptions without end: real processes, SIGKILL and SIGTERM at random points, compared bit for bit.

Every run is interrupted again and again until it is complete; then its weights, moments, history and samples are
compared with an undisturbed run's.

    python -m bench.chaos [--interruptions 1000] [--seed 0] [--data one]
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from indextts_job.demo.world import make_world
from indextts_job.errors import EXIT_OK, EXIT_STOPPED
from tests.support.mixed import KINDS, mixture_keys
from tests.support.runs import TINY, config_for, newest, samples, state_of
from tests.support.warm_parent import Interruption, WarmParent

LONGEST_LIFE = 90
"""Points that an attempt lives at most; a whole run has about 300."""


def main() -> int:
    """Print what was done and what differed; 0 when nothing did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interruptions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", choices=KINDS, default="one", help="one source, or a mixture of three")
    parser.add_argument("--adapter", type=int, default=0, metavar="RANK", help="train an adapter; 0 = all weights")
    given = parser.parse_args()
    chance = random.Random(given.seed)  # noqa: S311  # chance is for coverage
    struck: Counter[str] = Counter()
    runs = different = repeated = missing = 0
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, WarmParent() as parent:
        folder = Path(name)
        world = make_world(folder / "world", TINY)
        log = folder / "log.txt"
        undisturbed = folder / "undisturbed"
        data = {**mixture_keys(world, folder / "sources", given.data), "adapter__rank": given.adapter}
        parent.attempt(config_for(world, undisturbed, **data), log)
        expected, wanted = state_of(newest(undisturbed)), samples(undisturbed)
        while struck.total() < given.interruptions:
            run = folder / f"run-{runs}"
            runs += 1
            code = -1
            while code != EXIT_OK:
                number = chance.choice([signal.SIGKILL, signal.SIGTERM])
                config = config_for(world, run, preemption__grace_seconds=chance.choice([0, 3600]), **data)
                ended = parent.attempt(config, log, Interruption(number, chance.randint(1, LONGEST_LIFE)))
                struck[f"{number.name} at {ended.struck_at}"] += bool(ended.struck_at)
                code = ended.code
                if code not in (EXIT_OK, EXIT_STOPPED, 128 + signal.SIGKILL):
                    print(log.read_text(encoding="utf-8")[-3000:])
                    return 1
            used = samples(run)
            different += state_of(newest(run)) != expected
            one = Counter(sample for step in used.values() for sample in step)
            other = Counter(sample for step in wanted.values() for sample in step)
            repeated += (one - other).total()
            missing += (other - one).total()
            if runs % 20 == 0:
                print(f"{struck.total()} interruptions, {runs} runs, {time.monotonic() - started_s:.0f} s", flush=True)
    for place, count in struck.most_common():
        if count:
            print(f"{count:>6}  {place}")
    print(
        f"{struck.total()} interruptions of {runs} runs in {time.monotonic() - started_s:.0f} s: "
        f"{repeated} samples repeated, {missing} missing, {different} runs whose bits differ"
    )
    return 1 if repeated or missing or different else 0


if __name__ == "__main__":
    sys.exit(main())
