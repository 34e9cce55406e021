"""Checkpoints of the old trainer: what can be trusted goes on, the rest is explained, nothing in them runs."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from indextts_job.demo.world import World
from tests.support.attempts import attempt
from tests.support.legacy import BASE_PIECES, PIECES, STEP, base_state, old_checkpoint, saved
from tests.support.runs import config_for, newest, samples, store_of


def test_weights_moments_and_step_go_on_and_the_rest_is_explained(world: World, tmp_path: Path) -> None:
    old = old_checkpoint(world)
    path = saved(old, tmp_path)
    run = tmp_path / "run"
    config = config_for(
        world, run, resume__source=str(path), schedule__max_steps=STEP + 1, checkpoint__interval_steps=1
    )
    ended = attempt(config)
    assert ended.code == 0, ended.error
    assert f"weights and moments of {path}; going on at step {STEP}" in ended.output
    assert "epoch and batch index are not taken over" in ended.output
    assert samples(run).keys() == {STEP + 1}
    tensors = store_of(run).load(newest(run))
    # The moments after one step are 0.9 of the old ones plus a tenth of a clipped gradient (norm at most 1).
    for key, index in (("mel_head.bias", None), ("gpt.h.0.attn.c_attn.weight", None)):
        position = [k for k in old["model"] if not k.endswith(".embed.pos_enc.pe")].index(key)
        before = old["optimizer"]["state"][position]["exp_avg"]
        assert float((tensors[f"exp_avg/{key}"] - 0.9 * before).norm()) <= 0.1001, index
        assert not torch.equal(tensors[f"exp_avg/{key}"], torch.zeros_like(before))
        assert float((tensors[f"model/{key}"] - old["model"][key]).abs().max()) < 0.01
    base = base_state(world)
    for key in ("text_embedding.weight", "text_head.weight", "text_head.bias"):
        assert torch.equal(tensors[f"base/{key}"], base[key])
        assert tensors[f"model/{key}_new"].shape[0] == PIECES - BASE_PIECES
    again = attempt(config)
    assert again.code == 0
    assert "this run has its own checkpoints" in again.output


def test_trained_base_rows_are_found_and_a_fresh_start_is_recommended(world: World, tmp_path: Path) -> None:
    old = old_checkpoint(world, moved=True)
    path = saved(old, tmp_path, "model_step9.pth")
    config = config_for(world, tmp_path / "run", resume__source=str(path))
    ended = attempt(config)
    assert ended.code == 78
    assert "base rows hold trained values (text_embedding.weight, row 0;" in ended.error
    assert "A fresh start is better" in ended.error
    assert not (tmp_path / "run/checkpoints").exists()
    regardless = config_for(world, tmp_path / "run", resume__source=str(path), resume__accept=["moved_base_rows"])
    ended = attempt(regardless)
    assert ended.code == 0
    assert "moments of the frozen base rows were not zero: dropped" in ended.output
    frozen = store_of(tmp_path / "run").load(newest(tmp_path / "run"), ("base/text_head.weight",))
    assert torch.equal(frozen["base/text_head.weight"][:BASE_PIECES], old["model"]["text_head.weight"][:BASE_PIECES])


def test_base_rows_that_only_decayed_are_restored_and_training_goes_on(world: World, tmp_path: Path) -> None:
    """AdamW's decay alone, over thousands of its own steps, is not training."""
    old = old_checkpoint(world, decay_steps=3000)
    assert not torch.equal(
        old["model"]["text_head.weight"][:BASE_PIECES], base_state(world)["text_head.weight"][:BASE_PIECES]
    )
    run = tmp_path / "run"
    ended = attempt(config_for(world, run, resume__source=str(saved(old, tmp_path)), schedule__max_steps=STEP + 1))
    assert ended.code == 0, ended.error
    assert f"{BASE_PIECES} base rows were shrunk by 0." in ended.output
    assert f"going on at step {STEP}" in ended.output
    tensors = store_of(run).load(newest(run), ("base/text_",))
    for key in ("text_embedding.weight", "text_head.weight", "text_head.bias"):
        assert torch.equal(tensors[f"base/{key}"], base_state(world)[key])


def test_one_trained_row_among_decayed_ones_is_refused_by_name(world: World, tmp_path: Path) -> None:
    old = old_checkpoint(world, decay_steps=3000)
    old["model"]["text_embedding.weight"][41] += 1e-4 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    ended = attempt(config_for(world, tmp_path / "run", resume__source=str(saved(old, tmp_path))))
    assert ended.code == 78
    assert "1 base rows hold trained values (text_embedding.weight, row 41)" in ended.error


def test_auto_takes_over_what_the_old_trainer_left_in_the_folder(world: World, tmp_path: Path) -> None:
    """The documents' command for a resume, beside an old `latest.pth`: no step of the old training is lost."""
    run = tmp_path / "training_output"
    run.mkdir()
    path = saved(old_checkpoint(world), run)
    config = config_for(world, run, schedule__max_steps=STEP + 2, checkpoint__interval_steps=1)
    ended = attempt(config)
    assert ended.code == 0, ended.error
    assert f"the old trainer left {path}: going on from there" in ended.output
    assert f"going on at step {STEP}" in ended.output
    assert samples(run).keys() == {STEP + 1, STEP + 2}
    again = attempt(config)
    assert again.code == 0
    assert "checkpoint found at" in again.output


def test_a_cut_latest_is_passed_over_for_the_highest_numbered_one(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    saved(old_checkpoint(world, step=3), run, "model_step3.pth")
    good = saved(old_checkpoint(world), run, "model_step9.pth")
    (run / "latest.pth").write_bytes(good.read_bytes()[:1000])
    ended = attempt(config_for(world, run, schedule__max_steps=STEP + 1))
    assert ended.code == 0, ended.error
    assert "passed over a checkpoint" in ended.output
    assert f"weights and moments of {good}; going on at step {STEP}" in ended.output


@pytest.mark.parametrize("source", ["none", "own"])
def test_without_auto_an_old_checkpoint_in_the_folder_is_named_and_not_used(
    world: World, tmp_path: Path, source: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    path = saved(old_checkpoint(world), run)
    ended = attempt(config_for(world, run, resume__source=source, schedule__max_steps=2))
    assert ended.code == 0, ended.error
    assert f"{path} of the old trainer is in the run's folder and is NOT used" in ended.output
    assert "fresh start" in ended.output
    assert samples(run).keys() == {1, 2}


def test_an_old_file_that_the_run_never_wrote_means_its_own_checkpoints(world: World, tmp_path: Path) -> None:
    """`--resume RUN/latest.pth --output-dir RUN` of the documents, on a run of this program."""
    run = tmp_path / "run"
    assert attempt(config_for(world, run, schedule__max_steps=4)).code == 0
    source = str(run / "latest.pth")
    ended = attempt(config_for(world, run, resume__source=source, schedule__max_steps=4))
    assert ended.code == 0, ended.error
    assert f"there is no {source}; this run has checkpoints of its own" in ended.output
    nowhere = attempt(config_for(world, tmp_path / "other", resume__source=str(tmp_path / "other/latest.pth")))
    assert nowhere.code == 78


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda old: old.pop("optimizer"), "moments are not taken over (there are none)"),
        (lambda old: old["optimizer"]["state"].update({9999: {}}), "moments are not taken over (parameter 9999"),
        (lambda old: old["optimizer"]["state"].popitem(), "no moments for"),
        (
            lambda old: next(iter(old["optimizer"]["state"].values())).update(exp_avg=torch.zeros(3)),
            "do not have its shape",
        ),
        (lambda old: old.update(step="many"), "the step is 'many'"),
    ],
)
def test_what_cannot_be_trusted_is_left_out_and_said(world: World, tmp_path: Path, change: Change, words: str) -> None:
    old = old_checkpoint(world)
    change(old)
    ended = attempt(
        config_for(world, tmp_path / "run", resume__source=str(saved(old, tmp_path)), schedule__max_steps=2)
    )
    assert ended.code == 0, ended.error
    assert words in ended.output
    assert "going on at step 0 of 2" in ended.output


def test_the_other_spelling_of_names_and_a_file_by_url_are_read(world: World, tmp_path: Path) -> None:
    import fsspec

    old = old_checkpoint(world)
    other = {"model_state_dict": old["model"], "optimizer_state_dict": old["optimizer"], "step": STEP}
    path = saved(other, tmp_path, "full_training_checkpoint_step_9.pt")
    fsspec.filesystem("memory").pipe_file("/old/full_training_checkpoint_step_9.pt", path.read_bytes())
    url = "memory://old/full_training_checkpoint_step_9.pt"
    ended = attempt(config_for(world, tmp_path / "run", resume__source=url, schedule__max_steps=STEP + 1))
    assert ended.code == 0, ended.error
    assert f"going on at step {STEP}" in ended.output


def test_weights_only_starts_at_step_0(world: World, tmp_path: Path) -> None:
    path = saved(old_checkpoint(world), tmp_path)
    config = config_for(
        world, tmp_path / "run", resume__source=str(path), resume__weights_only=True, schedule__max_steps=2
    )
    ended = attempt(config)
    assert ended.code == 0
    assert f"weights of {path}; going on at step 0 of 2" in ended.output


def test_a_smaller_vocabulary_gives_its_weights(world: World, tmp_path: Path) -> None:
    path = saved({"model": base_state(world), "step": 5}, tmp_path, "model_step5.pth")
    ended = attempt(config_for(world, tmp_path / "run", resume__source=str(path), schedule__max_steps=2))
    assert ended.code == 0, ended.error
    assert "117 new rows start afresh, and with them all moments" in ended.output


class Evil:
    """Unpickling this would run a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"step": 3}, "neither `model` nor `model_state_dict`"),
        ({"model": {"x": torch.zeros(1)}}, "text_embedding.weight is missing"),
        ([1], "holds a list"),
    ],
)
def test_a_file_that_is_none_of_it_is_refused(world: World, tmp_path: Path, content: object, words: str) -> None:
    ended = attempt(config_for(world, tmp_path / "run", resume__source=str(saved(content, tmp_path))))
    assert ended.code == 65
    assert words in ended.error


def test_code_in_a_checkpoint_never_runs(world: World, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = saved({"model": {}, "extra": Evil(mark)}, tmp_path)
    ended = attempt(config_for(world, tmp_path / "run", resume__source=str(path)))
    assert ended.code == 65
    assert "never loaded" in ended.error
    assert not mark.exists()


def test_a_pickled_namespace_is_named_in_plain_words(world: World, tmp_path: Path) -> None:
    content = old_checkpoint(world) | {"args": argparse.Namespace(epochs=3)}
    ended = attempt(config_for(world, tmp_path / "run", resume__source=str(saved(content, tmp_path))))
    assert ended.code == 65
    assert "it holds a argparse.Namespace" in ended.error
    assert "\x1b" not in ended.error
    assert "weights_only" not in ended.error


def test_a_step_beyond_the_end_and_a_missing_file_are_explained(world: World, tmp_path: Path) -> None:
    path = saved(old_checkpoint(world), tmp_path)
    ended = attempt(config_for(world, tmp_path / "run", resume__source=str(path), schedule__max_steps=5))
    assert ended.code == 78
    assert "is at step 9, this run ends at step 5" in ended.error
    assert attempt(config_for(world, tmp_path / "run", resume__source=str(tmp_path / "no.pth"))).code == 78
