"""Write quantities in words, for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return a time in its two largest units: `3 d 4 h`, `12 min 5 s`; below ten seconds in three digits, `1.25 s`."""
    seconds = max(0.0, seconds)
    if 0 < seconds < 0.0995:  # from there on two digits would be 1e+02
        return f"{1000 * seconds:.2g} ms"
    if seconds < 9.995:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    units = [("d", whole // 86400), ("h", whole // 3600 % 24), ("min", whole // 60 % 60), ("s", whole % 60)]
    first = next(i for i, (_, value) in enumerate(units) if value)
    return " ".join(f"{value:,} {unit}" for unit, value in units[first : first + 2] if value)


def size(num_bytes: float) -> str:
    """Return a number of bytes in three digits: `1.25 GB` is 1.25e9; kilobytes at least, and `0` for none."""
    units = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    factor, name = next((one for one in units if num_bytes >= one[0]), units[-1])
    return f"{num_bytes / factor:.3g} {name}" if num_bytes else "0"
