"""Machines that cannot train are refused before anything is written, with exit code 78."""

import re
from pathlib import Path

import pytest

from indextts_job.demo.world import World
from tests.gpu_stand_in.attempts import TRAIN, ended, written
from tests.gpu_stand_in.cards import H100, TOO_OLD, Card
from tests.gpu_stand_in.environment import LIBRARY, StandIn, plain_variables, started


@pytest.mark.parametrize("card", TOO_OLD, ids=str)
def test_a_card_without_kernels_is_refused(stand_in: StandIn, wide_world: World, tmp_path: Path, card: Card) -> None:
    config = written(wide_world, tmp_path / "run")
    with started(stand_in.variables(card), *TRAIN, config) as child:
        code, output = ended(child)
    assert code == 78, output
    assert card.name in output
    assert f"{card.capability // 10}.{card.capability % 10}" in output
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_gpu_that_is_demanded_and_missing_is_refused(stand_in: StandIn, wide_world: World, tmp_path: Path) -> None:
    """With the CUDA build of torch, on a machine without a driver."""
    config = written(wide_world, tmp_path / "run", hardware__device="cuda")
    with started(plain_variables() | {"CUDA_VISIBLE_DEVICES": ""}, *TRAIN, config) as child:
        code, output = ended(child)
    assert code == 78, output
    assert "hardware.device is cuda, but torch sees no GPU here" in output


def test_more_processes_than_gpus_are_refused(stand_in: StandIn, wide_world: World, tmp_path: Path) -> None:
    """The second process of a node with one GPU: it says so before the first one waits for it."""
    ranks = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with started(stand_in.variables(H100) | ranks, *TRAIN, written(wide_world, tmp_path / "run")) as child:
        code, output = ended(child)
    assert code == 78, output
    assert "process 2 of this node, but torch sees 1 GPUs here" in output


def test_the_library_knows_which_kernels_the_wheel_has(stand_in: StandIn) -> None:
    source = (LIBRARY / "card.c").read_text(encoding="utf-8")
    (written_list,) = re.findall(r"BUILT_FOR\[\] = \{([^}]*)\}", source)
    code = "import torch; print(*torch.cuda.get_arch_list())"
    with started(stand_in.variables(H100), "-c", code) as child:
        exit_code, output = ended(child)
    assert exit_code == 0, output
    assert output.split() == [f"sm_{number.strip()}" for number in written_list.split(",")]
