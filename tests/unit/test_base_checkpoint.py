"""Every published form of the base checkpoint is read, every wrong one named; exports have exactly its keys."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import yaml
from torch import Tensor

from indextts_job.demo.world import World
from indextts_job.errors import ConfigError, DataError
from indextts_job.model.base_checkpoint import BaseCheckpoint, all_finite, load_base_checkpoint
from indextts_job.model.config import GPTConfig, carried_shapes, gpt_config, trained_shapes
from indextts_job.model.export import export_config, export_state_dict
from indextts_job.model.initial_values import initialise
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.vocabulary import Vocabulary, initial_rows
from indextts_job.storage import files


@pytest.fixture(scope="module")
def document(world: World) -> dict[str, Any]:
    return dict(yaml.safe_load(world.model_config.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def config(document: dict[str, Any]) -> GPTConfig:
    return gpt_config(document, "config.yaml")


@pytest.fixture(scope="module")
def state(world: World) -> dict[str, Tensor]:
    return dict(torch.load(world.base_checkpoint, weights_only=True))


def test_the_full_size_model_has_the_published_parameters() -> None:
    released = {
        "gpt": {
            "model_dim": 1280,
            "layers": 24,
            "heads": 20,
            "max_text_tokens": 600,
            "max_mel_tokens": 1815,
            "number_text_tokens": 12000,
            "number_mel_codes": 8194,
            "start_mel_token": 8192,
            "stop_mel_token": 8193,
            "start_text_token": 0,
            "stop_text_token": 1,
            "condition_module": {
                **{"output_size": 512, "linear_units": 2048, "attention_heads": 8, "num_blocks": 6},
                **{"input_layer": "conv2d2", "perceiver_mult": 2},
            },
            "emo_condition_module": {
                **{"output_size": 512, "linear_units": 1024, "attention_heads": 4, "num_blocks": 4},
                **{"input_layer": "conv2d2", "perceiver_mult": 2},
            },
        }
    }
    config = gpt_config(released, "config.yaml")
    trained, carried = trained_shapes(config, 12001), carried_shapes(config)

    def count(shapes: dict[str, tuple[int, ...]]) -> int:
        return sum(torch.Size(shape).numel() for key, shape in shapes.items() if not key.endswith(".pe"))

    assert (len(trained), count(trained)) == (301, 527_083_235)
    assert (len(carried), count(carried)) == (364, 338_897_404)
    assert count(trained) + count(carried) == 865_980_639


@pytest.mark.parametrize(
    "variant",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {}, "step": 3},
        lambda state: state | {"inference_model.x": torch.zeros(1), "gpt.h.0.attn.c_attn.lora_A.x": torch.zeros(1)},
        lambda state: state | {"gpt.wte.weight": torch.zeros(1), "gpt.h.1.attn.masked_bias": torch.zeros(1)},
        lambda state: {k.replace("c_attn.weight", "c_attn.base_layer.weight"): v for k, v in state.items()},
    ],
    ids=["plain", "wrapped", "inference and LoRA leftovers", "aliases and mask buffers", "base_layer names"],
)
def test_every_published_form_is_read(
    state: dict[str, Tensor], config: GPTConfig, tmp_path: Path, variant: Callable[[dict[str, Tensor]], object]
) -> None:
    path = tmp_path / "gpt.pth"
    torch.save(variant(state), path)
    base = load_base_checkpoint(str(path), config)
    assert base.text_pieces == 100
    assert base.tensors.keys() == state.keys()
    assert all(torch.equal(base.tensors[key], state[key]) for key in state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_for_the_export(
    state: dict[str, Tensor], config: GPTConfig, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = tmp_path / "gpt.pth"
    torch.save({key: value.to(dtype) for key, value in state.items()}, path)
    base = load_base_checkpoint(str(path), config)
    model = UnifiedVoice(config, Vocabulary(100, 100), 0.0)
    initialise(model, base, "mean", 0)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    trained = dict(model.named_parameters())
    carried = {key: value for key, value in base.tensors.items() if key not in trained}
    exported = export_state_dict(trained, carried, config, model.vocabulary)
    assert all(torch.equal(exported[key], base.tensors[key]) and exported[key].dtype == dtype for key in exported)


def test_a_remote_file_is_read(state: dict[str, Tensor], config: GPTConfig, tmp_path: Path) -> None:
    import fsspec

    torch.save(state, tmp_path / "gpt.pth")
    fsspec.filesystem("memory").pipe_file("/inputs/gpt.pth", (tmp_path / "gpt.pth").read_bytes())
    assert load_base_checkpoint("memory://inputs/gpt.pth", config).tensors.keys() == state.keys()


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "final_norm.bias"}, "final_norm.bias: missing"),
        (lambda s: {k: v for k, v in s.items() if k != "text_embedding.weight"}, "text_embedding.weight is missing"),
        (lambda s: s | {"mel_head.bias": torch.zeros(7)}, "mel_head.bias: shape [7], expected [130]"),
        (lambda s: s | {"surprise.weight": torch.zeros(7)}, "surprise.weight: unknown key"),
        (lambda s: s | {"gpt.ln_f.bias": torch.zeros(32, dtype=torch.int64)}, "gpt.ln_f.bias: dtype torch.int64"),
        (lambda s: s | {"text_head.bias": torch.zeros(9)}, "text_head.bias: shape [9], expected [101]"),
        (lambda s: s | {"spk_emb_proj.weight": torch.zeros(7)}, "IndexTTS-2.5"),
        (lambda s: s | {"final_norm.bias": 3}, "final_norm.bias: int"),
        (lambda s: s | {7: torch.zeros(1)}, "the key 7"),
        (lambda s: s | {None: torch.zeros(1)}, "the key None"),
        (lambda s: s | {"final_norm.bias": torch.full((32,), torch.nan)}, "final_norm.bias: NaN or infinity"),
        (lambda s: s | {"mel_head.bias": torch.full((130,), -torch.inf)}, "mel_head.bias: NaN or infinity"),
        (lambda s: s | {"final_norm.bias": torch.zeros(32).to_sparse()}, "final_norm.bias: sparse"),
        (lambda s: s | {"final_norm.bias": torch.zeros(32, device="meta")}, "final_norm.bias: without data"),
        (lambda s: s | {"final_norm.bias": torch.zeros(32).to(torch.complex64)}, "dtype torch.complex64"),
        (lambda s: s | {"text_embedding.weight": torch.zeros(1, 1).expand(2**30, 32)}, "text_embedding.weight"),
        (lambda s: s | {"final_norm.bias": torch.zeros(1).expand(2**40)}, "shape [1099511627776], expected [32]"),
        (lambda _: [1, 2], "holds a list"),
        (lambda _: {"model": Path("x")}, "not a readable PyTorch checkpoint"),
    ],
)
def test_a_wrong_file_is_named_key_by_key(
    state: dict[str, Tensor],
    config: GPTConfig,
    tmp_path: Path,
    variant: Callable[[dict[str, Tensor]], object],
    words: str,
) -> None:
    path = tmp_path / "gpt.pth"
    torch.save(variant(state), path)
    with pytest.raises(DataError) as caught:
        load_base_checkpoint(str(path), config)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 truncated"])
def test_a_damaged_file_is_explained(config: GPTConfig, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "gpt.pth"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a readable PyTorch checkpoint"):
        load_base_checkpoint(str(path), config)


def test_a_truncated_file_is_explained(world: World, config: GPTConfig, tmp_path: Path) -> None:
    path = tmp_path / "gpt.pth"
    path.write_bytes(world.base_checkpoint.read_bytes()[:-1000])
    with pytest.raises(DataError, match="not a readable PyTorch checkpoint"):
        load_base_checkpoint(str(path), config)


def test_a_missing_file_is_a_configuration_error(config: GPTConfig) -> None:
    with pytest.raises(ConfigError, match=r"base checkpoint not found: no/gpt\.pth"):
        load_base_checkpoint("no/gpt.pth", config)


def extended_model(base: BaseCheckpoint, config: GPTConfig, how: str = "mean") -> UnifiedVoice:
    model = UnifiedVoice(config, Vocabulary(160, 100), 0.0)
    initialise(model, base, how, 3)  # type: ignore[arg-type]
    return model


def test_an_extended_model_trains_only_its_new_rows(world: World, config: GPTConfig) -> None:
    base = load_base_checkpoint(str(world.base_checkpoint), config)
    model = extended_model(base, config)
    trained = dict(model.named_parameters())
    assert trained["text_embedding.weight_new"].shape == (60, 32)
    for key in ("text_embedding.weight", "text_head.weight", "text_head.bias"):
        assert key not in trained
        assert torch.equal(model.state_dict()[key], base.tensors[key])
    tables = model.text_head.tables()
    assert tables.classes == 161
    ids = torch.tensor([0, 99, 100, 159])
    assert model.text_head.columns(ids).tolist() == [60, 159, 0, 59]
    kept = tables.frozen_weight, tables.frozen_bias
    for own, frozen, name in zip((tables.weight, tables.bias), kept, ("weight", "bias"), strict=True):
        assert frozen is not None
        logits = torch.cat([own, frozen])
        assert torch.equal(logits[60:], base.tensors[f"text_head.{name}"])  # with the spare row, which is the last one
        assert torch.equal(logits[:60], trained[f"text_head.{name}_new"])
    rows = model.text_embedding(ids)
    assert torch.equal(rows[:2], base.tensors["text_embedding.weight"][[0, 99]])
    assert torch.equal(rows[2:], trained["text_embedding.weight_new"][[0, 59]])


def test_new_rows_start_spread_as_the_base_rows_near_their_mean_or_as_a_fresh_model_does() -> None:
    base = torch.randn(1001, 64, generator=torch.Generator().manual_seed(0)) * 0.5 + 3
    base[-1] = 1e6  # the spare row was never trained and must not count
    spread = initial_rows(base, 500, "spread", torch.Generator().manual_seed(1))
    assert float((spread.mean() - 3).abs()) < 0.02
    assert float(spread.std(dim=0).mean()) == pytest.approx(0.5, rel=0.1)
    assert float(initial_rows(base[:, 0], 500, "spread", torch.Generator().manual_seed(1)).std()) > 0.4  # biases too
    mean = initial_rows(base, 500, "mean", torch.Generator().manual_seed(1))
    assert float((mean.mean() - 3).abs()) < 0.02
    assert float(mean.std(dim=0).mean()) == pytest.approx(0.05, rel=0.1)
    normal = initial_rows(base, 500, "normal", torch.Generator().manual_seed(1))
    assert float(normal.mean()) == pytest.approx(0, abs=0.001)
    assert float(normal.std()) == pytest.approx(0.02, rel=0.05)
    assert not initial_rows(base[:, 0], 5, "normal", torch.Generator()).any()


def test_an_export_has_exactly_the_published_keys(
    world: World, config: GPTConfig, document: dict[str, Any], state: dict[str, Tensor]
) -> None:
    base = load_base_checkpoint(str(world.base_checkpoint), config)
    model = extended_model(base, config)
    trained = dict(model.named_parameters())
    carried = {key: value for key, value in base.tensors.items() if key not in trained}
    exported = export_state_dict(trained, carried, config, model.vocabulary)
    assert exported.keys() == state.keys()
    assert exported["text_embedding.weight"].shape == (161, 32)
    assert exported["text_head.bias"].shape == (161,)
    assert torch.equal(exported["text_embedding.weight"][100:160], trained["text_embedding.weight_new"].detach())
    for key in carried:
        if not key.startswith("text_"):
            assert torch.equal(exported[key], state[key])
    written = yaml.safe_load(export_config(document, model.vocabulary))
    # The published constructor adds the spare row itself: pieces, never pieces + 1.
    assert written["gpt"].pop("number_text_tokens") == 160
    assert written["dataset"].pop("bpe_model") == "bpe.model"
    unchanged = {**document, "gpt": {k: v for k, v in document["gpt"].items() if k != "number_text_tokens"}}
    assert written["gpt"] == unchanged["gpt"]
    assert written["version"] == 2.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpt": None}, "no `gpt` section"),
        ({"model_dim": None}, "gpt.model_dim: found None"),
        ({"layers": "many"}, "gpt.layers: found 'many'"),
        ({"heads": 5}, "not divisible"),
        ({"heads": 0}, "gpt.heads: found 0"),
        ({"layers": 10**18}, "gpt.layers: found 1000000000000000000, expected a whole number, at least 1"),
        ({"model_dim": 32.0}, "gpt.model_dim: found 32.0"),
        ({"start_mel_token": 130}, "gpt.start_mel_token is 130, but there are 130 ids"),
        ({"stop_text_token": 100}, "gpt.stop_text_token is 100"),
        ({"condition_module": {"output_size": 8}}, "gpt.condition_module.linear_units: found None"),
        (
            {
                "condition_module": dict.fromkeys(["output_size", "linear_units", "num_blocks"], 8)
                | {"attention_heads": 3}
            },
            "output_size 8 is not divisible by attention_heads 3",
        ),
        ({"condition_type": "conditioner"}, "condition_type"),
        ({"use_mel_codes_as_input": False}, "use_mel_codes_as_input"),
        ({"condition_module": None}, "gpt.condition_module is missing"),
    ],
)
def test_a_wrong_model_configuration_names_its_key(
    document: dict[str, Any], change: dict[str, object], words: str
) -> None:
    changed = {**document, **change} if "gpt" in change else {**document, "gpt": {**document["gpt"], **change}}
    with pytest.raises(ConfigError) as caught:
        gpt_config(changed, "config.yaml")
    assert words in str(caught.value)


def test_missing_inputs_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"inputs\.tokenizer is not set"):
        files.read_input("", "tokenizer", "inputs.tokenizer")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        files.read_yaml(str(tmp_path / "bad.yaml"), "x", "y")
    with pytest.raises(ConfigError, match=r"x not found: .*none"):
        files.read_input(str(tmp_path / "none"), "x", "y")
    with pytest.raises(ConfigError, match=r"is a folder .*expected a file"):
        files.read_input(str(tmp_path), "x", "y")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_unfolds_to_more_than_it_is_takes_no_memory(
    world: World, config: GPTConfig, tmp_path: Path, compression: int
) -> None:
    path = tmp_path / "gpt.pth"
    with zipfile.ZipFile(world.base_checkpoint) as old, zipfile.ZipFile(path, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("archive/data/9999", bytes(2**24))
    content = bytearray(path.read_bytes())
    if compression == zipfile.ZIP_STORED:
        # The directory at the end says 2 GiB for the last entry.
        place = content.rfind((2**24).to_bytes(4, "little"))
        content[place : place + 4] = (2**31).to_bytes(4, "little")
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"compressed|claim more than"):
        load_base_checkpoint(str(path), config)
    with pytest.raises(DataError, match=r"gpt\.pth"):
        load_base_checkpoint(f"file://{path}", config)


@pytest.mark.parametrize(
    "document",
    [
        {"version": float("nan")},
        {"vocoder": {"rate": [1, float("inf")]}},
        {"created": object()},
    ],
)
def test_what_no_checkpoint_could_write_down_is_refused_by_its_key(document: dict[str, Any], world: World) -> None:
    released = files.read_yaml(str(world.model_config), "", "")
    assert isinstance(released, dict)
    with pytest.raises(ConfigError, match=r"config\.yaml: (version|vocoder\.rate\[1\]|created) is "):
        gpt_config({**released, **document}, "config.yaml")


def test_an_export_of_a_configuration_without_a_dataset_section_has_one(document: dict[str, Any]) -> None:
    for dataset in (None, [1]):
        written = yaml.safe_load(export_config({**document, "dataset": dataset}, Vocabulary(9, 9)))
        assert written["dataset"] == {"bpe_model": "bpe.model"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_no_number_is_found_among_many(value: float, dtype: torch.dtype) -> None:
    tensor = torch.randn(70, 130).to(dtype)
    assert all_finite(tensor)
    tensor[69, 129] = value
    assert not all_finite(tensor)


def test_a_tensor_without_values_is_finite() -> None:
    assert all_finite(torch.empty(0, 8))


def test_a_base_in_a_bucket_is_read_from_where_it_lies_in_memory(
    world: World, config: GPTConfig, state: dict[str, Tensor]
) -> None:
    fsspec.filesystem("memory").pipe_file("/bases/gpt.pth", world.base_checkpoint.read_bytes())
    loaded = load_base_checkpoint("memory://bases/gpt.pth", config)
    assert all(torch.equal(value, state[key]) for key, value in loaded.tensors.items())
    fsspec.filesystem("memory").pipe_file("/bases/cut.pth", world.base_checkpoint.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a readable PyTorch checkpoint"):
        load_base_checkpoint("memory://bases/cut.pth", config)
