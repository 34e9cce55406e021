"""The texts of records, read again from their manifests: training keeps ids only."""

import json
from collections.abc import Iterator, Mapping, Sequence

from indextts_job.data.dataset import Dataset
from indextts_job.data.file_source import FileSource
from indextts_job.storage import files
from indextts_job.storage.manifest_text import manifest_lines


def record_texts(dataset: Dataset, indices: Sequence[int]) -> dict[int, str]:
    """Texts of samples, by index; those of sharded datasets, and of records without a text, are left out.

    Args:
        dataset: The samples.
        indices: Their places in it.
    """
    wanted: dict[int, dict[int, int]] = {}
    starts = _starts(dataset)
    for index in indices:
        number = max(place for place, start in enumerate(starts) if start <= index)
        source = dataset.parts[number].source
        if isinstance(source, FileSource):
            wanted.setdefault(number, {})[int(source.checked.line[index - starts[number]])] = index
    return {index: text for number, lines in wanted.items() for index, text in _texts(dataset, number, lines)}


def _starts(dataset: Dataset) -> list[int]:
    """Place of each part's first sample."""
    starts = [0]
    for part in dataset.parts[:-1]:
        starts.append(starts[-1] + len(part))
    return starts


def _texts(dataset: Dataset, number: int, lines: Mapping[int, int]) -> Iterator[tuple[int, str]]:
    """Index and text of the records on some lines of a part's manifest."""
    source = dataset.parts[number].source
    assert isinstance(source, FileSource)  # noqa: S101  # `record_texts` has looked
    content = files.read_manifest(source.manifest.url)
    for place, line in enumerate(manifest_lines(content, source.manifest.shown), start=1):
        if place in lines and (text := _text(line, dataset.id_of(lines[place]))):
            yield lines[place], text


def _text(line: str, key: str) -> str:
    """The text of a line; empty without one, or where the line is another record than the one that was checked."""
    try:
        document = json.loads(line)
    except ValueError:
        return ""
    if not isinstance(document, dict) or document.get("id") != key:
        return ""
    found = document.get("target_text") or document.get("text")
    # JSON can spell half of a surrogate pair, which has no UTF-8 bytes to tokenize.
    return found.encode("utf-8", "replace").decode() if isinstance(found, str) else ""
