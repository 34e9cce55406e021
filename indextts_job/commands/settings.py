"""The run's configuration from a command line: a file, dotted keys, flags, or what a run itself records."""

# ruff: noqa: PLC0415  # imports inside functions: only a run named by itself needs torch

import os
from collections.abc import Mapping, Sequence

from indextts_job import config, errors, files


def configuration(settings: Sequence[str], flag_keys: Mapping[str, object]) -> config.RunConfig:
    """The checked configuration.

    Args:
        settings: A file, and dotted keys with values.
        flag_keys: What flags say, by dotted key; weaker than `settings`.

    Raises:
        ConfigError: They make no configuration.
    """
    paths, overrides = config.split_settings(settings, os.path.exists)
    dotted = dict(overrides)
    if len(paths) > 1:
        raise errors.ConfigError(f"{len(paths)} configuration files given ({', '.join(paths)}), expected one.")
    document: object = None
    where = "command line"
    if paths:
        where = paths[0]
        document = files.read_yaml(where, "run configuration", "the command line")
        if isinstance(document, Mapping) and "gpt" in document:
            raise errors.ConfigError(f"{where} describes the model, not a run. Give it with --config.")
    elif "data.train_manifests" not in {**flag_keys, **dotted}:
        # Nothing but a run was named: its newest checkpoint knows the rest.
        from indextts_job.training import resume

        run = str(dotted.get("run", flag_keys.get("run", "trained_ckpts")))
        source = str(dotted.get("resume.source", flag_keys.get("resume.source", "auto")))
        where = run if source in ("auto", "none") else source
        document = resume.recorded_config(where)
    layers = (("command line flags", flag_keys), ("command line", dotted))
    recorded_resume = {"resume.source": "auto", "resume.weights_only": False} if not paths and document else {}
    return config.build_config(document, where, [("recorded", recorded_resume), *layers])
