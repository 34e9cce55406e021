"""A dataset in any form: the same samples, the same fingerprint, little memory, and nothing changed is accepted."""

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from indextts_job.data import array_files
from indextts_job.data.archives import Reader
from indextts_job.data.array_files import Ids, Vector
from indextts_job.data.dataset import Arrays, Dataset, Limits, Use, content_digest
from indextts_job.data.downloads import copy_path
from indextts_job.data.manifest_source import ManifestSource
from indextts_job.data.remembered import WrittenLater, recalled
from indextts_job.data.shard_index import INDEX, parse_index
from indextts_job.data.sharding import write_shards
from indextts_job.data.sources import load_dataset
from indextts_job.data.texts import Texts
from indextts_job.demo.world import World
from indextts_job.errors import DataError, UnavailableError
from indextts_job.model.batch import collate
from indextts_job.model.config import gpt_config
from indextts_job.storage import files
from indextts_job.storage.files import read_yaml
from indextts_job.storage.local_storage import LocalStorage
from indextts_job.storage.manifest_text import manifest_lines
from indextts_job.storage.node_cache import shard_folder
from tests.support.held_data import held
from tests.support.shard_indexes import changed_index
from tests.support.waiting import wait_until

MANY = 10_000
MOST_BYTES = 600
"""Of memory for each sample."""
FIELDS = ("index", "id", "text_ids", "codes", "condition", "emotion")


@pytest.fixture(scope="module")
def limits(world: World) -> Limits:
    return Limits(gpt_config(read_yaml(str(world.model_config), "", ""), ""), 217)


@pytest.fixture(scope="module")
def dataset(world: World, limits: Limits) -> Dataset:
    return load_dataset([f"{world.train_manifest}::am"], limits, skip_bad_samples=False)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arrays that are checked."""
    seen: list[str] = []
    check = array_files.check_array

    def checked(path: str, use: Use, limits: Limits, reader: Reader) -> Ids | Vector:
        seen.append(path)
        return check(path, use, limits, reader)

    monkeypatch.setattr("indextts_job.data.seen_files.check_array", checked)
    return seen


def nothing(_done: int, _total: int) -> None:
    return


def same(one: Dataset, other: Dataset) -> bool:
    pairs = zip(one.samples(range(len(one))), other.samples(range(len(other))), strict=True)
    return all(np.array_equal(getattr(a, field), getattr(b, field)) for a, b in pairs for field in FIELDS)


def load(manifest: Path | str, limits: Limits, **named: object) -> Dataset:
    return load_dataset([str(manifest)], limits, **{"skip_bad_samples": False, **named})  # type: ignore[arg-type]


def copied(world: World, folder: Path) -> Path:
    """The world's training set in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in world.train_manifest.read_text(encoding="utf-8").splitlines()]
    for record in records:
        for key in [
            key
            for key in record
            if key.endswith("_path") and key.startswith(("prompt_c", "prompt_e", "target_t", "target_c"))
        ]:
            name = f"{key}-{Path(record[key]).name}"
            (folder / name).write_bytes((world.train_manifest.parent / record[key]).read_bytes())
            record[key] = name
    manifest = folder / "m.jsonl"
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return manifest


def test_the_fingerprint_is_a_hash_over_ids_and_digests_in_every_form(
    dataset: Dataset, limits: Limits, world: World, tmp_path: Path
) -> None:
    digest = hashlib.sha256()
    for sample in dataset.samples(range(len(dataset))):
        digest.update(sample.id.encode() + b"\0")
        for ids in (sample.text_ids, sample.codes):
            digest.update(content_digest(ids.astype(np.int32)))
        for vector in (sample.condition, sample.emotion):
            digest.update(content_digest(vector))
    assert dataset.fingerprint == digest.hexdigest()
    write_shards(dataset, str(tmp_path / "shards"), nothing)
    assert load(tmp_path / "shards", limits).fingerprint == digest.hexdigest()
    memory = LocalStorage(str(tmp_path / "run"))
    for _ in range(2):
        again = load(f"{world.train_manifest}::am", limits, memory=memory)
        assert again.fingerprint == digest.hexdigest()
        assert same(again, dataset)


@pytest.mark.parametrize("count", [1, 2, 2**14 - 1, 2**14, 2**14 + 1])
def test_the_fingerprint_of_many_samples_is_that_of_a_loop(count: int) -> None:
    arrays: Arrays = (np.ones(1, np.int32), np.ones(2, np.int32), np.ones((2, 2), np.float32), np.ones(2, np.float32))
    names = [f"{'x' * (number % 5)}ሰ{number}" for number in range(count)]
    digest = hashlib.sha256()
    parts = b"".join(map(content_digest, arrays))
    for name in names:
        digest.update(name.encode() + b"\0" + parts)
    assert held([arrays] * count, names).fingerprint == digest.hexdigest()


def test_texts_are_taken_in_any_order_and_number() -> None:
    words = [f"{'x' * (number % 4)}ሰ{number}" if number % 5 else "" for number in range(2**14 + 9)]
    texts = Texts.of(words)
    order = np.random.default_rng(0).permutation(len(words))
    taken = texts.taken(order)
    assert [taken[place] for place in range(len(words))] == [words[index] for index in order]
    assert len(texts.taken(order[:0])) == 0


def test_several_sources_follow_one_another(dataset: Dataset, limits: Limits, world: World, tmp_path: Path) -> None:
    write_shards(dataset, str(tmp_path), nothing)
    arguments = [str(tmp_path), f"{world.validation_manifest}::zh", f"{world.train_manifest}::am"]
    both = load_dataset(arguments, limits, skip_bad_samples=False)
    middle = len(both) - 2 * len(dataset)
    assert sum(both.languages.values()) == len(both) == middle + 2 * len(dataset)
    assert list(both.languages) == list(dict.fromkeys(["am", *load(arguments[1], limits).languages]))
    last = len(both) - 1
    mixed = both.samples([last, 0, len(dataset), 1, last])
    assert [sample.index for sample in mixed] == [last, 0, len(dataset), 1, last]
    assert [sample.id for sample in mixed] == [both.id_of(sample.index) for sample in mixed]
    assert mixed[0].id == dataset.id_of(len(dataset) - 1)
    assert both.origin_of(len(dataset)) == f"{world.validation_manifest}:1"
    assert both.origin_of(0) == f"{tmp_path}/index.safetensors, pair 0"
    assert both.text_lengths.tolist()[:40] == dataset.text_lengths.tolist()
    # Each source has the fingerprint and the counts that it has alone.
    alone = [load_dataset([argument], limits, skip_bad_samples=False) for argument in arguments]
    assert both.part_fingerprints == tuple(one.fingerprint for one in alone)
    assert [part.language_counts for part in both.parts] == [one.languages for one in alone]
    assert alone[0].part_fingerprints == (alone[0].fingerprint,)
    write_shards(both, str(tmp_path / "both"), nothing)
    sharded = load(tmp_path / "both", limits)
    assert sharded.fingerprint == both.fingerprint
    assert sharded.languages == both.languages
    assert same(sharded, both)


def test_a_remembered_check_reads_no_array_again(
    world: World, limits: Limits, tmp_path: Path, reads: list[str]
) -> None:
    memory = LocalStorage(str(tmp_path / "run"))
    manifest = copied(world, tmp_path / "data")
    first = load(manifest, limits, memory=memory)
    assert len(reads) == len(set(reads)) > 100
    reads.clear()
    second = load(manifest, limits, memory=memory)
    assert reads == []
    assert second.fingerprint == first.fingerprint
    assert second.languages == first.languages
    assert [second.origin_of(index) for index in (0, 39)] == [first.origin_of(index) for index in (0, 39)]
    assert second.text_lengths.tolist() == first.text_lengths.tolist()
    assert same(first, second)


def test_skipped_samples_are_remembered(world: World, limits: Limits, tmp_path: Path, reads: list[str]) -> None:
    memory = LocalStorage(str(tmp_path / "run"))
    manifest = copied(world, tmp_path / "data")
    next((tmp_path / "data").glob("target_codes*")).write_bytes(b"")
    found = [load(manifest, limits, memory=memory, skip_bad_samples=True) for _ in range(2)]
    assert found[0].skipped == found[1].skipped
    assert len(found[0].skipped) >= 1
    assert found[0].fingerprint == found[1].fingerprint
    reads.clear()
    with pytest.raises(DataError, match="bad samples"):
        load(manifest, limits, memory=memory)
    assert reads


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest, limits: (manifest, replace(limits, text_pieces=218)),
        lambda manifest, limits: (manifest, replace(limits, model=replace(limits.model, max_mel_tokens=999))),
        lambda manifest, limits: (f"{manifest}::zh", limits),
        lambda manifest, limits: (manifest.write_text(manifest.read_text() + "\n") and manifest, limits),
    ],
)
def test_what_a_check_depends_on_has_it_done_again(
    world: World,
    limits: Limits,
    tmp_path: Path,
    reads: list[str],
    change: Callable[[Path, Limits], tuple[Path, Limits]],
) -> None:
    memory = LocalStorage(str(tmp_path / "run"))
    manifest = copied(world, tmp_path / "data")
    load(manifest, limits, memory=memory)
    reads.clear()
    changed, other = change(manifest, limits)
    load(changed, other, memory=memory)
    assert reads


def test_a_damaged_or_foreign_memory_is_ignored(world: World, limits: Limits, tmp_path: Path, reads: list[str]) -> None:
    memory = LocalStorage(str(tmp_path / "run"))
    manifest = copied(world, tmp_path / "data")
    first = load(manifest, limits, memory=memory)
    (kept,) = (tmp_path / "run/data").iterdir()
    good = kept.read_bytes()
    other = load(f"{manifest}::zh", limits, memory=memory)
    assert other.fingerprint == first.fingerprint
    foreign = next(path for path in (tmp_path / "run/data").iterdir() if path != kept).read_bytes()
    flipped = [good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :] for place in range(5, len(good), 997)]

    def no_row(_header: object, arrays: dict[str, np.ndarray]) -> None:
        arrays["files"] += 10**6

    wrong = [b"", good[:-9], foreign, *flipped, changed_index(good, no_row)]
    for content in wrong:
        kept.write_bytes(content)
        reads.clear()
        assert load(manifest, limits, memory=memory).fingerprint == first.fingerprint
        assert reads
        assert kept.read_bytes() == good


def test_a_memory_leads_to_no_file_that_its_manifest_could_not_name(
    world: World, limits: Limits, tmp_path: Path
) -> None:
    memory = LocalStorage(str(tmp_path))
    load(world.train_manifest, limits, memory=memory)
    (kept,) = (tmp_path / "data").iterdir()
    good, key = kept.read_bytes(), f"data/{kept.name}"
    for folder, fits in (("s3://bucket/data/", True), ("s3://other/data/", False), ("/etc/", False)):

        def named(header: dict[str, list[str]], _arrays: object, folder: str = folder) -> None:
            header["folders"] = [folder] * len(header["folders"])

        kept.write_bytes(changed_index(good, named))
        assert (recalled(memory, key, ManifestSource("s3://bucket/data/m.jsonl", "")) is not None) == fits


def test_a_manifest_with_a_relative_path_is_remembered_too(
    world: World, limits: Limits, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = copied(world, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    memory = LocalStorage("run")
    first = load(str(manifest.relative_to(tmp_path)), limits, memory=memory)
    reads.clear()
    assert load(str(manifest.relative_to(tmp_path)), limits, memory=memory).fingerprint == first.fingerprint
    assert reads == []


def test_a_file_that_changed_behind_a_remembered_check_is_an_error(
    world: World, limits: Limits, tmp_path: Path
) -> None:
    memory = LocalStorage(str(tmp_path / "run"))
    manifest = copied(world, tmp_path / "data")
    for _ in range(2):
        remembered = load(manifest, limits, memory=memory)
    record = json.loads(manifest.read_text().splitlines()[0])
    for key in ("target_text_ids_path", "target_codes_path", "prompt_condition_path", "prompt_emo_vec_path"):
        path = tmp_path / "data" / record[key]
        content = path.read_bytes()
        np.save(path, np.load(path) * 0)
        with pytest.raises(DataError, match="changed since it was checked"):
            remembered.sample(0)
        path.unlink()
        with pytest.raises(UnavailableError, match="cannot be read now"):
            remembered.sample(0)
        path.write_bytes(content)
    remembered.sample(0)


def test_a_check_is_written_only_when_the_start_has_succeeded(world: World, limits: Limits, tmp_path: Path) -> None:
    run = LocalStorage(str(tmp_path / "run"))
    for writes, expected in ((False, 0), (True, 1)):
        later = WrittenLater(run, writes=writes)
        load(world.train_manifest, limits, memory=later)
        assert not run.list("data")
        later.flush()
        assert len(run.list("data")) == expected


def test_a_memory_that_cannot_be_written_costs_a_warning(
    world: World, limits: Limits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("a file")
    later = WrittenLater(LocalStorage(str(tmp_path / "run")), writes=True)
    load(world.train_manifest, limits, memory=later)
    later.flush()
    assert "the next attempt has to check the data again" in caplog.text


def test_a_file_that_is_named_for_two_things_is_a_finding(world: World, limits: Limits, tmp_path: Path) -> None:
    manifest = copied(world, tmp_path)
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    records[3]["target_text_ids_path"] = records[9]["target_codes_path"]
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(DataError, match="one file is named for two different things"):
        load(manifest, limits)


def test_a_record_takes_little_memory(limits: Limits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four files of its own for each record, in the long paths that preprocessing writes."""
    folder = "/mnt/storage/of/a/cluster/projects/speech/amharic/processed"

    def checked(path: str, use: Use, _limits: Limits, _reader: Reader) -> Ids | Vector:
        digest = hashlib.blake2b(path.encode(), digest_size=16).digest()
        return Ids(np.ones(5, np.int32), digest, 5) if use in ("text", "codes") else Vector(digest)

    monkeypatch.setattr("indextts_job.data.seen_files.check_array", checked)
    lines = []
    for number in range(MANY):
        name = f"speaker_{number % 60:03d}_utterance_{number:07d}"
        record = {
            "id": f"{name}__{name}",
            "prompt_condition_path": f"{folder}/condition/{name}.npy",
            "prompt_emo_vec_path": f"{folder}/emo_vec/{name}.npy",
            "target_text_ids_path": f"{folder}/text_ids/{name}.npy",
            "target_codes_path": f"{folder}/codes/{name}.npy",
            "target_text_len": 5,
            "target_code_len": 5,
        }
        lines.append(json.dumps(record) + "\n")
    (tmp_path / "m.jsonl").write_text("".join(lines))
    del lines
    assert kept_bytes(lambda: load(tmp_path / "m.jsonl", limits)) < MOST_BYTES * MANY


def test_a_sharded_sample_takes_little_memory(limits: Limits, tmp_path: Path) -> None:
    small = replace(limits, model=replace(limits.model, model_dim=2))

    def arrays(number: int) -> Arrays:
        ids = np.full(1 + number % 7, number % 200, np.int32)
        return ids, ids % 100, np.full((32, 2), number, np.float32), np.full(2, number, np.float32)

    name = "speaker_001_utterance_0000001__speaker_001_utterance"
    names = [f"{name}_{number:07d}" for number in range(MANY)]
    write_shards(held([arrays(number) for number in range(MANY)], names), str(tmp_path), nothing)
    assert kept_bytes(lambda: load(tmp_path, small)) < MOST_BYTES * MANY


def kept_bytes(work: Callable[[], object]) -> int:
    """The memory that a result takes."""
    work()  # what is made once: caches, imports
    tracemalloc.start()
    try:
        kept = work()
        taken, _ = tracemalloc.get_traced_memory()
        assert kept is not None
    finally:
        tracemalloc.stop()
    return taken


def test_one_sample_is_a_dataset(limits: Limits, tmp_path: Path) -> None:
    arrays = (
        np.array([5], np.int64),
        np.array([7, 8], np.int16),
        np.ones((32, limits.model.model_dim), np.float32),
        np.ones(limits.model.model_dim, np.float32),
    )
    write_shards(held([arrays]), str(tmp_path), nothing)
    (sample,) = load(tmp_path, limits).samples([0])
    assert (sample.id, sample.text_ids.tolist(), sample.codes.tolist()) == ("sample-0", [5], [7, 8])
    batch = collate([sample], limits.model)
    assert batch.text_targets.dtype == np.int64
    assert batch.text_targets.tolist()[0] == 5


@pytest.mark.parametrize(("largest", "dtype"), [(65535, "uint16"), (65536, "int32")])
def test_ids_are_stored_in_the_smallest_type_that_holds_them(
    limits: Limits, tmp_path: Path, largest: int, dtype: str
) -> None:
    vectors = (np.ones((32, limits.model.model_dim), np.float32), np.ones(limits.model.model_dim, np.float32))
    text = np.array([largest, 0, 5], np.int32)
    dataset = held([(text, np.array([1, 2], np.int32), *vectors)])
    write_shards(dataset, str(tmp_path), nothing)
    index = parse_index((tmp_path / INDEX).read_bytes(), INDEX)
    assert index.tables["ids"].dtype == dtype
    assert index.largest == {"text": largest, "codes": 2}
    wide = replace(limits, text_pieces=largest + 1)
    assert load(tmp_path, wide).sample(0).text_ids.tolist() == text.tolist()
    assert load(tmp_path, wide).fingerprint == dataset.fingerprint
    with pytest.raises(DataError, match=f"text: ids up to {largest}, expected 0 … {largest - 1}"):
        load(tmp_path, replace(limits, text_pieces=largest))


def test_an_index_that_lies_about_its_largest_id_is_found_out(dataset: Dataset, limits: Limits, tmp_path: Path) -> None:
    write_shards(dataset, str(tmp_path), nothing)
    path = tmp_path / INDEX
    path.write_bytes(changed_index(path.read_bytes(), lambda header, _arrays: header["largest"].update(codes=3)))
    with pytest.raises(DataError, match="codes beyond 3, the largest that its index names"):
        load(tmp_path, limits).samples(range(40))


@pytest.mark.parametrize("kind", ["ids", "condition", "emotion"])
def test_a_damaged_row_is_refused_and_the_others_are_read(
    dataset: Dataset, limits: Limits, tmp_path: Path, kind: str
) -> None:
    write_shards(dataset, str(tmp_path), nothing)
    path = tmp_path / f"{kind}-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    damaged, bad = load(tmp_path, limits), 0
    for index in range(len(dataset)):
        try:
            damaged.sample(index)
        except DataError as error:
            assert f"{kind}-00000.safetensors, row" in str(error)  # noqa: PT017  # how many is the question
            bad += 1
    assert 1 <= bad < len(dataset)


def test_damaged_copies_of_every_kind_are_cured(dataset: Dataset, limits: Limits, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/shards"
    write_shards(dataset, url, nothing)
    filesystem, root = fsspec.core.url_to_fs(url)
    tables = parse_index(filesystem.cat_file(f"{root}/{INDEX}"), INDEX).tables
    copies = [copy_path(shard_folder(str(tmp_path)), shard) for table in tables.values() for shard in table.shards]
    assert same(load(url, limits, cache_folder=str(tmp_path)), dataset)
    for path in copies:
        wait_until(path.exists, f"{path} is there")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert same(load(url, limits, cache_folder=str(tmp_path)), dataset)
    filesystem.rm(root, recursive=True)


def test_ids_are_cached_like_vectors(dataset: Dataset, limits: Limits, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/shards"
    write_shards(dataset, url, nothing)
    filesystem, root = fsspec.core.url_to_fs(url)
    tables = parse_index(filesystem.cat_file(f"{root}/{INDEX}"), INDEX).tables
    assert same(load(url, limits, cache_folder=str(tmp_path)), dataset)
    for table in tables.values():
        for shard in table.shards:
            wait_until(copy_path(shard_folder(str(tmp_path)), shard).exists, f"the copy of {shard.name} is there")
    warm = load(url, limits, cache_folder=str(tmp_path))
    for table in tables.values():
        for shard in table.shards:
            filesystem.rm_file(f"{root}/{shard.name}")
    assert same(warm, dataset)  # by the copies alone


def test_the_largest_manifest_line_is_read_alone() -> None:
    lines = manifest_lines(b"\xef\xbb\xbfone\ntwo\r\n\nthree", "m")
    assert [line.rstrip("\r") for line in lines] == ["one", "two", "", "three"]
    with pytest.raises(DataError, match=r"m: not UTF-8 text.*position 4"):
        list(manifest_lines(b"one\n\xff", "m"))


def test_values_of_arrays_are_not_kept(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample is read from its files, ids too."""
    opened: list[str] = []
    read = files.read_bytes

    def counted(path: str, limit: int) -> bytes:
        opened.append(path)
        return read(path, limit)

    monkeypatch.setattr(files, "read_bytes", counted)
    dataset.sample(3)
    assert len(opened) == 4
