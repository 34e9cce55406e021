"""`indextts-job tokenizer`: adds pieces for a new language, and checks an extended tokenizer."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import sys

from indextts_job import errors, terminal
from indextts_job.commands.parser import Commands, Parser
from indextts_job.commands.storage_options import add_storage_options, configure

PIECES = 24000
_TEXT_HELP = "manifests (.jsonl) or text files with a text per line"


def add(commands: Commands) -> None:
    """Add the command."""
    tokenizer = commands.add_parser("tokenizer", help="extend a tokenizer to a new language, and check an extension")
    actions = tokenizer.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    extend = actions.add_parser(
        "extend",
        help="append pieces for a new language; the base's pieces stay byte for byte",
        description="Learn pieces from text and append them to the base tokenizer. Base text encodes to the same ids "
        "as before; every new character gets a piece. The result is checked and described.",
    )
    extend.add_argument("text", nargs="+", metavar="TEXT[::LANG]", help=_TEXT_HELP)
    _common_arguments(extend)
    extend.add_argument("--output", required=True, help="where to write the .model; a .vocab is written beside it")
    extend.add_argument("--pieces", type=int, default=PIECES, help=f"of the result (default: {PIECES})")
    extend.add_argument("--force", action="store_true", help="write over an output that exists")
    extend.set_defaults(act=_extend)
    check = actions.add_parser(
        "check", help="whether a tokenizer is a sound extension of its base, and how well it reads a text"
    )
    check.add_argument("tokenizer", help="the extended .model")
    check.add_argument("--text", nargs="+", default=[], metavar="TEXT[::LANG]", help=_TEXT_HELP)
    _common_arguments(check)
    check.set_defaults(act=_check)


def _common_arguments(parser: Parser) -> None:
    parser.add_argument("--base", default="checkpoints/bpe.model", help="the base tokenizer (default: %(default)s)")
    parser.add_argument("--language", default="", help="of the texts that name none: am selects Amharic's rules")
    parser.add_argument(
        "--base-text", action="append", default=[], metavar="FILE", help="text of the base's languages, to compare"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    add_storage_options(parser)


def _extend(given: argparse.Namespace) -> int:
    from indextts_job.commands.findings import report
    from indextts_job.doctor.tokenizer import examine_extension
    from indextts_job.storage import files
    from indextts_job.storage.remote_storage import open_storage
    from indextts_job.tokenizer.corpus import read_corpus
    from indextts_job.tokenizer.extend import extend
    from indextts_job.tokenizer.loading import load_tokenizer

    configure(given)
    if files.exists(given.output) and not given.force:
        raise errors.ConfigError(f"{given.output} exists. Give another --output, or --force to write over it.")

    def say(doing: str) -> None:
        if not given.json:
            terminal.say(terminal.one_line(doing), sys.stderr)

    # Before the texts are read, which takes minutes for a large corpus.
    base = load_tokenizer(given.base).content
    corpus = read_corpus(given.text, given.language, say)
    extended = extend(base, corpus, given.pieces, say)
    findings = list(examine_extension(base, extended.content, corpus, _base_text(given)))
    code = report(findings, as_json=given.json)
    # A tokenizer with a wrong id would spoil a training silently, so nothing is written.
    if code != errors.EXIT_OK:
        say(f"{given.output} was not written.")
        return code
    folder, _, name = given.output.rpartition("/")
    storage = open_storage(folder or ".")
    # The model comes last: it is the file whose presence counts, also for --force.
    storage.write(name.removesuffix(".model") + ".vocab", _vocabulary(extended.content))
    storage.write(name, extended.content)
    say(f"{extended.pieces} pieces written to {given.output}")
    return code


def _check(given: argparse.Namespace) -> int:
    from indextts_job.commands.findings import report
    from indextts_job.doctor.tokenizer import examine_extension
    from indextts_job.tokenizer.corpus import read_corpus
    from indextts_job.tokenizer.loading import load_tokenizer

    configure(given)
    base, extended = load_tokenizer(given.base).content, load_tokenizer(given.tokenizer).content
    corpus = read_corpus(given.text, given.language) if given.text else []
    return report(examine_extension(base, extended, corpus, _base_text(given)), as_json=given.json)


def _base_text(given: argparse.Namespace) -> list[str]:
    from indextts_job.tokenizer.corpus import read_corpus

    return read_corpus(given.base_text) if given.base_text else []


def _vocabulary(content: bytes) -> bytes:
    """Piece and score of every id, one per line: the .vocab file of SentencePiece."""
    from indextts_job.tokenizer.extend import parse_model

    pieces = parse_model(content, "tokenizer").pieces
    return "".join(f"{piece.piece}\t{piece.score:g}\n" for piece in pieces).encode()
