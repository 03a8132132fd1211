"""Take the split that the user wants, where the names of a source's samples contain several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from data_tools import splits
from data_tools.make.sources.listing import Listing
from data_tools.make.sources.options import SourceOptions

CHOOSE = "choose one with --source-split, and pack the others to folders of their own"


def take_split(listing: Listing, options: SourceOptions, *, source: object, skip_parts: int) -> Listing:
    """Return the samples of one split, where the folders and files of the samples' names contain several.

    Args:
        skip_parts: how many parts of a name are no part of it: a class, a tar.
    """
    wanted = options.wanted_splits
    found = Counter(map(splits.parse_path, _inner_names(listing, skip_parts)))
    counts = splits.name_counts(found)
    taken = splits.choose(counts, wanted, source=source, unit="samples", answer=CHOOSE, unmarked=splits.unmarked_rule(found))
    splits.check_found(wanted, counts, source=source)
    if taken is None:
        return listing
    kept = np.fromiter(
        (splits.path_in(name, taken) for name in _inner_names(listing, skip_parts)), np.bool_, count=len(listing)
    )
    return listing.take(np.flatnonzero(kept))


def _inner_names(listing: Listing, skip_parts: int) -> Iterator[str]:
    for sample in range(len(listing)):
        yield listing.name(sample).decode("utf-8", "surrogateescape").split("/", skip_parts)[-1]
