"""Whole runs of IndexTTS-2.5: resumed bit for bit, exported, taken as a base, and grown."""

import base64
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from indextts_job.cli import main
from indextts_job.demo.world import World, make_world
from indextts_job.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK, EXIT_STOPPED
from indextts_job.model.languages import TRAINED, row_of
from indextts_job.model.versions import V2_5
from indextts_job.tokenizer.loading import load_tokenizer
from tests.support.archived import change_arrays, change_records
from tests.support.attempts import Attempted, attempt
from tests.support.runs import TINY, config_for, newest, state_of

STEPS = 8
NEW_RANKS = 5


@pytest.fixture(scope="module")
def world_2_5(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), replace(TINY, version=V2_5))


def train(world: World, run: Path, stop: int = 0, keys: Mapping[str, object] = MappingProxyType({})) -> Attempted:
    return attempt(config_for(world, run, **{"schedule__max_steps": STEPS, **keys}), stop)


def export(run: Path, folder: Path) -> dict[str, Tensor]:
    assert main(["export", str(run), "--output-dir", str(folder)]) == EXIT_OK
    tensors: dict[str, Tensor] = torch.load(folder / "gpt.pth", weights_only=True)
    return tensors


def base_of(world: World) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = torch.load(world.base_checkpoint, weights_only=True)
    return tensors


def test_an_interrupted_run_ends_with_the_same_bits(world_2_5: World, tmp_path: Path) -> None:
    assert train(world_2_5, tmp_path / "one").code == EXIT_OK
    for stop_at in (2, 5):
        assert train(world_2_5, tmp_path / "two", stop_at).code == EXIT_STOPPED
    assert train(world_2_5, tmp_path / "two").code == EXIT_OK
    assert state_of(newest(tmp_path / "one")) == state_of(newest(tmp_path / "two"))


def test_an_export_has_exactly_the_keys_of_the_release(world_2_5: World, tmp_path: Path) -> None:
    assert train(world_2_5, tmp_path / "run").code == EXIT_OK
    exported, base = export(tmp_path / "run", tmp_path / "export"), base_of(world_2_5)
    assert exported.keys() == base.keys()
    for key, tensor in exported.items():
        assert tensor.shape == base[key].shape
        assert tensor.dtype == base[key].dtype
        if key.startswith("emo"):
            assert torch.equal(tensor, base[key])
    document = yaml.safe_load((tmp_path / "export/config.yaml").read_text())
    assert document["version"] == 2.5
    assert document["gpt_checkpoint"] == "gpt.pth"
    assert document["gpt"]["number_text_tokens"] == len(base["text_embedding.weight"]) - 1
    assert document["dataset"]["tokenizer_type"] == "tiktoken"
    assert document["dataset"]["bpe_model"] == "multilingual_zh_ja_yue_char_del.tiktoken"
    assert (tmp_path / "export/multilingual_zh_ja_yue_char_del.tiktoken").read_bytes() == (
        world_2_5.base_tokenizer.read_bytes()
    )
    readme = (tmp_path / "export/README.md").read_text()
    assert "the original right-holder disclaims all liability related to this Derivative Work." in readme
    assert "Call inference with the language `am`" in readme
    assert "4.1 Usage Restrictions" in (tmp_path / "export/LICENSE").read_text()


def test_only_the_row_of_the_trained_language_changes(world_2_5: World, tmp_path: Path) -> None:
    assert train(world_2_5, tmp_path / "run").code == EXIT_OK
    exported, base = export(tmp_path / "run", tmp_path / "export"), base_of(world_2_5)
    changed = (exported["lang_embedding.weight"] != base["lang_embedding.weight"]).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [row_of("am")]


@pytest.mark.parametrize("start", ["mean", "own", "es"])
def test_the_row_of_a_new_language_starts_as_asked(world_2_5: World, tmp_path: Path, start: str) -> None:
    keys = {"recipe__language_start": start, "schedule__learning_rate": 1e-30, "schedule__max_steps": 1}
    done = train(world_2_5, tmp_path / "run", keys=keys)
    assert done.code == EXIT_OK, done.error
    table = base_of(world_2_5)["lang_embedding.weight"]
    rows = {"mean": list(TRAINED), "own": ["am"], "es": ["es"]}[start]
    expected = table[[row_of(code) for code in rows]].mean(dim=0)
    exported = export(tmp_path / "run", tmp_path / "export")["lang_embedding.weight"]
    assert torch.allclose(exported[row_of("am")], expected, atol=1e-7)
    assert f"am (row 75) {expected.norm():.2f}, in the base checkpoint {table[75].norm():.2f}" in done.output


@pytest.fixture
def lying(world_2_5: World, tmp_path: Path) -> World:
    """A config.yaml that says 2.0 everywhere, as one published revision does."""
    shutil.copytree(world_2_5.folder, tmp_path / "lying")
    world = World(tmp_path / "lying", V2_5)
    document = yaml.safe_load(world.model_config.read_text())
    document["version"] = 2.0
    document["dataset"] = {"bpe_model": "bpe.model"}
    document["gpt_checkpoint"] = document["s2mel_checkpoint"] = "/home/somebody/cluster/checkpoints/s2mel.pth"
    world.model_config.write_text(yaml.safe_dump(document))
    return world


def test_a_config_that_says_2_0_is_told_of_and_not_believed(lying: World, tmp_path: Path) -> None:
    stopped = train(lying, tmp_path / "run", 3)
    assert stopped.code == EXIT_STOPPED, stopped.error
    assert "describes IndexTTS-2.0, but" in stopped.output
    assert "gpt.pth is of IndexTTS-2.5" in stopped.output
    resumed = train(lying, tmp_path / "run")  # the base checkpoint is not read any more
    assert resumed.code == EXIT_OK, resumed.error
    assert "multilingual_zh_ja_yue_char_del.tiktoken is of IndexTTS-2.5" in resumed.output
    export(tmp_path / "run", tmp_path / "export")
    document = yaml.safe_load((tmp_path / "export/config.yaml").read_text())
    assert document["version"] == 2.5
    assert document["gpt_checkpoint"] == "gpt.pth"
    assert document["s2mel_checkpoint"] == "s2mel.pth"  # never a path of another machine


def test_tokenizer_and_checkpoint_of_two_versions_are_refused(world_2_5: World, world: World, tmp_path: Path) -> None:
    mixed = train(world_2_5, tmp_path / "a", keys={"inputs__tokenizer": str(world.tokenizer)})
    assert mixed.code == EXIT_CONFIG
    assert "is a SentencePiece model, but" in mixed.error
    assert "is a checkpoint of IndexTTS-2.5" in mixed.error
    mixed = train(world, tmp_path / "b", keys={"inputs__tokenizer": str(world_2_5.tokenizer)})
    assert mixed.code == EXIT_CONFIG
    assert "is a file of ranks (.tiktoken), but" in mixed.error


def test_data_and_checkpoint_of_two_versions_are_refused(world_2_5: World, world: World, tmp_path: Path) -> None:
    for one, other in ((world_2_5, world), (world, world_2_5)):
        mixed = train(one, tmp_path / "run", keys={"data__train_manifests": [str(other.train_manifest)]})
        assert mixed.code == EXIT_DATA
        assert f"a record of {other.version}" in mixed.error
        assert f"the model is {one.version}" in mixed.error


@pytest.mark.parametrize("from_export", [True, False])
def test_a_run_as_base_keeps_the_row_that_it_has_trained(
    world_2_5: World, tmp_path: Path, *, from_export: bool
) -> None:
    assert train(world_2_5, tmp_path / "first").code == EXIT_OK
    trained = export(tmp_path / "first", tmp_path / "export")["lang_embedding.weight"][row_of("am")]
    inputs: dict[str, object] = {"inputs__base_checkpoint": str(tmp_path / "first")}
    if from_export:
        inputs = {
            "inputs__base_checkpoint": str(tmp_path / "export/gpt.pth"),
            "inputs__model_config": str(tmp_path / "export/config.yaml"),
        }
    keys = {"schedule__learning_rate": 1e-30, "schedule__max_steps": 1, **inputs}
    second = train(world_2_5, tmp_path / "second", keys=keys)
    assert second.code == EXIT_OK, second.error
    again = export(tmp_path / "second", tmp_path / "again")["lang_embedding.weight"]
    assert torch.equal(again[row_of("am")], trained)


def test_an_export_with_the_releases_config_keeps_its_language_row(world_2_5: World, tmp_path: Path) -> None:
    assert train(world_2_5, tmp_path / "first").code == EXIT_OK
    trained = export(tmp_path / "first", tmp_path / "export")["lang_embedding.weight"][row_of("am")]
    # The config.yaml that was given is the release's; the one beside the weights knows what was trained.
    inputs = {"inputs__base_checkpoint": str(tmp_path / "export/gpt.pth")}
    keys = {"schedule__learning_rate": 1e-30, "schedule__max_steps": 1, **inputs}
    assert train(world_2_5, tmp_path / "second", keys=keys).code == EXIT_OK
    again = export(tmp_path / "second", tmp_path / "again")["lang_embedding.weight"]
    assert torch.equal(again[row_of("am")], trained)


def test_what_a_base_is_not_is_told(world_2_5: World, tmp_path: Path) -> None:
    state = base_of(world_2_5)
    state["gpt.h.0.attn.c_attn.lora_A.default.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "gpt.pth")
    document = yaml.safe_load(world_2_5.model_config.read_text())
    document["gpt"]["number_text_tokens"] += 7
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(document))
    keys = {
        "inputs__base_checkpoint": str(tmp_path / "gpt.pth"),
        "inputs__model_config": str(tmp_path / "other.yaml"),
        "schedule__max_steps": 1,
    }
    done = train(world_2_5, tmp_path / "run", keys=keys)
    assert done.code == EXIT_OK, done.error
    assert "holds 1 tensors of adapters that were not merged" in done.output
    pieces = document["gpt"]["number_text_tokens"]
    assert f"says {pieces} text tokens" in done.output


def test_a_failed_export_leaves_nothing_and_can_be_repeated(
    world_2_5: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(world_2_5, tmp_path / "run").code == EXIT_OK
    write = Path.write_bytes
    errors: list[BaseException] = [OSError(28, "No space left on device"), KeyboardInterrupt()]

    def full(path: Path, content: bytes) -> int:
        if path.name == "LICENSE":
            raise errors.pop()
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    while errors:
        assert main(["export", str(tmp_path / "run"), "--output-dir", str(tmp_path / "export")]) != EXIT_OK
        assert not list((tmp_path / "export").iterdir())
    monkeypatch.undo()
    export(tmp_path / "run", tmp_path / "export")


def test_an_export_names_no_path_of_another_machine_and_keeps_the_bases_type(world_2_5: World, tmp_path: Path) -> None:
    state = {
        key: value if key.endswith("pos_enc.pe") else value.bfloat16() for key, value in base_of(world_2_5).items()
    }
    torch.save(state, tmp_path / "gpt.pth")
    document = yaml.safe_load(world_2_5.model_config.read_text())
    document |= {"w2v_stat": "/nfs/authors/w2v.pt", "semantic_codec": {"ckpt": ["/nfs/authors/codec.pth"]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    keys = {
        "inputs__base_checkpoint": str(tmp_path / "gpt.pth"),
        "inputs__model_config": str(tmp_path / "config.yaml"),
        "schedule__max_steps": 1,
    }
    assert train(world_2_5, tmp_path / "run", keys=keys).code == EXIT_OK
    exported = export(tmp_path / "run", tmp_path / "export")
    assert {key for key, value in exported.items() if value.dtype != state[key].dtype} == set()
    assert "/nfs" not in (tmp_path / "export/config.yaml").read_text()


@pytest.fixture
def grown(world_2_5: World, tmp_path: Path) -> World:
    """The same data with a tokenizer that has more ranks: the language's token has moved, a new token is in use."""
    shutil.copytree(world_2_5.folder, tmp_path / "grown")
    world = World(tmp_path / "grown", V2_5)
    ranks = load_tokenizer(str(world.tokenizer)).ranks
    assert ranks is not None
    lines = [base64.b64encode(f"new{i}".encode()) + b" %d\n" % (ranks + i) for i in range(NEW_RANKS)]
    extended = tmp_path / "grown/extended.tiktoken"
    extended.write_bytes(world.base_tokenizer.read_bytes() + b"".join(lines))

    def moved(arrays: dict[str, Any]) -> None:
        ids = arrays["text_ids"]
        arrays["text_ids"] = np.array([ids[0] + NEW_RANKS, ranks + 1, *ids[1:]], np.int32)

    change_arrays(world, moved)
    return world


def grown_inputs(world: World) -> dict[str, object]:
    return {"inputs__tokenizer": str(world.folder / "extended.tiktoken"), "data__validation_manifests": []}


def test_a_grown_vocabulary_keeps_every_base_row_at_its_moved_place(grown: World, tmp_path: Path) -> None:
    done = train(grown, tmp_path / "run", keys=grown_inputs(grown))
    assert done.code == EXIT_OK, done.error
    exported, base = export(tmp_path / "run", tmp_path / "export"), base_of(grown)
    ranks = load_tokenizer(str(grown.base_tokenizer)).ranks
    assert ranks is not None
    for key in ("text_embedding.weight", "text_head.weight", "text_head.bias"):
        assert len(exported[key]) == len(base[key]) + NEW_RANKS
        assert torch.equal(exported[key][:ranks], base[key][:ranks])
        assert torch.equal(exported[key][ranks + NEW_RANKS :], base[key][ranks:])
    document = yaml.safe_load((tmp_path / "export/config.yaml").read_text())
    pieces = load_tokenizer(str(grown.folder / "extended.tiktoken")).pieces
    assert document["gpt"]["number_text_tokens"] == pieces
    assert document["indextts_job"] == {
        "base_pieces": pieces - NEW_RANKS,
        "new_pieces_at": ranks,
        "languages": ["am"],
    }


@pytest.mark.parametrize("from_export", [True, False])
def test_a_grown_run_as_base_goes_on_with_its_rows(grown: World, tmp_path: Path, *, from_export: bool) -> None:
    assert train(grown, tmp_path / "first", keys=grown_inputs(grown)).code == EXIT_OK
    first = export(tmp_path / "first", tmp_path / "export")
    inputs = {**grown_inputs(grown), "inputs__base_checkpoint": str(tmp_path / "first")}
    if from_export:
        inputs["inputs__base_checkpoint"] = str(tmp_path / "export/gpt.pth")
        inputs["inputs__model_config"] = str(tmp_path / "export/config.yaml")
    keys = {"schedule__learning_rate": 1e-30, "schedule__max_steps": 1, **inputs}
    done = train(grown, tmp_path / "second", keys=keys)
    assert done.code == EXIT_OK, done.error
    assert f"{NEW_RANKS} new rows train" in done.output
    second = export(tmp_path / "second", tmp_path / "again")
    for key in ("text_embedding.weight", "text_head.weight", "text_head.bias"):
        assert torch.equal(first[key], second[key]), key


def test_a_stopped_grown_run_ends_with_the_same_bits(grown: World, tmp_path: Path) -> None:
    inputs = grown_inputs(grown)
    assert train(grown, tmp_path / "one", keys=inputs).code == EXIT_OK
    assert train(grown, tmp_path / "two", 3, keys=inputs).code == EXIT_STOPPED
    assert train(grown, tmp_path / "two", keys=inputs).code == EXIT_OK
    assert state_of(newest(tmp_path / "one")) == state_of(newest(tmp_path / "two"))


def test_data_of_the_old_tokenizer_is_refused_with_a_grown_one(world_2_5: World, grown: World, tmp_path: Path) -> None:
    inputs = {**grown_inputs(grown), "data__train_manifests": [str(world_2_5.train_manifest)]}
    done = train(grown, tmp_path / "run", keys=inputs)
    assert done.code == EXIT_DATA
    # Five ids further up is the token of another language.
    assert "the language is am, but its text ids begin with the token of" in done.error


def test_an_unknown_language_is_refused_before_the_first_step(world_2_5: World, tmp_path: Path) -> None:
    shutil.copytree(world_2_5.folder, tmp_path / "world")
    world = World(tmp_path / "world", V2_5)
    change_records(world, lambda record: record.update(lang="xx"))
    done = train(world, tmp_path / "run")
    assert done.code == EXIT_DATA
    assert "'xx' is no language of IndexTTS-2.5" in done.error
    assert not (tmp_path / "run/checkpoints").exists()


def test_inspect_status_and_doctor_name_the_version(
    world_2_5: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(world_2_5, tmp_path / "run").code == EXIT_OK
    for command in (["status", str(tmp_path / "run")], ["checkpoints", "inspect", str(tmp_path / "run")]):
        assert main(command) == EXIT_OK
        assert "IndexTTS-2.5" in capsys.readouterr().out, command
    assert main(["doctor", "checkpoint", str(tmp_path / "run"), "--json"]) == EXIT_OK
    assert "IndexTTS-2.5" in json.dumps(json.loads(capsys.readouterr().out))


def test_checkpoints_are_compared_on_shards(
    world_2_5: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["shard", str(world_2_5.validation_manifest), "--output", str(tmp_path / "shards")]
    inputs = ["--tokenizer", str(world_2_5.tokenizer), "--config", str(world_2_5.model_config)]
    assert main([*command, *inputs]) == EXIT_OK
    keys = {"data__validation_manifests": [str(tmp_path / "shards")]}
    assert train(world_2_5, tmp_path / "run", keys=keys).code == EXIT_OK
    assert main(["checkpoints", "compare", str(tmp_path / "run"), str(tmp_path / "run")]) == EXIT_OK
    assert "mel" in capsys.readouterr().out


def test_a_run_of_one_version_is_not_resumed_with_files_of_the_other(
    world_2_5: World, world: World, tmp_path: Path
) -> None:
    assert train(world_2_5, tmp_path / "run", 3).code == EXIT_STOPPED
    mixed = train(world, tmp_path / "run")
    assert mixed.code == EXIT_CONFIG
    assert "a tokenizer of IndexTTS-2.0, but the checkpoint is of IndexTTS-2.5" in mixed.error
