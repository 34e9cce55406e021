"""What to ask a GPU first: one table, the most decisive row first. Every row stands alone.

A row is computed in a process that is replaced when the row fails, crashes or hangs, so no row spoils the next one. It
is printed, and written to a file of JSON lines, as soon as it is there. The machine needs a CUDA build of torch (2.11
or newer), numpy and msgspec; nothing else of what the package depends on.

    python -m bench.first_ten_minutes [--out DIR] [--rows step,padded-rival] [--row-limit 120]
    python -m bench.first_ten_minutes --list
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from bench.gpu_setting import Setting

TABLE = "first_ten_minutes.jsonl"
NAME_WIDTH = 24
ROWS = {
    "device": "the card, its driver, torch, and what the product plans for them",
    "attention-product": "the product's kernel against float64, its dropout, its time",
    "attention-padded": "the same of the way below sm_80",
    "attention-efficient": "the same of memory-efficient attention on packed rows, which is not used",
    "model-gradients": "a small model's loss and gradient against float64 on the CPU",
    "step": "a step with default settings",
    "evaluate": "a validation, which every save does too",
    "bits-deterministic": "three steps done twice, deterministic kernels",
    "out-of-memory": "a micro-batch that cannot fit, and the step done again",
    "plan": "expected memory of the largest micro-batch against what it takes",
    "padded-rival": "packed against the public trainer's padded formulation, by turns",
    "stall": "how long a save holds training up",
    "step-not-deterministic": "any kernels, by turns with the default step",
    "step-padded-attention": "attention as below sm_80, by turns with the default step",
    "step-small": "micro-batches of 4,096 tokens, by turns with the default step",
    "ceilings": "what a large product and a large copy reach on this card",
    "bits-any": "three steps done twice, any kernels",
    "step-compiled": "compiled blocks, by turns with the default step; compiles for a minute",
}
"""What each row shows, in the order of the table. `bench.gpu_rows` computes them."""
Value = float | int | str | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user has asked for."""

    model: str
    """Version of the model."""
    rank: int
    """Of the adapter; 0 = all weights train."""
    base_dtype: Literal["float32", "bfloat16"]
    """Of the adapter's base."""
    layers: int
    samples: int
    rounds: int
    peak_flops: float
    """0 = from the table of cards."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a row has found, or why it has not."""

    values: Mapping[str, Value]
    error: str = ""
    """Empty for a row that ended."""
    detail: str = ""
    """The traceback of the error."""
    hopeless: bool = False
    """Whether all other rows would fail too: without a GPU, say."""


class Worker:
    """A process with a CUDA context of its own that computes one row after the other."""

    def __init__(self, options: Options) -> None:
        # A context that an illegal access has broken stays broken for its process, so rows are computed in another
        # one. Not forked: CUDA does not work in the child of a process that has used it.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=serve, args=(theirs, options), daemon=True)
        self._process.start()
        theirs.close()

    def row(self, name: str, limit_s: float) -> Found:
        """Compute a row.

        Args:
            name: Its name.
            limit_s: A row that takes longer hangs.
        """
        try:
            self._pipe.send(name)
            if not self._pipe.poll(limit_s):
                return Found({}, f"no answer within {limit_s:g} s")
            found: Found = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(10)  # its exit code is known a moment after its end of the pipe is closed
            return Found({}, f"the process ended with {self._process.exitcode}")
        return found

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()  # one that hangs in the driver does not look at a pipe
        self._process.join()
        self._pipe.close()


def serve(pipe: "Connection[Any, Any]", options: Options) -> None:
    """Compute the rows that are asked for, until the other end is closed."""
    # cuBLAS reads it at its first call; torch demands a value for deterministic products and names this one.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Here and not above: the process that prints the table does without torch, whose import takes seconds.
    from bench.gpu_rows import WORK  # noqa: PLC0415
    from bench.gpu_setting import put_back, read_setting  # noqa: PLC0415

    setting: Setting | None = None
    with contextlib.suppress(EOFError):
        while True:
            name = pipe.recv()
            try:
                setting = setting or read_setting(options)
                found = Found(WORK[name](setting))
            except Exception as error:  # noqa: BLE001  # whatever a row raises is its result
                text = str(error).strip().splitlines() or [""]
                message = f"{type(error).__name__}: {text[0]}"
                found = Found({}, message, traceback.format_exc(), hopeless=setting is None)
            pipe.send(found)
            # After the handler, which held the frames of the row and so its tensors.
            put_back()


def rows(names: Sequence[str], options: Options, limit_s: float) -> Iterator[tuple[str, float, Found]]:
    """Name, seconds and result of every row, as they come.

    Args:
        names: The rows, in the order in which they are computed.
        options: What the user has asked for.
        limit_s: A row that takes longer hangs.
    """
    worker: Worker | None = None
    try:
        for name in names:
            started_s = time.monotonic()
            worker = worker or Worker(options)
            found = worker.row(name, limit_s)
            yield name, time.monotonic() - started_s, found
            if found.hopeless:
                return
            if found.error:
                worker.end()
                worker = None
    finally:
        if worker:
            worker.end()


def shown(values: Mapping[str, Value]) -> str:
    """Values in one line; names carry the units."""
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def write(table: TextIO, name: str, seconds: float, found: Found) -> None:
    """Print a row and add it to the file."""
    print(f"{name:<{NAME_WIDTH}}{f'FAILED {found.error}' if found.error else shown(found.values)}", flush=True)
    document: dict[str, object] = {"row": name, "seconds": round(seconds, 2), "values": dict(found.values)}
    if found.error:
        document |= {"error": found.error, "detail": found.detail}
    table.write(json.dumps(document) + "\n")
    # The machine may be taken away in the middle of the next row.
    table.flush()
    os.fsync(table.fileno())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(), help=f"folder of {TABLE}, which rows are added to")
    parser.add_argument("--rows", default=",".join(ROWS), help="names, separated by commas; default: all of them")
    parser.add_argument("--list", action="store_true", help="print the names of the rows, with what they show")
    parser.add_argument("--row-limit", type=float, default=120, help="seconds after which a row counts as hanging")
    parser.add_argument("--model", choices=("2.0", "2.5"), default="2.0", help="version of the model")
    parser.add_argument("--adapter-rank", type=int, default=0, help="train an adapter; default: all weights train")
    parser.add_argument("--base-dtype", choices=("float32", "bfloat16"), default="float32", help="beside an adapter")
    parser.add_argument("--layers", type=int, default=24, help="fewer than the released model has, for a dry run")
    parser.add_argument("--samples", type=int, default=32, help="samples of a step")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each rival")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the card, dense, 16 bit, if it is not known")
    given = parser.parse_args()
    if given.list:
        for name, about in ROWS.items():
            print(f"{name:<{NAME_WIDTH}}{about}")
        return
    names = given.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        sys.exit(f"no rows of these names: {', '.join(unknown)}. There are {', '.join(ROWS)}.")
    options = Options(
        model=given.model,
        rank=given.adapter_rank,
        base_dtype=given.base_dtype,
        layers=given.layers,
        samples=given.samples,
        rounds=given.rounds,
        peak_flops=given.peak_tflops * 1e12,
    )
    given.out.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    done = failed = 0
    with (given.out / TABLE).open("a", encoding="utf-8") as table:
        for name, seconds, found in rows(names, options, given.row_limit):
            done += 1
            failed += bool(found.error)
            write(table, name, seconds, found)
    print(f"{done} of {len(names)} rows, {failed} failed, {time.monotonic() - started_s:.0f} s; {given.out / TABLE}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
