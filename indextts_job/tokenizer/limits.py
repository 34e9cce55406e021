"""What a model and a tokenizer together demand of samples.

Where no checkpoint is read, the tokenizer tells the version of the model: a config.yaml may say another one.
"""

from indextts_job.data.dataset import Limits
from indextts_job.data.manifest import DataConfig
from indextts_job.model.config import GPTConfig, gpt_config, of_version
from indextts_job.model.versions import VERSIONS, ModelVersion
from indextts_job.tokenizer.loading import Tokenizer


def version_of(tokenizer: Tokenizer) -> ModelVersion:
    """The model version whose tokenizer is of this kind."""
    return next(version for version in VERSIONS if version.ranks == (tokenizer.ranks is not None))


def model_of(document: object, source: str, tokenizer: Tokenizer) -> GPTConfig:
    """The model of a config.yaml, in the version of a tokenizer: published files of 2.5 say 2.0.

    Args:
        document: The parsed file.
        source: Its path or URL, for messages.
        tokenizer: The tokenizer that texts are encoded with.
    """
    return of_version(gpt_config(document, source), version_of(tokenizer), source)


def limits_of(model: GPTConfig, tokenizer: Tokenizer, config: DataConfig | None = None) -> Limits:
    """The demands on samples.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        config: Settings about data; None = the defaults.
    """
    config = config or DataConfig()
    return Limits(
        model,
        tokenizer.pieces,
        first_language_token=tokenizer.first_language_token,
        tokenizer_sha256=tokenizer.sha256,
        emotion=config.emotion,
        self_pairs=config.self_pairs,
    )
