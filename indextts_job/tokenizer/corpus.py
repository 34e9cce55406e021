"""The texts of manifests and text files, as the tokenizer reads them."""

import json
import re
from collections.abc import Callable, Sequence

from indextts_job.data.manifest_source import is_manifest, parse_source
from indextts_job.errors import DataError, findings_message
from indextts_job.redaction import redacted
from indextts_job.storage import files
from indextts_job.storage.manifest_text import lines_of, read_manifest_text
from indextts_job.tokenizer.normalize import normalize

TEXT_KEYS = ("target_text", "text")
"""Keys of the text in paired and in single records."""
LANGUAGE_KEYS = ("target_language", "language", "lang")
"""Keys of its language."""
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: JSON can escape it, but it has no UTF-8 for a tokenizer."""


def read_corpus(
    sources: Sequence[str],
    language: str = "",
    progress: Callable[[str], None] = lambda _doing: None,
    prepare: Callable[[str, str], str | None] = normalize,
) -> list[str]:
    """Texts as the tokenizer reads them, each once, in the order of their first appearance.

    Args:
        sources: Manifests (`.jsonl`, with `text` or `target_text`) or text files with a text per line; `path::am` gives
            the language of one.
        language: Language of what names none, neither in the source's argument nor in a record.
        progress: Called with a line that says what is being read.
        prepare: Makes of a text and its language what the tokenizer reads; nothing of one that is to be left out.

    Raises:
        DataError: A line is no record with a text, or there is no text at all.
    """
    texts: dict[str, None] = {}  # a dict keeps the order, which a set does not
    for argument in sources:
        source = parse_source(argument, files.exists)
        progress(f"reading {source.shown}")
        lines = lines_of(read_manifest_text(source.url))
        found = _texts_of_records(lines, source.shown) if is_manifest(source.url) else [(line, "") for line in lines]
        for text, label in found:
            if prepared := prepare(text, source.language or label or language):
                texts[prepared] = None
    if not texts:
        raise DataError(
            f"no text in {', '.join(map(redacted, sources))}. Give manifests or text files with a text per line."
        )
    return list(texts)


def _texts_of_records(lines: Sequence[str], url: str) -> list[tuple[str, str]]:
    """The text of each record, and its language: a name or `name:slot`, or nothing."""
    records = {number: _text_of(line) for number, line in enumerate(lines, start=1) if line.strip()}
    findings = [f"{url}:{number}: no {' or '.join(TEXT_KEYS)}" for number, text in records.items() if text is None]
    if findings:
        headline = f"{len(findings)} of {len(records)} records have no text"
        raise DataError(findings_message(headline, findings, "Records of a manifest are JSON objects with a text."))
    return [text for text in records.values() if text is not None]


def _text_of(line: str) -> tuple[str, str] | None:
    """The text of a record and its language; None if the line is no record with a text."""
    try:
        record = json.loads(line)
        text = next((record[key] for key in TEXT_KEYS if record.get(key)), None)
        name = next((record[key] for key in LANGUAGE_KEYS if record.get(key)), "")
        label = ":".join(str(part) for part in (name, record.get("lang_alias")) if part)
    except (ValueError, AttributeError, RecursionError):  # no JSON, no object, nested too deeply
        return None
    return (text, label) if isinstance(text, str) and not _HALF_CHARACTER.search(text) else None
