"""Parse the command line of `make`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from data_tools.arguments import add_block_samples, add_memory, fraction, natural, num_bytes, open_workers, positive
from data_tools.make.classes import Numbering, read_class_list, read_class_map
from data_tools.make.pack import MakeReport
from data_tools.make.plan import MakeOptions, ShardSize
from data_tools.make.record import RECORD_NAME
from data_tools.make.reencode import Encoding
from data_tools.make.sources.options import SourceOptions
from data_tools.parallel import Workers
from data_tools.text_files import printable
from pipeline.data.shards.class_names import CLASSES_NAME
from pipeline.errors import DataError

EPILOG = """\
SOURCE may be
  a folder of class folders              CLASS/any/depth/image.jpg; classes are numbered in sorted order, see classes.txt
  a folder of tars named after classes   n01440764.tar ...; or one tar that holds them (ImageNet-21k); nothing is unpacked
  a WebDataset tar, or a folder of them  all members are kept; those of a sample that lie apart are brought together
  .parquet or .arrow files, or one       as on Hugging Face; their images are copied to FOLDER/.make first, which needs as
                                         much disk as the shards until these are written (pyarrow must be installed)
  a .csv, .tsv or .jsonl file            PATH,LABEL: paths relative to the file; a header is optional. As JSON lines:
                                         {"file_name": PATH, "label": LABEL} (metadata.jsonl of Hugging Face)
  a folder of CIFAR's Python files       their pixels are stored as PNG
  a version of a TensorFlow data set     TFRecord files with dataset_info.json; --source-split takes slices, --vtab a task of
                                         VTAB. The images are copied to FOLDER/.make first (pip install '.[tfds]')
SOURCE may be the s3://, gs:// or http(s):// URL of tars, tables, class folders or a list, and FOLDER one of s3:// or gs://.

Image bytes are kept as they are unless --short-side or --exif apply is given. What is left out is counted, and named in
FOLDER/make.json. A sample has one label (.cls), or several (a CSV with 3;7 or 3 7, a list in a table), which are stored as
.json {"labels": [3, 7]} (to train on: objective.name=multi_label). An image that a list or table names twice with
different labels is refused. A class name that a table gives to two ids gets its id in classes.txt: crane (134), crane (517).
Run it again after a crash: it resumes.

examples:
  python -m data_tools make /raw/imagenet/train /data/imagenet
  python -m data_tools make /raw/winter21_whole.tar /data/imagenet21k --short-side 256 --bytes-per-shard 1GB --split 0.01
  python -m data_tools make old-shards/ new-shards/ --samples-per-shard 5000 --seed 7
  python -m data_tools make /raw/cifar-100-python /data/cifar100/test --source-split test
  python -m data_tools make /raw/food101/data /data/food101/train --source-split train
  python -m data_tools make ~/tensorflow_datasets/dtd/3.0.1 /data/dtd/train --source-split train+validation
  python -m data_tools make ~/tensorflow_datasets/clevr/3.1.0 /data/vtab1k/clevr_count/train800val200 \\
      --vtab clevr_count --source-split train800val200
  python -m data_tools make s3://raw/tars s3://data/tars --bytes-per-shard 500MB --memory 8GB --scratch /nvme/scratch
  python -m data_tools make s3://raw/labels.csv s3://data/photos --image-folder s3://raw/photos
  python -m data_tools make labels.csv /data/photos --class-map coarse.tsv --unmapped drop
"""
SHOWN_NAMES = 5


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_block_samples(command)
    command.add_argument("source", metavar="SOURCE")
    command.add_argument("folder", metavar="FOLDER", help="where the shards go")
    size = command.add_mutually_exclusive_group()
    size.add_argument("--samples-per-shard", type=positive, metavar="N", help=f"default: {ShardSize().amount}")
    size.add_argument(
        "--bytes-per-shard", type=num_bytes, metavar="SIZE", help="instead: 500MB, 1GB, 1GiB, ...; by the source's sizes"
    )
    command.add_argument(
        "--seed", type=natural, default=0, help="of the shuffle over all samples and of the split (default: %(default)s)"
    )
    command.add_argument("--keep-order", action="store_true", help="do not shuffle")
    command.add_argument(
        "--split",
        type=fraction,
        metavar="FRACTION",
        help="write FOLDER/train and FOLDER/val, this part of the samples into val. A hash of a sample's name decides, so "
        "it stays on "
        "its side whatever else is added",
    )
    add_memory(command)
    _add_pass_arguments(command.add_argument_group("passes, and stores"))
    _add_class_arguments(command.add_argument_group("classes"))
    _add_image_arguments(command.add_argument_group("images"))
    _add_source_arguments(command.add_argument_group("tables, CSV, CIFAR and TensorFlow data sets"))


def _add_pass_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--passes",
        type=int,
        choices=(1, 2),
        help="1 reads the samples of each shard wherever they are. 2 copies the source once in sequence to scratch, and reads "
        "each shard's samples there: for disks and file systems that are slow at random places. Shards are the same (default: "
        "2 for tars on a URL, or else 1)",
    )
    group.add_argument(
        "--scratch",
        metavar="FOLDER",
        help="for what only the work needs; two passes need room for all images there. On a cluster all workers have to see it "
        "(default: FOLDER/.make, or where FOLDER is a URL a folder of the system's for temporary files)",
    )


def _add_class_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--classes",
        metavar="FILE",
        help="class names, one a line in the order of their ids: give the train split's classes.txt for its test split",
    )
    group.add_argument(
        "--class-map",
        metavar="FILE",
        help="SOURCE CLASS <tab> TARGET a line: a name, or an id if all targets are numbers. Where the source only numbers "
        "its classes, "
        "its ids are their names. Target names are numbered as in --classes, or sorted",
    )
    group.add_argument(
        "--unmapped",
        choices=("refuse", "drop"),
        default="refuse",
        help="samples of classes that are not in the class map: stop and name them, or leave them out and count them "
        "(default: %(default)s)",
    )


def _add_image_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--short-side",
        type=positive,
        metavar="PIXELS",
        help="re-encode images whose shorter side is longer, as JPEG; never enlarges (default: all bytes as they are). An "
        "image that "
        "must be re-encoded and cannot be decoded is left out",
    )
    group.add_argument(
        "--quality",
        type=_quality,
        default=Encoding().quality,
        help="of the JPEGs that are written, 1 to 100 (default: %(default)s)",
    )
    group.add_argument(
        "--exif",
        choices=("keep", "apply"),
        default="keep",
        help="apply: turn images as their EXIF orientation says, which re-encodes those as JPEG. The trainer ignores the "
        "tag, so with keep "
        "it sees them as they are stored (default: %(default)s)",
    )


def _add_source_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--source-split",
        metavar="NAME",
        help="the split to take, where names of folders, files or a column tell several: train, test, ...; "
        "several with commas between them. COLUMN=VALUE (is_train=0) names the column too. Of a TensorFlow data set: slices, "
        "'train[:800]+validation[:200]'",
    )
    group.add_argument(
        "--image-column",
        metavar="NAME",
        help="default: what the file's metadata say, or image (in a CSV: path, file_name, ...)",
    )
    group.add_argument(
        "--label-column",
        metavar="NAME",
        help="default: what the file's metadata say, or label; for CIFAR-100 coarse_labels is another",
    )
    group.add_argument(
        "--vtab",
        metavar="TASK",
        help="of a TensorFlow data set: one of VTAB's 19 tasks, with its labels and its splits (--source-split train800val200, "
        "test, train800, val200, ...): clevr_count, dsprites_location, ...",
    )
    group.add_argument(
        "--label-field",
        metavar="NAME",
        help="the field of WebDataset's .json members that is the label, a.b for one in another (default: .cls, or else "
        "label or labels)",
    )
    group.add_argument(
        "--image-folder",
        metavar="FOLDER",
        help="path or URL that a CSV's paths are relative to (default: the CSV's own folder)",
    )
    group.add_argument(
        "--encoding",
        metavar="NAME",
        help="of a CSV, of --classes and --class-map, and of folder names that are not UTF-8: cp1252, latin-1, utf-16, ...",
    )
    group.add_argument(
        "--label-separator",
        metavar="TEXT",
        help="what separates the labels of one image in a CSV (default: `;`, and spaces between numbers)",
    )


def run(arguments: argparse.Namespace) -> None:
    source, folder, scratch = arguments.source, arguments.folder, arguments.scratch
    check_scratch(arguments)
    with open_workers(arguments, folders=[source, folder, *([scratch] if scratch else [])]) as workers:
        work(arguments, workers)


def check_scratch(arguments: argparse.Namespace) -> None:
    """Refuse to guess where all machines of a cluster put what is on its way to a store.

    Raises:
        DataError: no such folder is named.
    """
    from pipeline.data.shards.folder import is_remote

    if arguments.cluster is not None and is_remote(arguments.folder) and arguments.scratch is None:
        raise DataError(f"{arguments.folder} is a URL: on a cluster, name a folder that all workers see with --scratch")


def work(arguments: argparse.Namespace, workers: Workers) -> MakeReport:
    """Do the same with workers that exist, and return the report."""
    from data_tools.make.pack import Passes, make_shards
    from data_tools.shard_names import lines
    from data_tools.shards import describe_hidden
    from pipeline.data.shards.folder import ShardFolder, is_remote

    options = read_options(arguments)
    source, folder = arguments.source, arguments.folder
    passes = Passes(arguments.passes, memory_bytes=arguments.memory, scratch=arguments.scratch)
    report = make_shards(source, folder, options=options, workers=workers, passes=passes)
    is_folder = os.path.isdir(source) or (is_remote(source) and not source.endswith(".tar"))
    hidden = ShardFolder(source).hidden_tars() if is_folder else []
    print(f"{describe_hidden(hidden)}{lines(report.remarks)}{describe(report, folder)}", flush=True)
    return report


def read_options(arguments: argparse.Namespace) -> MakeOptions:
    """Return the options that were given.

    Raises:
        DataError: a file of classes that cannot be read, or options that have no meaning together.
    """
    if arguments.unmapped == "drop" and arguments.class_map is None:
        raise DataError("--unmapped drop has no meaning without --class-map")
    is_by_bytes = arguments.bytes_per_shard is not None
    return MakeOptions(
        shard_size=ShardSize(arguments.bytes_per_shard, "bytes")
        if is_by_bytes
        else ShardSize(arguments.samples_per_shard or ShardSize().amount),
        block_samples=arguments.block_samples,
        order="as listed" if arguments.keep_order else "shuffled",
        seed=arguments.seed,
        numbering=Numbering(
            names=read_class_list(arguments.classes, encoding=arguments.encoding) if arguments.classes else None,
            targets=read_class_map(arguments.class_map, encoding=arguments.encoding) if arguments.class_map else None,
            unmapped=arguments.unmapped,
        ),
        encoding=Encoding(short_side=arguments.short_side, exif=arguments.exif, quality=arguments.quality),
        val_fraction=arguments.split,
        source=SourceOptions(
            image_column=arguments.image_column,
            label_column=arguments.label_column,
            label_separator=arguments.label_separator,
            label_field=arguments.label_field,
            image_folder=arguments.image_folder,
            encoding=arguments.encoding,
            split=arguments.source_split,
            vtab=arguments.vtab,
        ),
    )


def describe(report: MakeReport, folder: str) -> str:
    """Describe the report in lines."""
    lines = [
        f"{folder}: {report.num_samples} samples in {report.num_shards} shards ({report.num_written} written now, "
        f"{report.num_passed_over} files passed over without an image)"
    ]
    lines.append(f"  from {report.kind}: {report.num_bytes / 1e9:.3g} GB{_describe_classes(report, folder)}")
    if report.num_passed_over:
        lines.append(f"  passed over: {_first(report.first_passed_over, report.num_passed_over)}")
    if report.without_images:
        lines.append(f"  no classes, for want of images: {_first(report.without_images, len(report.without_images))}")
    lines += [f"  {name}: {count} samples" for name, count in report.samples_of.items()]
    if report.num_reencoded:
        lines.append(f"  {report.num_reencoded} images re-encoded")
    if report.num_repeated:
        lines.append(f"  {report.num_repeated} images are named more than once with the same label, and are as many samples")
    if report.num_contradicting:
        lines.append(
            f"  {report.num_contradicting} images occur with different labels, {report.first_contradicting} first; "
            f"`python -m data_tools dedup {folder} --within` lists copies to leave out"
        )
    if report.num_several_labels:
        lines.append(f"  {report.num_several_labels} samples have several labels, to train on with objective.name=multi_label")
    if report.num_without_label:
        lines.append(f"  {report.num_without_label} samples have no label (.cls or .json); training refuses them")
        if report.json_fields:
            fields = ", ".join(map(printable, report.json_fields))
            lines.append(f"    if one of the fields of their .json is the label ({fields}), name it with --label-field")
    if report.unmapped:
        lines.append(
            f"  {report.num_unmapped} samples left out: the class map does not name {len(report.unmapped)} of the "
            "source's classes"
        )
    if report.left_out:
        first = report.left_out[0]
        lines.append(
            f"  {len(report.left_out)} images left out that cannot be decoded, {printable(first['sample'])} first "
            f"({first['reason']}); {folder}/make.json names them all"
        )
    return "\n".join(lines)


def _describe_classes(report: MakeReport, folder: str) -> str:
    if report.num_classes is not None:
        where = f"{folder}/{'train/' if report.samples_of else ''}{CLASSES_NAME}"
        if report.class_source != "the source":
            return f", {report.num_classes} classes"
        return f", {report.num_classes} classes, numbered by this source: give its other splits --classes {where}"
    if report.max_label is None:
        return ""
    return f", class ids up to {report.max_label}, {report.num_labels} of them with samples"


def _first(names: Sequence[str], count: int) -> str:
    more = f" and {count - SHOWN_NAMES} more, see {RECORD_NAME}" if count > SHOWN_NAMES else ""
    return ", ".join(map(printable, names[:SHOWN_NAMES])) + more


def _quality(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 100")
    return value
