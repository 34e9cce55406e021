"""The table of a GPU's first ten minutes runs: time on a real one is too short to find its mistakes there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.first_ten_minutes import ROWS
from bench.gpu_rows import WORK
from tests.gpu_stand_in.attempts import FULL, ended
from tests.gpu_stand_in.cards import L4
from tests.gpu_stand_in.environment import CONTEXT_MIB, StandIn, plain_variables, started
from tests.support.pure import REPOSITORY

SLOW = {"step-compiled"}
"""Compiles for half a minute; `make long` runs it too."""


def table(
    stand_in: StandIn, folder: Path, *arguments: str, taken_mib: float = CONTEXT_MIB
) -> tuple[int, str, list[dict[str, Any]]]:
    small = ("--layers", "2", "--samples", "8", "--rounds", "1")
    command = ("-m", "bench.first_ten_minutes", *small, "--out", str(folder), *arguments)
    with started(stand_in.variables(L4, taken_mib=taken_mib), *command) as child:
        code, output = ended(child)
    lines = (folder / "first_ten_minutes.jsonl").read_text(encoding="utf-8").splitlines()
    return code, output, [json.loads(line) for line in lines]


def test_every_row_runs(stand_in: StandIn, tmp_path: Path) -> None:
    chosen = [name for name in ROWS if FULL or name not in SLOW]
    code, output, rows = table(stand_in, tmp_path, "--rows", ",".join(chosen))
    assert [row["row"] for row in rows] == chosen
    assert not [row for row in rows if "error" in row], output
    assert code == 0


def test_a_row_that_fails_is_a_row_and_spoils_no_other(stand_in: StandIn, tmp_path: Path) -> None:
    chosen = ["step", "attention-product", "stall", "device"]
    # 800 MiB are left, and weights with their moments take 1.1 GB.
    code, output, rows = table(stand_in, tmp_path, "--rows", ",".join(chosen), taken_mib=L4.gib * 1024 - 800)
    assert [row["row"] for row in rows] == chosen
    assert [row["row"] for row in rows if "error" in row] == ["step", "stall"], output
    assert "CUDA out of memory" in rows[0]["error"]
    assert code == 1


def test_without_a_gpu_it_says_so_once(stand_in: StandIn, tmp_path: Path) -> None:
    with started(plain_variables(), "-m", "bench.first_ten_minutes", "--out", str(tmp_path)) as child:
        code, output = ended(child)
    assert code == 1
    assert "torch sees no GPU here" in output
    assert f"1 of {len(ROWS)} rows, 1 failed" in output


def test_every_row_is_computed_by_something() -> None:
    assert list(WORK) == list(ROWS)


def test_it_needs_no_more_than_torch_numpy_and_msgspec() -> None:
    """Such a machine often has a torch of its own, and no network to install from."""
    code = (
        "import sys, bench.gpu_rows\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & set(sys.argv[1:])))"
    )
    unwanted = ("fsspec", "rich", "s3fs", "safetensors", "sentencepiece", "tensorboard", "yaml", "prometheus_client")
    done = subprocess.run(
        [sys.executable, "-c", code, *unwanted], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert not done.stdout.split()
