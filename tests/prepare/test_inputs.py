"""What a preparation is told, and the files of its encoders: wrong ones are refused by name, before any work."""

import io
import json
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch

from indextts_job.cli import main
from indextts_job.commands.prepare import WORKER_VARIABLES, worker_of
from indextts_job.errors import EXIT_CONFIG, EXIT_OK, ConfigError, DataError
from indextts_job.model.fingerprint import fingerprint
from indextts_job.preemption.deadline import StopRequest
from indextts_job.preemption.exit_guard import BEFORE_DEADLINE_S, ExitGuard
from indextts_job.preemption.signals import StopSignals
from indextts_job.prepare.config import prepare_config
from indextts_job.prepare.encoders.encoders import load_encoders
from indextts_job.prepare.encoders.semantic import load_semantic
from indextts_job.prepare.preparation import Preparation, write_preparation
from indextts_job.prepare.run import read_work_list
from indextts_job.storage.remote_storage import open_storage
from tests.prepare.conftest import Run
from tests.support.faulty_filesystem import FaultyFileSystem, fresh_run
from tests.support.voices import Voices


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": "x"}, "unknown key 'outputs'. Did you mean output?"),
        ({"pairs": {"per_targt": 1}}, "test.pairs: unknown key 'per_targt'. Did you mean per_target?"),
        ({"model": {}}, "test.model has no config and no base_checkpoint and no tokenizer"),
        ({"pairs": {"per_target": 0}}, "pairs.per_target is 0, expected at least 1"),
        ({"validation": {"by": "year"}}, "test.validation.by is 'year', expected one of utterance, speaker"),
        ({"audio": {"min_seconds": 5, "max_seconds": 2}}, "audio.max_seconds is 2, expected at least 5"),
        ({"manifests": []}, "manifests or output is empty"),
        ({"output": "https://x.org/a"}, "a web server keeps no dataset"),
        ({"unit": True}, "test.unit is True, expected a whole number"),
    ],
)
def test_a_wrong_configuration_is_refused_by_key(voices: Voices, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as found:
        prepare_config({**voices.settings("out"), **changes}, "test")
    assert message in str(found.value)


def test_keys_of_the_command_line_override_the_file(voices: Voices) -> None:
    config = prepare_config(voices.settings("out"), "test", [("pairs.per_target", 5), ("audio.folder", "s3://b/a")])
    assert (config.pairs.per_target, config.pairs.seed, config.audio.folder) == (5, 2025, "s3://b/a")


def record(**changes: object) -> str:
    base = {"id": "a", "audio": "a.wav", "text": "ሰላም", "speaker": "s", "language": "am"}
    return json.dumps({**base, **changes}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([record(), record(audio="b.wav")], "voices.jsonl:2: id a, as in"),
        ([record(id="")], "voices.jsonl:1: id is ''"),
        ([record(audio=None)], "voices.jsonl:1: audio is None"),
        ([record(audio="s3://other/x.wav")], "leads away from where its manifest lies"),
        (["{"], "voices.jsonl:1: Expecting"),
        (["[]"], "a JSON list, expected an object"),
        ([""], "no records"),
        ([record(split="tets")], "split is 'tets', expected train or val"),
        ([record(speaker="")], "1 utterances have no speaker"),
        ([record(duration=-1)], "voices.jsonl:1: duration is -1, expected a positive number of seconds, or no"),
        ([record(duration="long")], "voices.jsonl:1: duration is 'long', expected a positive number"),
    ],
)
def test_a_wrong_manifest_is_refused_by_line(
    voices: Voices, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], message: str
) -> None:
    mine = voices.elsewhere(tmp_path / "mine")
    mine.manifest.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert run(mine.settings(tmp_path / "out"), "--plan") == 65
    assert message in capsys.readouterr().err


def test_speakers_come_from_file_names_where_wanted(voices: Voices, tmp_path: Path) -> None:
    mine = voices.elsewhere(tmp_path / "mine")
    mine.write([{"id": str(n), "audio": f"x/{n}.wav", "text": "a"} for n in ("JA_anna_01", "bob_02", "anna_3")])
    config = mine.config(tmp_path / "out", speaker="from_name")
    assert [one.speaker for one in read_work_list(config).utterances] == ["anna", "bob", "anna"]


Damage = Callable[[dict[str, torch.Tensor]], object]


def saved(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    safetensors.torch.save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("encoder.1.bias"), "encoder.1.bias: missing, expected [1024]"),
        (lambda t: t.update(more=torch.zeros(1)), "more: unknown key"),
        (
            lambda t: t.update({"encoder.0.norm.bias": torch.zeros(3)}),
            "encoder.0.norm.bias: torch.float32 [3], expected",
        ),
        (lambda t: t.update({"encoder.0.norm.bias": torch.zeros(16, dtype=torch.int32)}), "torch.int32 [16], expected"),
        (lambda t: t.clear(), "no semantic codec"),
        (lambda t: t.update({"down.weight": torch.zeros(1)}), "at half rate"),
        (
            lambda t: t.update({"quantizer.quantizers.0.codebook.weight": torch.zeros(64, 8)}),
            "width 1024 and 64 codes at full rate, expected 1024 and 128 at full rate",
        ),
    ],
)
def test_a_codec_that_does_not_fit_is_refused_by_key(
    voices: Voices, tmp_path: Path, damage: Damage, message: str
) -> None:
    config = voices.config("out")
    tensors = safetensors.torch.load_file(config.encoders.codec)
    damage(tensors)
    changed = voices.settings("out")["encoders"] | {"codec": str(saved(tensors, tmp_path / "c.safetensors"))}
    refuse(voices, changed, message)


def refuse(voices: Voices, encoders: dict[str, object], message: str) -> None:
    config = voices.config("out", encoders=encoders)
    with pytest.raises((DataError, ConfigError)) as found:
        load_encoders(config.encoders, config.model.base_checkpoint, read_work_list(config).model, "cpu")
    assert message in str(found.value)


def w2v_bert(voices: Voices, folder: Path, **changes: object) -> dict[str, object]:
    """The encoders with some settings of w2v-BERT changed, and the tensors as they are."""
    there = Path(voices.config("out").encoders.w2v_bert)
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(there / "model.safetensors")
    document = {**json.loads((there / "config.json").read_text(encoding="utf-8")), **changes}
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    encoders: dict[str, object] = voices.settings("out")["encoders"]
    return encoders | {"w2v_bert": str(folder)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_hidden_layers": "2"},
            "no configuration of w2v-BERT (num_hidden_layers is '2', expected a whole number)",
        ),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, expected a whole number"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5, expected a whole number"),
        ({"num_attention_heads": 7}, "num_attention_heads is 7, in the release 16"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, in the release 16"),
        ({"hidden_act": "none"}, "hidden_act is 'none', in the release 'swish'"),
        ({"conv_depthwise_kernel_size": 4}, "conv_depthwise_kernel_size is 4, in the release 31"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small', in the release 1e-05"),
        ({"hidden_size": 512}, "hidden_size is 512, the conditioning encoders read 1024"),
    ],
    ids=str,
)
def test_settings_of_w2v_bert_that_cannot_be_used_are_named_beside_the_published_ones(
    voices: Voices, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    refuse(voices, w2v_bert(voices, tmp_path / "w2v", **changes), message)


def test_settings_that_are_ours_or_the_published_ones_are_not_blamed(voices: Voices, tmp_path: Path) -> None:
    given = w2v_bert(voices, tmp_path / "w2v", hidden_act="none", add_adapter=True, layer_norm_eps=1e-5)
    with pytest.raises(DataError) as found:
        load_semantic(str(given["w2v_bert"]), str(given["statistics"]), 1, torch.device("cpu"))
    blamed = [line.split()[0] for line in str(found.value).splitlines() if ", in the release " in line]
    assert blamed == ["intermediate_size", "hidden_act"]  # the former is that of the small model of these tests


def fingerprint_of(voices: Voices, folder: Path, **changes: object) -> str:
    config = voices.config("out", encoders=w2v_bert(voices, folder, **changes)).encoders
    return load_semantic(config.w2v_bert, config.statistics, 1, torch.device("cpu")).fingerprints["w2v_bert"]


def test_settings_that_change_hidden_states_make_another_encoder(voices: Voices, tmp_path: Path) -> None:
    """The names and shapes of all tensors stay, so only the settings tell that units have to be made again."""
    tensors = safetensors.torch.load_file(Path(voices.config("out").encoders.w2v_bert) / "model.safetensors")
    used = {name: tensor for name, tensor in tensors.items() if not name.startswith(("encoder.layers.1.", "masked_"))}
    published = fingerprint_of(voices, tmp_path / "published")
    assert published == fingerprint(used), "as in releases that did not look at the settings"
    # Ours whatever a file says, or of no effect.
    others = {"add_adapter": True, "mask_time_prob": 0.5, "num_hidden_layers": 2, "torch_dtype": "float16"}
    assert fingerprint_of(voices, tmp_path / "others", **others) == published
    changes: list[dict[str, object]] = [
        {"layer_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
        {"left_max_position_embeddings": 63, "right_max_position_embeddings": 9},
    ]
    found = {fingerprint_of(voices, tmp_path / str(number), **change) for number, change in enumerate(changes)}
    assert len(found | {published}) == 4


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code from a file",)


def test_no_code_of_a_file_is_run(voices_2_5: Voices, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "campplus.bin"
    torch.save({"head": Evil()}, path)
    given = voices_2_5.settings("out")["encoders"]
    refuse(voices_2_5, given | {"campplus": str(path)}, "Expected campplus_cn_common.bin")
    path.write_bytes(pickle.dumps({"head": 1}))
    refuse(voices_2_5, given | {"campplus": str(path)}, "no archive of torch.save")
    stream = io.BytesIO()
    torch.save({"head": 1}, stream)
    path.write_bytes(stream.getvalue())
    refuse(voices_2_5, given | {"campplus": str(path)}, "holds more than plain tensors")
    assert "code from a file" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("w2v_bert", "nowhere", "config.json of w2v-BERT not found: nowhere/config.json"),
        ("statistics", "nowhere.pt", "statistics of w2v-BERT not found: nowhere.pt (from encoders.statistics"),
        ("codec", "nowhere.safetensors", "semantic codec not found: nowhere.safetensors (from encoders.codec"),
        ("hidden_state", 3, "2 layers, but encoders.hidden_state is 3"),
    ],
)
def test_a_missing_file_is_named_with_its_key(voices: Voices, key: str, value: object, message: str) -> None:
    refuse(voices, voices.settings("out")["encoders"] | {key: value}, message)


def test_2_5_needs_campplus(voices_2_5: Voices) -> None:
    given = voices_2_5.settings("out")["encoders"]
    refuse(voices_2_5, given | {"campplus": ""}, "encoders.campplus is not set")


def test_a_checkpoint_of_another_version_is_refused(
    voices: Voices, voices_2_5: Voices, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = voices.settings(tmp_path / "out")
    settings["encoders"] = voices_2_5.settings("out")["encoders"]
    settings["model"]["base_checkpoint"] = str(voices_2_5.world.base_checkpoint)
    settings["model"]["config"] = str(voices_2_5.world.model_config)
    assert run(settings) == 78
    assert "is of IndexTTS-2.5, but" in capsys.readouterr().err


def test_a_job_that_has_asked_for_a_gpu_does_not_compute_on_a_cpu(
    voices: Voices, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INDEXTTS_GPUS", "1")
    assert run(voices.settings(tmp_path / "out", device="auto")) == 78
    assert "asked its scheduler for GPUs, but torch sees no GPU here" in capsys.readouterr().err
    assert run(voices.settings(tmp_path / "out", device="gpu")) == 78


def test_status_says_where_a_preparation_stands(
    voices: Voices, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(voices.settings(tmp_path / "out")) == 0
    next((tmp_path / "out/units").iterdir()).unlink()
    capsys.readouterr()
    assert main(["status", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["units"], found["finished"], found["refused"]) == (4, 3, 0)
    assert found["seconds_left"] > 0
    assert main(["status", str(tmp_path / "out")]) == 0
    assert "3 of 4 finished" in capsys.readouterr().out


def test_status_of_a_preparation_has_no_page(
    voices: Voices, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_preparation(
        open_storage(str(tmp_path / "out")),
        Preparation(utterances=1, units=("00000-0",), encoders={}, files={}, program="p"),
    )
    assert main(["status", str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]) == EXIT_CONFIG
    assert "a preparation has none. Leave it out." in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
    assert main(["status", str(tmp_path / "out")]) == EXIT_OK


def test_the_encoders_files_may_be_named_from_another_folder(
    voices: Voices, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files under a path that is relative to where the command is given are the same files."""
    folder = voices.encoders.folder
    settings = voices.settings(tmp_path / "out")
    relative = {
        key: str(Path(value).relative_to(folder)) if isinstance(value, str) else value
        for key, value in settings["encoders"].items()
    }
    monkeypatch.chdir(folder)
    assert run({**settings, "encoders": relative}) == EXIT_OK
    monkeypatch.chdir(tmp_path)
    assert run(settings, "--assemble") == EXIT_OK
    assert run({**settings, "encoders": relative}, "--assemble") == EXIT_CONFIG, "there are none of that name here"
    # As earlier releases recorded them.
    path = tmp_path / "out/preparation.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["files"] |= {key: str(value) for key, value in relative.items()}
    path.write_text(json.dumps(document), encoding="utf-8")
    monkeypatch.chdir(folder)
    assert run(settings, "--assemble") == EXIT_OK


def test_a_batch_in_work_has_the_time_up_to_the_deadline(
    voices: Voices, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch may take longer than the guard leaves a command that has nothing to end."""
    guard = ExitGuard(StopSignals())
    request = StopRequest("SIGTERM", 0.0, 120.0)
    before_s, bounds_s = guard.bound_s(request), []
    url = fresh_run()
    for path in sorted((voices.folder / "audio").iterdir()):
        fsspec.filesystem("memory").pipe_file(f"{url}/audio/{path.name}", path.read_bytes())

    def looked(_verb: str, _path: str) -> None:
        bounds_s.append(guard.bound_s(request))

    monkeypatch.setattr(FaultyFileSystem, "fault", staticmethod(looked))
    config = tmp_path / "prepare.yaml"
    config.write_text(json.dumps(voices.settings(tmp_path / "out", audio={"folder": url})), encoding="utf-8")
    assert main(["prepare", str(config)], StopSignals(), guard) == EXIT_OK
    assert bounds_s
    assert set(bounds_s) == {120.0 - BEFORE_DEADLINE_S}
    assert guard.bound_s(request) == before_s < 60


@pytest.mark.parametrize(
    ("given", "environment", "name"),
    [
        ("mine", {"SLURM_ARRAY_TASK_ID": "3"}, "mine"),
        ("", {"SLURM_ARRAY_TASK_ID": "3"}, "3"),
        ("", {"JOB_COMPLETION_INDEX": "0"}, "0"),
        ("", {"INDEXTTS_WORKER": "1", "SLURM_ARRAY_TASK_ID": "3"}, "1"),
        ("a b/c", {}, "a-b-c"),
        ("", {}, socket.gethostname()),
    ],
)
def test_a_worker_has_the_name_that_its_launcher_gives(
    monkeypatch: pytest.MonkeyPatch, given: str, environment: dict[str, str], name: str
) -> None:
    for variable in WORKER_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert worker_of(given) == name


def test_environment_variables_are_those_of_a_run_yaml(
    voices: Voices, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = voices.settings(tmp_path / "out")
    settings["output"] = "${OUT}/prepared"
    assert run(settings, "--plan") == EXIT_CONFIG
    assert "the environment variable OUT is not set" in capsys.readouterr().err
    monkeypatch.setenv("OUT", str(tmp_path))
    assert run(settings, "--plan") == EXIT_OK
