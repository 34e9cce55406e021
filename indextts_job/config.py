"""The run's configuration: composed of the packages' dataclasses; read from YAML, dotted overrides and old flags.

Precedence, lowest first: defaults, the YAML file, old flags, dotted overrides. Unknown keys and wrong types are
errors before anything slow starts. Nothing below this file imports it.
"""

import difflib
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, Self

from indextts_job.bounds import Bounds, plain
from indextts_job.checkpoint.retention import CheckpointConfig
from indextts_job.config_values import converted, shown
from indextts_job.data.manifest import DataConfig
from indextts_job.data.named_sources import demand_sources
from indextts_job.errors import ConfigError
from indextts_job.hardware.plan import HardwareConfig
from indextts_job.model.adapter_config import PROJECTIONS, AdapterConfig
from indextts_job.preemption.deadline import PreemptionConfig
from indextts_job.redaction import redacted
from indextts_job.report.events import TRACKERS, ReportConfig
from indextts_job.speaking.config import SpeakingConfig
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.urls import demand_endpoint, demand_openable, is_local, local_path
from indextts_job.strict_yaml import parse_yaml
from indextts_job.terminal import one_line
from indextts_job.training.guard import GuardConfig
from indextts_job.training.quality import ValidationConfig, parse_goals
from indextts_job.training.recipe import OptimizerConfig, RecipeConfig
from indextts_job.training.schedule import ScheduleConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsConfig:
    """Files that a run starts from; paths or fsspec URLs."""

    model_config: str = "checkpoints/config.yaml"
    """The config.yaml published with the base checkpoint."""
    base_checkpoint: str = "checkpoints/gpt.pth"
    """IndexTTS's gpt.pth (2.0 or 2.5), an export of this trainer, a run (its newest checkpoint), or a checkpoint's
    .json."""
    tokenizer: str = ""
    """SentencePiece model, or for 2.5 the .tiktoken file: the base's own, or an extension of it."""


ChecksPolicy = Literal["auto", "abort", "warn", "ask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeConfig:
    """The checkpoint to start from, and checks of it."""

    source: str = "auto"
    """auto = newest checkpoint of the run, else one that the old trainer left in its folder, else a fresh start;
    own = the same without the old trainer's; none = fresh start; or a run, or one checkpoint (`.json`, old `.pth`)."""
    weights_only: bool = False
    """Take weights, but fresh moments, schedule and position (they belong together). Needs a new run folder."""
    accept: tuple[str, ...] = ()
    """Keys whose change since the checkpoint is intended."""
    checks: ChecksPolicy = "auto"
    """When a loaded state differs from the saved one: abort; warn and train on; ask = a countdown that Ctrl+C ends;
    auto = ask on a terminal, else abort."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """All settings of a run."""

    run: str = "trained_ckpts"
    """Folder or URL of the run: checkpoints, events, curves."""
    inputs: InputsConfig = field(default_factory=InputsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    speaking: SpeakingConfig = field(default_factory=SpeakingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    preemption: PreemptionConfig = field(default_factory=PreemptionConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as stored in every checkpoint."""
        # Lists instead of tuples: after JSON a comparison would find every tuple changed.
        plain: dict[str, Any] = _lists(asdict(self))
        return plain

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str) -> Self:
        """A configuration from plain values.

        Raises:
            ConfigError: An unknown key or a wrong type; names the key, and the nearest known one.
        """
        config: Self = _section(cls, document, where, "")
        return config


def _lists(value: Any) -> Any:  # noqa: ANN401  # plain JSON values
    if isinstance(value, dict):
        return {key: _lists(entry) for key, entry in value.items()}
    return [_lists(entry) for entry in value] if isinstance(value, (list, tuple)) else value


Overrides = Mapping[str, object]
"""Dotted keys and their values."""
_NAME = re.compile(r"(?!\.{1,2}$)[^\x00-\x1f\x7f\\]+")
"""Names of a file or folder: no control characters, no backslash, not `.` or `..`."""
_DOTTED_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def build_config(document: object, where: str, overrides: Iterable[tuple[str, Overrides]]) -> RunConfig:
    """Defaults, file and overrides as one checked configuration.

    Args:
        document: The parsed YAML file; None for an empty one.
        where: Name of the file, for messages.
        overrides: Layers of (origin for messages, dotted keys), later ones win.

    Raises:
        ConfigError: An unknown key, a wrong type, an impossible value or combination.
    """
    if document is not None and not isinstance(document, Mapping):
        raise ConfigError(f"{where}: holds a {type(document).__name__}, expected keys and values.")
    config = overridden(RunConfig.from_json(document or {}, where), overrides)
    _check_values(config)
    return config


def overridden(config: RunConfig, overrides: Iterable[tuple[str, Overrides]]) -> RunConfig:
    """A configuration with other values. Keys and types are checked; bounds and combinations are not.

    Args:
        config: The values to start from.
        overrides: As in `build_config`.

    Raises:
        ConfigError: An unknown key or a wrong type; names the key, and the nearest known one.
    """
    for origin, layer in overrides:
        for key, value in layer.items():
            config = _with(config, key.split("."), value, origin, key)
    return config


def storage_config(given: Overrides) -> StorageConfig:
    """The `storage.*` keys of a command line alone, which are needed to read the configuration file itself.

    Raises:
        ConfigError: One of them is wrong.
    """
    settings = {key.removeprefix("storage."): value for key, value in given.items() if key.startswith("storage.")}
    return checked_storage(settings, "command line")


def checked_storage(settings: Mapping[str, object], where: str) -> StorageConfig:
    """Storage settings by their names in the section, checked as those of a whole configuration.

    Raises:
        ConfigError: One of them is unknown or wrong.
    """
    storage = RunConfig.from_json({"storage": dict(settings)}, where).storage
    check_bounds(storage, "storage.")
    demand_endpoint(storage.endpoint_url, "storage.endpoint_url")
    return storage


def parse_override(argument: str) -> tuple[str, object]:
    """`schedule.max_steps=200` as key and value; values are YAML, so `a=[x, y]` is a list.

    Raises:
        ConfigError: No `=`, or a value that is not YAML.
    """
    key, found, value = argument.partition("=")
    if not found or not key:
        raise ConfigError(f"{one_line(argument)!r}: expected key=value, for example schedule.max_steps=200.")
    return key, parse_yaml(value, f"command line: the value of {one_line(key)}")


def split_settings(
    arguments: Iterable[str], exists: Callable[[str], bool]
) -> tuple[list[str], list[tuple[str, object]]]:
    """The positional arguments of a command that takes a configuration: files, and overrides by dotted key.

    `data/lang=am/run.yaml` is a file although it holds an `=`, because the part before it is no key.

    Args:
        arguments: The positional arguments.
        exists: Whether a path exists; called only where an argument can be both.

    Raises:
        ConfigError: An override is malformed.
    """
    paths, overrides = [], []
    for argument in arguments:
        key, found, _ = argument.partition("=")
        looks_like_a_file = argument.endswith((".yaml", ".yml"))
        if not found or (not _DOTTED_KEY.fullmatch(key) and (looks_like_a_file or exists(argument))):
            paths.append(argument)
        else:
            overrides.append(parse_override(argument))
    return paths, overrides


def recorded_config(config: RunConfig, written: Mapping[str, object]) -> dict[str, Any]:
    """A configuration as checkpoints record it: plain values.

    Args:
        config: The configuration.
        written: Places that a file names with environment variables, as they stand there, by dotted key.
    """
    document = config.to_json()
    for key, value in written.items():
        *sections, name = key.split(".")
        section = document
        for one in sections:
            section = section[one]
        # A number is what it was. One text stands for a list with one entry.
        if isinstance(section[name], str | list):
            section[name] = [value] if isinstance(section[name], list) and isinstance(value, str) else value
    return document


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain values as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def all_keys(cls: Any = RunConfig, prefix: str = "") -> list[str]:  # noqa: ANN401  # a dataclass
    """Every dotted key of the configuration."""
    keys: list[str] = []
    for entry in fields(cls):
        nested = typing.get_type_hints(cls)[entry.name]
        keys += all_keys(nested, f"{prefix}{entry.name}.") if is_dataclass(nested) else [prefix + entry.name]
    return keys


def _with(section: Any, path: list[str], value: object, origin: str, key: str) -> Any:  # noqa: ANN401
    hints = typing.get_type_hints(type(section))
    name = path[0]
    if name not in hints:
        raise _unknown_key(origin, key)
    if len(path) == 1:
        if is_dataclass(hints[name]):
            raise ConfigError(f"{origin}: {key} is a section. Give one of its keys, for example "
                              f"{key}.{fields(hints[name])[0].name}=….")  # fmt: skip
        return replace(section, **{name: converted(hints[name], value, f"{origin}: {key}")})
    nested = getattr(section, name)
    if not is_dataclass(nested):
        raise _unknown_key(origin, key)
    return replace(section, **{name: _with(nested, path[1:], value, origin, key)})


def _section(cls: Any, document: Mapping[str, Any], where: str, prefix: str) -> Any:  # noqa: ANN401
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in document.items():
        dotted = f"{prefix}{key}"
        if key not in hints:
            raise _unknown_key(where, dotted)
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {dotted} is {shown(value)}, expected a section of keys.")
            values[key] = _section(hints[key], value, where, f"{dotted}.")
        else:
            values[key] = converted(hints[key], value, f"{where}: {dotted}")
    return cls(**values)


def _unknown_key(where: str, key: str) -> ConfigError:
    known = all_keys()
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    last = key.rpartition(".")[2]
    # A key that stands in another section is as common a mistake as a misspelt one.
    near = near or [name for name in known if name.rpartition(".")[2] == last]
    hint = f" Did you mean {near[0]}?" if near else " `indextts-job train --help-config` lists all keys."
    return ConfigError(f"{where}: unknown key {key}.{hint}")


def _check_values(config: RunConfig) -> None:
    """Check bounds and combinations, which types do not express."""
    check_bounds(config, "")
    _check_intervals(config.checkpoint)
    # Parsed for its errors too: a goal that cannot be read must not be found at its step.
    if parse_goals(config.validation.stop_unless) and not config.data.validation_manifests:
        raise ConfigError("validation.stop_unless wants a goal reached, but data.validation_manifests is empty.")
    demand_sources(config.data)
    _check_kept(config.guard.keep)
    _check_trackers(config.report)
    if not config.inputs.tokenizer:
        raise ConfigError("inputs.tokenizer is not set. Give the SentencePiece model (--tokenizer).")
    _check_targets(config.adapter.targets)
    _check_speaking(config.speaking, config.data)
    _check_places(config)


def _check_kept(languages: Sequence[str]) -> None:
    if not all(one.strip() for one in languages) or len(set(languages)) < len(languages):
        raise ConfigError(f"guard.keep is {shown(list(languages))}, expected languages, each once.")


def _check_trackers(report: ReportConfig) -> None:
    if unknown := [name for name in report.trackers if name not in TRACKERS]:
        raise ConfigError(f"report.trackers is {shown(unknown)}, expected some of {', '.join(TRACKERS)}.")
    if report.trackers and not report.tracker_project.strip():
        raise ConfigError("report.tracker_project is empty. Give the project of the tracker.")


def _check_intervals(config: CheckpointConfig) -> None:
    shortest, longest = config.shortest_seconds, config.longest_seconds
    if longest < shortest:
        raise ConfigError(f"checkpoint.longest_seconds is {longest:g}, expected at least {shortest:g}, the shortest.")


def _check_speaking(config: SpeakingConfig, data: DataConfig) -> None:
    if config.mode != "off" and not data.validation_manifests:
        raise ConfigError("speaking.mode wants validation records to speak, but data.validation_manifests is empty.")
    if config.mode == "sampled" and config.rank == "agreement":
        raise ConfigError(
            "speaking.rank is agreement, which is a figure of the likeliest codes. Set speaking.mode=greedy, or "
            "speaking.rank=loss."
        )


def _check_targets(targets: Sequence[str]) -> None:
    if not targets or not set(targets) <= set(PROJECTIONS) or len(set(targets)) < len(targets):
        raise ConfigError(f"adapter.targets is {list(targets)}, expected some of {', '.join(PROJECTIONS)}, each once.")


def check_bounds(section: Any, prefix: str) -> None:  # noqa: ANN401  # a dataclass
    """Check the bounds of all numbers in a section and those inside it.

    Raises:
        ConfigError: A number is out of its bounds; names its key.
    """
    for name, hint in typing.get_type_hints(type(section), include_extras=True).items():
        value = getattr(section, name)
        if is_dataclass(hint):
            check_bounds(value, f"{prefix}{name}.")
        for number, entry in enumerate(value if isinstance(value, tuple) else ()):
            if is_dataclass(entry):
                check_bounds(entry, f"{prefix}{name}[{number}].")
        for bounds in getattr(hint, "__metadata__", ()):
            if isinstance(bounds, Bounds) and value not in bounds:
                raise ConfigError(f"{prefix}{name} is {plain(value)}, expected {bounds}.")


def _check_places(config: RunConfig) -> None:
    """Refuse impossible places before any of them is read or written."""
    if not config.run.strip():
        raise ConfigError("run is empty. Give the folder or URL of the run (--output-dir).")
    if not is_local(config.run) and demand_openable(config.run) in ("http", "https"):
        raise ConfigError(f"run is {redacted(config.run)}: a web server keeps no runs. Give a folder or a bucket.")
    demand_endpoint(config.storage.endpoint_url, "storage.endpoint_url")
    for key, path in (
        ("data.cache_folder", config.data.cache_folder),
        ("report.prometheus_file", config.report.prometheus_file),
    ):
        if not is_local(path):
            raise ConfigError(f"{key} is {shown(redacted(path))}, expected a local path.")
        local_path(path)
    _check_run_name(config.report.run_name)


def _check_run_name(name: str) -> None:
    # It becomes a folder below RUN/logs, and `../` would lead out of the run.
    if not all(_NAME.fullmatch(part) for part in name.split("/")):
        raise ConfigError(
            f"report.run_name is {shown(name)}, expected the name of a folder below RUN/logs, for example train."
        )
