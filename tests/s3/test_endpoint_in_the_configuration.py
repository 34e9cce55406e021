"""A store whose address stands only in a run's configuration: every command that looks there finds it."""

import contextlib
import contextvars
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from s3fs import S3FileSystem

from indextts_job.cli import main
from indextts_job.demo.world import World
from indextts_job.errors import EXIT_OK
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.remote_storage import open_storage
from tests.support.attempts import attempt
from tests.support.runs import config_for
from tests.support.servers import Server


@pytest.fixture
def hidden(s3_run: str, seaweed: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a fresh run on a server that no environment variable leads to."""
    del s3_run
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    S3FileSystem.clear_instance_cache()
    return f"s3://bucket/hidden/{id(monkeypatch)}"


@pytest.fixture
def trained(world: World, hidden: str, seaweed: Server, tmp_path: Path) -> tuple[str, Path]:
    """A finished run there, and its configuration."""
    config = config_for(world, hidden, storage__endpoint_url=seaweed.url)
    assert attempt(config).code == EXIT_OK
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.to_json()), encoding="utf-8")
    S3FileSystem.clear_instance_cache()
    return hidden, path


Shown = Callable[..., str]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    def run(*arguments: str) -> str:
        S3FileSystem.clear_instance_cache()
        code = main(arguments)
        output = capsys.readouterr()
        assert code == 0, output.err
        return output.out

    return run


@pytest.mark.parametrize("given", ["setting", "configuration"])
def test_every_command_that_looks_at_a_run_reaches_it(
    trained: tuple[str, Path], seaweed: Server, tmp_path: Path, shown: Shown, given: str
) -> None:
    run, config = trained
    how = [f"storage.endpoint_url={seaweed.url}"] if given == "setting" else ["--run-config", str(config)]
    assert "complete" in shown("status", run, *how)
    assert json.loads(shown("checkpoints", "list", run, "--json", *how))[0]["step"] == 24
    name = json.loads(shown("checkpoints", "list", run, "--json", *how))[1]["name"]
    assert json.loads(shown("checkpoints", "inspect", run, "--json", *how))["step"] == 24
    assert "kept" in shown("checkpoints", "keep", f"{run}/checkpoints/{name}", *how)
    assert "samples each" in shown("checkpoints", "compare", run, "--device", "cpu", *how)
    assert "gpt.pth" in shown("export", run, "--output-dir", str(tmp_path / "export"), *how)
    assert "24 steps" in shown("simulate", run, "--intervals", "8", *how)
    assert "every byte has its hash" in shown("doctor", "checkpoint", run, *how)
    shown("doctor", "report", run, "--output", str(tmp_path / "report.json"), *how)
    S3FileSystem.clear_instance_cache()
    main(["doctor", "gpu", run, "--json", *how])  # there is no GPU, but there is a bucket


def test_the_storage_of_a_run_that_is_tried_is_its_own(
    trained: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = trained
    for command in (
        ["doctor", "gpu", run, "--json", "--config", str(config)],
        ["doctor", "run", str(config), "--json"],
    ):
        S3FileSystem.clear_instance_cache()
        main(command)
        found = {row["subject"]: row["level"] for row in json.loads(capsys.readouterr().out)}
        assert found["storage"] == "ok"


def test_datasets_and_tokenizers_are_read_and_written_there(
    world: World, hidden: str, seaweed: Server, shown: Shown
) -> None:
    how = [f"storage.endpoint_url={seaweed.url}"]
    model = ["--tokenizer", str(world.tokenizer), "--config", str(world.model_config)]
    shards = f"{hidden}/shards"
    assert "40 samples" in shown("shard", f"{world.train_manifest}::am", *model, "--output", shards, *how)
    files.configure_object_stores(StorageConfig(endpoint_url=seaweed.url))
    open_storage(hidden).write("tokenizer.model", world.tokenizer.read_bytes())
    files.configure_object_stores(StorageConfig())
    remote = ["--tokenizer", f"{hidden}/tokenizer.model", "--config", str(world.model_config)]
    assert "40 pairs" in shown("doctor", "data", f"{world.train_manifest}::am", *remote, *how)
    base = ["--base", f"{hidden}/tokenizer.model"]
    assert "ok" in shown("tokenizer", "check", f"{hidden}/tokenizer.model", *base, *how)


def test_a_local_run_tells_where_its_data_lies(
    world: World, hidden: str, seaweed: Server, tmp_path: Path, shown: Shown
) -> None:
    model = ["--tokenizer", str(world.tokenizer), "--config", str(world.model_config)]
    validation = f"{hidden}/validation"
    how = f"storage.endpoint_url={seaweed.url}"
    shown("shard", f"{world.validation_manifest}::am", *model, "--output", validation, how)
    run = tmp_path / "run"
    keys = {"storage__endpoint_url": seaweed.url, "data__validation_manifests": [validation]}
    S3FileSystem.clear_instance_cache()
    assert attempt(config_for(world, run, **keys)).code == EXIT_OK
    assert "12 samples each" in shown("checkpoints", "compare", str(run), "--device", "cpu")


def test_a_person_is_not_kept_waiting(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("indextts_job.commands.storage_options.TERMINAL_PATIENCE_S", 0.2)
    away = "storage.endpoint_url=http://127.0.0.1:9"
    with contextlib.redirect_stdout(Terminal()):
        for command in (["status", hidden], ["checkpoints", "inspect", hidden]):
            S3FileSystem.clear_instance_cache()
            assert contextvars.copy_context().run(main, [*command, away]) == 69
