"""Examples below the help of each command; a test parses every one. Pure."""

import argparse
from collections.abc import Iterator, Mapping, Sequence

EXAMPLES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("init",): (
        "indextts-job init --recipe new-language --model 2.5 --language am",
        "indextts-job init --recipe one-voice --train-manifest voice/train.jsonl --run s3://bucket/runs/voice",
    ),
    ("prepare",): (
        "indextts-job prepare prepare.yaml --plan",
        "indextts-job prepare prepare.yaml",
        "indextts-job prepare prepare.yaml --assemble",
    ),
    ("train",): (
        "indextts-job train run.yaml",
        "indextts-job train run.yaml schedule.max_steps=200 hardware.device=cpu --dry-run",
        "indextts-job train run.yaml --resume runs/english --no-load-optimizer --output-dir runs/amharic",
    ),
    ("checkpoints", "list"): (
        "indextts-job checkpoints list runs/amharic",
        "indextts-job checkpoints list s3://bucket/runs/amharic --verify",
    ),
    ("checkpoints", "inspect"): (
        "indextts-job checkpoints inspect runs/amharic",
        "indextts-job checkpoints inspect runs/amharic/checkpoints/step-00001000-attempt-0001-from-00000000.json",
    ),
    ("checkpoints", "compare"): (
        "indextts-job checkpoints compare runs/amharic",
        "indextts-job checkpoints compare runs/amharic runs/full --max-samples 500",
    ),
    ("checkpoints", "best"): (
        "indextts-job checkpoints best runs/amharic --explain",
        "indextts-job checkpoints best s3://bucket/runs/amharic --json",
    ),
    ("checkpoints", "keep"): (
        "indextts-job checkpoints keep runs/amharic/checkpoints/step-00001000-attempt-0001-from-00000000.json",
        "indextts-job checkpoints keep s3://b/am/checkpoints/step-00001000-attempt-0001-from-00000000.json",
    ),
    ("checkpoints", "delete"): (
        "indextts-job checkpoints delete runs/amharic/checkpoints/step-00001000-attempt-0001-from-00000000.json",
        "indextts-job checkpoints delete s3://bucket/runs/first-try --yes",
    ),
    ("speak",): (
        "indextts-job speak runs/amharic --language am --text 'ሰላም ዓለም'",
        "indextts-job speak runs/amharic --language am --text 'ሰላም' --prompt voice.wav --release checkpoints",
    ),
    ("status",): (
        "indextts-job status runs/amharic --watch",
        "indextts-job status s3://bucket/runs/amharic --html amharic.html",
    ),
    ("doctor", "gpu"): ("indextts-job doctor gpu", "indextts-job doctor gpu s3://bucket/runs/amharic --json"),
    ("doctor", "data"): (
        "indextts-job doctor data train.jsonl::am --tokenizer checkpoints/bpe.model",
        "indextts-job doctor data train.jsonl::am --tokenizer T.tiktoken --repair drop-tails --output mended",
    ),
    ("doctor", "checkpoint"): (
        "indextts-job doctor checkpoint runs/amharic",
        "indextts-job doctor checkpoint latest.pth --config checkpoints/config.yaml",
    ),
    ("doctor", "run"): (
        "indextts-job doctor run run.yaml",
        "indextts-job doctor run run.yaml data.skip_bad_samples=true",
    ),
    ("doctor", "report"): (
        "indextts-job doctor report runs/amharic",
        "indextts-job doctor report s3://bucket/runs/amharic --output report.json",
    ),
    ("tokenizer", "extend"): (
        "indextts-job tokenizer extend texts.txt::am --base checkpoints/bpe.model --output tokenizers/am.model",
        "indextts-job tokenizer extend train.jsonl::am --base T.tiktoken --pieces 2000 --output am.tiktoken",
    ),
    ("tokenizer", "check"): (
        "indextts-job tokenizer check tokenizers/am.model --base checkpoints/bpe.model",
        "indextts-job tokenizer check am.tiktoken --base T.tiktoken --text texts.txt::am",
    ),
    ("simulate",): (
        "indextts-job simulate runs/amharic",
        "indextts-job simulate runs/amharic --intervals 100 500 1000",
    ),
    ("shard",): (
        "indextts-job shard train.jsonl::am --tokenizer checkpoints/bpe.model --output s3://bucket/data/am",
        "indextts-job shard train.jsonl::am --tokenizer T.tiktoken --output shards --dtype bfloat16",
    ),
    ("export",): (
        "indextts-job export runs/amharic --output-dir export",
        "indextts-job export runs/amharic --adapter-only --output-dir adapter",
        "indextts-job export adapter --base-checkpoint gpt.pth --tokenizer bpe.model --output-dir merged",
    ),
    ("completion",): (
        "indextts-job completion bash >~/.local/share/bash-completion/completions/indextts-job",
        "indextts-job completion zsh >~/.zfunc/_indextts-job",
    ),
    ("demo",): ("indextts-job demo", "indextts-job demo forgetting --folder demo_run"),
}


class KeepsExamples(argparse.HelpFormatter):
    """Breaks the lines of everything but examples, which are there to be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def every_command(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """The parsers of all commands that do something, by their words."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield path, parser
    for action in inner:
        for name, command in action.choices.items():
            yield from every_command(command, (*path, name))


def add_examples(parser: argparse.ArgumentParser, examples: Mapping[tuple[str, ...], Sequence[str]]) -> None:
    """Show the examples of each command below its help."""
    for path, command in every_command(parser):
        command.epilog = "\n".join(["examples:", *(f"  {example}" for example in examples.get(path, ()))])
        command.formatter_class = KeepsExamples
