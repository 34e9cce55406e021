"""`indextts-job speak`: lets a checkpoint speak texts: as codes, and as audio where the published package is there."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from indextts_job import errors, terminal
from indextts_job.commands.export import choose_checkpoint, write_whole
from indextts_job.commands.parser import Commands, at_least
from indextts_job.commands.storage_options import add_storage_options, configure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from indextts_job.checkpoint.manifest import CheckpointManifest
    from indextts_job.checkpoint.store import CheckpointStore
    from indextts_job.model.versions import ModelVersion
    from indextts_job.speaking.config import SpeakingConfig
    from indextts_job.speaking.script import Script, Source


def add(commands: Commands) -> None:
    """Add the command."""
    speak = commands.add_parser(
        "speak",
        help="let a checkpoint speak texts: codes, and audio with the published package",
        description="Speak texts with a checkpoint, and print a line of JSON with the codes of each. With --prompt the "
        "published package speaks them too, in a process of its own, into wav files; it is never installed.",
    )
    speak.add_argument("source", help="a run, or a checkpoint's .json")
    speak.add_argument("--text", action="append", required=True, help="what to speak; may be given several times")
    speak.add_argument("--language", default="", help="name that inference would be called with")
    speak.add_argument("--voices", action="append", default=[], help="manifest with voices (default: the run's own)")
    speak.add_argument("--record", default="", help="id of the record whose voice speaks (default: the first by id)")
    speak.add_argument(
        "--mode", choices=("greedy", "sampled"), default="greedy", help="how codes are chosen (default: greedy)"
    )
    speak.add_argument("--seed", type=at_least(0), default=0, help="of what is drawn (default: 0)")
    speak.add_argument("--prompt", default="", help="audio file of a voice: speak into wav files")
    speak.add_argument("--release", default="checkpoints", help="folder of the release (default: checkpoints)")
    speak.add_argument("--python", default=sys.executable, help="interpreter with the package (default: this one)")
    speak.add_argument("--output-dir", default=".", help="where wav files go (default: .)")
    which = speak.add_mutually_exclusive_group()
    which.add_argument("--tag", choices=("best", "final", "good"), help="newest checkpoint of the run with this tag")
    which.add_argument("--last", action="store_true", help="the newest; default: the best, without one the newest")
    add_storage_options(speak)
    speak.set_defaults(act=_speak)


def _speak(given: argparse.Namespace) -> int:
    store, manifest = choose_checkpoint(given, configure(given, given.source))
    if given.prompt:
        _record(given, store, manifest)
        return errors.EXIT_OK
    for line in _lines(given, store, manifest):
        print(line, end="")  # noqa: T201
    return errors.EXIT_OK


def _lines(given: argparse.Namespace, store: "CheckpointStore", manifest: "CheckpointManifest") -> "Iterator[str]":
    """A line of JSON for each text."""
    import torch

    from indextts_job.checkpoint.tensor_names import BASE, WEIGHTS, below
    from indextts_job.model.merge import published
    from indextts_job.model.vocabulary import Vocabulary
    from indextts_job.speaking.check import SpeakingCheck
    from indextts_job.speaking.metrics import Scale
    from indextts_job.speaking.voice import published_voice
    from indextts_job.training.distributed import SingleProcess
    from indextts_job.training.engine import to_device

    values = manifest.values
    source = _source(given, store, manifest)
    script, config = _script(given, source)
    tensors = store.load(manifest, (WEIGHTS, BASE))
    vocabulary = Vocabulary.recorded(values.vocabulary)
    full = published(below(WEIGHTS, tensors), below(BASE, tensors), vocabulary, values.adapter)
    model = published_voice(full, values.vocabulary, source.model)
    scale = Scale(codes_per_second=source.model.version.codes_per_second, first_special=source.model.start_mel_token)
    check = SpeakingCheck(script, config, scale, given.seed)
    cpu = torch.device("cpu")
    outcome = check(
        model, lambda batch: to_device(batch, cpu), SingleProcess(), manifest.name.step, lambda _done: False
    )
    assert outcome is not None  # noqa: S101  # nobody interrupts it
    # The first utterance is the record whose voice speaks.
    for text, line in zip(given.text, list(outcome.lines())[-len(given.text) :], strict=True):
        yield json.dumps({"text": text, **json.loads(line)}, ensure_ascii=False) + "\n"


def _source(given: argparse.Namespace, store: "CheckpointStore", manifest: "CheckpointManifest") -> "Source":
    """The voices, with the model and the tokenizer that they belong to."""
    from indextts_job.config import RunConfig
    from indextts_job.data.sources import load_dataset
    from indextts_job.model.config import gpt_config, of_version
    from indextts_job.speaking.script import Source
    from indextts_job.tokenizer.limits import limits_of, version_of
    from indextts_job.tokenizer.loading import parse_tokenizer

    config = RunConfig.from_json(manifest.values.config, "the checkpoint")
    tokenizer = parse_tokenizer(store.read_file(manifest, "tokenizer.model"), "tokenizer.model of the checkpoint")
    document = manifest.values.model_config
    model = of_version(gpt_config(document, "the checkpoint"), version_of(tokenizer), "the checkpoint")
    manifests = given.voices or config.data.validation_manifests
    if not manifests:
        raise errors.ConfigError("the run has no validation records. Give a manifest with voices: --voices.")
    voices = load_dataset(manifests, limits_of(model, tokenizer, config.data), skip_bad_samples=True)
    return Source(voices, voices, model, tokenizer)


def _script(given: argparse.Namespace, source: "Source") -> "tuple[Script, SpeakingConfig]":
    from indextts_job.speaking.config import FreeText, SpeakingConfig
    from indextts_job.speaking.script import make_script

    texts = tuple(FreeText(text=text, language=given.language, speaker=given.record) for text in given.text)
    config = SpeakingConfig(mode=given.mode, records=1, texts=texts, compare_positions=False)
    return make_script(source, config), config


def _demand_recordable(given: argparse.Namespace, version: "ModelVersion", paths: "Sequence[Path]") -> None:
    """Refuse, before gigabytes are written, what the package could not speak or what would be overwritten."""
    from indextts_job.model.languages import CODES
    from indextts_job.speaking.voice import demand_release

    if not Path(given.prompt).is_file():
        raise errors.ConfigError(f"--prompt {given.prompt}: no such file. Give audio of the voice.")
    demand_release(Path(given.release))
    if version.language_rows and given.language.lower() not in CODES:
        raise errors.ConfigError(
            f"--language {given.language!r}: inference does not know it, and would speak it as common, in silence. "
            "Give a code as in `am`."
        )
    if there := [str(path) for path in paths if path.exists()]:
        raise errors.ConfigError(f"{', '.join(there)} would be overwritten. Move it, or give another --output-dir.")


def _record(given: argparse.Namespace, store: "CheckpointStore", manifest: "CheckpointManifest") -> None:
    """Export, and let the published package speak; prints what it is and the files."""
    from indextts_job.model.versions import VERSIONS
    from indextts_job.speaking.voice import Recording, complete_export, record

    output = Path(given.output_dir)
    paths = [output / f"step-{manifest.name.step:08d}-{number}.wav" for number in range(len(given.text))]
    version = next((one for one in VERSIONS if str(one) == manifest.values.model), VERSIONS[0])
    _demand_recordable(given, version, paths)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_whole(Path(folder), store, manifest)
        complete_export(Path(folder), Path(given.release))
        what = Recording(
            folder=Path(folder),
            prompt=Path(given.prompt),
            texts=list(zip(given.text, paths, strict=True)),
            language=given.language,
            version=version,
        )
        told = record(what, given.python)
    terminal.say(f"{told['module']} {told['version']} ({told['file']})", sys.stderr)
    for path in paths:
        print(path)  # noqa: T201
