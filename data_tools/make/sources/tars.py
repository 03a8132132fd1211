"""Recognise a source that is tars: of images of one class each, of WebDataset samples, or one tar of tars."""

from __future__ import annotations

from dataclasses import replace

from data_tools import splits
from data_tools.make.sources.class_tars import check_class_tars, list_class_tars, list_outer_tar
from data_tools.make.sources.listing import Listing
from data_tools.make.sources.look import look_into_tars
from data_tools.make.sources.options import SourceOptions
from data_tools.make.sources.source import Source
from data_tools.make.sources.split_choice import CHOOSE, take_split
from data_tools.make.sources.stored import file_name, file_stem, list_names, sizes_of
from data_tools.make.sources.webdataset_tars import LabelRule, LabelUse, list_webdataset
from data_tools.shard_names import check_finished, remark
from pipeline.errors import DataError


def recognise_tars(root: str, paths: list[str], options: SourceOptions, label_use: LabelUse, known: frozenset[str]) -> Source:
    """Recognise what tars hold.

    Args:
        root: folder of the tars, or the only one; on this machine or in a store.
        known: names that the user gives as classes.

    Raises:
        DataError: nothing that can be packed, tars without a byte or from an unfinished download, or several splits at once.
    """
    is_one = paths == [root]
    if empty := [file_name(path) for path, size in sizes_of(paths).items() if not size]:
        raise DataError(
            f"{root}: {len(empty)} tars of no bytes, {empty[0]} first, as downloads leave them that failed; fetch or "
            "delete them"
        )
    names = [file_name(root)] if is_one else list_names(root)
    check_finished(names, source=root)
    source = _by_content(root, paths, options, label_use, known)
    return replace(source, remarks=() if is_one else tuple(remark(names, list(map(file_name, paths)))))


def _by_content(root: str, paths: list[str], options: SourceOptions, label_use: LabelUse, known: frozenset[str]) -> Source:
    contents = look_into_tars(paths)
    is_one = paths == [root]

    def take(listing: Listing) -> Listing:
        return take_split(listing, options, source=root, skip_parts=1)

    if contents == "tars":
        if not is_one:
            raise DataError(f"{root} holds tars of tars; give one such tar, or a folder of the inner ones")
        return Source(
            "class tars",
            None,
            lambda scratch, workers: take(list_outer_tar(root, known=known, workers=workers, scratch=scratch)),
        )
    if contents == "images" or all(file_stem(path) in known for path in paths):
        if is_one and file_stem(root) not in known:
            raise DataError(
                f"{root} holds images without labels. WebDataset samples have a label next to the image (KEY.jpg, "
                f"KEY.cls); tars of one class each lie in a folder, named after their class, like n01440764.tar or cat.tar"
            )
        check_class_tars([file_stem(path) for path in paths], source=root, known=known)
        return Source(
            "class tars",
            None,
            lambda scratch, workers: take(list_class_tars(paths, known=known, workers=workers, scratch=scratch)),
        )
    return _webdataset(root, paths, options, LabelRule(label_use, options.label_field))


def _webdataset(root: str, paths: list[str], options: SourceOptions, rule: LabelRule) -> Source:
    groups = splits.group_files(map(file_name, paths))
    wanted = options.wanted_splits
    counts = {split: len(names) for split, names in groups.items()}
    taken = splits.choose(counts, wanted, source=root, unit="tars", answer=CHOOSE)
    chosen = [path for path in paths if taken is None or splits.split_of_file(file_name(path)) in taken]
    rest = [word for word in wanted or () if not splits.matches(groups, [word])]
    inner = replace(options, split=",".join(rest) or None)
    return Source(
        "WebDataset tars",
        None,
        lambda scratch, workers: take_split(
            list_webdataset(chosen, rule=rule, workers=workers, scratch=scratch), inner, source=root, skip_parts=1
        ),
    )
