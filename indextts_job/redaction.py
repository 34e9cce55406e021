"""Secrets taken out of what is written down or shown. Pure: text in, text out.

Credentials reach this program inside URLs (`https://user:password@host`, signed links) and inside the messages of
clients. Everything that is stored in a run, printed or reported passes through here.
"""

import re
from collections.abc import Mapping
from typing import Any

STRUCK_OUT = "***"
# Repetitions at the beginning of a pattern are bounded: without bounds the time grows with the square of a text.
_SUBSTITUTIONS: tuple[tuple[re.Pattern[str], str], ...] = (
    # Private keys in PEM armour.
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), STRUCK_OUT),
    # user:password@ of a URL; the password may hold @ and :, the host cannot.
    (re.compile(r"([a-z][a-z0-9+.-]{0,30}://)[^\s\"'<>/?#]*@", re.IGNORECASE), rf"\1{STRUCK_OUT}@"),
    # The whole query of a URL: which of its parameters sign it differs by provider.
    (re.compile(r"([a-z][a-z0-9+.-]{0,30}://[^\s\"'<>?#]{0,4096})\?[^\s\"'<>#]+", re.IGNORECASE), rf"\1?{STRUCK_OUT}"),
    # Parameters of signed links that stand alone, and settings whose name says what they are, as name=value, name:
    # value or "name": "value".
    (
        re.compile(
            r"((?<![a-z])(?:X-(?:Amz|Goog|Ms)-(?:Signature|Credential|Security-Token|SignedHeaders)|sig|signature"
            r"|AWSAccessKeyId|[a-z0-9_-]{0,60}(?:secret|password|passwd|api[_-]?key|access[_-]?key|private[_-]?key"
            r"|auth[_-]?token|access[_-]?token|session[_-]?token|security[_-]?token|sas[_-]?token|account[_-]?key)"
            r"[a-z0-9_-]*)"
            r"\\?[\"']?\s*[=:]\s*\\?[\"']?)(?!\s|null|None|true|false)[^\s\"'&,;}\\]+",
            re.IGNORECASE,
        ),
        rf"\1{STRUCK_OUT}",
    ),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9+/=._~-]{8,}", re.IGNORECASE), rf"\1 {STRUCK_OUT}"),
    # Tokens that are known by their form: AWS, GitHub, Hugging Face, Google, JSON web tokens.
    (
        re.compile(
            r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|hf_[A-Za-z0-9]{20,}|AIza[0-9A-Za-z_-]{30,}"
            r"|ya29\.[0-9A-Za-z_-]{20,}|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*)"
        ),
        STRUCK_OUT,
    ),
)


def redacted(text: str) -> str:
    """A text without the secrets in it: `***` stands in their place."""
    for pattern, replacement in _SUBSTITUTIONS:
        text = pattern.sub(replacement, text)
    return text


def redacted_values(value: Any) -> Any:  # noqa: ANN401  # plain JSON values
    """The same for plain values: every string in them, keys left alone."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted_values(entry) for key, entry in value.items()}
    return [redacted_values(entry) for entry in value] if isinstance(value, (list, tuple)) else value
