"""Make JPEGs and damage them: mutations know markers, tables, frames and scans."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tests.fuzz.mutations import INTERESTING_BYTES, mutate_bytes

SOI, EOI, SOS, DQT, DHT, DRI, DAC, COM, APP0 = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD, 0xCC, 0xFE, 0xE0
FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xCB)
SIZES = (0, 1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 255, 256, 257, 4096, 10_000, 32_767, 65_500, 65_501, 65_535)
SAMPLINGS = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4), (4, 2), (2, 4), (3, 1), (1, 3), (3, 2))
LARGE_FILE = 200_000  # bytes; mutations that copy stop here


@dataclass
class Segment:
    """Holds a marker, its payload without the length, and what follows up to the next marker (a scan's coded data)."""

    marker: int
    payload: bytes | None  # None: the marker has no payload
    data: bytes = b""
    length_error: int = 0

    def encode(self) -> bytes:
        head = bytes((0xFF, self.marker))
        if self.payload is None:
            return head + self.data
        length = (len(self.payload) + 2 + self.length_error) & 0xFFFF
        return head + length.to_bytes(2, "big") + self.payload + self.data


Segments = list[Segment]


def make_seeds(encoder: Path) -> list[bytes]:
    """Make whole JPEGs of 8 to 64 pixels: every coding, sampling, colour space and kind of metadata that libraries write."""
    seeds: list[bytes] = []
    random = Random(0)
    for number in range(72):
        height, width = random.randint(8, 64), random.randint(8, 64)
        y, x = np.mgrid[0:height, 0:width]
        smooth = np.stack([128 + 90 * np.sin(y / 5 + p) * np.cos(x / 7 - p) for p in (0, 2, 4)], -1)
        noise = np.random.default_rng(number).normal(0, 10, smooth.shape)
        image = Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))
        image = image.convert(("RGB", "RGB", "RGB", "L", "CMYK", "RGB")[number % 6])
        options: dict[str, object] = {"quality": random.choice((10, 50, 90, 100)), "progressive": number % 2 == 0}
        if image.mode == "RGB":
            options["subsampling"] = number // 6 % 3 if number % 13 else 0
        if number % 5 == 0:
            options["restart_marker_blocks"] = random.choice((1, 2, 5))
        if number % 7 == 0:
            exif = Image.Exif()
            exif[0x0112] = number // 7 % 8 + 1  # orientation
            options["exif"] = exif
        if number % 11 == 0:
            options["icc_profile"] = bytes(range(200))
        if number % 13 == 0 and image.mode == "RGB":
            options["keep_rgb"] = True
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", optimize=number % 3 == 0, **options)
        seeds.append(buffer.getvalue())
    for number in range(36):  # width, height, components, h, v, arithmetic, progressive, restart interval
        words = (random.randint(8, 64), random.randint(8, 64), 3 if number % 4 else 1, *SAMPLINGS[number % len(SAMPLINGS)],
                 number % 2, number // 2 % 2, number % 3)  # fmt: skip
        done = subprocess.run([str(encoder), *map(str, words)], capture_output=True, check=True)
        seeds.append(done.stdout)
    return seeds


def parse(data: bytes) -> Segments:
    """Return the segments of a whole JPEG."""
    segments: Segments = []
    offset = 0
    while offset < len(data):
        marker = data[offset + 1]
        offset += 2
        if marker in (SOI, EOI):
            segments.append(Segment(marker, None))
            continue
        length = int.from_bytes(data[offset : offset + 2], "big")
        payload = data[offset + 2 : offset + length]
        offset += length
        end = offset
        if marker == SOS:
            while not (data[end] == 0xFF and data[end + 1] != 0 and not 0xD0 <= data[end + 1] <= 0xD7):
                end += 1
        segments.append(Segment(marker, payload, data[offset:end]))
        offset = end
    return segments


def encode(segments: Sequence[Segment]) -> bytes:
    return b"".join(segment.encode() for segment in segments)


def mutate(seeds: Sequence[Segments], random: Random) -> bytes:
    """Return a JPEG with one to four things wrong with it, or none."""
    segments = [Segment(s.marker, s.payload, s.data) for s in random.choice(seeds)]
    for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3, 4))):
        random.choice(SEGMENT_MUTATIONS)(segments, seeds, random)
    data = encode(segments)
    chance = random.random()
    if chance < 0.1:
        data = mutate_bytes(data, random)
    elif chance < 0.14:
        data = data[: random.randrange(len(data) + 1)] + random.choice((b"", b"\xff\xd9", b"\xff", b"\xff\xd9" * 3))
    elif chance < 0.17:
        data += encode(random.choice(seeds))
    elif chance < 0.19:
        data += random.randbytes(random.choice((1, 100, 1022, 1023, 1024, 1025)))
    return data


def _of(segments: Segments, markers: Sequence[int], random: Random) -> Segment | None:
    found = [segment for segment in segments if segment.marker in markers and segment.payload]
    return random.choice(found) if found else None


def _poke(payload: bytes, offset: int, value: int) -> bytes:
    return payload[:offset] + bytes((value & 0xFF,)) + payload[offset + 1 :] if offset < len(payload) else payload


def _frame_size(segments: Segments, seeds: Sequence[Segments], random: Random) -> None:
    frame = _of(segments, FRAMES, random)
    if frame is None or frame.payload is None or len(frame.payload) < 5:
        return
    offset = random.choice((1, 3))
    old = int.from_bytes(frame.payload[offset : offset + 2], "big")
    # Large sizes cost seconds and are rare: other mutations matter more.
    new = (
        random.choice(SIZES)
        if random.random() < 0.02
        else random.choice((old + random.randint(-17, 17), random.choice(SIZES[:15])))
    )
    frame.payload = frame.payload[:offset] + max(0, new).to_bytes(2, "big") + frame.payload[offset + 2 :]


def _frame_field(segments: Segments, seeds: Sequence[Segments], random: Random) -> None:
    frame = _of(segments, FRAMES, random)
    if frame is None or frame.payload is None or len(frame.payload) < 9:
        return
    kind = random.randrange(6)
    component = 6 + 3 * random.randrange(max(1, (len(frame.payload) - 6) // 3))
    if kind == 0:
        frame.payload = _poke(frame.payload, 0, random.choice((0, 2, 8, 8, 12, 16)))  # precision
    elif kind == 1:
        frame.payload = _poke(frame.payload, 5, random.choice((0, 1, 2, 3, 4, 5, 255)))
    elif kind == 2:
        frame.payload = _poke(frame.payload, component, random.randrange(5))  # id
    elif kind == 3:
        frame.payload = _poke(
            frame.payload,
            component + 1,
            random.choice((0x00, 0x11, 0x12, 0x14, 0x21, 0x22, 0x24, 0x31, 0x41, 0x42, 0x44, 0x55)),
        )
    elif kind == 4:
        frame.payload = _poke(frame.payload, component + 2, random.choice((0, 1, 2, 3, 4, 255)))  # table
    else:
        frame.payload += frame.payload[-3:]
        frame.payload = _poke(frame.payload, 5, frame.payload[5] + 1)


def _frame_kind(segments: Segments, seeds: Sequence[Segments], random: Random) -> None:
    if frame := _of(segments, FRAMES, random):
        frame.marker = random.choice(FRAMES)


def _table(segments: Segments, seeds: Sequence[Segments], random: Random) -> None:
    table = _of(segments, (DQT, DHT, DAC, DRI), random)
    if table is None or not table.payload:
        return
    kind = random.randrange(5)
    if kind == 0:
        table.payload = _poke(table.payload, 0, random.choice((0, 1, 2, 3, 4, 0x10, 0x11, 0x13, 0x14, 0x20, 0xFF)))
    elif kind == 1:
        table.payload = _poke(table.payload, random.randrange(len(table.payload)), random.choice(INTERESTING_BYTES))
    elif kind == 2 and len(table.payload) > 17:
        table.payload = _poke(table.payload, 1 + random.randrange(16), random.randrange(20))  # Huffman counts
    elif kind == 3:
        table.payload = table.payload[: random.randrange(len(table.payload) + 1)]
    else:
        other = _of(random.choice(seeds), (table.marker,), random)
        table.payload = other.payload if other else table.payload


def _scan_field(segments: Segments, seeds: Sequence[Segments], random: Random) -> None:
    scan = _of(segments, (SOS,), random)
    if scan is None or not scan.payload:
        return
    kind = random.randrange(5)
    if kind == 0:
        scan.payload = _poke(scan.payload, 0, random.choice((0, 1, 2, 3, 4, 5, 255)))
    elif kind == 1:
        scan.payload = _poke(
            scan.payload, random.randrange(len(scan.payload)), random.choice((0, 1, 2, 3, 0x10, 0x11, 0x33, 0xFF))
        )
    elif kind == 2:
        scan.payload = _poke(scan.payload, len(scan.payload) - 3, random.choice((0, 1, 5, 6, 62, 63, 64)))  # first coefficient
    elif kind == 3:
        scan.payload = _poke(scan.payload, len(scan.payload) - 2, random.choice((0, 1, 5, 6, 62, 63, 64)))
    else:
        scan.payload = _poke(scan.payload, len(scan.payload) - 1, random.choice((0, 1, 2, 0x10, 0x21, 0x32, 0xD0, 0xDE, 0xFF)))


def _scan_data(segments: Segments, seeds: Sequence[Segments], random: Random) -> None:
    scan = _of(segments, (SOS,), random)
    if scan is None or len(scan.data) < 4:
        return
    offset = random.randrange(len(scan.data))
    kind = random.randrange(6)
    if kind == 0:
        scan.data = mutate_bytes(scan.data, random)
    elif kind == 1:
        scan.data = scan.data[:offset]
    elif kind == 2:
        scan.data = (
            scan.data[:offset] + bytes((0xFF, 0xD0 + random.randrange(8))) * random.choice((1, 1, 2, 9)) + scan.data[offset:]
        )
    elif kind == 3:
        scan.data = scan.data[:offset] + b"\xff\xd9" + scan.data[offset:]
    elif kind == 4:
        scan.data = (
            scan.data[:offset]
            + scan.data[offset : offset + random.randrange(40)] * random.choice((2, 3, 20))
            + scan.data[offset:]
        )
    else:
        scan.data = b"".join(part for part in _restart_parts(scan.data) if random.random() < 0.8)


def _restart_parts(data: bytes) -> list[bytes]:
    parts, start = [], 0
    for offset in range(1, len(data) - 1):
        if data[offset] == 0xFF and 0xD0 <= data[offset + 1] <= 0xD7:
            parts.append(data[start:offset])
            start = offset
    return [*parts, data[start:]]


def _order(segments: Segments, seeds: Sequence[Segments], random: Random) -> None:
    offset, other = (random.randrange(len(segments)) for _ in range(2))
    kind = random.randrange(5)
    if kind == 0 and len(segments) > 3:
        del segments[offset]
    elif kind == 1:
        segments.insert(other, replace(segments[offset]))
    elif kind == 2:
        segments[offset], segments[other] = segments[other], segments[offset]
    elif kind == 3:
        segments.insert(offset, replace(random.choice(random.choice(seeds))))  # a copy: later mutations may change it
    else:
        segments[offset].length_error = random.choice((-3, -2, -1, 1, 2, 100, 0x7FFF))


def _more_scans(segments: Segments, seeds: Sequence[Segments], random: Random) -> None:
    scans = [offset for offset, segment in enumerate(segments) if segment.marker == SOS]
    if not scans:
        return
    offset = random.choice(scans)
    times = random.choice((1, 2, 5, 20) if random.random() < 0.98 else (1000, 3000))
    times = min(times, LARGE_FILE // (len(segments[offset].data) + 16))
    segments[offset:offset] = [segments[offset]] * times


def _metadata(segments: Segments, seeds: Sequence[Segments], random: Random) -> None:
    junk = random.randbytes(random.choice((0, 1, 6, 30, 300)))
    payload = random.choice(
        (
            b"Exif\0\0" + random.choice((b"MM\0*\0\0\0\x08", b"II*\0\x08\0\0\0", b"")) + junk,
            b"JFIF\0\x01\x01" + junk,
            b"Adobe\0d\0\0\0\0" + bytes((random.randrange(4),)),
            b"ICC_PROFILE\0\x01\x01" + junk,
            b"ICC_PROFILE\0\x02\x05" + junk,
            b"MPF\0MM\0*\0\0\0\x08" + junk,
            b"http://ns.adobe.com/xap/1.0/\0" + junk,
            b"Photoshop 3.0\08BIM\x03\xed\0\0\0\0" + junk,
            junk,
        )
    )
    marker = random.choice((*range(APP0, APP0 + 16), COM, 0x01, 0xF0, 0xD0, 0xDC, 0xDE, 0xDF))
    segments.insert(random.randrange(1, len(segments) + 1), Segment(marker, payload))


def _filling(segments: Segments, seeds: Sequence[Segments], random: Random) -> None:
    """Return bytes between segments: filling, zeros, garbage, lone markers."""
    filling = random.choice(
        (b"\xff", b"\xff" * 9, b"\0", b"\0" * 7, random.randbytes(5), b"\xff\xd8", b"\xff\xd0", b"\xff\x01")
    )
    segments[random.randrange(len(segments))].data += filling


def _restart_interval(segments: Segments, seeds: Sequence[Segments], random: Random) -> None:
    interval = random.choice((0, 1, 2, 3, 8, 100, 65535))
    segments.insert(random.randrange(1, len(segments)), Segment(DRI, interval.to_bytes(2, "big")))


SEGMENT_MUTATIONS: tuple[Callable[[Segments, Sequence[Segments], Random], None], ...] = (
    _frame_size, _frame_field, _frame_kind, _table, _table, _scan_field, _scan_data, _scan_data, _scan_data, _order, _order,
    _more_scans, _metadata, _filling, _restart_interval,
)  # fmt: skip
