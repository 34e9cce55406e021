"""What a free-running check costs: seconds for one code of all records, against the model computed anew for each code.

Weights are random, so nothing stops by itself and every record is spoken to its limit: the most that a check may take.
In bfloat16 on a GPU, in float32 on a CPU.

    python -m bench.speaking [--records 32] [--codes 200] [--width 1280] [--layers 24] [--device cuda]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from bench.workload import FULL_2_5, engine, utterances
from indextts_job.model.batch import PackedBatch, Sample, collate
from indextts_job.model.unified_voice import DeviceBatch
from indextts_job.speaking.decoder import Utterance, speak
from indextts_job.training.engine import Engine
from indextts_job.training.evaluate import evaluating, on_device


def main() -> None:
    """Print seconds for all codes and for one, the share of a thousand steps of half a second, and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--codes", type=int, default=200)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rival-codes", type=int, default=20)
    given = parser.parse_args()
    config = replace(FULL_2_5, model_dim=given.width, layers=given.layers, heads=given.width // 64)
    voice = engine(config, device=given.device, precision="bfloat16" if given.device == "cuda" else "float32")
    samples = utterances(given.records, config)
    spoken_s = _seconds(voice, lambda: _speak(voice, samples, given.codes))
    rival_s = _seconds(voice, lambda: _anew(voice, samples, given.rival_codes)) / given.rival_codes
    code_s = spoken_s / given.codes
    print(
        f"{given.records} records of {given.codes} codes, width {given.width}, {given.layers} layers, {voice.precision}"
    )
    print(f"with a cache   {1e3 * code_s:8.2f} ms for a code of all records, {spoken_s:.2f} s for all codes")
    print(f"without        {1e3 * rival_s:8.2f} ms, {rival_s / code_s:.1f} x, at {given.rival_codes} codes")
    print(f"share          {spoken_s / (500 + spoken_s):8.2%} of 1,000 steps of 0.5 s")
    if given.device == "cuda":
        print(
            f"memory         {torch.cuda.max_memory_allocated() / 2**30:8.2f} GiB at most, weights in float32 included"
        )


def _seconds(voice: Engine, work: Callable[[], None]) -> float:
    with evaluating(voice):
        work()  # once before: kernels are loaded, and memory is taken
        _wait(voice)
        began_s = time.perf_counter()
        work()
        _wait(voice)
        return time.perf_counter() - began_s


def _wait(voice: Engine) -> None:
    if voice.device.type == "cuda":
        torch.cuda.synchronize()


def _speak(voice: Engine, samples: list[Sample], codes: int) -> None:
    def place(batch: PackedBatch) -> DeviceBatch:
        return on_device(voice, batch)

    for _ in speak(voice.model, [Utterance(sample=sample, limit=codes) for sample in samples], place):
        pass


def _anew(voice: Engine, samples: list[Sample], codes: int) -> None:
    """The whole sequence again for each code."""
    for length in range(codes):
        cut = [replace(sample, codes=sample.codes[:length]) for sample in samples]
        voice.model.hidden_states(on_device(voice, collate(cut, voice.model.config)))


if __name__ == "__main__":
    main()
