"""The texts of records, read again from their manifests: training keeps ids only."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain

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
    by_part: dict[int, list[int]] = {}
    starts = list(accumulate((len(part) for part in dataset.parts[:-1]), initial=0))
    for index in indices:
        by_part.setdefault(bisect_right(starts, index) - 1, []).append(index)
    return dict(chain.from_iterable(_of_part(dataset, number, starts, found) for number, found in by_part.items()))


def _of_part(dataset: Dataset, number: int, starts: Sequence[int], indices: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Index and text of samples of one part; nothing of a sharded one."""
    source = dataset.parts[number].source
    if isinstance(source, FileSource):
        lines = {int(source.checked.line[index - starts[number]]): index for index in indices}
        content = files.read_manifest(source.manifest.url)
        for place, line in enumerate(manifest_lines(content, source.manifest.shown), start=1):
            if place in lines:
                yield from _text(line, lines[place], dataset.id_of(lines[place]))


def _text(line: str, index: int, key: str) -> Iterator[tuple[int, str]]:
    """The text of a line; nothing without one, or where the line is another record than the one that was checked."""
    document = _parsed(line)
    found = document.get("target_text") or document.get("text")
    if document.get("id") == key and isinstance(found, str):
        # JSON can spell half of a surrogate pair, which has no UTF-8 bytes to tokenize.
        yield index, found.encode("utf-8", "replace").decode()


def _parsed(line: str) -> Mapping[str, object]:
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
