"""Going on: on other settings, from other runs, with a grown vocabulary; and what is refused."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from indextts_job.attempt.run import run_attempt
from indextts_job.checkpoint.manifest import file_name
from indextts_job.checkpoint.removal import collect_orphans
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.config import ResumeConfig, build_config
from indextts_job.demo.world import World, make_world
from indextts_job.hardware.facts import read_facts
from indextts_job.preemption.signals import StopSignals
from indextts_job.report.attempts import attempts
from indextts_job.report.console import ConsoleReport, human_bytes
from indextts_job.report.events import AttemptStarted, Committed, Event
from indextts_job.resume.points import recorded_config
from indextts_job.resume.select import select
from tests.support.attempts import attempt
from tests.support.runs import TINY, config_for, events, newest, samples, state_of, store_of


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 steps."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert attempt(config_for(world, run)).code == 0
    return run


@pytest.fixture
def half_done(world: World, tmp_path: Path) -> Path:
    """The same run as it stood after step 12."""
    run = tmp_path / "half"
    assert attempt(config_for(world, run, checkpoint__keep=100)).code == 0
    store = store_of(run)
    for name in store.names():
        if name.step > 12:
            store.storage.delete(f"checkpoints/{file_name(name)}")
    return run


def test_a_finished_run_ends_at_once_and_writes_no_checkpoint(world: World, finished: Path) -> None:
    before = store_of(finished).names()
    again = attempt(config_for(world, finished))
    assert again.code == 0
    assert "complete at step 24" in again.output
    assert store_of(finished).names() == before


def test_the_first_line_tells_what_machine_this_is(world: World, finished: Path) -> None:
    facts = read_facts("cpu")
    lines = attempt(config_for(world, finished)).output.splitlines()
    memory = human_bytes(facts.memory_bytes)
    assert f"hardware    {facts.name} (cpu), {memory}, {facts.cpus} CPUs" in lines


def test_another_capacity_in_mid_epoch_uses_the_same_samples_per_step(
    world: World, finished: Path, half_done: Path
) -> None:
    assert attempt(config_for(world, half_done, hardware__capacity_tokens=1000)).code == 0
    used, expected = samples(half_done), samples(finished)
    assert used.keys() == expected.keys()
    assert all(sorted(used[step]) == sorted(expected[step]) for step in expected)
    assert used != expected  # the cut, and with it the order inside a step, did change
    changed = events(half_done, "Notice")
    assert any("hardware.capacity_tokens: 200 -> 1000" in event["message"] for event in changed)


def test_the_resume_lines_say_what_users_look_for(world: World, half_done: Path) -> None:
    output = attempt(config_for(world, half_done)).output
    assert "checkpoint found at" in output
    assert "step 12 of 24, epoch 2, 4 of 40 samples of it used; restored: weights, moments, schedule, history" in output
    assert "base rows are frozen" in output
    for field in ("epoch", "step", "text_loss", "mel_loss", "mel_top1", "lr", "samples/s", "left"):
        assert field in next(line for line in output.splitlines() if line.startswith("train "))


@pytest.mark.parametrize("newest_is", ["truncated", "bit-flipped", "removed object", "garbled manifest"])
def test_a_damaged_checkpoint_is_passed_over_named_and_kept(world: World, half_done: Path, newest_is: str) -> None:
    store = store_of(half_done)
    manifest = newest(half_done)
    weights = half_done / next(t.object for key, t in manifest.tensors.items() if key.startswith("model/"))
    path = half_done / "checkpoints" / file_name(manifest.name)
    if newest_is == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif newest_is == "bit-flipped":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 4
        weights.write_bytes(content)
    elif newest_is == "removed object":
        weights.unlink()
    else:
        path.write_bytes(path.read_bytes()[:500])
    older = [name for name in store.names() if name.step < 12][-1]
    ended = attempt(config_for(world, half_done))
    assert ended.code == 0
    assert "passed over a checkpoint" in ended.output
    assert f"step {older.step} of 24" in ended.output
    # The redone steps give the same bits, so the run ends as if nothing had happened.
    assert newest(half_done).name.step == 24


def test_no_readable_checkpoint_is_an_error_that_deletes_nothing(world: World, half_done: Path) -> None:
    for path in (half_done / "objects").iterdir():
        path.write_bytes(b"damaged")
    before = sorted(path.name for path in (half_done / "checkpoints").iterdir())
    ended = attempt(config_for(world, half_done))
    assert ended.code == 65
    assert "none of its" in ended.error
    assert "Nothing was deleted" in ended.error
    assert sorted(path.name for path in (half_done / "checkpoints").iterdir()) == before


def test_a_checkpoint_of_a_newer_format_is_explained(world: World, half_done: Path) -> None:
    for path in (half_done / "checkpoints").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    ended = attempt(config_for(world, half_done))
    assert ended.code == 65
    assert "checkpoint format 99, this version reads 2" in ended.error


def test_resume_none_in_a_used_folder_is_refused(world: World, finished: Path, tmp_path: Path) -> None:
    ended = attempt(config_for(world, finished, resume__source="none"))
    assert ended.code == 78
    assert "nothing is overwritten" in ended.error
    assert attempt(config_for(world, tmp_path / "new", resume__source="none", schedule__max_steps=1)).code == 0


def changes() -> dict[str, tuple[dict[str, object], int, str]]:
    return {
        "global batch": (
            {"recipe__global_batch_samples": 8},
            78,
            "recipe.global_batch_samples: 7 in the checkpoint, 8",
        ),
        "seed": ({"recipe__seed": 5}, 78, "--no-load-optimizer --output-dir NEW"),
        "learning rate": ({"schedule__learning_rate": 1e-3}, 78, "resume.accept=[schedule.learning_rate]"),
        "epochs": ({"schedule__epochs": 12}, 78, "schedule.epochs: 10 in the checkpoint, 12 now"),
        "no run": ({"resume__source": "no/such/run"}, 78, "no such run"),
        "no checkpoint": ({"resume__source": "no/checkpoints/step-1.json"}, 78, "no such checkpoint"),
        "old trainer's file": ({"resume__source": "latest.pth"}, 78, "did not start from latest.pth"),
        "weights only in a used folder": ({"resume__weights_only": True}, 78, "need a new run folder"),
    }


@pytest.mark.parametrize("case", changes())
def test_a_change_that_would_alter_the_run_is_refused(world: World, finished: Path, case: str) -> None:
    keys, code, words = changes()[case]
    before = store_of(finished).names()
    ended = attempt(config_for(world, finished, **keys))
    assert ended.code == code
    assert words in ended.error
    assert store_of(finished).names() == before


def test_an_accepted_change_is_made(world: World, half_done: Path) -> None:
    config = config_for(world, half_done, schedule__max_steps=15, resume__accept=["schedule.max_steps"])
    assert attempt(config).code == 0
    assert newest(half_done).name.step == 15


def test_a_changed_dataset_is_refused(world: World, finished: Path, tmp_path: Path) -> None:
    shorter = tmp_path / "shorter.jsonl"
    lines = world.train_manifest.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines[:-1]]
    for record in records:
        record.update(
            {key: str(world.train_manifest.parent / value) for key, value in record.items() if key.endswith("_path")}
        )
    shorter.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    ended = attempt(config_for(world, finished, data__train_manifests=[str(shorter)]))
    assert ended.code == 65
    assert "40 samples then, 39 now" in ended.error
    records[3]["target_codes_path"] = records[4]["target_codes_path"]
    records[3]["target_code_len"] = records[4]["target_code_len"]
    last = json.loads(lines[-1])
    last.update({key: str(world.train_manifest.parent / value) for key, value in last.items() if key.endswith("_path")})
    shorter.write_text("".join(json.dumps(record) + "\n" for record in [*records, last]), encoding="utf-8")
    ended = attempt(config_for(world, finished, data__train_manifests=[str(shorter)]))
    assert ended.code == 65
    assert "with other content" in ended.error


def test_a_fork_goes_on_elsewhere_and_leaves_its_source_alone(
    world: World, finished: Path, half_done: Path, tmp_path: Path
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (half_done / "checkpoints").iterdir()}
    fork = tmp_path / "fork"
    config = config_for(world, fork, resume__source=str(half_done))
    assert attempt(config).code == 0
    assert newest(fork).values.lineage.run == str(half_done)
    assert state_of(newest(fork))["history"] == state_of(newest(finished))["history"]
    model = [t.object for key, t in newest(fork).tensors.items() if key.startswith("model/")]
    assert model == [t.object for key, t in newest(finished).tensors.items() if key.startswith("model/")]
    store_of(fork).verify(newest(fork))
    assert {path.name: path.stat().st_mtime_ns for path in (half_done / "checkpoints").iterdir()} == before
    again = attempt(config)  # a requeued job repeats its command line
    assert again.code == 0
    assert "this run has its own checkpoints" in again.output


def test_going_back_to_an_older_checkpoint_supersedes_later_ones(world: World, half_done: Path, finished: Path) -> None:
    older = next(name for name in store_of(half_done).names() if name.step == 8)
    source = f"{half_done}/checkpoints/{file_name(older)}"
    ended = attempt(config_for(world, half_done, resume__source=source, schedule__max_steps=24))
    assert ended.code == 0
    assert "going back to step 8" in ended.output
    assert newest(half_done).values.history == newest(finished).values.history
    assert newest(half_done).name.attempt_start == 8
    again = attempt(config_for(world, half_done, resume__source=source))
    assert "went back to step 8 already" in again.output


def test_weights_only_starts_moments_and_position_afresh(world: World, half_done: Path, tmp_path: Path) -> None:
    run = tmp_path / "new"
    config = config_for(
        world, run, resume__source=str(half_done), resume__weights_only=True, recipe__global_batch_samples=5
    )
    ended = attempt(config)
    assert ended.code == 0
    assert "weights only" in ended.output
    assert samples(run).keys() == set(range(1, 25))
    assert attempt(config).code == 0  # repeated by a launcher: goes on from its own checkpoints
    first = store_of(run).load(newest(run), ("base/text_embedding",))
    base = store_of(half_done).load(newest(half_done), ("base/text_embedding",))
    assert torch.equal(first["base/text_embedding.weight"], base["base/text_embedding.weight"])


@pytest.fixture(scope="module")
def base_language(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A dataset in the base tokenizer's own vocabulary."""
    from dataclasses import replace

    return make_world(tmp_path_factory.mktemp("base"), replace(TINY, extended=False))


def test_a_grown_tokenizer_keeps_weights_and_starts_everything_else_afresh(
    base_language: World, world: World, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    own = config_for(base_language, run, inputs__tokenizer=str(base_language.base_tokenizer), schedule__max_steps=8)
    first = attempt(own)
    assert first.code == 0
    assert "all rows train" in first.output
    trained = store_of(run).load(newest(run), ("model/",))
    ended = attempt(config_for(world, run, recipe__new_rows="normal"))
    assert ended.code == 0, ended.error
    assert "the tokenizer grew from 100 to 217 pieces" in ended.output
    assert "extended from 100 to 217 pieces: base rows are frozen" in ended.output
    after = store_of(run).load(newest(run))
    assert newest(run).name.step == 24
    # The weights that the first run trained are the frozen base of the second.
    for key in ("text_embedding.weight", "text_head.weight", "text_head.bias"):
        assert torch.equal(after[f"base/{key}"], trained[f"model/{key}"]), key
    assert after["model/text_embedding.weight_new"].shape == (117, 32)
    assert not torch.equal(after["model/mel_head.weight"], trained["model/mel_head.weight"])
    assert samples(run)[1] != []
    assert attempt(config_for(world, run, recipe__new_rows="normal")).code == 0


def test_another_tokenizer_of_the_same_size_is_refused(world: World, finished: Path, tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(world.tokenizer.read_bytes())  # type: ignore[attr-defined]
    model.pieces[-1].piece = "ሀሁሂ"
    other = tmp_path / "other.model"
    other.write_bytes(model.SerializeToString())
    ended = attempt(config_for(world, finished, inputs__tokenizer=str(other)))
    assert ended.code == 78
    assert "do not begin with the 217 pieces" in ended.error


def test_a_run_in_memory_behaves_like_one_on_disk(world: World, finished: Path) -> None:
    run = "memory://runs/in-memory"
    assert attempt(config_for(world, run)).code == 0
    assert state_of(newest(run)) == state_of(newest(finished))
    assert "complete at step 24" in attempt(config_for(world, run)).output


def test_the_configuration_can_come_from_the_run_alone(world: World, half_done: Path) -> None:
    config = build_config(recorded_config(str(half_done)), "recorded", [])
    assert config == config_for(world, half_done, checkpoint__keep=100)


@pytest.mark.parametrize(("before", "after"), [("float32", "bfloat16"), ("float16", "float32"), ("float32", "float16")])
def test_the_precision_may_change_at_a_restart(world: World, tmp_path: Path, before: str, after: str) -> None:
    run = tmp_path / "run"
    assert attempt(config_for(world, run, schedule__max_steps=4, hardware__precision=before)).code == 0
    accept = {"schedule__max_steps": 8, "resume__accept": ["schedule.max_steps"]}
    ended = attempt(config_for(world, run, hardware__precision=after, **accept))
    assert ended.code == 0
    assert f"hardware.precision: {before} -> {after}" in ended.output
    assert (newest(run).values.scaler is not None) == (after == "float16")


def test_float16_resumes_bit_for_bit(world: World, tmp_path: Path) -> None:
    long, short = tmp_path / "long", tmp_path / "short"
    half = {"hardware__precision": "float16", "validation__interval_steps": 1000}
    assert attempt(config_for(world, long, schedule__max_steps=8, **half)).code == 0
    for name in list(store_of(long).names()):
        if name.step == 4:
            source = f"{long}/checkpoints/{file_name(name)}"
    assert attempt(config_for(world, short, schedule__max_steps=8, resume__source=source, **half)).code == 0
    assert state_of(newest(short))["scaler"] == state_of(newest(long))["scaler"]
    assert newest(short).tensors == newest(long).tensors


def test_early_stopping_commits_a_final_checkpoint_and_stays_complete(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys: dict[str, object] = {
        "schedule__learning_rate": 0.0,
        "validation__interval_steps": 2,
        "validation__early_stopping_patience": 3,
        "recipe__dropout": 0.0,
    }
    ended = attempt(config_for(world, run, **keys))
    assert ended.code == 0
    assert "3 validations in a row without improvement" in ended.output
    final = newest(run)
    assert final.name.step == 8
    assert "final" in final.name.tags
    assert [name.step for name in store_of(run).names() if "best" in name.tags] == [2]
    before = store_of(run).names()
    assert attempt(config_for(world, run, **keys)).code == 0
    assert store_of(run).names() == before


@pytest.mark.parametrize("interval", [0, 7])
def test_validations_happen_at_their_steps_and_nowhere_else(world: World, tmp_path: Path, interval: int) -> None:
    run = tmp_path / "run"
    assert attempt(config_for(world, run, validation__interval_steps=interval)).code == 0
    steps = [event["step"] for event in events(run, "Validated")]
    # 0: at the first step of every new epoch; epochs of 40 samples end inside steps of 7 samples.
    assert steps == ([7, 14, 21, 24] if interval else [6, 12, 18, 23, 24])  # the end always


def test_a_requeue_that_spells_its_source_in_another_way_goes_on(
    world: World, half_done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher repeats the command line; a person gives the same run with a slash, or from another folder."""
    fork = tmp_path / "fork"
    assert attempt(config_for(world, fork, resume__source=str(half_done))).code == 0
    monkeypatch.chdir(half_done.parent)
    for source in (f"{half_done}/", f"./{half_done.name}", half_done.name):
        ended = attempt(config_for(world, fork, resume__source=source))
        assert ended.code == 0, ended.error
        assert "is not needed" in ended.output


class Loses(ConsoleReport):
    """Somebody removes an object of the run while it trains."""

    def __init__(self, run: Path, step: int, pattern: str) -> None:
        super().__init__(io.StringIO())
        self._run, self._step, self._pattern = run, step, pattern

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Committed) and event.step == self._step:
            for path in (self._run / "objects").glob(self._pattern):
                path.unlink()


def test_a_tokenizer_lost_during_an_attempt_is_in_every_checkpoint_behind_it(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Loses(run, 8, "*.model") as console:
        assert run_attempt(config_for(world, run), StopSignals(), console) == 0
    store_of(run).verify(newest(run))


def test_a_complete_run_that_lost_what_its_checkpoints_share_gets_it_back(
    world: World, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    manifest = newest(run)
    base = {entry.object for key, entry in manifest.tensors.items() if key.startswith("base/")}
    for key in (*base, *manifest.files.values()):
        (run / key).unlink()
    ended = attempt(config_for(world, run))
    assert ended.code == 0
    assert "tensors of the base were lost or damaged" in ended.output
    assert "the tokenizer were lost or damaged" in ended.output
    store_of(run).verify(newest(run))


def test_a_run_whose_checkpoints_were_moved_away_does_not_begin_anew(
    world: World, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    for path in (run / "objects").iterdir():
        os.utime(path, (0, 0))
    refused = attempt(config_for(world, run))
    assert refused.code == 65
    assert "put them back" in refused.error
    (tmp_path / "elsewhere").rename(run / "checkpoints")
    assert "complete at step 24" in attempt(config_for(world, run)).output


def test_a_first_checkpoint_of_an_older_attempt_that_lands_meanwhile_is_gone_on_from(finished: Path) -> None:
    class ListedTooEarly(CheckpointStore):
        early = True

        def names(self) -> list[CheckpointName]:
            early, self.early = self.early, False
            return [] if early else super().names()

    found = select(ResumeConfig(source="auto"), ListedTooEarly(store_of(finished).storage))
    assert found.point
    assert found.point.name.step == 24


def test_objects_stay_as_long_as_no_manifest_is_there(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints")
    for path in (run / "objects").iterdir():
        os.utime(path, (0, 0))
    assert collect_orphans(store_of(run)) == 0
    assert list((run / "objects").iterdir())


def test_a_fork_that_is_stopped_before_its_first_step_has_its_own_checkpoint(
    world: World, half_done: Path, tmp_path: Path
) -> None:
    fork = tmp_path / "fork"
    stop = StopSignals()

    class StopsAtStart(ConsoleReport):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, AttemptStarted):
                stop.notice("test", 60)

    with StopsAtStart(io.StringIO()) as console:
        assert run_attempt(config_for(world, fork, resume__source=str(half_done)), stop, console) == 75
    assert newest(fork).name.step == 12
    store_of(fork).verify(newest(fork))


def test_a_fork_of_weights_shows_its_own_steps(world: World, finished: Path, tmp_path: Path) -> None:
    fork = tmp_path / "fork"
    keys = {"resume__source": str(finished), "resume__weights_only": True, "schedule__max_steps": 8}
    assert attempt(config_for(world, fork, **keys)).code == 0
    (only,) = attempts(store_of(fork).storage)
    assert (only.from_step, only.last_step, only.total_steps) == (0, 8, 8)


def test_the_origin_of_a_fork_is_needed_only_once(world: World, half_done: Path, tmp_path: Path) -> None:
    fork = tmp_path / "fork"
    config = config_for(world, fork, resume__source=str(half_done))
    assert attempt(config).code == 0
    shutil.rmtree(half_done)
    again = attempt(config)
    assert again.code == 0, again.error
    missing = attempt(config_for(world, tmp_path / "other", resume__source=str(half_done)))
    assert missing.code == 78
    assert "no such run" in missing.error
