"""Whole runs whose model speaks at validations: the same training, the same best after a stop, nothing lost."""

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import yaml

from indextts_job.checkpoint import retention
from indextts_job.cli import main
from indextts_job.demo.world import World, make_world
from indextts_job.errors import EXIT_CONFIG, EXIT_OK, EXIT_STOPPED, DeviceMemoryError
from indextts_job.model.versions import V2_5
from tests.support.archived import records, write_records
from tests.support.attempts import Attempted, attempt
from tests.support.runs import TINY, config_for, curve, events, newest, state_of, store_of

SPEAKING = {"speaking__mode": "greedy", "schedule__max_steps": 10}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), replace(TINY, version=V2_5, archives=False))


def train(world: World, run: Path, keys: Mapping[str, object] = MappingProxyType({}), stop_at: int = 0) -> Attempted:
    return attempt(config_for(world, run, **{**SPEAKING, **keys}), stop_at)


def stopped_while_speaking(monkeypatch: pytest.MonkeyPatch, world: World, run: Path, code: int) -> int:
    """An attempt that a SIGTERM reaches while the model speaks, at this attention of a single code."""
    path = run.with_name("run.yaml")
    path.write_text(yaml.safe_dump(config_for(world, run, **SPEAKING).to_json()), encoding="utf-8")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    attention = torch.nn.functional.scaled_dot_product_attention
    single = 0

    def attended(query: Any, *given: Any, **named: Any) -> Any:
        nonlocal single
        single += query.shape[-2] == 1  # one row for each utterance: only speaking has that
        if single == code:
            os.kill(os.getpid(), signal.SIGTERM)
        return attention(query, *given, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attended)
    try:
        return main(["train", str(path)])
    finally:
        monkeypatch.undo()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_training_has_the_same_bits_with_and_without_the_check(world: World, tmp_path: Path) -> None:
    for mode in ("off", "greedy", "sampled"):
        assert train(world, tmp_path / mode, {"speaking__mode": mode}).code == EXIT_OK
    off, greedy, sampled = (newest(tmp_path / mode) for mode in ("off", "greedy", "sampled"))
    for checked in (greedy, sampled):
        assert state_of(checked)["objects"] == state_of(off)["objects"]
        assert checked.values.history.speaking is not None
        alike = replace(checked.values.history, speaking=None, best=off.values.history.best)
        count = off.values.history.validations_without_improvement
        assert replace(alike, validations_without_improvement=count) == off.values.history


def test_a_stop_while_the_model_speaks_loses_no_step_and_changes_no_bit(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(world, tmp_path / "one").code == EXIT_OK
    for code in (9, 40):
        assert stopped_while_speaking(monkeypatch, world, tmp_path / "two", code) == EXIT_STOPPED
        assert events(tmp_path / "two", "StopNoticed")[-1]["decision"] == "validation postponed"
        saved = newest(tmp_path / "two")
        assert saved.name.step in (5, 10)
        assert not saved.values.history.validated_at(saved.name.step)
    assert train(world, tmp_path / "two").code == EXIT_OK
    assert state_of(newest(tmp_path / "one")) == state_of(newest(tmp_path / "two"))
    told = [newest(tmp_path / name).values.history.speaking for name in ("one", "two")]
    assert told[0] is not None
    assert [one.step for one in told[0].results] == [5, 10]
    assert told[0] == told[1]
    spoken = [(tmp_path / name / "speaking/speaking-00000005.jsonl").read_text() for name in ("one", "two")]
    assert spoken[0] == spoken[1]


def test_what_was_spoken_is_in_the_journal_the_curves_and_the_status(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, numbers = tmp_path / "run", tmp_path / "numbers.prom"
    done = train(world, run, {"report__prometheus_file": str(numbers)})
    assert done.code == EXIT_OK, done.error
    assert "at each validation the model speaks am 12" in done.output
    history = newest(run).values.history
    assert history.speaking is not None
    speech = history.speaking.results[-1].languages[0]
    (first, last) = events(run, "Spoke")
    assert (first["step"], last["step"]) == (5, 10)
    assert last["languages"][0]["length_ratio"] == speech.length_ratio
    ratio = curve(run, "speaking/am/length_ratio")
    assert [step for step, _ in ratio] == [5, 10]
    assert ratio[-1][1] == pytest.approx(speech.length_ratio)
    assert curve(run, "speaking/all/no_stop")[-1][1] == pytest.approx(speech.no_stop / speech.records)
    assert 'indextts_job_speaking{figure="length_ratio",language="am",run=' in numbers.read_text()
    assert f'indextts_job_speaking_limits_broken{{run="{run}"}} {float(len(last["broken"]))}' in numbers.read_text()
    lines = [json.loads(line) for line in (run / "speaking/speaking-00000010.jsonl").read_text().splitlines()]
    assert len(lines) == speech.records == 12
    assert sum(line["length"] for line in lines) / sum(line["expected"] for line in lines) == speech.length_ratio

    capsys.readouterr()
    assert main(["status", str(run)]) == EXIT_OK
    assert ("breaks limits" if last["broken"] else "inside all limits") in capsys.readouterr().out
    assert main(["status", str(run), "--html", str(tmp_path / "page.html")]) == EXIT_OK
    assert "Spoken codes: agreement with the reference" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_checkpoint_that_speaks_badly_is_not_the_best_and_is_explained(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    loose: dict[str, object] = {
        f"speaking__limits__{name}": value
        for name, value in {
            **dict.fromkeys(("no_stop", "early_stop", "loops", "silence", "special", "prefix_same"), 1.0),
            **dict.fromkeys(("distinct", "length_ratio_least"), 0.0),
            "length_ratio_most": 1000.0,
        }.items()
    }
    keys = {"schedule__max_steps": 20, "validation__interval_steps": 4, "checkpoint__keep": 100}
    assert train(world, run, {**keys, **loose}).code == EXIT_OK
    history = newest(run).values.history
    assert history.best is not None
    assert history.best.step == 20, "the loss falls to the end"
    assert history.speaking is not None
    ratios = {one.step: one.languages[0].length_ratio for one in history.speaking.results}
    # A limit between the validations' lengths: some pass, the last one does not.
    other = next(value for step, value in sorted(ratios.items(), reverse=True) if value != ratios[20])
    middle = (other + ratios[20]) / 2
    which = "length_ratio_least" if ratios[20] < other else "length_ratio_most"
    again = {**keys, **loose, f"speaking__limits__{which}": middle}
    assert train(world, tmp_path / "limited", again).code == EXIT_OK
    good = {step for step, value in ratios.items() if (value > middle) == (which == "length_ratio_least")}
    names = retention.current(store_of(tmp_path / "limited").names())
    best = max(name.step for name in names if retention.BEST in name.tags)
    assert best == max(good), "the lowest loss among those that pass"

    capsys.readouterr()
    assert main(["checkpoints", "best", str(tmp_path / "limited"), "--explain"]) == EXIT_OK
    out = capsys.readouterr().out
    assert "step 20 has a lower loss" in out
    assert "speaks badly: am: length_ratio" in out
    assert main(["checkpoints", "best", str(tmp_path / "limited"), "--json"]) == EXIT_OK
    told = json.loads(capsys.readouterr().out)
    assert {row["step"] for row in told["validations"] if row["speaking"] == "passes"} == good
    assert main(["export", str(tmp_path / "limited"), "--last", "--output-dir", str(tmp_path / "last")]) == EXIT_OK
    assert "speaking: breaks limits. am: length_ratio" in capsys.readouterr().err


def test_the_script_is_fixed_for_the_run_and_the_limits_are_not(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(world, run, stop_at=6).code == EXIT_STOPPED
    done = train(world, run, {"speaking__records": 9})
    assert done.code == EXIT_CONFIG
    assert "is not what it spoke so far in this run" in done.error
    assert train(world, run, {"speaking__mode": "sampled"}).code == EXIT_CONFIG
    assert train(world, run, {"speaking__limits__distinct": 0.1, "speaking__rank": "agreement"}).code == EXIT_OK


def test_the_check_may_be_switched_on_and_off_within_a_run(world: World, tmp_path: Path) -> None:
    assert train(world, tmp_path / "run", {"speaking__mode": "off"}, stop_at=6).code == EXIT_STOPPED
    assert train(world, tmp_path / "run", stop_at=9).code == EXIT_STOPPED
    assert train(world, tmp_path / "run").code == EXIT_OK
    history = newest(tmp_path / "run").values.history
    assert history.speaking is not None
    assert [one.step for one in history.speaking.results] == [10]
    keys = {"speaking__mode": "off", "schedule__max_steps": 15, "resume__accept": ["schedule.max_steps"]}
    assert train(world, tmp_path / "run", keys).code == EXIT_OK


NO_LIMITS: dict[str, object] = {
    **{f"speaking__limits__{name}": 1.0 for name in ("no_stop", "early_stop", "loops", "silence", "special")},
    **{"speaking__limits__distinct": 0.0, "speaking__limits__prefix_same": 1.0},
    **{"speaking__limits__length_ratio_least": 0.0, "speaking__limits__length_ratio_most": 1000.0},
}


def test_a_best_one_that_was_never_heard_stays_and_all_that_is_told(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    more: dict[str, object] = {"schedule__max_steps": 20, "speaking__limits__length_ratio_least": 1000.0}

    def explained() -> str:
        capsys.readouterr()
        assert main(["checkpoints", "best", str(run), "--explain"]) == EXIT_OK
        return " ".join(capsys.readouterr().out.split())

    assert train(world, run, {**more, "speaking__mode": "off"}, stop_at=6).code == EXIT_STOPPED
    assert "never heard" not in explained()
    done = train(world, run, {**more, "validation__early_stopping_patience": 1})
    assert done.code == EXIT_OK, done.error
    reason = "step 10 has a lower loss"
    (notice,) = (event for event in events(run, "Notice") if event["topic"] == "early stop")
    assert notice["message"].startswith(f"1 validations in a row without improvement; {reason}")
    assert "speaks badly: am: length_ratio" in notice["message"]
    told = explained()
    assert reason in told
    assert "step 5, the best one, was never heard: speaking.mode was off at its validation" in told
    assert "would be the best one" not in told
    # Other limits do not choose it anew, so the advice is to know that.
    assert train(world, run, {**more, **NO_LIMITS}, stop_at=12).code == EXIT_STOPPED
    told = explained()
    assert f"{reason}" in told
    assert "was passed over by the settings of its time" in told
    assert "by the present settings step 10 would be the best one" in told
    assert "step 5 stays until a validation beats it" in told


def test_too_little_memory_to_speak_loses_no_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = torch.nn.functional.scaled_dot_product_attention

    def attended(query: Any, *given: Any, **named: Any) -> Any:
        if query.shape[-2] == 1:  # one row for each utterance: only speaking has that
            raise torch.OutOfMemoryError
        return attention(query, *given, **named)

    run = tmp_path / "run"
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attended)
    done = train(world, run)
    assert done.code == DeviceMemoryError.exit_code
    assert "out of memory while the model speaks a single record" in done.error
    assert "speaking.mode=off goes on without this check" in done.error
    assert newest(run).name.step == 5
    monkeypatch.undo()
    # The next attempt validates there again, and decides as one that had the memory.
    assert train(world, run).code == EXIT_OK
    history = newest(run).values.history
    assert history.speaking is not None
    assert [one.step for one in history.speaking.results] == [5, 10]
    assert [one.step for one in history.validations] == [5, 10]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"speaking__names": ["am"]}, "no LABEL=NAME"),
        ({"speaking__names": ["en=am"]}, "which has am"),
        ({"speaking__texts": [{"text": "ሰላም"}]}, "speaking.texts[0] has no language"),
        ({"speaking__texts": [{"text": " ", "language": "am"}]}, "cannot be spoken as am"),
        ({"speaking__texts": [{"text": "ሰላም", "language": "am", "speaker": "nobody"}]}, "'nobody' is the id of no"),
    ],
)
def test_what_cannot_be_spoken_is_refused(
    world: World, tmp_path: Path, keys: Mapping[str, object], message: str
) -> None:
    done = train(world, tmp_path / "run", keys)
    assert done.code == EXIT_CONFIG
    assert message in done.error
    assert "hardware" not in done.output, "said before anything is computed"


def test_records_without_a_text_are_spoken_by_their_stored_ids_and_that_is_said(world: World, tmp_path: Path) -> None:
    found = records(world.validation_manifest)
    manifest = world.validation_manifest.with_name("textless.jsonl")
    write_records(manifest, [{**record, "target_text": ""} for record in found[:4]] + found[4:])
    done = train(world, tmp_path / "run", {"data__validation_manifests": [str(manifest)]})
    assert done.code == EXIT_OK, done.error
    assert "4 by their stored ids" in done.output
