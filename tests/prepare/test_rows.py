"""Every array of a pair is that of its own utterance: the target's text and codes, the prompt's voice and emotion."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from indextts_job.data.sources import load_dataset
from indextts_job.prepare.audio import read_clip
from indextts_job.prepare.encoders.encoders import Encoded, load_encoders
from indextts_job.prepare.run import prepare, read_work_list
from indextts_job.tokenizer.encoding import stock_ids
from tests.prepare.outcomes import TRAIN, VALIDATION, refused, targets
from tests.support.voices import Voices, add_clips

ROUNDING = 2e-5
"""Of float32 between a clip in a batch and the clip alone, through random encoders whose outputs are below 4."""


@pytest.mark.parametrize("version", ["2.0", "2.5"])
def test_arrays_are_those_of_their_own_utterance(version: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    voices: Voices = request.getfixturevalue("voices" if version == "2.0" else "voices_2_5")
    mine = voices.elsewhere(tmp_path / "mine")
    records = add_clips(mine, 18)
    mine.write([record | {"split": "val" if place >= 9 else "train"} for place, record in enumerate(records)])
    for place in (1, 6):  # rows that nothing refers to lie between the others
        (mine.folder / records[place]["audio"]).write_bytes(b"no audio")
    config = mine.config(tmp_path / "out", max_refused=0.5, unit=5)
    work = read_work_list(config)
    prepare(config, work, "a", lambda: None, lambda _done, _all: None)
    assert refused(tmp_path / "out").keys() == {"u001", "u006"}
    encoders = load_encoders(config.encoders, config.model.base_checkpoint, work.model, "cpu")
    utterances = {one.id: one for one in work.utterances}

    @cache
    def alone(name: str) -> Encoded:
        clip = read_clip(utterances[name].url, 1, 30)
        return encoders.encode([clip.samples], 1, lambda: None)[0]

    seen = set()
    for index in (TRAIN, VALIDATION):
        dataset = load_dataset([f"{tmp_path / 'out'}/{index}"], work.limits, skip_bad_samples=False)
        for sample in dataset.samples(range(len(dataset))):
            target, _, prompt = sample.id.partition("__")
            assert utterances[target].speaker == utterances[prompt].speaker
            ids = stock_ids(work.tokenizer, utterances[target].text, "am")
            dropped = work.model.version.dropped_text_ids
            assert sample.text_ids.tolist() == [one for one in ids or [] if one not in dropped]
            assert sample.language_row == (75 if version == "2.5" else 0)
            np.testing.assert_array_equal(sample.codes, alone(target).codes)
            np.testing.assert_allclose(sample.condition, alone(prompt).condition, atol=ROUNDING)
            np.testing.assert_allclose(sample.emotion, alone(prompt).emotion, atol=ROUNDING)
            seen.add(target)
    assert seen == targets(tmp_path / "out")
    assert len(seen) >= 14
