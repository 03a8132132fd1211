"""Detect credentials in text: a configuration that contains one is refused, and printed or stored text is redacted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

HOW_TO_GIVE = (
    "A configuration is written into the run folder and to W&B, so it may hold none; give it in the environment: "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) for s3://, "
    'FSSPEC_HTTPS=\'{"client_kwargs": {"headers": {"Authorization": "..."}}}\' for https://, '
    "FSSPEC_<PROTOCOL>_<SETTING>=... for any other, and in a `pipe:` command write $NAME for the variable NAME"
)
HIDDEN = "***"
# Each pattern has the credential as group `secret`. A text that starts with `$` names a shell variable: users shall give one
# so.
_VALUE = r"(?P<secret>(?!\$|\*\*\*)[^\s&#;'\"<>]+)"
_PATTERNS = {
    "a password in a URL": re.compile(
        r"[a-z][a-z0-9+.-]*://[^\s/?#@:'\"]*:(?P<secret>(?!\$|\*\*\*)[^\s/?#@'\"]+)@", re.IGNORECASE
    ),
    "a credential in a URL's query": re.compile(
        r"[?&;](?:[a-z_-]*token|[a-z_-]*signature|sig|x-amz-credential|x-goog-credential|awsaccesskeyid|[a-z_-]*key|"
        r"[a-z_-]*secret|password|passwd|pwd|auth|authorization)=" + _VALUE,
        re.IGNORECASE,
    ),
    "an authorization header": re.compile(
        r"(?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?+" + _VALUE, re.IGNORECASE
    ),
    "a credential on a command line": re.compile(
        r"--?(?:password|passwd|token|secret|api-?key|access-?key|secret-?key)[ =]" + _VALUE, re.IGNORECASE
    ),
    "a user and password for curl": re.compile(r"\bcurl\b[^|;]*?\s(?:-u|--user)[ =]?['\"]?[^\s:$'\"]+:" + _VALUE),
    "a key": re.compile(
        r"(?P<secret>\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bhf_[A-Za-z0-9]{30,}"
        r"|\bglpat-[\w-]{20,}|\bAIza[\w-]{35})"
    ),
}


def find_credential(text: str) -> str | None:
    """Return the kind of credential that a text holds, or None."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(text)), None)


def describe_credential(values: Any) -> str | None:
    """Return where nested mappings and lists hold a credential, and what to do instead; None where they hold none."""
    for key, text in _strings_in(values):
        kind = find_credential(text)
        if kind is not None:
            return f"{key} holds {kind}: {redact(text)!r}. {HOW_TO_GIVE}"
    return None


def _strings_in(values: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted key and text of every string."""
    if isinstance(values, str):
        yield path, values
    elif isinstance(values, dict | list):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in items:
            yield from _strings_in(value, f"{path}.{key}" if path else str(key))


def redact(text: str) -> str:
    """Return the text with every credential hidden."""
    for pattern in _PATTERNS.values():
        text = pattern.sub(_hide, text)
    return text


def _hide(match: re.Match[str]) -> str:
    start, end = match.span("secret")
    return match.string[match.start() : start] + HIDDEN + match.string[end : match.end()]
