"""Runs on a weighted mixture: what they use, what they say, and what a resume accepts."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from indextts_job.checkpoint.manifest import _hash
from indextts_job.checkpoint.values import parse_values
from indextts_job.cli import main
from indextts_job.config import RunConfig
from indextts_job.data.mixture import Change, Mixture
from indextts_job.demo.world import World
from indextts_job.errors import DataError
from tests.support.attempts import attempt
from tests.support.mixed import SIZES, WEIGHTS, mixed
from tests.support.runs import config_for, events, newest, samples, state_of, store_of

Sources = list[dict[str, object]]


@pytest.fixture(scope="module")
def sources(world: World, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return mixed(world, tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def finished(world: World, sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 steps of 7 samples."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert attempt(mixture_config(world, run, sources)).code == 0
    return run


@pytest.fixture
def half_done(world: World, sources: Sources, tmp_path: Path) -> Path:
    """The same run, stopped behind step 11."""
    run = tmp_path / "half"
    assert attempt(mixture_config(world, run, sources), stop_at=11).code == 75
    assert newest(run).name.step == 11
    return run


def mixture_config(world: World, run: Path, sources: Sources, **keys: object) -> RunConfig:
    return config_for(world, run, data__train_manifests=[], data__datasets=sources, **keys)


def ids(sources: Sources) -> list[str]:
    """The ids of all samples, source after source."""
    lines = [line for source in sources for line in Path(str(source["manifest"])).read_text("utf-8").splitlines()]
    return [json.loads(line)["id"] for line in lines]


def expected(sources: Sources, *changes: Change) -> dict[int, list[str]]:
    """Sample ids of every step by the pure order."""
    order = Mixture(sizes=SIZES, seed=1234, global_batch_samples=7, changes=(Change(0, WEIGHTS), *changes))
    names = ids(sources)
    # The log counts steps by their end.
    return {step: sorted(names[index] for index in order.samples_of(step - 1)) for step in range(1, 25)}


def used(run: Path) -> dict[int, list[str]]:
    return {step: sorted(names) for step, names in samples(run).items()}


def test_every_step_has_the_samples_of_the_pure_order(sources: Sources, finished: Path) -> None:
    assert used(finished) == expected(sources)
    taken = Counter(name for names in used(finished).values() for name in names)
    shares = [sum(taken[name] for name in ids(sources)[start:stop]) for start, stop in ((0, 24), (24, 34), (34, 40))]
    assert shares == [109, 43, 16]  # of 168: 64.5 %, 25.8 % and 9.7 %


def test_a_stopped_run_ends_with_the_same_bits(world: World, sources: Sources, finished: Path, half_done: Path) -> None:
    output = attempt(mixture_config(world, half_done, sources)).output
    assert "step 11 of 24, epoch 2, 2 of 24 samples of it used" in output
    assert "order 2" in output
    assert "changed: data." not in output
    assert state_of(newest(half_done)) == state_of(newest(finished))
    assert used(half_done) == used(finished)


def test_the_run_says_what_its_mixture_means(finished: Path) -> None:
    said = [event["message"] for event in events(finished, "Notice") if "mixture" in event["message"]]
    assert len(said) == 1
    assert said[0].startswith("mixture over 24 steps: main 64.9% of the samples, ")
    assert "% of the codes, 4.54 epochs of 24; en " in said[0]
    assert "2.67 epochs of 6" in said[0]


def test_lines_have_the_loss_of_each_source_also_across_a_stop(
    world: World, sources: Sources, tmp_path: Path, finished: Path
) -> None:
    def lines(run: Path) -> dict[int, object]:
        return {line["step"]: line["sources"] for line in events(run, "TrainLine")}

    # Stopped between two lines: the sums of the steps before are in the checkpoint.
    keys = {"report__log_interval_steps": 8, "schedule__max_steps": 16}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert attempt(mixture_config(world, whole, sources, **keys)).code == 0
    assert attempt(mixture_config(world, stopped, sources, **keys), stop_at=11).code == 75
    assert len(newest(stopped).values.history.sources) == 3
    output = attempt(mixture_config(world, stopped, sources, **keys)).output
    assert lines(stopped) == lines(whole)
    assert set(lines(whole)) == {8, 16}
    (line,) = [text for text in output.splitlines() if " | step 16 | " in text and text.startswith("train")]
    for source, loss in lines(whole)[16].items():  # type: ignore[attr-defined]
        assert f" | {source} {loss:.4f}" in line
    assert newest(stopped).values.history.sources == ()  # behind a line


def test_a_replay_source_that_repeats_often_is_warned_of(world: World, sources: Sources, tmp_path: Path) -> None:
    weights = [{**source, "weight": weight} for source, weight in zip(sources, (10, 1, 90), strict=True)]
    config = mixture_config(world, tmp_path / "run", weights, schedule__max_steps=0, schedule__epochs=1)
    assert attempt(config, stop_at=1).code == 75
    (warning,) = [event["message"] for event in events(tmp_path / "run", "Notice") if "repeated" in event["message"]]
    assert warning.startswith("zh: its 6 samples are repeated 35.3 times in this run")


def test_the_checkpoint_records_the_order(finished: Path) -> None:
    values = newest(finished).values
    assert values.order.version == 2
    assert [(source.name, source.num_samples) for source in values.order.sources] == [
        ("main", 24),
        ("en", 10),
        ("zh", 6),
    ]
    assert [(one.step, one.weights) for one in values.order.weights] == [
        (0, (100_000_000, 40_000_000, 15_000_000)),
    ]
    assert len({source.dataset_fingerprint for source in values.order.sources}) == 3
    assert values.order.num_samples == 40
    assert values.epoch == 109 / 24
    lines = events(finished, "TrainLine")
    assert lines[-1]["epoch"] == 109 / 24
    summary = json.loads((finished / "summary.json").read_text("utf-8"))
    assert summary["epoch"] == 109 / 24
    assert summary["attempt_started_at_epoch"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"weights": []},
        {"sources": []},
        {"weights": [{"step": 0, "weights": [1, 1]}]},
        {"weights": [{"step": 0, "weights": [0, 1, 1]}]},
        {"weights": [{"step": 1, "weights": [1, 1, 1]}]},
        {"weights": [{"step": 0, "weights": [1, 1, 1]}, {"step": 0, "weights": [1, 1, 1]}]},
    ],
)
def test_a_record_that_does_not_fit_itself_is_damaged(finished: Path, change: dict[str, object]) -> None:
    document = newest(finished).values.to_json()
    assert parse_values(document, "m.json") == newest(finished).values
    document["order"] |= change
    with pytest.raises(
        DataError, match=r"values\.order\.weights do not fit values\.order\.sources; the manifest is damaged"
    ):
        parse_values(document, "m.json")


def test_the_run_alone_is_enough_to_go_on(half_done: Path, finished: Path) -> None:
    assert main(["train", f"run={half_done}"]) == 0
    assert used(half_done) == used(finished)


def test_weights_behind_the_manifests_are_the_same_run(
    world: World, sources: Sources, finished: Path, half_done: Path
) -> None:
    given = [f"{source['manifest']}@{weight / 100}" for source, weight in zip(sources, WEIGHTS, strict=True)]
    assert attempt(config_for(world, half_done, data__train_manifests=given)).code == 0
    assert state_of(newest(half_done)) == state_of(newest(finished))


def test_sharded_sources_are_the_same_run(
    world: World, sources: Sources, finished: Path, half_done: Path, tmp_path: Path
) -> None:
    sharded = [dict(source) for source in sources]
    # On a disk, and in a store that rows are requested from.
    for number, folder in ((0, str(tmp_path / "shards")), (2, "memory://mixture-shards")):
        manifest = str(sources[number]["manifest"])
        where = ["--tokenizer", str(world.tokenizer), "--config", str(world.model_config)]
        assert main(["shard", manifest, "--output", folder, *where]) == 0
        sharded[number]["manifest"] = folder
    assert attempt(mixture_config(world, half_done, sharded)).code == 0
    assert state_of(newest(half_done)) == state_of(newest(finished))


def test_one_dataset_is_the_run_that_it_was(world: World, tmp_path: Path) -> None:
    one = [{"manifest": str(world.train_manifest), "weight": 15}]
    assert attempt(config_for(world, tmp_path / "old", schedule__max_steps=6)).code == 0
    assert attempt(mixture_config(world, tmp_path / "new", one, schedule__max_steps=6)).code == 0
    new, old = newest(tmp_path / "new"), newest(tmp_path / "old")
    assert state_of(new) == state_of(old)
    assert new.values.order == old.values.order
    assert new.values.order.version == 1
    # The record is what it was before there were mixtures, key by key.
    assert "epochs" not in new.values.to_json()
    keys = {"version", "seed", "global_batch_samples", "num_samples", "dataset_fingerprint"}
    assert new.values.to_json()["order"].keys() == keys


def test_a_checkpoint_of_the_release_before_goes_on_with_the_same_bits(world: World, tmp_path: Path) -> None:
    assert attempt(config_for(world, tmp_path / "whole")).code == 0
    run = tmp_path / "run"
    assert attempt(config_for(world, run), stop_at=11).code == 75
    for path in (run / "checkpoints").glob("*.json"):
        document = json.loads(path.read_text("utf-8"))
        for key in ("datasets", "mixture_from_step"):
            del document["values"]["config"]["data"][key]
        document["sha256"] = _hash(document)
        path.write_text(json.dumps(document), "utf-8")
    ended = attempt(config_for(world, run))
    assert ended.code == 0
    assert "passed over" not in ended.output
    assert "changed:" not in ended.output
    assert state_of(newest(run)) == state_of(newest(tmp_path / "whole"))


def reweighted(sources: Sources, *weights: float) -> Sources:
    return [{**source, "weight": weight} for source, weight in zip(sources, weights, strict=True)]


def test_the_same_shares_in_another_unit_are_the_same_mixture(
    world: World, sources: Sources, finished: Path, half_done: Path
) -> None:
    assert attempt(mixture_config(world, half_done, reweighted(sources, 20, 8, 3))).code == 0
    assert state_of(newest(half_done)) == state_of(newest(finished))


def test_changed_weights_are_refused(world: World, sources: Sources, half_done: Path) -> None:
    before = store_of(half_done).names()
    ended = attempt(mixture_config(world, half_done, reweighted(sources, 100, 40, 16)))
    assert ended.code == 78
    assert "main 64.5%, en 25.8%, zh 9.7% from step 0 then, main 64.1%, en 25.6%, zh 10.3%" in ended.error
    assert "data.mixture_from_step=[{step: 11, weights: […, …, …]}]" in ended.error
    assert store_of(half_done).names() == before


def test_a_change_of_the_past_is_refused(world: World, sources: Sources, half_done: Path) -> None:
    config = mixture_config(world, half_done, sources, data__mixture_from_step=[{"step": 10, "weights": [1, 1, 1]}])
    assert attempt(config).code == 78


def test_other_sources_are_refused(world: World, sources: Sources, half_done: Path, tmp_path: Path) -> None:
    shortened = tmp_path / "en.jsonl"
    lines = Path(str(sources[1]["manifest"])).read_text("utf-8").splitlines()
    shortened.write_text("\n".join(lines[:-1]), "utf-8")
    for changed, words in (
        ([sources[0], sources[2], sources[1]], "source 2 of the mixture is not the one of"),
        ([sources[0], {**sources[1], "manifest": str(shortened)}, sources[2]], "en, 10 samples then; en, 9 samples"),
        (sources[:2], "zh, 6 samples then; none now"),
    ):
        ended = attempt(mixture_config(world, half_done, changed))
        assert (ended.code, words in ended.error) == (65, True), ended.error
    one = attempt(config_for(world, half_done))
    assert one.code == 78
    assert "is of a mixture of 3 sources (main, en, zh)" in one.error


def test_other_weights_from_a_step_on_are_accepted_and_repeat_nothing(
    world: World, sources: Sources, half_done: Path
) -> None:
    later = [{"step": 11, "weights": [1, 1, 1]}, {"step": 20, "weights": [85, 0, 15]}]
    ended = attempt(mixture_config(world, half_done, sources, data__mixture_from_step=later))
    assert ended.code == 0
    assert "mixture: other weights from step 20 on: main 85, en 0, zh 15" in ended.output
    assert used(half_done) == expected(sources, Change(11, (1, 1, 1)), Change(20, (85, 0, 15)))
    # No sample comes twice before its epoch ends, whatever the weights were.
    order = {name: place for place, name in enumerate(ids(sources))}
    for first, size in ((0, 24), (24, 10), (34, 6)):
        taken = Counter(
            order[name] for names in used(half_done).values() for name in names if first <= order[name] < first + size
        )
        assert max(taken.values()) - min(taken.get(place, 0) for place in range(first, first + size)) <= 1
    # The record now has them, and what lies behind may no longer change.
    assert [one.step for one in newest(half_done).values.order.weights] == [0, 11, 20]
    assert attempt(mixture_config(world, half_done, sources)).code == 78


def test_a_run_of_one_source_gets_replay(world: World, sources: Sources, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = str(sources[0]["manifest"])
    assert attempt(config_for(world, run, data__train_manifests=[first]), stop_at=11).code == 75
    shutil.copytree(run, tmp_path / "other")
    # Without a step it would have been there from the beginning.
    refused = attempt(mixture_config(world, tmp_path / "other", reweighted(sources[:2], 85, 15)))
    assert refused.code == 78
    assert "main 100.0% from step 0 then, main 85.0%, en 15.0% from step 0 now" in refused.error
    config = mixture_config(
        world,
        run,
        reweighted(sources[:2], 1, 0),
        data__mixture_from_step=[{"step": 11, "weights": [85, 15]}],
    )
    ended = attempt(config)
    assert ended.code == 0, ended.error
    order = Mixture(
        sizes=SIZES[:2], seed=1234, global_batch_samples=7, changes=(Change(0, (1, 0)), Change(11, (85, 15)))
    )
    names = ids(sources)
    assert used(run) == {step: sorted(names[index] for index in order.samples_of(step - 1)) for step in range(1, 25)}
    assert newest(run).values.order.version == 2


def test_a_new_source_comes_last_and_with_a_step(world: World, sources: Sources, tmp_path: Path) -> None:
    run = tmp_path / "run"
    two = reweighted(sources[:2], 85, 15)
    assert attempt(mixture_config(world, run, two), stop_at=11).code == 75
    config = mixture_config(
        world,
        run,
        reweighted(sources, 85, 15, 0),
        data__mixture_from_step=[{"step": 12, "weights": [70, 15, 15]}],
    )
    assert attempt(config).code == 0
    changes = (Change(0, (85, 15, 0)), Change(12, (70, 15, 15)))
    order = Mixture(sizes=SIZES, seed=1234, global_batch_samples=7, changes=changes)
    names = ids(sources)
    assert used(run)[24] == sorted(names[index] for index in order.samples_of(23))


def test_epochs_are_those_of_the_first_source(world: World, sources: Sources, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert attempt(mixture_config(world, run, sources, schedule__max_steps=0, schedule__epochs=2)).code == 0
    taken = Counter(name for names in used(run).values() for name in names)
    assert [taken[name] for name in ids(sources)[:24]] == [2] * 24
    assert newest(run).values.epoch == 2.0
