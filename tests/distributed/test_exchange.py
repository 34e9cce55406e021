"""Gradients over gloo: no rank waits for ever, whatever a step ends by, and nothing of that is in the bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import free_ports
from tests.support.warm_parent import REPOSITORY


def ranks(count: int, folder: Path, mode: str, meeting: str = "") -> "list[subprocess.Popen[str]]":
    command = [sys.executable, "-m", "tests.distributed.exchange", mode]
    meeting = meeting or f"file://{folder}/meet-{count}-{mode}"
    base = {**os.environ, "WORLD_SIZE": str(count), "INDEXTTS_RENDEZVOUS": meeting, "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            command, cwd=REPOSITORY, env={**base, "RANK": str(rank)}, stderr=subprocess.PIPE, stdout=None, text=True
        )
        for rank in range(count)
    ]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_steps_that_were_broken_off_and_a_new_start_leave_the_same_bits(tmp_path: Path, count: int) -> None:
    group = ranks(count, tmp_path, "broken-off")
    said = [rank.communicate(timeout=120)[1] for rank in group]
    assert [rank.returncode for rank in group] == [0] * count, "\n".join(said)


@pytest.mark.parametrize("meeting", ["file", "tcp"])
def test_a_rank_that_is_killed_in_the_middle_of_the_exchange_is_named_by_all_others(
    tmp_path: Path, meeting: str
) -> None:
    group = ranks(3, tmp_path, "killed", f"tcp://127.0.0.1:{free_ports(1)[0]}" if meeting == "tcp" else "")
    said = [rank.communicate(timeout=60)[1] for rank in group]
    assert [rank.returncode for rank in group] == [69, 69, -9], "\n".join(said)
    for rank in range(2):
        assert f"rank {rank} of 3 lost rank 2: " in said[rank]
