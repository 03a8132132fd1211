"""Make tars and damage them: header fields, extended headers, links, sparse members, order, ends."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from random import Random

from tests.fuzz.mutations import INTERESTING_INTEGERS, mutate_bytes

UNIT = 512
NAMES = ("000001.jpg", "000001.cls", "000001.JPG", "a/b/c.x.png", "a/b/c.x.json", "._000001.jpg", ".hidden/x.jpg", "noending",
         "d/", "x" * 99 + ".png", "y" * 180 + ".png", "z/" * 90 + "q.jpg", "\u00e9.jpg", "..", "../../x.jpg", "/abs/x.jpg",
         "a b.jpg", "000002.jpg", "000002.cls", "000003.seg.png", "")  # fmt: skip
TYPES = (
    b"0",
    b"\0",
    b"1",
    b"2",
    b"3",
    b"5",
    b"7",
    b"x",
    b"g",
    b"L",
    b"K",
    b"S",
    b"M",
    b"D",
    b"V",
    b"N",
    b"A",
    b"E",
    b"X",
    b"Z",
    b"\xff",
)
FIELDS = {  # offset, length
    "name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "checksum": (148, 8), "type": (156, 1),
    "linkname": (157, 100), "magic": (257, 8), "prefix": (345, 155), "sparse": (386, 96), "extended": (482, 1),
    "realsize": (483, 12),
}  # fmt: skip
RECORDS = ("path", "size", "linkpath", "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.name", "GNU.sparse.realsize",
           "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.numblocks", "hdrcharset", "charset", "mtime", "comment",
           "uid")  # fmt: skip
VALUES = (
    "0",
    "1",
    "-1",
    "2.5",
    "000001.jpg",
    "x",
    "",
    "1e99",
    "nan",
    "99999999999999999999",
    "0,0",
    "0,4,8,4",
    "1,",
    "BINARY",
    "a\0b",
)


def make_tar(random: Random) -> list[bytes]:
    """Make a tar in parts: each member with its headers, then the end."""
    style = random.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    parts = [_member(random, style) for _ in range(random.choice((0, 1, 2, 3, 6)))]
    return [part for part in parts if part] + [
        random.choice((bytes(2 * UNIT), bytes(2 * UNIT), bytes(10240), bytes(UNIT), b""))
    ]


def _member(random: Random, style: int) -> bytes:
    info = tarfile.TarInfo(random.choice(NAMES))
    data = random.choice((b"7", b"", b'{"label": 3}', random.randbytes(random.choice((1, 511, 512, 513, 1500)))))
    info.type = random.choice((b"0", b"0", b"0", b"0", b"0", b"0", b"5", b"1", b"2", b"3"))
    info.size = len(data) if info.type == b"0" else 0
    info.linkname = random.choice(NAMES) if info.type in (b"1", b"2") else ""
    if style == tarfile.PAX_FORMAT and random.random() < 0.5:
        info.mtime = 1.5
        info.pax_headers = {random.choice(RECORDS): random.choice(VALUES) for _ in range(random.randrange(3))}
    try:
        header = info.tobuf(style, "utf-8", "surrogateescape")
    except ValueError:  # a name too long for the style
        return b""
    return header + (data + bytes(-len(data) % UNIT) if info.type == b"0" else b"")


def mutate(random: Random) -> bytes:
    parts = [bytearray(part) for part in make_tar(random)]
    for _ in range(random.choice((0, 0, 1, 1, 2, 3))):
        random.choice(PART_MUTATIONS)(parts, random)
    data = b"".join(parts)
    chance = random.random()
    if chance < 0.1:
        data = mutate_bytes(data, random, words=(b"\0" * 512, b"ustar\0" + b"00", b"ustar  \0", b"\x80", b"30 mtime=1.5\n"))
    elif chance < 0.15:
        data = data[: random.randrange(len(data) + 1)]
    elif chance < 0.18:
        data = random.choice((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"PK\3\4", b"\xff\xd8")) + data
    elif chance < 0.21:
        data += b"".join(make_tar(random))  # tars joined
    return data


def _field(parts: list[bytearray], random: Random) -> None:
    """Change one field of a header, with its checksum right unless that is the field."""
    part = random.choice(parts)
    if len(part) < UNIT:
        return
    at = UNIT * random.randrange(len(part) // UNIT) if random.random() < 0.2 else 0
    name = random.choice(("size", "size", "type", "type", *FIELDS))
    offset, length = FIELDS[name]
    part[at + offset : at + offset + length] = _value(name, length, random)
    if name != "checksum" or random.random() < 0.5:
        fix_checksum(part, at)


def _value(name: str, length: int, random: Random) -> bytes:
    if name == "type":
        return random.choice(TYPES)
    if name == "magic":
        return random.choice((b"ustar\x0000", b"ustar  \0", bytes(8), b"ustar\0  ", b"USTAR\x0000"))
    if name in ("name", "linkname", "prefix"):
        text = random.choice((random.choice(NAMES).encode(), random.randbytes(length), b"/" * length, b"a" * length))
        return text[:length].ljust(length, b"\0")
    if name == "sparse":
        numbers = [random.choice((0, 1, 512, 511, 1 << 20, 1 << 30, 8**11 - 1)) for _ in range(8)]
        return b"".join(f"{number:011o}\0".encode() for number in numbers)
    number = random.choice(INTERESTING_INTEGERS)
    texts = (f"{abs(number):o}".rjust(length - 1, "0").encode()[-length:], f"{abs(number):o} ".encode(), b" " * length, b"-1",
             b"9z", b"\x80" + (abs(number) % 256 ** (length - 1)).to_bytes(length - 1, "big"), b"\xff" * length)  # fmt: skip
    return random.choice(texts)[:length].ljust(length, b"\0")


def fix_checksum(part: bytearray, at: int) -> None:
    header = part[at : at + UNIT]
    if len(header) == UNIT:
        part[at + 148 : at + 156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)


def _extended(parts: list[bytearray], random: Random) -> None:
    """Make a PAX header, or a GNU long name, before a member."""
    if random.random() < 0.7:
        lines = []
        for _ in range(random.choice((1, 1, 2, 30))):
            body = f" {random.choice(RECORDS)}={random.choice(VALUES)}\n"
            length = len(body.encode()) + len(str(len(body.encode()) + 2))
            lines.append(f"{random.choice((length, length, length, length + 1, 0, 5, -1, 10**20))}{body}")
        body, kind = "".join(lines).encode(), random.choice((b"x", b"x", b"x", b"g", b"X"))
    else:
        body, kind = random.choice(NAMES).encode() + random.choice((b"\0", b"")), random.choice((b"L", b"K"))
    header = bytearray(tarfile.TarInfo("././@PaxHeader").tobuf(tarfile.USTAR_FORMAT))
    header[156:157] = kind
    size = random.choice((len(body), len(body), len(body), 0, 1, 511, 10**6))
    header[124:136] = b"%011o\0" % size
    fix_checksum(header, 0)
    times = random.choice((1, 1, 1, 2, 40, 1500))
    index = random.randrange(len(parts))
    parts[index:index] = [header + body + bytes(-len(body) % UNIT)] * times


def _sparse(parts: list[bytearray], random: Random) -> None:
    """Make a sparse member of GNU's old format."""
    header = bytearray(tarfile.TarInfo("000009.png").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    pieces = sorted(random.choice((0, 512, 1024, 4096)) for _ in range(random.randrange(5)))
    table = b"".join(b"%011o\0%011o\0" % (index, random.choice((0, 1, 512))) for index in pieces[:4])
    header[386 : 386 + len(table)] = table
    header[482:483] = random.choice((b"\0", b"\0", b"\1"))
    header[483:495] = b"%011o\0" % random.choice((0, 4096, 8192, 1 << 29, 8**11 - 1))
    header[124:136] = b"%011o\0" % (512 * len(pieces))
    fix_checksum(header, 0)
    parts.insert(random.randrange(len(parts)), header + bytes(512 * len(pieces)))


def _order(parts: list[bytearray], random: Random) -> None:
    index, other = (random.randrange(len(parts)) for _ in range(2))
    kind = random.randrange(3)
    if kind == 0:
        parts[index], parts[other] = parts[other], parts[index]
    elif kind == 1:
        parts.insert(index, bytearray(parts[other]))
    else:
        parts.insert(index, bytearray(random.choice((bytes(UNIT), bytes(3 * UNIT), b"\0" * 100, b"junk"))))


PART_MUTATIONS: tuple[Callable[[list[bytearray], Random], None], ...] = (
    _field,
    _field,
    _field,
    _field,
    _extended,
    _sparse,
    _order,
)


def has_gnu_prefix(data: bytes) -> bool:
    """Return whether a GNU header has times where others keep the first folders, which tarfile takes them for."""
    return any(
        data[at + 257 : at + 265] == b"ustar  \0" and data[at + 345 : at + 346].strip(b"\0") for at in range(0, len(data), UNIT)
    )


def reference(data: bytes) -> list[tuple[str, bytes]] | None:
    """Return names and bytes of all regular files as Python's own reader sees them, links followed; None where it refuses."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            found = []
            for info in tar:
                if not info.isreg() and info.size:  # its bytes may follow it or not, and readers differ
                    return None
                if info.isfile() or info.islnk() or info.issym():
                    file = tar.extractfile(info)
                    found.append((info.name, b"" if file is None else file.read()))
            infos = tar.getmembers()
            if len({info.name for info in infos}) < len(infos) and any(not info.isreg() for info in infos):
                return (
                    None  # a link to a name that comes twice: here the last one counts, in our reader the last file before it
                )
            at = tar.offset  # where it stopped: at a damaged header it does so without a message
            return found if not data[at : at + UNIT].strip(b"\0") else None
    except (tarfile.TarError, ValueError, KeyError, EOFError, OverflowError, RecursionError, OSError, MemoryError):
        return None
