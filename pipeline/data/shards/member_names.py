"""Split the names of tar members into keys and extensions, as WebDataset does."""

from __future__ import annotations


def split_name(name: str) -> tuple[str, str]:
    """Return key and extension of a member like WebDataset, cut at the first dot of the last part; an empty key for none.

    Hidden files (`._000017.jpg`, left by a Mac) have none; webdataset makes one sample a folder of them.
    """
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    return (folder + slash + stem, extension) if stem and dot else ("", "")
