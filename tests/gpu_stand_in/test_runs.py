"""Runs of the unchanged command on every kind of card: interrupted, resumed, short of memory, and all of it committed.

No kernel computes anything, so weights stay those of the base checkpoint. That is what the tests compare: every byte
has gone to the card and back, through pinned memory, into checkpoints and out of them again.
"""

import signal
from pathlib import Path

import pytest
import torch

from indextts_job.checkpoint.tensor_names import WEIGHTS
from indextts_job.demo.world import World
from indextts_job.report.attempts import attempts
from tests.gpu_stand_in.attempts import CARDS, TRAIN, ended, wait_until_written, written
from tests.gpu_stand_in.cards import A100, Card
from tests.gpu_stand_in.environment import CONTEXT_MIB, StandIn, started
from tests.support.runs import events, newest, samples, store_of


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Those of the newest checkpoint, whose objects are read and hashed."""
    return store_of(run).load(newest(run), (WEIGHTS,))


def assert_unchanged(run: Path, world: World) -> None:
    """The transformer's weights are those of the base checkpoint. Vocabulary tables have new rows."""
    base = torch.load(world.base_checkpoint, weights_only=True)
    compared = {name: value for name, value in weights(run).items() if name.startswith(f"{WEIGHTS}gpt.h.")}
    assert len(compared) == 4 * 12  # layers, tensors of each
    for name, value in compared.items():
        assert torch.equal(value, base[name.removeprefix(WEIGHTS)]), name


@pytest.mark.parametrize("card", CARDS, ids=str)
def test_an_interrupted_run_is_resumed_and_completed(
    stand_in: StandIn, wide_world: World, tmp_path: Path, card: Card
) -> None:
    run = tmp_path / "run"
    # Without an end, so that the signal always comes in the middle of it.
    first = written(wide_world, run, schedule__max_steps=100_000)
    with started(stand_in.variables(card), *TRAIN, first) as child:
        wait_until_written('"step": 7,', run / "samples/attempt-0001.jsonl", child)
        child.send_signal(signal.SIGTERM)
        code, output = ended(child)
    assert code == 75, output
    stopped_at = newest(run).name.step
    assert stopped_at >= 7
    assert [event["step"] for event in events(run, "Validated")][:1] == [5]
    assert card.name in output
    assert_unchanged(run, wide_world)

    keys: dict[str, object] = {
        "schedule__max_steps": stopped_at + 11,
        "resume__accept": ["schedule.max_steps"],
        # They read values of kernels: whether all weights are finite, how many updates the optimizer has counted.
        "resume__checks": "warn",
    }
    second = written(wide_world, run, **keys)
    with started(stand_in.variables(card), *TRAIN, second) as child:
        code, output = ended(child)
    assert code == 0, output
    assert newest(run).name.step == stopped_at + 11
    assert sorted(samples(run)) == list(range(1, stopped_at + 12))
    assert_unchanged(run, wide_world)


@pytest.mark.parametrize("card", CARDS, ids=str)
def test_a_step_that_runs_out_of_memory_is_done_again_smaller(
    stand_in: StandIn, wide_world: World, tmp_path: Path, card: Card
) -> None:
    run = tmp_path / "run"
    # The step has about 3,300 tokens of 50 kB each, and weights, gradients and moments of 60 MB. All of it together
    # needs more than what is left on the card, half of it does not.
    keys: dict[str, object] = {
        "recipe__global_batch_samples": 64,
        "schedule__max_steps": 6,
        "hardware__capacity_tokens": 3_600,
    }
    taken_mib = card.gib * 1024 - 180
    with started(stand_in.variables(card, taken_mib=taken_mib), *TRAIN, written(wide_world, run, **keys)) as child:
        code, output = ended(child)
    assert code == 0, output
    assert "ran out of memory with micro-batches of up to 3600 tokens; done again with 2880" in output
    (found,) = attempts(store_of(run).storage)
    assert found.out_of_memory == output.count("ran out of memory") > 0
    assert newest(run).name.step == 6
    assert sorted(samples(run)) == list(range(1, 7))
    assert_unchanged(run, wide_world)


def test_memory_that_others_use_is_no_reason_to_start_over(
    stand_in: StandIn, wide_world: World, tmp_path: Path
) -> None:
    """The second attempt has less memory than the first one, which measured its micro-batches."""
    run, card = tmp_path / "run", A100
    for taken_mib, steps in ((CONTEXT_MIB, 4), (card.gib * 1024 - 180, 8)):
        keys: dict[str, object] = {
            "recipe__global_batch_samples": 64,
            "schedule__max_steps": steps,
            "resume__accept": ["schedule.max_steps"],
            "resume__checks": "warn",
        }
        with started(stand_in.variables(card, taken_mib=taken_mib), *TRAIN, written(wide_world, run, **keys)) as child:
            code, output = ended(child)
        assert code == 0, output
    assert newest(run).name.step == 8


def test_a_container_without_the_management_library_trains(
    stand_in: StandIn, wide_world: World, tmp_path: Path
) -> None:
    """One that was given the card for computing only (NVIDIA_DRIVER_CAPABILITIES=compute)."""
    config = written(wide_world, tmp_path / "run", schedule__max_steps=3)
    with started(stand_in.variables(A100, nvml=False), *TRAIN, config) as child:
        code, output = ended(child)
    assert code == 0, (code, output)


def test_compiled_blocks_train_and_the_next_attempt_compiles_beside_the_loading(
    stand_in: StandIn, wide_world: World, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for steps in (3, 6):
        keys: dict[str, object] = {
            "schedule__max_steps": steps,
            "resume__accept": ["schedule.max_steps"],
            "resume__checks": "warn",
            "hardware__compile": "always",
        }
        with started(stand_in.variables(A100), *TRAIN, written(wide_world, run, **keys)) as child:
            code, output = ended(child)
        assert code == 0, output
        assert "compiled blocks" in output
    assert newest(run).name.step == 6
    assert newest(run).values.environment.plan["compiled"] is True
    assert_unchanged(run, wide_world)


def test_without_a_compiler_the_blocks_run_as_they_are(stand_in: StandIn, wide_world: World, tmp_path: Path) -> None:
    # As in the image without its build argument: Triton looks for a C compiler on the path.
    variables = stand_in.variables(A100) | {"PATH": "/nonexistent", "CC": "", "TRITON_CACHE_DIR": str(tmp_path)}
    config = written(wide_world, tmp_path / "run", schedule__max_steps=3, hardware__compile="always")
    with started(variables, *TRAIN, config) as child:
        code, output = ended(child)
    assert code == 78, output
    assert "hardware.compile is always, but compiling fails" in output
    (tmp_path / "run/hardware").mkdir(parents=True, exist_ok=True)
    (tmp_path / "run/hardware/nvidia-a100-sxm4-40gb-40-gib.json").write_text('{"compiled": true}')
    config = written(wide_world, tmp_path / "run", schedule__max_steps=3, hardware__compile="auto")
    with started(variables, *TRAIN, config) as child:
        code, output = ended(child)
    assert code == 0, output
    assert "blocks are not compiled" in output
