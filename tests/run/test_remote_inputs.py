"""Everything a run reads and writes may be a URL; where it lies does not change what is computed."""

from dataclasses import replace
from pathlib import Path

import fsspec

from indextts_job.demo.world import World
from tests.support.attempts import attempt
from tests.support.runs import config_for, newest, state_of


def test_inputs_and_run_by_url_give_the_same_bits(world: World, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in world.folder.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/world/{path.relative_to(world.folder)}", path.read_bytes())
    url = "memory://world"
    remote = config_for(
        world,
        "memory://remote-run",
        inputs__model_config=f"{url}/checkpoints/config.yaml",
        inputs__base_checkpoint=f"{url}/checkpoints/gpt.pth",
        inputs__tokenizer=f"{url}/tokenizers/extended_bpe.model",
        data__train_manifests=[f"{url}/processed/gpt_pairs_train.jsonl::am"],
        data__validation_manifests=[f"{url}/processed/gpt_pairs_val.jsonl"],
    )
    local = config_for(world, tmp_path / "run")
    assert attempt(local).code == 0
    ended = attempt(remote)
    assert ended.code == 0, ended.error
    assert state_of(newest("memory://remote-run")) == state_of(newest(tmp_path / "run"))
    assert newest("memory://remote-run").values.order == newest(tmp_path / "run").values.order
    memory.rm_file("/world/processed/codes/utt_00003.npy")
    # The run remembers that the dataset was whole; another run checks it.
    ended = attempt(replace(remote, run="memory://another-run"))
    assert ended.code == 65
    assert "memory://world/processed/codes/utt_00003.npy: file not found" in ended.error
