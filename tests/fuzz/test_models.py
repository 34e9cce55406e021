"""Base checkpoints and tokenizers."""

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indextts_job.demo.world import World
from indextts_job.doctor.tokenizer import examine_extension
from indextts_job.model.base_checkpoint import load_base_checkpoint
from indextts_job.model.base_of_run import load_base
from indextts_job.model.config import GPTConfig, gpt_config
from indextts_job.storage.files import read_yaml
from indextts_job.tokenizer.extend import parse_model
from indextts_job.tokenizer.loading import parse_tokenizer
from tests.fuzz.outcomes import taken_or_refused
from tests.fuzz.strategies import Damage, damaged, damages, texts, values


@pytest.fixture(scope="module")
def config(world: World) -> GPTConfig:
    return gpt_config(read_yaml(str(world.model_config), "", ""), "")


@pytest.fixture(scope="module")
def state(world: World) -> dict[str, torch.Tensor]:
    return dict(torch.load(world.base_checkpoint, weights_only=True))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed-models") / "gpt.pth"


def loaded(path: Path, config: GPTConfig) -> None:
    """A base that is taken can be read to the last weight."""
    base = taken_or_refused(lambda: load_base(str(path), config, {}, "config.yaml"))
    if base is not None:
        assert all(torch.isfinite(tensor.float().sum()) or tensor.numel() for tensor in base.tensors.values())


@given(damages())
def test_any_bytes_as_a_base_checkpoint(world: World, config: GPTConfig, path: Path, damage: list[Damage]) -> None:
    path.write_bytes(damaged(world.base_checkpoint.read_bytes(), damage))
    loaded(path, config)


@given(damages())
def test_any_pickle_in_an_archive(world: World, config: GPTConfig, path: Path, damage: list[Damage]) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(world.base_checkpoint) as old, zipfile.ZipFile(stream, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, damaged(content, damage) if entry.filename.endswith(".pkl") else content)
    path.write_bytes(stream.getvalue())
    loaded(path, config)


def odd_tensors() -> list[torch.Tensor]:
    """Made when they are needed: some kinds warn of being new."""
    return [
        torch.zeros(()),
        torch.zeros(0),
        torch.full((32,), torch.nan),
        torch.full((32,), -torch.inf),
        torch.zeros(32, dtype=torch.int64),
        torch.zeros(32, dtype=torch.complex64),
        torch.zeros(1).expand(2**40),
        torch.zeros(1, 1).expand(2**30, 32),
        torch.zeros(32, device="meta"),
        torch.zeros(32).to_sparse(),
        torch.zeros(4, 8).to_sparse_csr(),
        torch.quantize_per_tensor(torch.zeros(32), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        torch.nn.Parameter(torch.zeros(32)),
        torch.zeros(32, dtype=torch.bfloat16),
    ]


@given(st.data())
def test_any_thing_in_a_base_checkpoint(
    state: dict[str, torch.Tensor], config: GPTConfig, path: Path, data: st.DataObject
) -> None:
    content: dict[Any, Any] = dict(state)
    tensors = odd_tensors()
    keys = st.sampled_from(sorted(state)) | texts() | st.none() | st.integers()
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(keys)
        odd = data.draw(st.integers(0, len(tensors)))
        content[key] = tensors[odd] if odd < len(tensors) else data.draw(values())
    if data.draw(st.booleans()):
        content = {"model": content, "epoch": data.draw(values())}
    try:
        torch.save(content, path)
    except (UnicodeEncodeError, RuntimeError, NotImplementedError):
        return  # torch itself cannot write such a thing
    loaded(path, config)


@given(st.binary(max_size=200))
def test_any_few_bytes(config: GPTConfig, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    taken_or_refused(lambda: load_base_checkpoint(str(path), config))
    taken_or_refused(lambda: parse_tokenizer(content, "tokenizer"))
    taken_or_refused(lambda: parse_model(content, "tokenizer"))


@given(damages())
def test_any_bytes_as_a_tokenizer(world: World, damage: list[Damage]) -> None:
    good = world.base_tokenizer.read_bytes()
    content = damaged(good, damage)
    tokenizer = taken_or_refused(lambda: parse_tokenizer(content, "tokenizer"))
    taken_or_refused(lambda: parse_model(content, "tokenizer"))
    if tokenizer is not None:
        assert tokenizer.fingerprint()
        taken_or_refused(lambda: list(examine_extension(good, content, ["HELLO WORLD", "ሰላም ነው"])))
        taken_or_refused(lambda: list(examine_extension(content, good)))
