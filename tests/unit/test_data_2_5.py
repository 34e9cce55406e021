"""The data of IndexTTS-2.5: whatever goes wrong silently is found by training and by doctor, with file, line and id."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indextts_job.cli import main
from indextts_job.data.dataset import Dataset, Limits
from indextts_job.data.manifest import duration_of
from indextts_job.data.shard_index import MadeFor
from indextts_job.data.sharding import write_shards
from indextts_job.data.sources import load_dataset
from indextts_job.demo.world import World, WorldSize, make_world
from indextts_job.doctor.data import examine_data
from indextts_job.doctor.findings import Finding
from indextts_job.doctor.survey import survey
from indextts_job.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK, DataError
from indextts_job.model.versions import V2_5
from indextts_job.storage.files import read_yaml
from indextts_job.tokenizer.limits import limits_of, model_of
from indextts_job.tokenizer.loading import load_tokenizer
from tests.support.archived import Arrays, Record, change_arrays, change_records, records

SIZE = WorldSize(samples=24, validation_samples=8, width=32, layers=1, heads=2, version=V2_5)
TOKEN_AM, TOKEN_EN = 435, 360
"""Ids of the languages' tokens in the small tokenizer: 358 ranks, two special tokens, then the languages."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("world"), SIZE)
    change_records(world, lambda record: record.update(duration=record["code_len"] / 25))
    return world


@pytest.fixture
def archived(pristine: World, tmp_path: Path) -> World:
    shutil.copytree(pristine.folder, tmp_path / "world")
    return World(tmp_path / "world", V2_5)


def limits_for(world: World) -> Limits:
    tokenizer = load_tokenizer(str(world.tokenizer))
    return limits_of(model_of(read_yaml(str(world.model_config), "", ""), "config.yaml", tokenizer), tokenizer)


def load(world: World, suffix: str = "") -> Dataset:
    return load_dataset([f"{world.train_manifest}{suffix}"], limits_for(world), skip_bad_samples=False)


def examined(world: World, suffix: str = "") -> list[Finding]:
    found = survey(
        [f"{world.train_manifest}{suffix}"],
        [str(world.validation_manifest)],
        limits_for(world),
        lambda _done, _total: None,
    )
    return list(examine_data(found, load_tokenizer(str(world.tokenizer))))


def test_a_clean_dataset_has_no_findings(archived: World) -> None:
    assert not load(archived).notes
    # Toy clips are short; everything else is as it should be.
    assert {finding.subject for finding in examined(archived) if finding.level != "ok"} == {"utterances"}


def set_first_id(token: int) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays["text_ids"] = np.array([token, *arrays["text_ids"][1:]], np.int32)

    return change


def set_array(name: str, values: Callable[[Arrays], Any]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = values(arrays)

    return change


def sentencepiece_ids(arrays: Arrays) -> Any:
    return np.arange(10, 10 + len(arrays["text_ids"]), dtype=np.int32)


def unit(arrays: Arrays) -> Any:
    return (arrays["spk_emb"] / np.linalg.norm(arrays["spk_emb"])).astype(np.float32)


def with_nan(arrays: Arrays) -> Any:
    return np.where(np.arange(192) == 7, np.nan, arrays["spk_emb"]).astype(np.float32)


def vector(*shape: int) -> Callable[[Arrays], Any]:
    return lambda _arrays: np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_first_id(TOKEN_EN), ["the language is am", "token of en"]),
        (set_array("text_ids", lambda a: a["text_ids"][1:]), ["prefix is missing", "add-prefix"]),
        (set_array("text_ids", sentencepiece_ids), ["ids of another tokenizer", "IndexTTS-2.0"]),
        (set_first_id(TOKEN_EN + 99), ["tokenizer with 100 languages"]),
        (set_first_id(2031), ["text id 2031 at position 0 out of range, expected 0 … 2030"]),
        (
            set_array("spk_emb", vector(1024)),
            ["shape [1024], expected [192] (CAMPPlus of the prompt, before proj"],
        ),
        (set_array("spk_emb", vector(32, 32)), ["shape [32, 32], expected [192]"]),
        (set_array("spk_emb", vector(32)), ["shape [32], expected [192]"]),
        (set_array("emo_vec", vector(1024)), ["shape [1024], expected [32] (after both projections)"]),
        (set_array("codes", lambda a: np.append(a["codes"], 128)), ["code 128 at position", "expected 0 … 127"]),
        (set_array("spk_emb", with_nan), ["NaN or infinity"]),
        (set_array("codes", lambda a: a["codes"].astype(np.float32)), ["expected integers"]),
    ],
)
def test_a_fault_of_an_array_is_named_with_its_record(
    archived: World, change: Callable[[Arrays], None], words: list[str]
) -> None:
    change_arrays(archived, change, first=1)
    with pytest.raises(DataError) as refused:
        load(archived)
    for word in [*words, "gpt_pairs_train.jsonl:", "(id utt_000"]:
        assert word in str(refused.value), word
    finding = next(finding for finding in examined(archived) if finding.subject == "arrays")
    assert finding.level == "error"
    for word in words:
        assert word in finding.details[0], word


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(lang="xx"), ["'xx' is no language", "alias"]),
        (lambda r: r.update(lang="yue"), ["'yue' has no token", "yue:tt, or `lang_alias`"]),
        (lambda r: r.update(lang="zhen"), ["'zhen' is no language"]),
        (lambda r: r.pop("lang"), ["no language"]),
        (lambda r: r.update(lang="az", lang_alias="es"), ["borrows the slot of 'es'"]),
        (lambda r: r.update(lang_alias="zz"), ["'zz' is no language"]),
        (lambda r: r.pop("prompt_features"), ["the prompt is the target"]),
        (lambda r: r.update(prompt_features=r["target_features"]), ["the prompt is the target"]),
        (lambda r: r.update(prompt_condition_path="x.npy"), ["a record of IndexTTS-2.0", "the model is IndexTTS-2.5"]),
        (lambda r: r.update(text_len="many"), ["text_len is 'many'"]),
    ],
)
def test_a_fault_of_a_record_is_named_with_its_line(
    archived: World, change: Callable[[Record], object], words: list[str]
) -> None:
    change_records(archived, change, first=1)
    with pytest.raises(DataError) as refused:
        load(archived)
    for word in [*words, "gpt_pairs_train.jsonl:1 (id utt_00000__utt_00006): "]:
        assert word in str(refused.value), word
    finding = next(finding for finding in examined(archived) if finding.subject == "manifests")
    assert finding.level == "error"
    assert words[0] in finding.details[0]


@pytest.mark.parametrize("name", ["EN", " am ", "Amharic", "AM"])
def test_case_spaces_and_english_names_lead_to_the_row_of_the_language(archived: World, name: str) -> None:
    change_records(archived, lambda record: record.update(lang=name))
    if name == "EN":
        with pytest.raises(DataError, match="the language is en, but its text ids begin with the token of am"):
            load(archived)
        return
    assert {sample.language_row for sample in load(archived).samples(range(4))} == {75}


def test_a_suffix_that_contradicts_the_records_stops_the_run(archived: World) -> None:
    with pytest.raises(DataError, match="the record's language is am, the manifest's argument says en"):
        load(archived, "::en")
    change_records(archived, lambda record: record.pop("lang"))
    with pytest.raises(DataError, match="the language is en, but its text ids begin with the token of am"):
        load(archived, "::en")
    assert load(archived, "::amharic").samples([0])[0].language_row == 75


def test_a_language_outside_the_list_borrows_a_slot(archived: World) -> None:
    tatar = 358 + 2 + 92
    change_arrays(archived, set_first_id(tatar))
    change_records(archived, lambda record: record.pop("lang"))
    dataset = load(archived, "::qaa:tt")
    assert dataset.samples([0])[0].language_row == 92
    assert dataset.languages == {"qaa:tt": 24}


@pytest.mark.parametrize(
    ("change", "subject", "words"),
    [
        (set_array("spk_emb", unit), "speaker vectors", "all speaker vectors have length 1"),
        (set_array("codes", lambda a: np.repeat(a["codes"], 2)), "code rate", "50.0 codes per second"),
    ],
)
def test_what_can_be_nothing_but_a_fault_stops_the_run(
    archived: World, change: Callable[[Arrays], None], subject: str, words: str
) -> None:
    change_arrays(archived, change)
    with pytest.raises(DataError) as refused:
        load(archived)
    assert words in str(refused.value)
    assert "gpt_pairs_train.jsonl:1 (id utt_00000__utt_00006)" in str(refused.value)
    found = next(finding for finding in examined(archived) if finding.subject == subject and finding.level == "error")
    assert words in found.found


def padded(arrays: Arrays) -> None:
    arrays["codes"] = np.concatenate([arrays["codes"], np.full(13, 5)]).astype(np.int32)


@pytest.mark.parametrize(
    ("change", "first", "subject", "words"),
    [
        (padded, 3, "code tails", "3 of 24 end in more than 12 equal codes"),
        (
            set_array("spk_emb", lambda _a: np.ones(192, np.float32) * 0.1),
            None,
            "speaker vectors",
            "same speaker vector",
        ),
    ],
)
def test_a_suspicion_is_told_and_training_goes_on(
    archived: World, change: Callable[[Arrays], None], first: int | None, subject: str, words: str
) -> None:
    change_arrays(archived, change, first=first)
    (note,) = load(archived).notes
    assert words in note
    assert "gpt_pairs_train.jsonl:" in note
    found = [finding for finding in examined(archived) if finding.subject == subject and finding.level == "warning"]
    assert any(words in finding.found for finding in found)
    assert all(finding.details for finding in found)


def test_ids_0_and_1_are_dropped_and_counted(archived: World) -> None:
    plain = load(archived)

    def change(arrays: Arrays) -> None:
        ids = arrays["text_ids"]
        arrays["text_ids"] = np.array([*ids[:2], 0, *ids[2:], 1, 0], np.int32)

    change_arrays(archived, change)
    dropped = load(archived)
    assert dropped.fingerprint == plain.fingerprint
    assert dropped.text_lengths.tolist() == plain.text_lengths.tolist()
    finding = next(finding for finding in examined(archived) if finding.subject == "language")
    assert "(72 of 0 and 1)" in finding.found


def test_the_storage_form_changes_nothing(pristine: World, tmp_path: Path) -> None:
    files = make_world(tmp_path / "files", WorldSize(**{**as_fields(SIZE), "archives": False}))
    archives, separate = load(pristine), load(files)
    made_for = MadeFor.of(limits_for(pristine))
    write_shards(archives, str(tmp_path / "shards"), lambda _done, _total: None, made_for=made_for)
    sharded = load_dataset([str(tmp_path / "shards")], limits_for(pristine), skip_bad_samples=False)
    for other in (separate, sharded):
        assert other.fingerprint == archives.fingerprint
        for one, two in zip(archives.samples(range(24)), other.samples(range(24)), strict=True):
            assert one.language_row == two.language_row == 75
            for field in ("text_ids", "codes", "condition", "emotion"):
                assert np.array_equal(getattr(one, field), getattr(two, field))


def as_fields(size: WorldSize) -> dict[str, Any]:
    return {name: getattr(size, name) for name in WorldSize.__slots__}


def test_shards_of_one_version_are_refused_by_the_other(pristine: World, world: World, tmp_path: Path) -> None:
    limits, of_2_0 = limits_for(pristine), limits_for(world)
    write_shards(load(pristine), str(tmp_path / "new"), lambda _d, _t: None, made_for=MadeFor.of(limits))
    write_shards(load(world), str(tmp_path / "old"), lambda _d, _t: None, made_for=MadeFor.of(of_2_0))
    with pytest.raises(DataError, match=r"made for IndexTTS-2\.5, but the model is IndexTTS-2\.0"):
        load_dataset([str(tmp_path / "new")], of_2_0, skip_bad_samples=False)
    with pytest.raises(DataError, match=r"made for IndexTTS-2\.0, but the model is IndexTTS-2\.5"):
        load_dataset([str(tmp_path / "old")], limits, skip_bad_samples=False)


def test_manifests_of_one_version_are_refused_by_the_other(pristine: World, world: World) -> None:
    for manifest, limits, words in (
        (pristine.train_manifest, limits_for(world), r"a record of IndexTTS-2\.5.*the model is IndexTTS-2\.0"),
        (world.train_manifest, limits_for(pristine), r"a record of IndexTTS-2\.0.*the model is IndexTTS-2\.5"),
    ):
        with pytest.raises(DataError, match=words):
            load_dataset([str(manifest)], limits, skip_bad_samples=False)


def test_shards_for_another_tokenizer_are_refused(pristine: World, tmp_path: Path) -> None:
    limits = limits_for(pristine)
    other = MadeFor(model_version="2.5", speaker_width=192, code_rate=25, tokenizer_sha256="0" * 64)
    write_shards(load(pristine), str(tmp_path / "shards"), lambda _done, _total: None, made_for=other)
    with pytest.raises(DataError, match="another tokenizer"):
        load_dataset([str(tmp_path / "shards")], limits, skip_bad_samples=False)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-30], "not a readable .npz archive"),
        (lambda _content: b"PK", "not a readable .npz archive"),
        (lambda _content: b"", "not a readable .npz archive"),
    ],
)
def test_a_damaged_archive_is_named(archived: World, damage: Callable[[bytes], bytes], words: str) -> None:
    path = archived.train_manifest.parent / "features/utt_00003.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"utt_00003\.npz.*{words}"):
        load(archived)


def test_an_archive_without_a_member_and_a_missing_one_are_named(archived: World) -> None:
    change_arrays(archived, lambda arrays: arrays.pop("emo_vec"), first=1)
    with pytest.raises(DataError, match=r"utt_00000\.npz/emo_vec\.npy: the archive has no emo_vec\.npy"):
        load(archived)
    (archived.train_manifest.parent / "features/utt_00000.npz").unlink()
    with pytest.raises(DataError, match=r"utt_00000\.npz: file not found"):
        load(archived)


def test_pickled_members_are_never_loaded_and_extra_ones_do_not_matter(archived: World) -> None:
    plain = load(archived).fingerprint
    change_arrays(archived, lambda arrays: arrays.update(extra=np.array([{"a": 1}], dtype=object)), first=1)
    assert load(archived).fingerprint == plain


def test_the_targets_emotion_on_request(pristine: World) -> None:
    limits = limits_for(pristine)
    of_target = Limits(limits.model, limits.text_pieces, limits.first_language_token, emotion="target")
    dataset = load_dataset([str(pristine.train_manifest)], of_target, skip_bad_samples=False)
    record = records(pristine.train_manifest)[0]
    for key, found in (("target_features", dataset), ("prompt_features", load(pristine))):
        with np.load(pristine.train_manifest.parent / record[key]) as archive:
            assert np.array_equal(found.samples([0])[0].emotion, archive["emo_vec"])


def doctor(world: World, kind: str, output: Path, *more: str) -> int:
    command = ["doctor", "data", str(world.train_manifest), "--tokenizer", str(world.tokenizer)]
    return main([*command, "--config", str(world.model_config), "--repair", kind, "--output", str(output), *more])


def of_manifest(world: World, manifest: Path) -> Dataset:
    return load_dataset([str(manifest)], limits_for(world), skip_bad_samples=False)


def test_a_missing_prefix_is_added(archived: World, tmp_path: Path) -> None:
    plain = load(archived).fingerprint
    change_arrays(archived, set_array("text_ids", lambda a: a["text_ids"][1:]), first=5)
    assert doctor(archived, "add-prefix", tmp_path / "new") == EXIT_OK
    assert of_manifest(archived, tmp_path / "new/gpt_pairs_train.jsonl").fingerprint == plain
    assert len(list((tmp_path / "new/features").iterdir())) == 5
    # The old dataset is as it was.
    with pytest.raises(DataError, match="prefix is missing"):
        load(archived)


def test_texts_are_encoded_again(archived: World, tmp_path: Path) -> None:
    plain = load(archived).fingerprint
    change_arrays(archived, set_array("text_ids", sentencepiece_ids))
    assert doctor(archived, "re-encode", tmp_path / "new") == EXIT_OK
    assert of_manifest(archived, tmp_path / "new/gpt_pairs_train.jsonl").fingerprint == plain


def test_a_text_that_cannot_be_encoded_here_is_named(
    archived: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_records(archived, lambda record: record.pop("text"), first=1)
    assert doctor(archived, "re-encode", tmp_path / "new") == EXIT_DATA
    assert "gpt_pairs_train.jsonl:1 (id utt_00000__utt_00006): no target_text or text" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_records_get_their_language(archived: World, tmp_path: Path) -> None:
    plain = load(archived).fingerprint
    change_records(archived, lambda record: record.pop("lang"), first=3)
    change_records(archived, lambda record: record.update(target_language="xx"), first=1)
    assert doctor(archived, "set-language", tmp_path / "new", "--language", "amharic") == EXIT_OK
    assert of_manifest(archived, tmp_path / "new/gpt_pairs_train.jsonl").fingerprint == plain
    assert {record["language"] for record in records(tmp_path / "new/gpt_pairs_train.jsonl")} == {"am"}


def test_padded_tails_are_cut(archived: World, tmp_path: Path) -> None:
    plain = load(archived)
    change_arrays(archived, padded, first=2)
    change_records(archived, lambda record: record.pop("duration"))
    assert doctor(archived, "drop-tails", tmp_path / "new") == EXIT_OK
    cut = of_manifest(archived, tmp_path / "new/gpt_pairs_train.jsonl")
    # Of the equal codes one is kept: it may be speech.
    assert (cut.code_lengths - plain.code_lengths).tolist() == [1, 1] + [0] * 22
    assert not cut.notes


@pytest.mark.parametrize("kind", ["add-prefix", "re-encode", "set-language"])
def test_repairs_of_languages_are_for_2_5(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    language = ["--language", "am"] if kind == "set-language" else []
    assert doctor(world, kind, tmp_path / "new", *language) == EXIT_CONFIG
    assert "is for IndexTTS-2.5" in capsys.readouterr().err


def test_a_language_alone_and_set_language_without_one_are_refused(
    archived: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(archived, "set-language", tmp_path / "new") == EXIT_CONFIG
    assert "set-language needs it" in capsys.readouterr().err
    assert doctor(archived, "set-language", tmp_path / "new", "--language", "xx") == EXIT_CONFIG
    assert "--language: 'xx' is no language of IndexTTS-2.5" in capsys.readouterr().err


def test_a_prefix_does_not_hide_ids_of_another_tokenizer(
    archived: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_arrays(archived, set_array("text_ids", sentencepiece_ids), first=3)
    assert doctor(archived, "add-prefix", tmp_path / "new") == EXIT_DATA
    assert "lack more than a prefix" in capsys.readouterr().err
    # Without texts to compare with, ids that are all small are not believed either.
    change_records(archived, lambda record: record.pop("text"))
    assert doctor(archived, "add-prefix", tmp_path / "new") == EXIT_DATA
    assert not (tmp_path / "new").exists()


def test_ids_of_the_released_tokenizer_are_known_by_an_extension(archived: World) -> None:
    limits = replace(limits_for(archived), text_pieces=70_000, first_language_token=58838 + 2000)
    change_arrays(archived, set_first_id(58838 + 75))
    with pytest.raises(DataError, match="encoded with the released tokenizer, whose ids an extension moves"):
        load_dataset([str(archived.train_manifest)], limits, skip_bad_samples=False)
    # An extension by fewer pieces than there are languages takes them for those of another language.
    limits = replace(limits, first_language_token=58838 + 60)
    with pytest.raises(DataError, match="the language is am, its first text id is 58913: encoded with the released"):
        load_dataset([str(archived.train_manifest)], limits, skip_bad_samples=False)


def twice(arrays: Arrays) -> None:
    arrays["codes"] = np.repeat(arrays["codes"], 2)


def test_a_part_of_the_codes_at_the_other_rate_is_found_and_never_cut(archived: World, tmp_path: Path) -> None:
    change_arrays(archived, twice, first=8)
    with pytest.raises(DataError, match=r"8 of 24 have 50\.0 codes per second"):
        load(archived)
    assert "code tails" not in {finding.subject for finding in examined(archived) if finding.level != "ok"}
    assert doctor(archived, "drop-tails", tmp_path / "new") == EXIT_OK
    assert not (tmp_path / "new").exists()


def test_utterances_of_two_corpora_may_have_one_name(archived: World) -> None:
    folder = archived.train_manifest.parent
    shutil.copytree(folder / "features", folder / "other")

    def change(record: Record) -> None:
        name = Path(record["target_features"]).name
        record.update(id="u_0__u_0", prompt_features=f"other/{name}")

    change_records(archived, change)
    assert len(load(archived)) == 24


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(prompt_features=f"./{r['target_features']}"),
        lambda r: r.update(prompt_features=r["target_features"].replace("features/", "features/../features/")),
    ],
)
def test_a_self_pair_is_found_however_its_path_is_spelt(archived: World, change: Callable[[Record], object]) -> None:
    change_records(archived, change, first=1)
    with pytest.raises(DataError, match="the prompt is the target"):
        load(archived)


def test_a_self_pair_of_separate_files_is_found_by_their_names(pristine: World, tmp_path: Path) -> None:
    files = make_world(tmp_path, WorldSize(**{**as_fields(SIZE), "archives": False}))

    def change(record: Record) -> None:
        target = record["target_id"]
        record.update(id=f"spk__{target}", prompt_speaker_path=f"condition/{target}.npy")
        del record["target_id"], record["prompt_id"]

    change_records(files, change, first=1)
    with pytest.raises(DataError, match="the prompt is the target"):
        load_dataset([str(files.train_manifest)], limits_for(pristine), skip_bad_samples=False)


def test_shards_know_whose_emotion_they_hold(pristine: World, tmp_path: Path) -> None:
    limits = replace(limits_for(pristine), emotion="target")
    dataset = load_dataset([str(pristine.train_manifest)], limits, skip_bad_samples=False)
    write_shards(dataset, str(tmp_path / "shards"), lambda _d, _t: None, made_for=MadeFor.of(limits))
    sharded = load_dataset([str(tmp_path / "shards")], limits, skip_bad_samples=False)
    assert sharded.fingerprint == dataset.fingerprint
    with pytest.raises(DataError, match=r"emotion vectors of the target, data\.emotion is prompt"):
        load_dataset([str(tmp_path / "shards")], limits_for(pristine), skip_bad_samples=False)


@pytest.mark.parametrize("value", ["3.5", 3.5])
def test_a_duration_may_be_a_text_and_a_null_hides_none(value: object) -> None:
    assert duration_of({"target_duration": None, "duration": value}) == 3.5
    assert duration_of({"duration": "many"}) is None


def test_a_speaker_vector_of_zeros_is_refused(archived: World) -> None:
    change_arrays(archived, set_array("spk_emb", lambda _a: np.zeros(192, np.float32)), first=1)
    with pytest.raises(DataError, match="all values are zero"):
        load(archived)


def test_another_language_than_that_of_the_ids_is_told(
    archived: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(archived, "set-language", tmp_path / "new", "--language", "tr") == EXIT_OK
    assert "24 texts begin with the token of another language" in capsys.readouterr().out
