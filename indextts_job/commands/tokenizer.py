"""`indextts-job tokenizer`: adds pieces for a new language, and checks an extended tokenizer."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from indextts_job import errors, terminal
from indextts_job.commands.parser import Commands, Parser
from indextts_job.commands.storage_options import add_storage_options, configure

if TYPE_CHECKING:
    from indextts_job.doctor.findings import Finding
    from indextts_job.tokenizer.loading import Tokenizer

PIECES = 24000
NEW_RANKS = 4000
"""More of them gain little: docs/data.md has the figures."""
RANKS_SUFFIX = ".tiktoken"
_TEXT_HELP = "manifests (.jsonl) or text files with a text per line"


def add(commands: Commands) -> None:
    """Add the command."""
    tokenizer = commands.add_parser("tokenizer", help="extend a tokenizer to a new language, and check an extension")
    actions = tokenizer.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    extend = actions.add_parser(
        "extend",
        help="append pieces for a new language; the base's pieces stay byte for byte",
        description="Learn pieces from text and append them to the base tokenizer. Base text encodes to the same ids "
        "as before; every new character gets a piece. The result is checked and described. A .tiktoken base of "
        "IndexTTS-2.5 gets its new ranks in front of the special tokens, whose ids move up.",
    )
    extend.add_argument("text", nargs="+", metavar="TEXT[::LANG]", help=_TEXT_HELP)
    _common_arguments(extend)
    extend.add_argument(
        "--output", required=True, help="where to write the .model, with a .vocab beside it, or the .tiktoken"
    )
    extend.add_argument(
        "--pieces",
        type=int,
        help=f"of the result, special tokens among them (default: {PIECES}; of a .tiktoken the base's and {NEW_RANKS})",
    )
    extend.add_argument("--force", action="store_true", help="write over an output that exists")
    extend.set_defaults(act=_extend)
    check = actions.add_parser(
        "check", help="whether a tokenizer is a sound extension of its base, and how well it reads a text"
    )
    check.add_argument("tokenizer", help="the extended .model or .tiktoken")
    check.add_argument("--text", nargs="+", default=[], metavar="TEXT[::LANG]", help=_TEXT_HELP)
    _common_arguments(check)
    check.set_defaults(act=_check)


def _common_arguments(parser: Parser) -> None:
    parser.add_argument("--base", default="checkpoints/bpe.model", help="the base tokenizer (default: %(default)s)")
    parser.add_argument(
        "--language", default="", help="of the texts that name none: its rules, and with a .tiktoken its token"
    )
    parser.add_argument(
        "--base-text", action="append", default=[], metavar="FILE", help="text of the base's languages, to compare"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    add_storage_options(parser)


def _extend(given: argparse.Namespace) -> int:
    from indextts_job.commands.findings import report
    from indextts_job.storage import files
    from indextts_job.tokenizer.corpus import read_corpus
    from indextts_job.tokenizer.loading import load_tokenizer, parse_tokenizer

    configure(given)
    if files.exists(given.output) and not given.force:
        raise errors.ConfigError(f"{given.output} exists. Give another --output, or --force to write over it.")

    def say(doing: str) -> None:
        if not given.json:
            terminal.say(terminal.one_line(doing), sys.stderr)

    # Before the texts are read, which takes minutes for a large corpus.
    base = load_tokenizer(given.base)
    _demand_fitting_name(base, given.output)
    corpus = read_corpus(given.text, given.language, say, _preparation(base))
    content = _extended(base, corpus, given.pieces, say)
    extended = parse_tokenizer(content, "extension")
    code = report(list(_examined(base, extended, corpus, _base_text(given, base))), as_json=given.json)
    # A tokenizer with a wrong id would spoil a training silently, so nothing is written.
    if code != errors.EXIT_OK:
        say(f"{given.output} was not written.")
        return code
    _write(given.output, extended)
    say(f"{extended.pieces} pieces written to {given.output}")
    return code


def _check(given: argparse.Namespace) -> int:
    from indextts_job.commands.findings import report
    from indextts_job.doctor.ranks import demand_same_kind
    from indextts_job.tokenizer.corpus import read_corpus
    from indextts_job.tokenizer.loading import load_tokenizer

    configure(given)
    base, extended = load_tokenizer(given.base), load_tokenizer(given.tokenizer)
    demand_same_kind(base, extended)
    corpus = read_corpus(given.text, given.language, prepare=_preparation(base)) if given.text else []
    return report(_examined(base, extended, corpus, _base_text(given, base)), as_json=given.json)


def _demand_fitting_name(base: "Tokenizer", output: str) -> None:
    if (base.ranks is None) == output.endswith(RANKS_SUFFIX):
        what, suffix = ("SentencePiece model", ".model") if base.ranks is None else ("file of ranks", RANKS_SUFFIX)
        raise errors.ConfigError(f"the base is a {what}, and so is its extension: name it {suffix} instead of {output}")


def _preparation(base: "Tokenizer") -> Callable[[str, str], str | None]:
    """What makes of a text and its language what a tokenizer of this kind reads."""
    from indextts_job.tokenizer.normalize import normalize
    from indextts_job.tokenizer.stock_text import prepare

    def prepare_or_refuse(text: str, language: str) -> str | None:
        try:
            return prepare(text, language)
        except ValueError as error:
            raise errors.ConfigError(str(error)) from error

    return normalize if base.ranks is None else prepare_or_refuse


def _extended(base: "Tokenizer", corpus: Sequence[str], pieces: int | None, say: Callable[[str], None]) -> bytes:
    from indextts_job.tokenizer.extend import extend
    from indextts_job.tokenizer.extend_ranks import extend_ranks

    if base.ranks is None:
        return extend(base.content, corpus, PIECES if pieces is None else pieces, say).content
    return extend_ranks(base, corpus, base.pieces + NEW_RANKS if pieces is None else pieces, say)


def _examined(
    base: "Tokenizer", extended: "Tokenizer", corpus: Sequence[str], base_text: Sequence[str]
) -> Iterator["Finding"]:
    from indextts_job.doctor.ranks import examine_ranks
    from indextts_job.doctor.tokenizer import examine_extension

    if base.ranks is None:
        return examine_extension(base.content, extended.content, corpus, base_text)
    return examine_ranks(base, extended, corpus, base_text)


def _base_text(given: argparse.Namespace, base: "Tokenizer") -> list[str]:
    from indextts_job.tokenizer.corpus import read_corpus

    return read_corpus(given.base_text, prepare=_preparation(base)) if given.base_text else []


def _write(output: str, extended: "Tokenizer") -> None:
    from indextts_job.storage.remote_storage import open_storage

    folder, _, name = output.rpartition("/")
    storage = open_storage(folder or ".")
    # The model comes last: it is the file whose presence counts, also for --force.
    if extended.ranks is None:
        storage.write(name.removesuffix(".model") + ".vocab", _vocabulary(extended.content))
    storage.write(name, extended.content)


def _vocabulary(content: bytes) -> bytes:
    """Piece and score of every id, one per line: the .vocab file of SentencePiece."""
    from indextts_job.tokenizer.extend import parse_model

    pieces = parse_model(content, "tokenizer").pieces
    return "".join(f"{piece.piece}\t{piece.score:g}\n" for piece in pieces).encode()
