"""Remove secrets from text before it is stored, printed or reported. Pure: text in, text out.

Credentials reach this program inside URLs (`https://user:password@host`, signed links) and inside the error messages of
storage clients.
"""

import re
from collections.abc import Mapping
from typing import Any

STRUCK_OUT = "***"
_NAMES = (
    r"(?:X-(?:Amz|Goog|Ms)-(?:Signature|Credential|Security-Token|SignedHeaders)|sig|signature|SharedAccessSignature"
    r"|AWSAccessKeyId|pwd|cookie|authorization|passphrase|passwort|credentials?"
    r"|[a-z0-9_.-]{0,60}(?:secret|password|passwd|api[_-]?key|access[_-]?key|private[_-]?key|account[_-]?key)[a-z0-9_-]{0,60}"
    r"|(?:[a-z0-9_.-]{0,60}[_.-])?token)"
)
"""Names of settings, variables, headers and parameters whose value is a secret. `tokens`, the plural, is a count."""
_VALUE = r"""(?:\\?"(?:[^"\\]|\\[^"])*\\?"|'[^']*'|(?:Bearer|Basic|Token)\s+[^\s"',;]+|[^\s"',;}\]]+)"""
"""A value: in quotes, a header's value with its scheme, or one word."""
_HARMLESS = r"(?!(?:null|None|true|false|\d{1,9})(?![^\s\"',;}\]&]))"
"""Does not match before values that are no secrets, as in `start_text_token: 0`."""
# Repetitions at the start of a pattern are bounded: otherwise the time grows with the square of the text's length.
_SUBSTITUTIONS: tuple[tuple[re.Pattern[str], str], ...] = (
    # Private keys in PEM armour.
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), STRUCK_OUT),
    # user:password@ of a URL. The password may contain @ and :, so everything up to the last @ is removed.
    (re.compile(r"([a-z][a-z0-9+.-]{0,30}:\\?/\\?/)[^\s\"'<>/?#]*@", re.IGNORECASE), rf"\1{STRUCK_OUT}@"),
    # A password with / ? or # that should have been escaped: user:…@host.
    (
        re.compile(r"([a-z][a-z0-9+.-]{0,30}:\\?/\\?/)[^\s\"'<>/?#:@]{1,256}:[^\s\"'<>@]{1,256}@", re.IGNORECASE),
        rf"\1{STRUCK_OUT}@",
    ),
    # The whole query of a URL, because the names of the parameters that sign it differ between providers.
    (
        re.compile(r"([a-z][a-z0-9+.-]{0,30}://[^\s\"'<>?#]{0,4096})(?:\?|%3F)[^\s\"#]+", re.IGNORECASE),
        rf"\1?{STRUCK_OUT}",
    ),
    # name=value, name: value, "name": "value", --name value.
    (
        re.compile(
            rf"""((?<![a-z0-9_])\\?["']?{_NAMES}\\?["']?\s*[=:]\s*\[?(?:b(?=[\"']))?){_HARMLESS}{_VALUE}""",
            re.IGNORECASE,
        ),
        rf"\1{STRUCK_OUT}",
    ),
    (re.compile(rf"(--{_NAMES}\s+){_HARMLESS}{_VALUE}", re.IGNORECASE), rf"\1{STRUCK_OUT}"),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9+/=._~-]{8,}", re.IGNORECASE), rf"\1 {STRUCK_OUT}"),
    # Tokens that are known by their form: AWS, GitHub, GitLab, Hugging Face, Google, Slack, npm, JSON web tokens.
    (
        re.compile(
            r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
            r"|hf_[A-Za-z0-9]{20,}|AIza[0-9A-Za-z_-]{30,}|ya29\.[0-9A-Za-z_-]{20,}|xox[a-z]-[\w-]{10,}|npm_[A-Za-z0-9]{30,}"
            r"|sk-[\w-]{30,}|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*)"
        ),
        STRUCK_OUT,
    ),
)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)


def redacted(text: str) -> str:
    """A text with `***` in place of every secret."""
    for pattern, replacement in _SUBSTITUTIONS:
        text = pattern.sub(replacement, text)
    return text


def redacted_values(value: Any) -> Any:  # noqa: ANN401  # plain JSON values
    """Plain values with `***` in place of secrets inside texts, and of every text whose key names a secret."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: _of_key(key, entry) for key, entry in value.items()}
    return [redacted_values(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _of_key(key: Any, entry: Any) -> Any:  # noqa: ANN401
    if isinstance(key, str) and isinstance(entry, str) and entry and _SECRET_NAME.fullmatch(key):
        return STRUCK_OUT
    return redacted_values(entry)
