"""Blocks are compiled on all ranks or on none, and what all of them found is remembered for the next attempts."""

from pathlib import Path

import pytest

from indextts_job.attempt.compiled import Decision, agreed
from indextts_job.errors import ConfigError
from indextts_job.hardware.plan import HardwareConfig, HardwareFacts, Plan
from indextts_job.loop.capacity import Capacity
from indextts_job.storage.remote_storage import open_storage
from indextts_job.training.compilation import fast_enough, long_enough
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.engine import Engine
from tests.support.lockstep import on_ranks
from tests.support.models import engine, small_model

A100 = HardwareFacts(device="cuda", name="NVIDIA A100", memory_bytes=40 * 2**30, bfloat16=True, cpus=8)
PLAN = Plan(device="cuda", precision="bfloat16", capacity_tokens=3000, threads=1)
COMPILER_IS_MISSING = Decision(wanted=False, refused="no C compiler.")


def capacity(folder: Path) -> Capacity:
    return Capacity(PLAN, (700, "long one"), open_storage(str(folder)), A100)


def uncompiled(group: ProcessGroup | None = None) -> Engine:
    """An engine whose blocks, if they are compiled, are so by the compiler's first stage only."""
    made = engine(small_model(), group=group)
    made.model.gpt.compile_blocks("eager")
    made.model.gpt.run_uncompiled()
    return made


@pytest.mark.parametrize(
    ("wanted", "compiled", "remembered"),
    [
        ((True,), True, True),
        ((True, True, True), True, True),
        ((False, False), False, False),
        ((True, False, True), False, False),
        ((True, None), False, None),
        ((None, False), False, None),
    ],
)
def test_all_ranks_do_the_same_and_remember_what_all_have_found(
    tmp_path: Path, wanted: tuple[bool | None, ...], compiled: bool, remembered: bool | None
) -> None:
    def decided(group: ProcessGroup) -> tuple[bool, bool, bool | None]:
        own, memory = uncompiled(group), capacity(tmp_path / str(group.rank))
        found = agreed(Decision(wanted[group.rank]), memory, HardwareConfig(), own)
        return found, own.model.gpt.compiled, capacity(tmp_path / str(group.rank)).compiled

    assert on_ranks(len(wanted), decided) == [(compiled, compiled, remembered)] * len(wanted)


def test_the_decision_needs_a_long_run_and_a_clear_gain() -> None:
    assert long_enough(8 * 3600)
    assert not long_enough(10 * 60)
    assert fast_enough(compiled_s=0.9, usual_s=1.0)
    assert not fast_enough(compiled_s=0.99, usual_s=1.0)
    assert not fast_enough(compiled_s=1.01, usual_s=1.0)


@pytest.mark.parametrize("setting", ["always", "never"])
def test_a_setting_says_nothing_about_later_attempts(tmp_path: Path, setting: str) -> None:
    wanted = setting == "always"
    config = HardwareConfig(compile=setting)  # type: ignore[arg-type]
    assert agreed(Decision(wanted), capacity(tmp_path), config, uncompiled()) is wanted
    assert capacity(tmp_path).compiled is None


def test_an_earlier_decision_outlives_a_node_without_a_compiler(tmp_path: Path) -> None:
    capacity(tmp_path).remember_compiled(compiled=True)
    own = uncompiled()
    own.model.gpt.compile_blocks()
    assert not agreed(COMPILER_IS_MISSING, capacity(tmp_path), HardwareConfig(), own)
    assert not own.model.gpt.compiled
    assert capacity(tmp_path).compiled is True


def test_asked_for_always_a_rank_that_cannot_ends_all_of_them(tmp_path: Path) -> None:
    def message(group: ProcessGroup) -> str:
        own = COMPILER_IS_MISSING if group.rank else Decision(wanted=True)
        with pytest.raises(ConfigError) as caught:
            agreed(own, capacity(tmp_path), HardwareConfig(compile="always"), uncompiled(group))
        return str(caught.value)

    first, second = on_ranks(2, message)
    assert "another rank says why" in first
    assert "no C compiler" in second
