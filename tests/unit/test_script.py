"""What is spoken: the ids and the row that inference makes itself, for records and for free texts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indextts_job.data.dataset import Dataset
from indextts_job.data.sources import load_dataset
from indextts_job.demo.world import World, make_world
from indextts_job.errors import ConfigError
from indextts_job.model.languages import row_of, row_when_called
from indextts_job.model.versions import V2_5
from indextts_job.speaking.config import FreeText, SpeakingConfig
from indextts_job.speaking.script import Line, Script, Source, make_script, training_codes
from indextts_job.storage import files
from indextts_job.tokenizer.encoding import encode
from indextts_job.tokenizer.limits import limits_of, model_of
from indextts_job.tokenizer.loading import load_tokenizer
from tests.support.archived import Record, records, write_records
from tests.support.runs import TINY

ON = SpeakingConfig(mode="greedy")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), replace(TINY, version=V2_5, archives=False))


def source_of(world: World, manifests: Sequence[Path] = ()) -> Source:
    tokenizer = load_tokenizer(str(world.tokenizer))
    model = model_of(files.read_yaml(str(world.model_config), "", ""), "", tokenizer)
    limits = limits_of(model, tokenizer)

    def load(paths: Sequence[Path]) -> Dataset:
        return load_dataset([str(path) for path in paths], limits, skip_bad_samples=False)

    return Source(load(manifests or [world.validation_manifest]), load([world.train_manifest]), model, tokenizer)


def changed(world: World, name: str, change: dict[str, object], first: int = 0, stop: int | None = None) -> Path:
    """A manifest beside the validation set, with some of its records changed."""
    found: list[Record] = records(world.validation_manifest)
    for record in found[first:stop]:
        record.update(change)
    path = world.validation_manifest.with_name(name)
    write_records(path, found)
    return path


def ids_of(line: Line) -> list[int]:
    found: list[int] = line.utterance.sample.text_ids.tolist()
    return found


def script(source: Source, **keys: object) -> Script:
    return make_script(source, replace(ON, **keys))  # type: ignore[arg-type]


def test_the_first_records_by_id_are_spoken_whatever_their_order(world: World) -> None:
    backwards = world.validation_manifest.with_name("backwards.jsonl")
    write_records(backwards, records(world.validation_manifest)[::-1])
    one, two = (script(source_of(world, [path]), records=5) for path in (world.validation_manifest, backwards))
    assert [line.key for line in one.lines] == sorted(record["id"] for record in records(backwards))[:5]
    assert [line.key for line in two.lines] == [line.key for line in one.lines]
    assert one.fingerprint == two.fingerprint
    assert not one.stored


def test_ids_are_made_from_the_text_and_not_read(world: World) -> None:
    source = source_of(world)
    text = records(world.validation_manifest)[0]["target_text"]
    other = changed(world, "other.jsonl", {"target_text": "ሰላም"}, stop=1)
    spoken = [script(source_of(world, [path]), records=1).lines[0] for path in (world.validation_manifest, other)]
    assert ids_of(spoken[0]) == encode(source.tokenizer, f"<|am|> {text}")
    assert ids_of(spoken[1]) == encode(source.tokenizer, "<|am|> ሰላም")
    assert spoken[0].reference == spoken[1].reference


def test_limits_are_twice_the_reference_and_fifty(world: World) -> None:
    for line in script(source_of(world)).lines:
        assert line.reference is not None
        assert line.utterance.limit == min(1500, 2 * len(line.reference) + 50, 400)
        assert line.expected == len(line.reference)


def test_a_name_that_inference_does_not_know_gets_the_common_row_and_a_prefix_in_letters(world: World) -> None:
    source = source_of(world)
    (called,) = script(source, records=1, names=("am=Oromo",)).lines
    text = records(world.validation_manifest)[0]["target_text"]
    assert called.utterance.sample.language_row == 105
    assert ids_of(called) == encode(source.tokenizer, f"<|oromo|> {text}")
    assert called.language == "am", "its figures keep the label"
    (known,) = script(source, records=1, names=("am=EN",)).lines
    assert known.utterance.sample.language_row == row_of("en")
    assert ids_of(known) == encode(source.tokenizer, f"<|en|> {text}")
    assert [row_when_called(name) for name in ("am", "AM", "xx", "", "common")] == [75, 75, 105, 105, 105]


def test_what_decides_the_speech_is_in_the_fingerprint(world: World) -> None:
    source = source_of(world)
    free = FreeText(text="ሰላም", language="am")
    settings: list[dict[str, object]] = [
        {},
        {"records": 4},
        {"names": ("am=en",)},
        {"mode": "sampled"},
        {"texts": (free,)},
    ]
    found = [script(source, **keys).fingerprint for keys in settings]
    assert len(set(found)) == len(found)
    assert script(source, rank="agreement").fingerprint == found[0]
    retold = changed(world, "retold.jsonl", {"target_text": "ሰላም"}, stop=1)
    assert script(source_of(world, [retold])).fingerprint != found[0]


def test_free_texts_are_spoken_by_a_voice_and_judged_by_the_rate_of_the_source(world: World) -> None:
    source = source_of(world)
    voice = records(world.validation_manifest)[3]["id"]
    free = FreeText(text="ሰላም ዓለም", language="am", speaker=voice)
    *_, line = script(source, texts=(free,)).lines
    assert ids_of(line) == encode(source.tokenizer, "<|am|> ሰላም ዓለም")
    assert line.reference is None
    assert line.language == "am"
    # In this world every id has four codes, the prefix's too.
    assert line.expected == pytest.approx(4 * len(ids_of(line)))
    sample = next(line for line in script(source).lines if line.key == voice).utterance.sample
    assert np.array_equal(line.utterance.sample.condition, sample.condition)
    unknown = replace(free, language="Oromo")
    with pytest.raises(ConfigError, match=r"speaking\.texts\[0\]: inference knows no language 'Oromo'"):
        script(source, texts=(unknown,))
    *_, other = script(source, texts=(unknown,), names=("am=Oromo",)).lines
    assert (other.language, other.utterance.sample.language_row) == ("am", 105), "by that name, on purpose"


def test_records_that_cannot_be_encoded_here_are_spoken_by_their_stored_ids(world: World) -> None:
    textless = changed(world, "textless.jsonl", {"target_text": ""}, stop=2)
    found = script(source_of(world, [textless]))
    assert found.stored == {"the text is absent": 2}
    assert "2 by their stored ids (2 as the text is absent): wrong ids do not show there" in found.described()
    stored = np.load(world.validation_manifest.parent / records(textless)[0]["target_text_ids_path"])
    assert ids_of(found.lines[0]) == stored.tolist()
    numbers = script(source_of(world), names=("am=en",))
    assert not numbers.stored
    # Numbers of English are spelt out by a tool of the release.
    spelt = changed(world, "spelt.jsonl", {"target_text": "in 1999"}, stop=3)
    assert script(source_of(world, [spelt]), names=("am=en",)).stored.total() == 3


def test_a_manifest_that_has_changed_since_gives_no_wrong_texts(world: World) -> None:
    found = records(world.validation_manifest)
    path = world.validation_manifest.with_name("moving.jsonl")
    write_records(path, found)
    source = source_of(world, [path])
    write_records(path, [{**found[1], "target_text": "ዓለም"}, *found[1:4]])
    path.write_text(path.read_text(encoding="utf-8") + "no json\n" + json.dumps(5) + "\n", encoding="utf-8")
    spoken = script(source)
    assert spoken.stored == {"the text is absent": len(found) - 3}
    assert ids_of(spoken.lines[0]) != encode(source.tokenizer, "<|am|> ዓለም")


def test_training_records_are_taken_evenly(world: World) -> None:
    train = source_of(world).train
    assert len(list(training_codes(train, 7))) == 7
    assert len(list(training_codes(train, 1000))) == len(train)
