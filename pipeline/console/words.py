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
