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


def manifest(world: World, name: str, *of: Record) -> Path:
    path = world.validation_manifest.with_name(name)
    write_records(path, list(of))
    return path


def test_targets_that_differ_are_spoken_before_one_target_with_several_prompts(world: World) -> None:
    first, second, *_ = records(world.validation_manifest)
    same = [{**first, "id": f"a{number}"} for number in range(3)]
    # The text or the codes of another record make another target.
    other_text = {**first, **{key: second[key] for key in ("target_text", "target_text_ids_path", "target_text_len")}}
    other_codes = {**first, **{key: second[key] for key in ("target_codes_path", "target_code_len")}}
    others = [{**other_text, "id": "b"}, {**other_codes, "id": "c"}, {**second, "id": "d"}]
    source = source_of(world, [manifest(world, "prompts.jsonl", *same, *others)])

    def keys(most: int) -> list[str]:
        return [line.key for line in script(source, records=most).lines]

    assert keys(1) == ["a0"]
    assert keys(4) == ["a0", "b", "c", "d"]
    assert keys(5) == ["a0", "a1", "b", "c", "d"], "in the order of ids"
    assert keys(9) == ["a0", "a1", "a2", "b", "c", "d"]


def of_two_languages(world: World) -> Source:
    found = records(world.validation_manifest)[:3]
    tokenizer, english = load_tokenizer(str(world.tokenizer)), []
    for number, record in enumerate(found):
        ids, path = encode(tokenizer, f"<|en|> {record['target_text']}"), f"text_ids/english_{number}.npy"
        np.save(world.validation_manifest.parent / path, np.array(ids, np.int32))
        more = {"target_language": "en", "target_text_ids_path": path, "target_text_len": len(ids)}
        english.append({**record, "id": f"en_{record['id']}", **more})
    return source_of(world, [manifest(world, "languages.jsonl", *found, *english)])


def test_a_free_text_counts_for_the_label_that_is_called_so(world: World) -> None:
    source = of_two_languages(world)

    def label(language: str, *names: str) -> str:
        return script(source, texts=(FreeText(text="ሰላም", language=language),), names=names).lines[-1].language

    assert label("AM") == "am"
    assert label("EN", "am=En") == "en", "of labels that are called alike, its own"
    assert label("oromo", "am=Oromo") == "am"
    assert label("fr") == "fr", "a language of the release that no record has"


def test_a_free_text_in_a_borrowed_slot_counts_for_the_language_that_borrows_it(world: World) -> None:
    unlabelled = [
        {key: value for key, value in record.items() if key != "target_language"}
        for record in records(world.validation_manifest)
    ]
    path = manifest(world, "borrowed.jsonl", *unlabelled)
    source = source_of(world, [Path(f"{path}::gez:am")])
    *_, line = script(source, texts=(FreeText(text="ሰላም", language="am"),)).lines
    assert (line.language, line.utterance.sample.language_row) == ("gez:am", row_of("am"))
    with pytest.raises(ConfigError, match="inference knows no language 'gez'"):
        script(source, texts=(FreeText(text="ሰላም", language="gez"),))


def test_texts_that_inference_would_cut_are_spoken_by_their_stored_ids(world: World) -> None:
    many = changed(world, "many.jsonl", {"target_text": "ሰላም " * 60}, stop=1)
    source = source_of(world, [many])
    (line, *_) = script(source, records=1).lines
    assert script(source, records=1).stored == {
        "inference would cut the text, which has more than 120 tokens, into segments": 1
    }
    assert len(ids_of(line)) < 20
    # The limit is that of inference, or of a model that takes fewer tokens.
    longer = replace(source, model=replace(source.model, max_text_tokens=600))
    assert script(longer, records=1).stored.total() == 1
    shorter = replace(source_of(world), model=replace(source.model, max_text_tokens=6))
    assert "inference would cut the text, which has more than 6 tokens, into segments" in script(shorter).stored
    with pytest.raises(ConfigError, match=r"cannot be spoken as am: inference would cut the text, .* short enough"):
        script(source, texts=(FreeText(text="ሰላም " * 60, language="am"),))


def test_other_voices_are_another_script(world: World) -> None:
    found = records(world.validation_manifest)[:2]

    def fingerprint(**change: str) -> str:
        path = manifest(world, "voices.jsonl", {**found[0], **change})
        return script(source_of(world, [path])).fingerprint

    keys = ("prompt_speaker_path", "target_emo_vec_path", "prompt_emo_vec_path")
    own = fingerprint()
    assert fingerprint() == own
    condition, *emotions = (fingerprint(**{key: found[1][key]}) for key in keys)
    assert condition != own
    assert set(emotions) != {own}


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
    textless = changed(world, "textless.jsonl", {"target_text": " \t"}, stop=2)
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
