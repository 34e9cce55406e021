"""What happens when a state that was loaded is not the one that was saved."""

from dataclasses import replace
from pathlib import Path

import pytest

from indextts_job.checkpoint.values import ReferenceLosses
from indextts_job.demo.world import World
from indextts_job.errors import StoppedError
from indextts_job.preemption.deadline import StopRequest
from indextts_job.report.events import Event, Notice
from indextts_job.resume import policy as resume_policy
from indextts_job.resume.consistency import Check
from indextts_job.resume.policy import admit
from indextts_job.resume.reference import Reference
from indextts_job.training.engine import Engine
from tests.support.attempts import attempt
from tests.support.runs import config_for, newest


@pytest.fixture
def strange(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of which a checkpoint says that the model computed something else."""
    run = tmp_path / "run"
    real = Reference.losses

    def other(reference: Reference, engine: Engine) -> ReferenceLosses:
        found = real(reference, engine)
        assert found is not None
        return replace(found, mel_loss=99.0)

    with monkeypatch.context() as patch:
        patch.setattr(Reference, "losses", other)
        assert attempt(config_for(world, run, schedule__max_steps=12)).code == 0
    return run


def test_a_sound_state_is_said_to_be_one(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert attempt(config_for(world, run, schedule__max_steps=12)).code == 0
    recorded = newest(run).values.reference
    assert recorded is not None
    assert len(recorded.samples) == 2
    ended = attempt(config_for(world, run, schedule__max_steps=16, resume__accept=["schedule.max_steps"]))
    assert ended.code == 0, ended.error
    assert "loss          passed: text_loss" in ended.output
    assert "all 6 checks passed in" in ended.output


def test_another_state_ends_the_attempt_before_the_first_step(world: World, strange: Path) -> None:
    before = newest(strange)
    ended = attempt(config_for(world, strange, schedule__max_steps=16, resume__accept=["schedule.max_steps"]))
    assert ended.code == 65
    assert "mel_loss 99 then" in ended.error
    assert "resume.checks=warn" in ended.error
    assert newest(strange).name == before.name


def test_whoever_wants_to_goes_on(world: World, strange: Path) -> None:
    accept = {"schedule__max_steps": 16, "resume__accept": ["schedule.max_steps"]}
    ended = attempt(config_for(world, strange, resume__checks="warn", **accept))
    assert ended.code == 0, ended.error
    assert "1 checks failed; training goes on" in ended.output
    assert newest(strange).name.step == 16


BAD = [Check("loss", passed=False, found="1 then, 2 now")]


def test_a_countdown_can_be_stopped() -> None:
    events: list[Event] = []
    with pytest.raises(StoppedError, match="during the countdown"):
        admit(BAD, "ask", lambda: StopRequest("Ctrl+C", 0.0, 1.0), events.append, 3)
    assert any(isinstance(event, Notice) and "in 10 s; Ctrl+C gives up" in event.message for event in events)


def test_a_countdown_that_nobody_stops_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume_policy, "COUNTDOWN_S", 0)
    admit(BAD, "ask", lambda: None, lambda _event: None, 3)


def test_a_checkpoint_of_an_attempt_that_made_no_step_passes_too(world: World, tmp_path: Path) -> None:
    run, ten = tmp_path / "run", {"schedule__max_steps": 10}
    assert attempt(config_for(world, run, data__validation_manifests=[], **ten)).code == 0
    # A validation is made up for, and its result saved, at the step that another attempt has come to.
    assert attempt(config_for(world, run, validation__interval_steps=10, **ten)).code == 0
    assert newest(run).name.attempt == 2
    accept = {"schedule__max_steps": 16, "resume__accept": ["schedule.max_steps"]}
    ended = attempt(config_for(world, run, **accept))
    assert ended.code == 0, ended.error
    assert "all 6 checks passed" in ended.output
