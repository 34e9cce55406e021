"""What freezing the base rows costs: a step with half of the vocabulary frozen against one where all rows train.

python -m bench.freezing
"""

from bench.timing import alternate
from bench.workload import PIECES, engine, model_config, tokens_of, utterances
from indextts_job.data.packing import pack
from indextts_job.model.batch import collate
from indextts_job.training.step import train_step


def main() -> None:
    """Print seconds per step of both, and the ratio."""
    config = model_config()
    samples = utterances(24, config)
    bins = pack([tokens_of(sample, config) for sample in samples], 4096)
    batches = [collate([samples[slot] for slot in slots], config) for slots in bins]
    frozen, free = engine(config, base_pieces=PIECES // 2), engine(config)

    def train(which: object) -> None:
        train_step(which, batches, 0, 1e-4)  # type: ignore[arg-type]

    seconds = alternate({"frozen": lambda: train(frozen), "free": lambda: train(free)}, 9)
    print(
        f"step with {PIECES // 2} of {PIECES} rows frozen {seconds['frozen']:.3f} s, all rows trained "
        f"{seconds['free']:.3f} s, cost {seconds['frozen'] / seconds['free'] - 1:+.1%}"
    )


if __name__ == "__main__":
    main()
