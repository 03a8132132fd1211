"""Check a plain web server with shards: whether it serves ranges of bytes, and how large and how old a file is.

One byte is requested. The answer contains all of it, through redirects and also where a server refuses HEAD, compresses its
answers or sends them in chunks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fsspec.asyn import sync
from fsspec.config import conf

from pipeline.errors import DataError

CONNECT_S = 15.0
SILENT_S = 60.0  # limit without a byte of the answer
LOOK_S = 90.0  # limit for one byte, with redirects
TOTAL = re.compile(r"bytes (?:\*|0-0)/(\d+)")
NEEDS = "serve its files with a server that knows byte ranges (nginx, Apache and `rclone serve http` do), or download them"
CLOSED_TAGS = ("table", "pre", "ul")  # elements that HTML does not let end by themselves, unlike body and html


@dataclass(frozen=True)
class WebFile:
    """Describes a file as a server reports it."""

    num_bytes: int
    version: str  # changes with the content, as far as the server reports it


def is_web(path: str) -> bool:
    """Return whether a path is the URL of a web server."""
    return path.startswith(("http://", "https://"))


def client_options(protocol: str) -> dict[str, Any]:
    """Return how fsspec is to request files of web servers: unchanged, and without waiting for ever.

    Raises:
        ImportError: aiohttp is not installed.
    """
    from aiohttp import ClientTimeout

    given = conf.get(protocol, {}).get("client_kwargs", {})  # from FSSPEC_HTTPS: credentials, for example
    timeout = ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S)
    headers = {"Accept-Encoding": "identity", **given.get("headers", {})}
    return {"client_kwargs": {"timeout": timeout, **given, "headers": headers}}


def look_at(filesystem: Any, url: str) -> WebFile:
    """Return size and version of a file.

    Raises:
        FileNotFoundError: no such file.
        DataError: the server's files cannot be read in parts.
        Exception: whatever aiohttp raises.
    """
    seen: Any = sync(filesystem.loop, _look_at, filesystem, url, timeout=LOOK_S)
    return seen


async def _look_at(filesystem: Any, url: str) -> WebFile:
    session = await filesystem.set_session()
    async with session.get(filesystem.encode_url(url), headers={"Range": "bytes=0-0"}) as answer:
        status, headers = answer.status, answer.headers
        total = TOTAL.fullmatch(headers.get("Content-Range", ""))
        is_empty = (status == 416 and total is not None) or (status == 200 and headers.get("Content-Length") == "0")
        if not is_empty:
            if status == 404:
                raise FileNotFoundError(url)
            answer.raise_for_status()
    version = "|".join(headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-MD5"))
    if is_empty:
        return WebFile(0, version)  # it has no byte
    if status == 200 and headers.get("Content-Type", "").startswith("text/html"):
        raise DataError(f"{url}: the server answers with a web page instead of the file (a page to log in, perhaps)")
    if status != 206 or total is None:
        raise DataError(f"{url}: the server sends the whole file where a part is asked for; {NEEDS}")
    if headers.get("Content-Encoding", "identity") not in ("", "identity"):
        raise DataError(f"{url}: the server compresses what it sends ({headers['Content-Encoding']}); {NEEDS}")
    return WebFile(int(total[1]), f"{total[1]}|{version}")


def check_listing(filesystem: Any, url: str) -> None:
    """Refuse a truncated listing: a server that closes the connection too soon need not look like one that fails.

    Raises:
        DataError: some element of the page has no end.
    """
    text: Any = sync(filesystem.loop, _read_page, filesystem, url, timeout=LOOK_S)
    page = text.lower()
    for tag in CLOSED_TAGS:
        if re.search(rf"<{tag}[\s>]", page) and f"</{tag}" not in page:
            raise DataError(f"{url}: the server's listing ends in the middle (<{tag}> has no end), so shards would be missing")


async def _read_page(filesystem: Any, url: str) -> str:
    """Return a page's text; empty for what is not a page."""
    session = await filesystem.set_session()
    text = ""
    async with session.get(filesystem.encode_url(url)) as answer:
        if answer.status == 404:
            raise FileNotFoundError(url)
        answer.raise_for_status()
        if answer.content_type == "text/html":
            text = await answer.text(errors="replace")
    return text
