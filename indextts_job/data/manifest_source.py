"""What names a dataset: a manifest or a sharded dataset, with a language and a weight behind it. Pure."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from indextts_job.data.mixture_config import millionths
from indextts_job.redaction import redacted
from indextts_job.storage.urls import file_path

_LANGUAGE_CODE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
_LANGUAGE_NAME = re.compile(r"[A-Za-z][A-Za-z -]*[A-Za-z](\s*:\s*[A-Za-z][A-Za-z -]*[A-Za-z])?")
"""After `::` there is room for an English name, and for a slot that is borrowed: `az:tt`."""
_WEIGHT = re.compile(r"[0-9]{1,6}(\.[0-9]{0,99})?|\.[0-9]{1,99}")
SUFFIXES = (".jsonl", ".json")
"""Endings of manifests; a sharded dataset is a folder."""


@dataclass(frozen=True, slots=True)
class ManifestSource:
    """A manifest and the language that its argument gives."""

    url: str
    language: str
    """Language in lower case, with the slot that it borrows behind a colon; empty if the argument gives none."""
    weight: int | None = None
    """Share of a mixture, in millionths; None if the argument gives none."""

    @property
    def shown(self) -> str:
        """The URL for messages, without the secrets of a signed link."""
        return redacted(self.url)


def parse_source(argument: str, exists: Callable[[str], bool]) -> ManifestSource:
    """Split `path`, `path::am`, `path::az:tt`, `path@am` or `path=am`, and these with `@0.15`, into their parts.

    Args:
        argument: The argument of the user.
        exists: Whether a path or URL exists; called only where an argument can be several things.
    """
    rest, _, number = argument.rpartition("@")
    if rest and _WEIGHT.fullmatch(number):
        source = _without_weight(rest, exists)
        # A number is a weight only behind something that exists: `s3://bucket/run@2` is a path. The end of a signed
        # link belongs to its query, unless a language stands between.
        said = source.language and source.url == rest.rpartition("::")[0]
        plain = file_path(argument) == argument and not exists(argument)
        if (said or plain) and exists(source.url):
            return replace(source, weight=millionths(number, f"the weight of {redacted(argument)}"))
    return _without_weight(argument, exists)


def language_pattern(text: str) -> bool:
    """Whether a text can be a language behind `::`: a code, a name, or one that borrows a slot."""
    return bool(_LANGUAGE_NAME.fullmatch(text.strip()) or _LANGUAGE_CODE.fullmatch(text.strip()))


def _without_weight(argument: str, exists: Callable[[str], bool]) -> ManifestSource:
    # Each separator is looked for from the right. The suffix has to look like a language code, and after `@` or `=`
    # the whole argument must not exist: `data/lang=am/train.jsonl` and `s3://bucket/run@v2` are paths. The query of a
    # signed link is full of `=`, so there only `::` counts.
    separators = ("::", "@", "=") if file_path(argument) == argument else ("::",)
    for separator in separators:
        path, _, suffix = argument.rpartition(separator)
        if not path or not _language_behind(separator, suffix.strip()):
            continue
        if separator != "::" and exists(argument):
            break
        return ManifestSource(path, suffix.strip().lower())
    return ManifestSource(argument, "")


def _language_behind(separator: str, suffix: str) -> bool:
    return language_pattern(suffix) if separator == "::" else bool(_LANGUAGE_CODE.fullmatch(suffix))


def is_manifest(url: str) -> bool:
    """Whether a path or URL names a manifest by its ending, signed links included."""
    return file_path(url).endswith(SUFFIXES)
