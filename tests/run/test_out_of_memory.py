"""Out of memory at every phase of a step, injected into torch: the step is done again in smaller pieces."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from indextts_job.checkpoint.tensor_names import WEIGHTS
from indextts_job.demo.world import World
from indextts_job.model.unified_voice import UnifiedVoice
from tests.support.attempts import attempt
from tests.support.runs import config_for, events, newest, samples, state_of, store_of

PHASES = ("forward", "backward", "norm", "optimizer", "kernel", "validation")
LOWERED = 160
"""0.8 of the capacity of `config_for`."""
Arm = Callable[[str, int], None]


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Arm]:
    """Makes the n-th pass through a phase run out of memory; every one from there on if n is negative."""
    left: dict[str, int] = {}

    def point(phase: str) -> None:
        if phase in left:
            left[phase] -= 1
            if left[phase] == 0 or left[phase] < -1000:
                raise torch.OutOfMemoryError("CUDA out of memory, says the test")

    def guarded(owner: Any, name: str, phase: str, *, after: bool = False) -> None:
        real = getattr(owner, name)

        def call(*given: Any, **named: Any) -> Any:
            if not after:
                point(phase)
            result = real(*given, **named)
            if after:
                point(phase)
            return result

        monkeypatch.setattr(owner, name, call)

    def forward(module: torch.nn.Module, _inputs: object) -> None:
        if isinstance(module, UnifiedVoice):
            point("forward" if module.training else "validation")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(forward)
    guarded(torch.Tensor, "backward", "backward", after=True)
    guarded(torch.nn.utils, "clip_grad_norm_", "norm", after=True)
    guarded(torch.optim.AdamW, "step", "optimizer")
    guarded(torch, "_fused_adamw_", "kernel")  # the counts of updates have been raised before it

    def set_off(phase: str, number: int) -> None:
        left[phase] = number if number > 0 else -1000

    yield set_off
    hook.remove()


def weights(run: Path) -> torch.Tensor:
    tensors = store_of(run).load(newest(run), (WEIGHTS,))
    return torch.cat([tensors[key].flatten() for key in sorted(tensors)])


@pytest.mark.parametrize("phase", PHASES)
def test_the_run_ends_with_the_weights_that_it_would_have_had(
    world: World, tmp_path: Path, arm: Arm, phase: str
) -> None:
    keys: dict[str, object] = {"recipe__dropout": 0.0}
    assert attempt(config_for(world, tmp_path / "undisturbed", **keys)).code == 0
    # A kernel is one call for each of the optimizer's three groups: the fourth is the first of the second step.
    arm(phase, 4 if phase == "kernel" else 3)
    ended = attempt(config_for(world, tmp_path / "run", **keys))
    assert ended.code == 0, ended.error
    assert f"ran out of memory with micro-batches of up to 200 tokens; done again with {LOWERED}" in ended.output
    used, expected = samples(tmp_path / "run"), samples(tmp_path / "undisturbed")
    assert {step: sorted(ids) for step, ids in used.items()} == {step: sorted(ids) for step, ids in expected.items()}
    # I3 in float32, after 24 steps.
    assert torch.allclose(weights(tmp_path / "run"), weights(tmp_path / "undisturbed"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("phase", ["forward", "kernel"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_from_there_on_it_is_the_run_of_the_smaller_capacity(
    world: World, tmp_path: Path, arm: Arm, phase: str, precision: str
) -> None:
    keys = {"hardware__precision": precision}
    assert attempt(config_for(world, tmp_path / "small", hardware__capacity_tokens=LOWERED, **keys)).code == 0
    arm(phase, 1)  # in the first step
    assert attempt(config_for(world, tmp_path / "run", **keys)).code == 0
    assert state_of(newest(tmp_path / "run")) == state_of(newest(tmp_path / "small"))


def test_the_capacity_is_remembered_and_said(world: World, tmp_path: Path, arm: Arm) -> None:
    run = tmp_path / "run"
    arm("forward", 5)
    assert attempt(config_for(world, run, schedule__max_steps=8)).code == 0
    (remembered,) = (run / "hardware").iterdir()
    assert json.loads(remembered.read_text()) == {"capacity_tokens": LOWERED, "recompute": "nothing"}
    again = attempt(config_for(world, run, schedule__max_steps=12, resume__accept=["schedule.max_steps"]))
    assert again.code == 0, again.error
    assert f"micro-batches of up to {LOWERED} tokens" in again.output
    lowered, limited = (event["message"] for event in events(run, "Notice") if event["topic"] == "memory")
    assert "done again with" in lowered
    assert "because an earlier attempt ran out of memory on" in limited
    assert f"remove hardware/{remembered.name} from the run" in limited
    remembered.write_text("nonsense")
    last = attempt(config_for(world, run, schedule__max_steps=13, resume__accept=["schedule.max_steps"]))
    assert "micro-batches of up to 200 tokens" in last.output


def test_activations_computed_again_give_the_same_bits(world: World, tmp_path: Path) -> None:
    for name, recompute in (("kept", "never"), ("again", "always")):
        ended = attempt(config_for(world, tmp_path / name, hardware__recompute=recompute))
        assert ended.code == 0, ended.error
        assert ("activations are computed again" in ended.output) == (recompute == "always")
    assert state_of(newest(tmp_path / "kept")) == state_of(newest(tmp_path / "again"))


def test_the_last_resort_is_to_keep_nothing(world: World, tmp_path: Path, arm: Arm) -> None:
    refused = attempt(config_for(world, tmp_path / "run", hardware__capacity_tokens=1))
    longest = int(refused.error.partition("the longest sample has ")[2].partition(" ")[0])
    arm("forward", 2)
    ended = attempt(config_for(world, tmp_path / "run", hardware__capacity_tokens=longest))
    assert ended.code == 0, ended.error
    assert "done again with activations computed again (gelu)" in ended.output
    assert attempt(config_for(world, tmp_path / "calm", hardware__capacity_tokens=longest)).code == 0
    assert state_of(newest(tmp_path / "run")) == state_of(newest(tmp_path / "calm"))


@pytest.mark.parametrize("phase", ["forward", "validation"])
def test_when_a_single_sample_does_not_fit_it_says_so(world: World, tmp_path: Path, arm: Arm, phase: str) -> None:
    arm(phase, -1)
    ended = attempt(config_for(world, tmp_path / "run"))
    assert ended.code == 70
    assert "even with micro-batches of" in ended.error
    assert "as many as the longest sample, val_" in ended.error
    if phase == "validation":
        assert newest(tmp_path / "run").name.step == 5  # trained, and committed before the attempt ends
