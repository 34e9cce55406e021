"""I1, I2, I7: whatever kills the process wherever, the run ends as if nothing had happened."""

import random
import signal
from collections import Counter
from pathlib import Path

import torch

from indextts_job.demo.world import World
from indextts_job.errors import EXIT_OK, EXIT_STOPPED
from indextts_job.model.base_checkpoint import load_base_checkpoint
from indextts_job.model.config import gpt_config
from indextts_job.storage.files import read_yaml
from tests.support.runs import config_for, curve, events, newest, samples, state_of, store_of
from tests.support.warm_parent import Interruption, WarmParent, rounds

WANTED_INTERRUPTIONS = 100
WANTED_PLACES = [
    f"{name} {place}"
    for name in ("SIGKILL", "SIGTERM")
    for place in ("training", "validation", "fsync before", "fsync after", "replace before", "replace after")
]
LONGEST_LIFE = 90
"""Points that an attempt lives at most; a whole run has about 300."""


def test_a_hundred_interruptions_leave_no_trace(
    world: World, warm_parent: WarmParent, tmp_path: Path, log: Path
) -> None:
    undisturbed = tmp_path / "undisturbed"
    assert warm_parent.attempt(config_for(world, undisturbed), log).code == EXIT_OK
    expected = state_of(newest(undisturbed))
    chance = random.Random(20)
    struck: Counter[str] = Counter()
    run_number = 0
    while struck.total() < WANTED_INTERRUPTIONS or not all(struck[place] for place in WANTED_PLACES):
        assert run_number < 100, struck  # the interruptions must have been everywhere, or they prove little
        run = tmp_path / f"run-{run_number}"
        run_number += 1
        for _ in rounds(0):
            number = chance.choice([signal.SIGKILL, signal.SIGTERM])
            # No grace: the cycle in flight is discarded. Ample grace: it is finished.
            config = config_for(world, run, preemption__grace_seconds=chance.choice([0, 3600]))
            ended = warm_parent.attempt(config, log, Interruption(number, chance.randint(1, LONGEST_LIFE)))
            if ended.struck_at:
                struck[f"{signal.Signals(number).name} {ended.struck_at}"] += 1
            assert ended.code in (EXIT_OK, EXIT_STOPPED, 128 + signal.SIGKILL), log.read_text()
            if ended.code == EXIT_OK:
                break
        assert state_of(newest(run)) == expected
        assert samples(run) == samples(undisturbed)
        assert best_steps(run) == best_steps(undisturbed) == [expected["history"]["best"]["step"]]


def best_steps(run: Path) -> list[int]:
    return [name.step for name in store_of(run).names() if "best" in name.tags][-1:]


def test_every_sample_is_used_once_per_epoch(world: World, warm_parent: WarmParent, tmp_path: Path, log: Path) -> None:
    run = tmp_path / "run"
    config = config_for(world, run, schedule__max_steps=0, schedule__epochs=2)
    for at in (40, 75, 120):
        warm_parent.attempt(config, log, Interruption(signal.SIGKILL, at))
    assert warm_parent.attempt(config, log).code == EXIT_OK
    used = Counter(name for names in samples(run).values() for name in names)
    assert len(used) == 40
    assert set(used.values()) == {2}


def test_base_rows_and_untrained_modules_keep_their_bits(
    world: World, warm_parent: WarmParent, tmp_path: Path, log: Path
) -> None:
    run = tmp_path / "run"
    config = config_for(world, run, optimizer__weight_decay=0.5)
    warm_parent.attempt(config, log, Interruption(signal.SIGKILL, 100))
    assert warm_parent.attempt(config, log).code == EXIT_OK
    model = gpt_config(read_yaml(str(world.model_config), "", ""), "")
    base = load_base_checkpoint(str(world.base_checkpoint), model)
    store = store_of(run)
    tensors = store.load(newest(run))
    carried = {key.removeprefix("base/") for key in tensors if key.startswith("base/")}
    trained = {key.removeprefix("model/") for key in tensors if key.startswith("model/")}
    assert {"text_embedding.weight", "text_head.weight", "text_head.bias"} <= carried
    assert any(key.startswith("conditioning_encoder.") for key in carried)
    assert carried | trained == set(base.tensors) | {f"{key}_new" for key in trained & {""}} | {
        "text_embedding.weight_new",
        "text_head.weight_new",
        "text_head.bias_new",
    }
    for key in carried:
        assert torch.equal(tensors[f"base/{key}"], base.tensors[key]), key
    moved = [key for key in trained & set(base.tensors) if not torch.equal(tensors[f"model/{key}"], base.tensors[key])]
    assert len(moved) > 20


def test_the_curve_is_continuous_and_has_no_overlap(
    world: World, warm_parent: WarmParent, tmp_path: Path, log: Path
) -> None:
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    assert warm_parent.attempt(config_for(world, undisturbed), log).code == EXIT_OK
    for at, number in ((60, signal.SIGKILL), (70, signal.SIGTERM), (65, signal.SIGKILL)):
        warm_parent.attempt(config_for(world, run), log, Interruption(number, at))
    assert warm_parent.attempt(config_for(world, run), log).code == EXIT_OK
    for tag in ("train/text_loss", "train/mel_loss", "train/mel_top1", "train/lr", "val/text_loss", "val/mel_loss"):
        assert curve(run, tag) == curve(undisturbed, tag)
    assert [step for step, _ in curve(run, "val/total")] == [5, 10, 15, 20, 24]
    assert len(events(run, "AttemptEnded")) == 2  # the killed attempts had no time to say so
