"""How much of an old language is left after a new one, with and without replay: the world of `demo forgetting`.

python -m bench.forgetting --seeds 1 2 3
python -m bench.forgetting --ranks 4 16 32 --rates 1e-3 3e-3 --factors 1 10
"""

import argparse
import io
import itertools
import tempfile
from pathlib import Path

from rich.console import Console

from indextts_job.demo.forgetting import Settings, due_stop, kept, make_base, train


def main() -> None:
    """Print a row for each seed and setting, as they come."""
    given = _arguments()
    print("seed  rank  rate     row factor  | alone: en rise, am loss | replay: en rise, am loss | kept, goes on")
    with tempfile.TemporaryDirectory() as scratch:
        for seed in given.seeds:
            folder = Path(scratch) / str(seed)
            worlds = make_base(_silent(), folder, seed)
            grid = itertools.product(given.ranks, given.rates, given.factors)
            for number, (rank, rate, factor) in enumerate(grid):
                settings = Settings(learning_rate=rate, new_rows_factor=factor, rank=rank, replay=given.replay)
                alone = Settings(learning_rate=rate, new_rows_factor=factor, rank=rank, replay=0)
                one = train(_silent(), folder, worlds, f"alone-{number}", alone)
                two = train(_silent(), folder, worlds, f"replayed-{number}", settings)
                print(
                    f"{seed:4}  {rank:4}  {rate:<7g}  {factor:<10g}  | {one[-1].rise:+.3f}, {one[-1].new:.4f}"
                    f"          | {two[-1].rise:+.3f}, {two[-1].new:.4f}           "
                    f"| {kept(two, one)}, {due_stop(two) is None}",
                    flush=True,
                )


def _silent() -> Console:
    return Console(file=io.StringIO())


def _arguments() -> argparse.Namespace:
    standard = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--ranks", type=int, nargs="+", default=[standard.rank], help="of adapters; 0 = all weights")
    parser.add_argument("--rates", type=float, nargs="+", default=[standard.learning_rate])
    parser.add_argument("--factors", type=float, nargs="+", default=[standard.new_rows_factor], help="for new rows")
    parser.add_argument("--replay", type=float, default=standard.replay, help="weight of the old language beside 1")
    return parser.parse_args()


if __name__ == "__main__":
    main()
