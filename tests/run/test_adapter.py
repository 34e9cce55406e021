"""Whole runs with an adapter: small checkpoints, the same bits after a stop, a constant base, merged exports."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from indextts_job.checkpoint.tensor_names import BASE, WEIGHTS
from indextts_job.cli import main
from indextts_job.demo.world import World, make_world
from indextts_job.errors import EXIT_CONFIG, EXIT_OK, EXIT_STOPPED
from indextts_job.model.languages import language_of, row_of
from indextts_job.model.versions import V2_0, V2_5
from indextts_job.tokenizer.loading import load_tokenizer
from tests.support.attempts import Attempted, attempt
from tests.support.runs import TINY, config_for, newest, state_of, store_of

STEPS = 8
ADAPTER = {"adapter__rank": 4, "adapter__alpha": 8.0}


@pytest.fixture(scope="module", params=[V2_0, V2_5], ids=str)
def adapted_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), replace(TINY, version=request.param, extended=False))


def train(world: World, run: Path, stop: int = 0, keys: Mapping[str, object] = MappingProxyType({})) -> Attempted:
    own = {"inputs__tokenizer": str(world.base_tokenizer), "schedule__max_steps": STEPS, **ADAPTER, **keys}
    return attempt(config_for(world, run, **own), stop)


def export(run: Path, folder: Path) -> dict[str, Tensor]:
    assert main(["export", str(run), "--output-dir", str(folder)]) == EXIT_OK
    tensors: dict[str, Tensor] = torch.load(folder / "gpt.pth", weights_only=True)
    return tensors


@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_an_interrupted_run_ends_with_the_same_bits(adapted_world: World, tmp_path: Path, base_dtype: str) -> None:
    keys = {"adapter__base_dtype": base_dtype}
    done = train(adapted_world, tmp_path / "one", keys=keys)
    assert done.code == EXIT_OK, done.error
    for stop in (2, 5):
        assert train(adapted_world, tmp_path / "two", stop, keys).code == EXIT_STOPPED
    done = train(adapted_world, tmp_path / "two", keys=keys)
    assert done.code == EXIT_OK, done.error
    assert state_of(newest(tmp_path / "one")) == state_of(newest(tmp_path / "two"))


def test_checkpoints_hold_what_trains_and_the_run_its_base_once(adapted_world: World, tmp_path: Path) -> None:
    assert train(adapted_world, tmp_path / "run").code == EXIT_OK
    manifest = newest(tmp_path / "run")
    trained = {key.removeprefix(WEIGHTS) for key in manifest.tensors if key.startswith(WEIGHTS)}
    assert all("lora_" in name or name == "lang_embedding.weight_rows" for name in trained)
    assert len({name for name in trained if "lora_" in name}) == 2 * 4 * 2  # blocks, projections, factors
    assert manifest.values.parameters.trained < 20_000
    changing = [stored for key, stored in manifest.objects.items() if key.startswith("objects/")]
    # Weights and two moments in float32, and headers.
    assert sum(stored.size_bytes for stored in changing) < 12 * manifest.values.parameters.trained + 20_000


def test_nothing_but_projections_and_the_languages_row_changes(adapted_world: World, tmp_path: Path) -> None:
    decay = {"optimizer__weight_decay": 0.1, "schedule__max_steps": 40, "schedule__warmup_steps": 1}
    assert train(adapted_world, tmp_path / "run", keys=decay).code == EXIT_OK
    exported = export(tmp_path / "run", tmp_path / "export")
    base = torch.load(adapted_world.base_checkpoint, weights_only=True)
    changed = {key for key, value in exported.items() if not torch.equal(value, base[key])}
    projections = {f"gpt.h.{i}.{name}.weight" for i in range(2) for name in ("attn.c_attn", "attn.c_proj")}
    projections |= {f"gpt.h.{i}.{name}.weight" for i in range(2) for name in ("mlp.c_fc", "mlp.c_proj")}
    if adapted_world.version == V2_5:
        assert changed == {*projections, "lang_embedding.weight"}
        rows = (exported["lang_embedding.weight"] != base["lang_embedding.weight"]).any(dim=1)
        assert rows.nonzero().flatten().tolist() == [row_of("am")]
    else:
        assert changed == projections


def test_an_export_computes_what_the_adapter_computed(adapted_world: World, tmp_path: Path) -> None:
    assert train(adapted_world, tmp_path / "run", keys={"schedule__warmup_steps": 0}).code == EXIT_OK
    export(tmp_path / "run", tmp_path / "export")
    last = newest(tmp_path / "run").values.history.validations[-1].losses
    # A run without an adapter, from the export, whose first update changes next to nothing.
    plain = {
        "inputs__base_checkpoint": str(tmp_path / "export/gpt.pth"),
        "inputs__model_config": str(tmp_path / "export/config.yaml"),
        "adapter__rank": 0,
        "schedule__max_steps": 1,
        "schedule__learning_rate": 1e-30,
        "validation__interval_steps": 1,
    }
    done = train(adapted_world, tmp_path / "plain", keys=plain)
    assert done.code == EXIT_OK, done.error
    again = newest(tmp_path / "plain").values.history.validations[-1].losses
    assert again.mel_loss == pytest.approx(last.mel_loss, rel=1e-5)
    assert again.text_loss == pytest.approx(last.text_loss, rel=1e-5)


def test_an_adapter_beside_a_rounded_base_is_exported_on_the_bases_own_values(
    adapted_world: World, tmp_path: Path
) -> None:
    keys = {"adapter__base_dtype": "bfloat16", "schedule__learning_rate": 1e-30, "schedule__max_steps": 1}
    assert train(adapted_world, tmp_path / "run", keys=keys).code == EXIT_OK
    exported = export(tmp_path / "run", tmp_path / "export")
    base = torch.load(adapted_world.base_checkpoint, weights_only=True)
    assert any(not torch.equal(value, value.bfloat16().float()) for value in base.values())
    for key in ("gpt.h.0.attn.c_attn.weight", "gpt.h.1.mlp.c_proj.weight", "text_embedding.weight"):
        assert torch.allclose(exported[key], base[key], rtol=0, atol=1e-12), key
    plain = {"adapter__base_dtype": "float32", "schedule__learning_rate": 1e-30, "schedule__max_steps": 1}
    assert train(adapted_world, tmp_path / "plain", keys=plain).code == EXIT_OK
    rounded, own = (newest(tmp_path / run).values.history.validations[-1].losses for run in ("run", "plain"))
    # bfloat16 has 8 bits: the rounded base is another model, and nearly the same.
    assert rounded.mel_loss != own.mel_loss
    assert rounded.mel_loss == pytest.approx(own.mel_loss, rel=1e-2)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"adapter__base_dtype": "bfloat16"}, "adapter.base_dtype: float32 in the checkpoint, bfloat16 now"),
        ({"adapter__rank": 8}, "adapter.rank: 4 in the checkpoint, 8 now"),
        ({"adapter__rank": 0}, "adapter.rank: 4 in the checkpoint, 0 now"),
        ({"adapter__last_blocks": 1}, "adapter.last_blocks: 0 in the checkpoint, 1 now"),
        ({"adapter__alpha": 16.0}, "adapter.alpha: 8.0 in the checkpoint, 16.0 now"),
    ],
)
def test_another_adapter_is_refused(
    adapted_world: World, tmp_path: Path, keys: Mapping[str, object], words: str
) -> None:
    assert train(adapted_world, tmp_path / "run", 3).code == EXIT_STOPPED
    refused = train(adapted_world, tmp_path / "run", keys=keys)
    assert refused.code == EXIT_CONFIG
    assert words in refused.error


def test_another_base_is_refused_and_the_same_base_elsewhere_is_not(adapted_world: World, tmp_path: Path) -> None:
    assert train(adapted_world, tmp_path / "run", 3).code == EXIT_STOPPED
    base = torch.load(adapted_world.base_checkpoint, weights_only=True)
    torch.save(base, tmp_path / "copy.pth")
    base["final_norm.bias"] += 1
    torch.save(base, tmp_path / "other.pth")

    def resumed(file: str) -> Attempted:
        return train(adapted_world, tmp_path / "run", 5, {"inputs__base_checkpoint": str(tmp_path / file)})

    refused = resumed("other.pth")
    assert refused.code == EXIT_CONFIG
    assert "other.pth (content " in refused.error
    assert f"from {adapted_world.base_checkpoint}" in refused.error
    assert resumed("missing.pth").code == EXIT_CONFIG
    done = resumed("copy.pth")
    assert done.code == EXIT_STOPPED, done.error


def test_an_export_as_base_is_recognised_elsewhere(adapted_world: World, tmp_path: Path) -> None:
    """Of an export that holds rows of new pieces, a run keeps the released rows and the others apart."""
    extended = {"inputs__tokenizer": str(adapted_world.tokenizer), "adapter__rank": 0}
    assert train(adapted_world, tmp_path / "first", keys=extended).code == EXIT_OK
    export(tmp_path / "first", tmp_path / "export")
    keys = {
        "inputs__base_checkpoint": str(tmp_path / "export/gpt.pth"),
        "inputs__model_config": str(tmp_path / "export/config.yaml"),
        "inputs__tokenizer": str(adapted_world.tokenizer),
    }
    assert train(adapted_world, tmp_path / "run", 3, keys).code == EXIT_STOPPED
    (tmp_path / "export").rename(tmp_path / "moved")
    moved = {key: str(value).replace("/export/", "/moved/") for key, value in keys.items()}
    # Made again from the export, byte by byte.
    lost = {entry.object for key, entry in newest(tmp_path / "run").tensors.items() if key.startswith(BASE)}
    for key in lost:
        (tmp_path / "run" / key).unlink()
    done = train(adapted_world, tmp_path / "run", 5, moved)
    assert done.code == EXIT_STOPPED, done.error
    store_of(tmp_path / "run").verify(newest(tmp_path / "run"))


def test_a_run_without_an_adapter_never_goes_on_with_one(adapted_world: World, tmp_path: Path) -> None:
    assert train(adapted_world, tmp_path / "run", 3, {"adapter__rank": 0}).code == EXIT_STOPPED
    refused = train(adapted_world, tmp_path / "run")
    assert refused.code == EXIT_CONFIG
    assert "adapter.rank: 0 in the checkpoint, 4 now" in refused.error


def test_a_run_with_an_adapter_is_a_base_for_another(adapted_world: World, tmp_path: Path) -> None:
    assert train(adapted_world, tmp_path / "run", keys={"schedule__warmup_steps": 0}).code == EXIT_OK
    merged = export(tmp_path / "run", tmp_path / "export")
    keys = {
        "inputs__base_checkpoint": str(tmp_path / "run"),
        "schedule__max_steps": 1,
        "schedule__learning_rate": 1e-30,
    }
    done = train(adapted_world, tmp_path / "next", keys=keys)
    assert done.code == EXIT_OK, done.error
    again = export(tmp_path / "next", tmp_path / "again")
    for key, value in merged.items():
        assert torch.equal(value, again[key]), key


def test_checkpoints_of_adapters_are_compared(adapted_world: World, tmp_path: Path) -> None:
    assert train(adapted_world, tmp_path / "run").code == EXIT_OK
    names = [str(tmp_path / "run"), str(tmp_path / "run")]
    assert main(["checkpoints", "compare", *names]) == EXIT_OK
    assert store_of(tmp_path / "run").names()


def alone(run: Path, folder: Path) -> Path:
    assert main(["export", str(run), "--adapter-only", "--output-dir", str(folder)]) == EXIT_OK
    return folder


def base_options(world: World) -> list[str]:
    return [
        *("--base-checkpoint", str(world.base_checkpoint)),
        *("--model-config", str(world.model_config)),
        *("--tokenizer", str(world.base_tokenizer)),
    ]


def test_an_adapter_alone_merged_again_is_the_merged_export(adapted_world: World, tmp_path: Path) -> None:
    assert train(adapted_world, tmp_path / "run", keys={"schedule__warmup_steps": 0}).code == EXIT_OK
    expected = export(tmp_path / "run", tmp_path / "export")
    folder = alone(tmp_path / "run", tmp_path / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    command = ["export", str(folder), "--output-dir", str(tmp_path / "merged"), *base_options(adapted_world)]
    assert main(command) == EXIT_OK
    merged = torch.load(tmp_path / "merged/gpt.pth", weights_only=True)
    for key, value in expected.items():
        assert torch.equal(value, merged[key]), key


@pytest.mark.parametrize("rank", [4, 7])
def test_a_run_starts_from_an_adapter_of_its_rank_or_a_smaller_one(
    adapted_world: World, tmp_path: Path, rank: int
) -> None:
    assert train(adapted_world, tmp_path / "run", keys={"schedule__warmup_steps": 0}).code == EXIT_OK
    expected = export(tmp_path / "run", tmp_path / "export")
    folder = alone(tmp_path / "run", tmp_path / "adapter")
    keys = {
        "adapter__start": str(folder),
        "adapter__rank": rank,
        "adapter__alpha": 2.0 * rank,
        "schedule__max_steps": 1,
        "schedule__learning_rate": 1e-30,
    }
    done = train(adapted_world, tmp_path / "next", keys=keys)
    assert done.code == EXIT_OK, done.error
    again = export(tmp_path / "next", tmp_path / "again")
    for key, value in expected.items():
        assert torch.allclose(value, again[key], rtol=1e-6, atol=1e-8), key


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"adapter__rank": 2, "adapter__alpha": 4.0}, "has rank 4 and alpha 8, adapter.rank is 2"),
        ({"adapter__alpha": 9.0}, "alpha = 2 x rank"),
        ({"adapter__targets": ["attn.c_attn"]}, "adapts what this run does not"),
        ({"adapter__last_blocks": 1}, "adapts what this run does not"),
        ({"adapter__rank": 0}, "adapter.start without an adapter"),
        ({"adapter__start": "/no/such/folder"}, "not found"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    adapted_world: World, tmp_path: Path, keys: Mapping[str, object], words: str
) -> None:
    assert train(adapted_world, tmp_path / "run").code == EXIT_OK
    folder = alone(tmp_path / "run", tmp_path / "adapter")
    refused = train(adapted_world, tmp_path / "next", keys={"adapter__start": str(folder), **keys})
    assert refused.code == EXIT_CONFIG
    assert words in refused.error


def swahili(world: World) -> Path:
    """The training set in another language: its name, and the first token of each text."""
    first = load_tokenizer(str(world.base_tokenizer)).first_language_token
    assert first is not None
    folder = world.train_manifest.parent
    records = [json.loads(line) for line in world.train_manifest.read_text(encoding="utf-8").splitlines()]
    for record in records:
        path = Path(record["target_features"])
        own = path.with_name(f"sw-{path.name}")
        arrays = dict(np.load(folder / path))
        arrays["text_ids"][0] = language_of("sw").token(first)
        np.savez(folder / own, **arrays)
        record |= {"target_features": str(own), "lang": "sw"}
    (folder / "swahili.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder / "swahili.jsonl"


def trained_languages(folder: Path) -> list[str]:
    document = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    languages: list[str] = document["indextts_job"]["languages"]
    return languages


def test_an_export_knows_the_languages_of_all_runs_before(tmp_path: Path) -> None:
    """Otherwise the next run would start their rows anew."""
    world = make_world(tmp_path / "world", replace(TINY, version=V2_5, extended=False))
    assert train(world, tmp_path / "am").code == EXIT_OK
    export(tmp_path / "am", tmp_path / "am-export")
    from_export = {
        "inputs__base_checkpoint": str(tmp_path / "am-export/gpt.pth"),
        "inputs__model_config": str(tmp_path / "am-export/config.yaml"),
    }
    manifest = swahili(world)
    other = {"data__train_manifests": [f"{manifest}::sw"]}
    assert trained_languages(tmp_path / "am-export") == ["am"]
    # A merged folder beside an export.
    adapter = alone(tmp_path / "am", tmp_path / "adapter")
    command = ["export", str(adapter), "--output-dir", str(tmp_path / "merged"), "--tokenizer"]
    command += [str(world.base_tokenizer), "--base-checkpoint", str(tmp_path / "am-export/gpt.pth")]
    assert main([*command, "--model-config", str(tmp_path / "am-export/config.yaml")]) == EXIT_OK
    assert trained_languages(tmp_path / "merged") == ["am"]
    readme = (tmp_path / "merged/README.md").read_text(encoding="utf-8")
    assert "Call inference with the language `am`" in readme
    # A run in another language that starts from an adapter.
    started = {**other, "adapter__start": str(adapter)}
    done = train(world, tmp_path / "started", keys=started)
    assert done.code == EXIT_OK, done.error
    export(tmp_path / "started", tmp_path / "started-export")
    assert trained_languages(tmp_path / "started-export") == ["am", "sw"]
    # An adapter in another language, merged into the first export.
    done = train(world, tmp_path / "sw", keys={**other, **from_export})
    assert done.code == EXIT_OK, done.error
    second = alone(tmp_path / "sw", tmp_path / "second")
    command = ["export", str(second), "--output-dir", str(tmp_path / "both"), "--tokenizer"]
    command += [str(world.base_tokenizer), "--base-checkpoint", str(tmp_path / "am-export/gpt.pth")]
    assert main([*command, "--model-config", str(tmp_path / "am-export/config.yaml")]) == EXIT_OK
    assert trained_languages(tmp_path / "both") == ["am", "sw"]


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("adapter", ["--adapter-only"], "--adapter-only is for a run"),
        ("adapter", ["--tag", "best"], "--tag is for a run"),
        ("adapter", ["--last"], "--last is for a run"),
        ("run", ["--tokenizer", "x"], "--tokenizer is for a folder with an adapter"),
        ("run", ["--model-config", "x"], "--model-config is for a folder with an adapter"),
        ("run", ["--base-checkpoint", "x"], "--base-checkpoint is for a folder with an adapter"),
        ("adaptre", ["--base-checkpoint", "x"], "adaptre: not found"),
    ],
)
def test_options_that_mean_nothing_for_a_source_are_refused(
    adapted_world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    options: list[str],
    words: str,
) -> None:
    assert train(adapted_world, tmp_path / "run", keys={"schedule__max_steps": 1}).code == EXIT_OK
    alone(tmp_path / "run", tmp_path / "adapter")
    assert main(["export", str(tmp_path / source), "--output-dir", str(tmp_path / "out"), *options]) == EXIT_CONFIG
    assert words in capsys.readouterr().err


def test_the_order_of_targets_does_not_matter(adapted_world: World, tmp_path: Path) -> None:
    one, two = (["mlp.c_fc", "attn.c_attn"], ["attn.c_attn", "mlp.c_fc"])
    assert train(adapted_world, tmp_path / "run", 3, {"adapter__targets": one}).code == EXIT_STOPPED
    done = train(adapted_world, tmp_path / "run", keys={"adapter__targets": two})
    assert done.code == EXIT_OK, done.error
