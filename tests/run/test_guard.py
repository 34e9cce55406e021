"""Whole runs that keep a language: measured before the first step, stopped at the right one, the same after a stop."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import file_name
from indextts_job.cli import main
from indextts_job.demo.world import World, make_world
from indextts_job.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK, EXIT_STOPPED
from tests.support.attempts import Attempted, attempt
from tests.support.runs import TINY, config_for, events, newest, state_of, store_of

GOAL_MISSED = 79
BOUND = 0.02
GUARD = {"guard__keep": ["en"], "guard__minimum_samples": 4, "validation__interval_steps": 4}


@pytest.fixture(scope="module")
def two_languages(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Half of the validation set is in a language that the training set does not have, with codes of no rule."""
    # Without new pieces: the base has no values for them.
    world = make_world(tmp_path_factory.mktemp("world"), replace(TINY, extended=False))
    random = np.random.default_rng(3)
    records = [json.loads(line) for line in world.validation_manifest.read_text(encoding="utf-8").splitlines()]
    for record in records[::2]:
        record["target_language"] = "en"
        path = world.validation_manifest.parent / record["target_codes_path"]
        np.save(path, random.integers(0, 128, record["target_code_len"]).astype(np.int32))
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    world.validation_manifest.write_text("".join(lines), encoding="utf-8")
    return world


def train(world: World, run: Path, stop: int = 0, keys: Mapping[str, object] = MappingProxyType({})) -> Attempted:
    own = {"inputs__tokenizer": str(world.base_tokenizer), **GUARD, **keys}
    return attempt(config_for(world, run, **own), stop)


def test_a_language_that_is_forgotten_stops_the_run(two_languages: World, tmp_path: Path) -> None:
    keys = {
        "guard__action": "stop",
        "guard__bound": BOUND,
        "schedule__learning_rate": 2e-2,
        "schedule__max_steps": 80,
    }
    done = train(two_languages, tmp_path / "run", keys=keys)
    assert done.code == GOAL_MISSED, done.output
    assert "en has risen by" in done.error
    assert "Everything is committed" in done.error
    validated = events(tmp_path / "run", "Validated")
    rises = [next(one["rise"] for one in event["languages"] if one["language"] == "en") for event in validated]
    # The evaluator of the test: the loss of English on its own, and the first two validations in a row above the bound.
    errors = [next(one["rise_error"] for one in event["languages"] if one["language"] == "en") for event in validated]
    above = [rise - 2 * error > BOUND for rise, error in zip(rises, errors, strict=True)]
    assert above[-2:] == [True, True]
    assert not any(one and two for one, two in itertools.pairwise(above[:-1]))
    assert newest(tmp_path / "run").name.step == validated[-1]["step"]


def test_a_warning_goes_on(two_languages: World, tmp_path: Path) -> None:
    keys = {"schedule__learning_rate": 2e-2, "schedule__max_steps": 80, "guard__bound": BOUND}
    done = train(two_languages, tmp_path / "run", keys=keys)
    assert done.code == EXIT_OK, done.error
    assert "guard" in done.output
    assert "nats per code above the base" in done.output


def test_an_interrupted_run_has_the_same_history_and_the_same_best(two_languages: World, tmp_path: Path) -> None:
    assert train(two_languages, tmp_path / "one").code == EXIT_OK
    for stop in (3, 8, 17):
        assert train(two_languages, tmp_path / "two", stop).code == EXIT_STOPPED
    assert train(two_languages, tmp_path / "two").code == EXIT_OK
    one, two = newest(tmp_path / "one"), newest(tmp_path / "two")
    assert state_of(one) == state_of(two)
    assert one.values.history.guard is not None
    assert one.values.history.best == two.values.history.best


def test_losses_are_those_of_a_run_without_a_guard(two_languages: World, tmp_path: Path) -> None:
    assert train(two_languages, tmp_path / "one").code == EXIT_OK
    assert train(two_languages, tmp_path / "two", keys={"guard__keep": []}).code == EXIT_OK
    guarded, plain = (newest(tmp_path / name).values.history.validations for name in ("one", "two"))
    for one, two in zip(guarded, plain, strict=True):
        assert one.step == two.step
        assert one.losses.mel_loss == pytest.approx(two.losses.mel_loss, rel=1e-6)
        assert one.losses.text_loss == pytest.approx(two.losses.text_loss, rel=1e-6)
        assert one.losses.mel_top1 == pytest.approx(two.losses.mel_top1)


def test_a_language_without_records_is_refused(two_languages: World, tmp_path: Path) -> None:
    done = train(two_languages, tmp_path / "run", keys={"guard__keep": ["en", "zh"]})
    assert done.code == EXIT_CONFIG
    assert "zh is not among the languages of the validation set, which has en, am" in done.error


def test_a_guard_that_comes_late_is_refused_without_an_adapter(two_languages: World, tmp_path: Path) -> None:
    assert train(two_languages, tmp_path / "run", 3, {"guard__keep": []}).code == EXIT_STOPPED
    done = train(two_languages, tmp_path / "run")
    assert done.code == EXIT_CONFIG
    assert "the base was not measured on en before the first step" in done.error


def test_with_an_adapter_the_base_can_be_measured_at_any_time(two_languages: World, tmp_path: Path) -> None:
    adapter = {"adapter__rank": 4}
    assert train(two_languages, tmp_path / "late", 6, {**adapter, "guard__keep": []}).code == EXIT_STOPPED
    assert train(two_languages, tmp_path / "late", keys=adapter).code == EXIT_OK
    assert train(two_languages, tmp_path / "early", keys=adapter).code == EXIT_OK
    late, early = (newest(tmp_path / name).values.history.guard for name in ("late", "early"))
    assert late is not None
    assert early is not None
    assert late.baselines == early.baselines


def test_the_best_checkpoint_is_explained_exported_and_kept_with_the_last_good_one(
    two_languages: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    keys = {"schedule__learning_rate": 2e-2, "schedule__max_steps": 40, "guard__bound": BOUND}
    keys |= {"checkpoint__keep": 1, "checkpoint__interval_steps": 0}  # nothing is saved but what validations earn
    assert train(two_languages, run, keys=keys).code == EXIT_OK
    capsys.readouterr()
    validated = events(run, "Validated")
    inside = [event["step"] for event in validated if not _above_bound(event)]
    assert 0 < len(inside) < len(validated), "the test wants validations of both kinds"
    names = retention.current(store_of(run).names())
    (best,) = (name for name in names if retention.BEST in name.tags)
    assert best.step in inside
    assert max(name.step for name in names if retention.GOOD in name.tags) == inside[-1]

    assert main(["checkpoints", "best", str(run), "--json"]) == EXIT_OK
    told = json.loads(capsys.readouterr().out)
    assert told["best"].endswith(file_name(best))
    assert [row["step"] for row in told["validations"]] == [event["step"] for event in validated]
    assert [row["step"] for row in told["validations"] if row["inside"] == "yes"] == inside
    assert [row["step"] for row in told["validations"] if row["best"]] == [best.step]
    assert main(["checkpoints", "best", str(run), "--explain"]) == EXIT_OK
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1].endswith(file_name(best))
    assert any("largest rise" in line for line in lines)

    assert main(["export", str(run), "--output-dir", str(tmp_path / "best")]) == EXIT_OK
    assert f"checkpoint of step {best.step} (best" in capsys.readouterr().err
    assert main(["export", str(run), "--last", "--output-dir", str(tmp_path / "last")]) == EXIT_OK
    error = capsys.readouterr().err
    assert f"checkpoint of step {names[0].step}" in error
    assert ("guard: violated" in error) == (names[0].step not in inside)


def _above_bound(event: Mapping[str, Any]) -> bool:
    (one,) = (one for one in event["languages"] if one["language"] == "en")
    return bool(one["rise"] - 2 * one["rise_error"] > BOUND)


def test_a_language_that_is_added_later_is_never_left_unguarded(two_languages: World, tmp_path: Path) -> None:
    own = {"guard__keep": ["en", "am"]}
    assert train(two_languages, tmp_path / "all", 6).code == EXIT_STOPPED
    done = train(two_languages, tmp_path / "all", keys=own)
    assert done.code == EXIT_CONFIG
    assert "the base was not measured on am before the first step" in done.error
    adapter = {"adapter__rank": 4}
    assert train(two_languages, tmp_path / "adapter", 6, adapter).code == EXIT_STOPPED
    assert train(two_languages, tmp_path / "adapter", keys={**adapter, **own}).code == EXIT_OK
    guard = newest(tmp_path / "adapter").values.history.guard
    assert guard is not None
    assert {one.language for one in guard.baselines} == {"en", "am"}
    assert all(one.rise is not None for one in guard.results[-1].languages)


def test_other_validation_records_are_refused(two_languages: World, tmp_path: Path) -> None:
    assert train(two_languages, tmp_path / "run", 6).code == EXIT_STOPPED
    done = train(two_languages, tmp_path / "run", keys={"validation__max_samples": 3})
    assert done.code == EXIT_CONFIG, done.output
    assert "hardware" not in done.output, "said before anything is computed"
    assert "the validation records of en are not those that the base was measured on" in done.error


def changed_records(world: World, name: str, number: int, **fields: str) -> Path:
    """The validation manifest with other fields in one record."""
    records = [json.loads(line) for line in world.validation_manifest.read_text(encoding="utf-8").splitlines()]
    records[number] |= fields
    path = world.validation_manifest.parent / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_other_records_of_the_same_lengths_are_refused_too(two_languages: World, tmp_path: Path) -> None:
    changed = changed_records(two_languages, "changed.jsonl", 0, id="another")
    assert train(two_languages, tmp_path / "run", 6).code == EXIT_STOPPED
    own = {"data__validation_manifests": [f"{changed}::am"]}
    done = train(two_languages, tmp_path / "run", keys=own)
    assert done.code == EXIT_CONFIG, done.output
    assert "the validation records of en are not those" in done.error
    done = train(two_languages, tmp_path / "run", keys={**own, "guard__keep": []})
    assert done.code == EXIT_OK, done.error


def test_the_last_validation_counts_too_and_a_stop_is_lifted_as_it_says(two_languages: World, tmp_path: Path) -> None:
    keys = {
        "guard__action": "stop",
        "guard__bound": BOUND,
        "guard__patience": 1,
        "schedule__learning_rate": 2e-2,
        "schedule__max_steps": 40,
        "validation__interval_steps": 40,
    }
    for _ in range(2):
        done = train(two_languages, tmp_path / "run", keys=keys)
        assert done.code == GOAL_MISSED, done.output
        assert newest(tmp_path / "run").name.step == 40
    assert retention.FINAL in newest(tmp_path / "run").name.tags
    done = train(two_languages, tmp_path / "run", keys={**keys, "guard__bound": 50.0})
    assert done.code == EXIT_OK, done.error


def test_too_few_records_to_judge_by_are_said_at_the_start(two_languages: World, tmp_path: Path) -> None:
    done = train(two_languages, tmp_path / "run", keys={"guard__minimum_samples": 64})
    assert done.code == EXIT_OK, done.error
    assert "en is validated on 6 records, fewer than guard.minimum_samples (64)" in " ".join(done.output.split())
    assert not any(retention.GOOD in name.tags for name in store_of(tmp_path / "run").names())


@pytest.mark.parametrize("keep", [["en"], []], ids=["guarded", "not guarded"])
def test_a_validation_that_is_not_finite_names_its_record_and_loses_nothing(
    two_languages: World, tmp_path: Path, keep: list[str]
) -> None:
    folder = two_languages.validation_manifest.parent
    np.save(folder / "huge.npy", np.full(32, 3e38, np.float32))
    bad = changed_records(two_languages, "bad.jsonl", 3, prompt_emo_vec_path="huge.npy", id="the-bad-one")
    keys = {"data__validation_manifests": [f"{bad}::am"], "guard__keep": keep}
    done = train(two_languages, tmp_path / "run", keys=keys)
    assert done.code == EXIT_DATA, done.output
    assert "the loss of a validation is not finite" in done.error
    # With a guard every record is measured by itself; without one a micro-batch is named.
    assert ("Samples: the-bad-one." if keep else "the-bad-one") in done.error
    # With a guard the base is measured before the first step, and there is nothing to keep.
    assert bool(store_of(tmp_path / "run").names()) is not bool(keep)
    assert keep or newest(tmp_path / "run").name.step == 4


def test_export_says_when_the_best_checkpoint_is_gone(
    two_languages: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    keys = {"schedule__learning_rate": 2e-2, "schedule__max_steps": 40, "guard__bound": BOUND}
    keys |= {"checkpoint__keep": 10, "checkpoint__interval_steps": 4}
    assert train(two_languages, run, keys=keys).code == EXIT_OK
    best = newest(run).values.history.best
    assert best is not None
    for name in store_of(run).names():
        if retention.BEST in name.tags or name.step == best.step:
            (run / "checkpoints" / file_name(name)).unlink()
    capsys.readouterr()
    assert main(["export", str(run), "--output-dir", str(tmp_path / "out")]) == EXIT_OK
    error = capsys.readouterr().err
    assert f"the best validation was that of step {best.step}, whose checkpoint is gone" in error
