"""Finds the entry of the troubleshooting page (docs/troubleshooting.md) that explains a message."""

PAGE = "docs/troubleshooting.md"

ENTRIES: dict[str, tuple[tuple[str, ...], ...]] = {
    "unknown-key": (("unknown key",), ("Did you mean",)),
    "not-found": (("not found: ", "seen from"),),
    "leads-away-from-where-its-manifest-lies": (("leads away from where its manifest lies",),),
    "on-this-machine-if-the-manifest-comes": ((" on this machine. If the manifest comes from another one",),),
    "it-has-backslashes": (("It has backslashes",),),
    "expected-a-regular-file": (("expected a regular file",),),
    "bad-samples": (("bad samples",),),
    "again-in-line": (("again in line",),),
    "chains-several-file-systems": (("chains several file systems",),),
    "holds-weights-that-are-no-numbers": (("holds weights that are no numbers",),),
    "training-needs-pairs": (("training needs pairs",),),
    "do-not-begin-with-the": (("do not begin with the", "pieces the checkpoint was trained with"),),
    "has-no-kernels-for": (("has no kernels for",),),
    "torch-sees-no-gpu-here": (("torch sees no GPU here",),),
    "install-it-pip-install": (("Install it: pip install", "indextts-job[prepare]"),),
    "utterances-have-no-speaker": (("utterances have no speaker",),),
    "does-not-fit-its-encoder": (("does not fit its encoder",),),
    "prepared-with-the-conditioning-encoders-of-another": (
        ("prepared with the conditioning encoders of another checkpoint",),
    ),
    "another-process-of-this-machine-works-as": (("another process of this machine works as",),),
    "max-refused-is": (("max_refused is",),),
    "check-credentials-and-permissions": (("Check credentials and permissions",),),
    "the-clock-of-this-machine-is-off": (("the clock of this machine is off",),),
    "the-longest-sample-has": (("the longest sample has",),),
    "settings-that-belong-to-the-run": (("settings that belong to the run",),),
    "they-change-the-update-of-every-step": (("They change the update of every step",),),
    "the-dataset-is-not-the-one-of": (("the dataset is not the one of",),),
    "already-holds": (("already holds", "checkpoints"),),
    "passed-over-a-checkpoint": (("passed over a checkpoint",),),
    "none-of-its": (("none of its", "checkpoints can be read"),),
    "the-state-that-was-loaded-is-not": (("the state that was loaded is not the one that was saved",),),
    "base-rows-hold-trained-values": (("base rows hold trained values",),),
    "the-ranks-would-start-from-different-steps": (("the ranks would start from different steps",),),
    "the-newer-attempt-goes-on": (("the newer attempt goes on",), ("two jobs were started for the run",)),
    "is-not-finite": (("is not finite",),),
    "do-not-fit-the-memory-of": (("do not fit the memory of",),),
    "does-not-fit-the-memory-of": (("does not fit the memory of",),),
    "the-goal": (("the goal", "is missed"),),
    "has-risen-by": (("has risen by", "nats per code above the base"),),
    "lost-rank": (("lost rank",), ("lost the others",)),
    "if-the-next-save-fails-too-the": (("if the next save fails too, the attempt ends",),),
    "ran-out-of-memory-with-micro-batches": (("ran out of memory with micro-batches of up to",),),
    "because-an-earlier-attempt-ran-out-of": (("because an earlier attempt ran out of memory",),),
    "blocks-are-not-compiled": (("blocks are not compiled",),),
    "learns-the-training-set-by-heart": (("learns the training set by heart",),),
    "silent-last-heard-of": (("silent: last heard of",),),
    "killed-its-process-is-gone": (("killed: its process is gone",),),
    "no-run-here-it-holds-no-attempts": (("no run here; it holds no attempts and no checkpoints",),),
    "the-next-pod-starts": (("the next pod starts ",),),
    "does-not-answer-pod": ((" does not answer. Pod ",),),
    "the-training-loss-has-been-more": (("the training loss has been more than",),),
}
"""Anchors of the page, and the messages that each explains: a message has all the words of one tuple. The page is the
source; `make goldens` writes this table."""


def entry_of(message: str) -> str:
    """A sentence that leads to the entry that explains a message, to be put behind it; empty when no entry does."""
    explained = ((anchor, phrases) for anchor, alternatives in ENTRIES.items() for phrases in alternatives)
    for anchor, phrases in explained:
        if all(words in message for words in phrases):
            return f"{'' if message.endswith('.') else '.'} More in {PAGE}#{anchor}"
    return ""
