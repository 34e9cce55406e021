"""An export: the `gpt.pth`, `config.yaml` and tokenizer that published inference loads, and the licence's sentence."""

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Self

import torch
import yaml
from torch import Tensor

from indextts_job.checkpoint.values import AdapterRecord, CheckpointValues
from indextts_job.errors import AccessRefusedError, ConfigError, IndexTTSJobError, UnavailableError
from indextts_job.model.base_checkpoint import BASE_PIECES, LANGUAGES, NEW_PIECES_AT, demand_fit
from indextts_job.model.config import GPTConfig, carried_shapes, gpt_config, trained_shapes
from indextts_job.model.languages import language_of
from indextts_job.model.merge import published
from indextts_job.model.versions import MODEL_VERSION, OUR_SECTION, V2_0, ModelVersion
from indextts_job.model.vocabulary import Vocabulary

WEIGHTS_FILE, CONFIG_FILE, README_FILE, LICENCE_FILE = "gpt.pth", "config.yaml", "README.md", "LICENSE"

_FILES_OF_RELEASE = ("s2mel_checkpoint", "w2v_stat", "emo_matrix", "spk_matrix", "qwen_emo_path")
"""Keys of config.yaml that name files which inference loads besides."""
DISCLAIMER = (
    "Any modifications made to the original model in this Derivative Work are not endorsed, warranted, or guaranteed "
    "by the original right-holder of the original model, and the original right-holder disclaims all liability related "
    "to this Derivative Work."
)
"""Clause 4.1 a of the licence demands this sentence wherever a derivative work is distributed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What an export has to know about its tensors."""

    document: Mapping[str, Any]
    """The base release's config.yaml."""
    vocabulary: Vocabulary
    adapter: AdapterRecord | None = None
    """The adapter that was trained, which is merged; None without one."""
    languages: tuple[str, ...] = ()
    """Labels of the languages of the training set."""
    trained_languages: tuple[str, ...] = ()
    """Codes of the language rows that runs have trained."""

    @classmethod
    def recorded(cls, values: CheckpointValues) -> Self:
        """What a checkpoint records."""
        return cls(
            document=values.model_config,
            vocabulary=Vocabulary.recorded(values.vocabulary),
            adapter=values.adapter,
            languages=tuple(values.dataset.languages),
            trained_languages=values.trained_languages,
        )


def write_export(
    folder: Path,
    trained: Mapping[str, Tensor],
    carried: Mapping[str, Tensor],
    about: Described,
    tokenizer: bytes,
) -> list[Path]:
    """Write an export; existing files are never overwritten.

    Args:
        folder: Folder of the export; created when missing.
        trained: Trained tensors by parameter name.
        carried: Tensors that never changed, by key.
        about: What else is known of them.
        tokenizer: Content of the tokenizer's model file.

    Returns:
        The files written.

    Raises:
        ConfigError: One of the files exists already, or the folder is a file.
        UnavailableError: Writing failed.
    """
    model = gpt_config(about.document, "the run's config.yaml")
    # Everything that can fail because of the run's contents comes before the first file is written.
    state = export_state_dict(trained, carried, model, about.vocabulary, about.adapter)
    texts = {
        CONFIG_FILE: export_config(about.document, about.vocabulary, model.version, about.trained_languages).encode(),
        model.version.tokenizer_file: tokenizer,
        LICENCE_FILE: resources.files("indextts_job.model").joinpath("bilibili-model-license.txt").read_bytes(),
        README_FILE: export_readme(about, model.version).encode(),
    }
    weights = folder / WEIGHTS_FILE
    paths = [weights, *(folder / name for name in texts)]
    _demand_free(folder, paths)
    # Under another name until it is complete, so that a write that breaks off leaves no gpt.pth.
    partial = weights.with_name(f"{weights.name}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, partial)
        _demand_readable(partial, model, about.vocabulary)
        for name, content in texts.items():
            (folder / name).write_bytes(content)
        # Last: whoever finds a gpt.pth finds all that belongs to it.
        partial.replace(weights)
    except BaseException as error:
        # Also behind Ctrl+C: what is left would be gigabytes, and would stand in the way of the next try.
        for path in (partial, *paths):
            with contextlib.suppress(OSError):  # the folder may be a file
                path.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):  # torch reports a full disk as RuntimeError
            raise _failed(folder, error) from error
        raise
    return paths


def _demand_readable(path: Path, model: GPTConfig, vocabulary: Vocabulary) -> None:
    """Read a written file as strictly as inference should: exactly the version's keys, with their shapes.

    Inference itself loads with gaps: a key that is missing would be a random tensor there, without an error.
    """
    written = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    demand_fit(written, trained_shapes(model, vocabulary.rows) | carried_shapes(model), str(path))


def write_files(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write small files into a folder; existing ones are never overwritten. The last one comes last.

    Raises:
        ConfigError: One of the files exists already, or the folder is a file.
        UnavailableError: Writing failed.
    """
    paths = [folder / name for name in contents]
    _demand_free(folder, paths)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, contents.values(), strict=True):
            path.write_bytes(content)
    except OSError as error:
        raise _failed(folder, error) from error
    return paths


def _failed(folder: Path, error: Exception) -> IndexTTSJobError:
    if isinstance(error, PermissionError):  # a retry does not help
        return AccessRefusedError(f"{folder}: the export was refused ({error}). Choose another --output-dir.")
    return UnavailableError(f"{folder}: the export failed ({error}). Free space or choose another folder.")


def _demand_free(folder: Path, paths: Sequence[Path]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, expected a folder for the export. Give another --output-dir.")
    taken = [str(path) for path in paths if path.exists()]
    if taken:
        raise ConfigError(f"{', '.join(taken)} exists already. Give another --output-dir; nothing is overwritten.")


def export_state_dict(
    trained: Mapping[str, Tensor],
    carried: Mapping[str, Tensor],
    config: GPTConfig,
    vocabulary: Vocabulary,
    adapter: AdapterRecord | None = None,
) -> dict[str, Tensor]:
    """The full state dict that published inference loads, in the base checkpoint's precision.

    Args:
        trained: Trained tensors by parameter name, new rows under `…_new`.
        carried: Tensors that never changed, by key.
        config: The model, for the expected keys and shapes.
        vocabulary: Sizes of the text tables.
        adapter: The adapter that was trained, which is merged; None without one.

    Returns:
        Exactly the base checkpoint's keys; text tables have one row per piece and the spare row.
    """
    # The tensors of a release have one dtype, but for a buffer perhaps. Those that never trained still have it.
    (dtype, _), *_ = Counter(value.dtype for value in carried.values()).most_common()
    full = published(trained, carried, vocabulary, adapter)
    expected = trained_shapes(config, vocabulary.rows) | carried_shapes(config)
    demand_fit(full, expected, "export")
    # A view would be saved with the whole storage behind it.
    return {key: (full[key] if key in carried else full[key].to(dtype)).contiguous().clone() for key in expected}


def export_config(
    document: Mapping[str, Any],
    vocabulary: Vocabulary,
    version: ModelVersion = V2_0,
    trained_languages: Sequence[str] = (),
) -> str:
    """The `config.yaml` of an export: the base release's, with the keys that the run has changed.

    Args:
        document: The base release's config.yaml, parsed.
        vocabulary: The tokenizer's size.
        version: The version of the model.
        trained_languages: Codes of the language rows that runs have trained.
    """
    exported = {key: _portable(value) for key, value in document.items()}
    # Without the spare row, which the published constructor adds itself.
    exported["gpt"] = {**document["gpt"], "number_text_tokens": vocabulary.pieces}
    dataset = document.get("dataset")
    section = {**(dataset if isinstance(dataset, Mapping) else {}), "bpe_model": version.tokenizer_file}
    if version.tokenizer_type:
        # Published files of this version may lack the key, or say another version.
        section["tokenizer_type"] = version.tokenizer_type
        exported["version"] = float(version.name)
    exported["dataset"] = section
    exported["gpt_checkpoint"] = WEIGHTS_FILE
    exported.pop(OUR_SECTION, None)
    # A run that starts from this export goes on with what it says. Published inference ignores the section.
    if section := _our_section(document, vocabulary, trained_languages):
        exported[OUR_SECTION] = section
    return yaml.safe_dump(exported, sort_keys=False, allow_unicode=True)


def _our_section(
    document: Mapping[str, Any], vocabulary: Vocabulary, trained_languages: Sequence[str]
) -> dict[str, Any]:
    section: dict[str, Any] = {}
    recorded = document.get(OUR_SECTION)
    if isinstance(recorded, Mapping) and MODEL_VERSION in recorded:
        section[MODEL_VERSION] = recorded[MODEL_VERSION]
    if vocabulary.extended:
        section[BASE_PIECES] = vocabulary.base_pieces
        if vocabulary.inserted_at is not None:
            section[NEW_PIECES_AT] = vocabulary.inserted_at
    if trained_languages:
        section[LANGUAGES] = list(trained_languages)
    return section


def _portable(value: object) -> object:
    """A value with absolute paths, which are those of another machine, as names of files beside the configuration."""
    if isinstance(value, Mapping):
        return {key: _portable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_portable(entry) for entry in value]
    return PurePosixPath(value).name if isinstance(value, str) and value.startswith("/") else value


def export_readme(about: Described, version: ModelVersion) -> str:
    """What a user of an export has to know: what it is, what it needs beside it, how to call it, and its licence."""
    document = about.document
    named = [Path(str(document[key])).name for key in _FILES_OF_RELEASE if document.get(key)]
    needed = ", ".join(f"`{name}`" for name in [*named, *version.needed_files])
    lines = [
        f"# A fine-tuned GPT of {version}",
        "",
        f"`{WEIGHTS_FILE}`, `{CONFIG_FILE}` and `{version.tokenizer_file}` belong together. Inference needs these "
        f"files of the release of {version} besides, unchanged: {needed or 'see its documentation'}.",
        "",
        *_languages_lines(about, version),
        "## Licence",
        "",
        "A derivative work of the model of the bilibili Model Use License Agreement, a copy of which is in "
        f"`{LICENCE_FILE}`.",
        "",
        DISCLAIMER,
        "",
    ]
    return "\n".join(lines)


def _languages_lines(about: Described, version: ModelVersion) -> list[str]:
    if not version.language_rows:
        return []
    # An adapter's folder knows the rows, and not the labels of the data that they were trained on.
    labels = [label for label in about.languages if label] or about.trained_languages
    if not labels:
        return []
    languages = [language_of(label) for label in labels]
    called = ", ".join(
        f"`{language.slot}`" + (f" for {language.name}" if language.slot != language.name else "")
        for language in languages
    )
    return [
        f"Call inference with the language {called}: it speaks every code that it does not know as another language.",
        "",
    ]
