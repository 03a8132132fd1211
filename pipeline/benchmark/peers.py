"""Iterate over the batches of other projects' loaders, put together as their own training scripts do it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.benchmark.torchvision_operators import declare_torchvision_operators
from pipeline.benchmark.transforms import OurTransform, PillowTransform, Settings, encoded_images, pillow_decode
from pipeline.data.shards.index import load_index


def open_clip_style(settings: Settings) -> Iterator[Any]:
    """Run webdataset as open_clip's training script assembles it: resampled shards, a shuffle buffer, pilrgb, batched."""
    wds: Any = importlib.import_module("webdataset")
    return _webdataset(
        settings,
        wds.decode("pilrgb"),
        wds.rename(image="jpg;jpeg;png", label="cls"),
        wds.map_dict(image=PillowTransform(settings)),
    )


def webdataset_with_ours(settings: Settings) -> Iterator[Any]:
    """Run the same pipeline with our transform."""
    wds: Any = importlib.import_module("webdataset")
    return _webdataset(
        settings,
        wds.rename(image="jpg;jpeg;png", label="cls"),
        wds.map_dict(image=OurTransform(settings, "region"), label=int),
    )


def _webdataset(settings: Settings, *decoding: Any) -> Iterator[Any]:
    """Run webdataset's pipeline with these stages between its shuffle buffer and its batches."""
    wds: Any = importlib.import_module("webdataset")
    dataset = wds.DataPipeline(
        wds.ResampledShards(settings.shards),
        wds.tarfile_to_samples(),
        wds.shuffle(1000, initial=100),
        *decoding,
        wds.to_tuple("image", "label"),
        wds.batched(settings.batch_size, partial=False),
    )
    return iter(
        wds.WebLoader(
            dataset,
            batch_size=None,
            shuffle=False,
            num_workers=settings.num_workers,
            persistent_workers=settings.num_workers > 0,
        )
    )


def timm_reader(settings: Settings) -> Iterator[Any]:
    """Run timm's WebDataset reader in its own dataset class, in torch's loader."""
    declare_torchvision_operators()
    timm_datasets: Any = importlib.import_module("timm.data.dataset")

    names = [Path(path).name for path in settings.shards]
    first, last = names[0].removesuffix(".tar"), names[-1].removesuffix(".tar")
    prefix = first.rstrip("0123456789")
    split = f"{prefix}{{{first[len(prefix) :]}..{last[len(prefix) :]}}}.tar" if len(names) > 1 else names[0]
    dataset = timm_datasets.IterableImageDataset(
        settings.folder,
        reader="wds/",
        split=f"{split}|{load_index(settings.folder).num_samples}",
        is_training=True,
        batch_size=settings.batch_size,
        transform=PillowTransform(settings),
        input_key="jpg;jpeg;png",
    )
    dataset.reader.sample_shuffle_size, dataset.reader.sample_initial_size = 1000, 100
    return endless(
        torch.utils.data.DataLoader(
            dataset,
            batch_size=settings.batch_size,
            num_workers=settings.num_workers,
            drop_last=True,
            persistent_workers=settings.num_workers > 0,
        )
    )


class _Record(torch.nn.Module):
    """Turns a peer's record, bytes and a class, into pixels."""

    def __init__(self, settings: Settings, *, pillow: bool) -> None:
        super().__init__()
        self.pillow = PillowTransform(settings) if pillow else None
        self.ours = OurTransform(settings, "region")

    def forward(self, image: bytes, label: int) -> tuple[torch.Tensor, int]:
        return (self.pillow(pillow_decode(image)) if self.pillow else self.ours(bytes(image))), int(label)


def litdata_reader(*, pillow: bool) -> Callable[[Settings], Iterator[Any]]:
    """Run litdata's optimised chunks of the encoded images."""

    def batches(settings: Settings) -> Iterator[Any]:
        litdata: Any = importlib.import_module("litdata")
        writers: Any = importlib.import_module("litdata.streaming.writer")

        folder = Path(settings.converted) / "litdata"
        if not (folder / "index.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            writer = writers.BinaryWriter(str(folder), chunk_bytes=16 << 20)
            for number, data in enumerate(encoded_images(settings)):
                writer.add_item(number, {"image": data, "label": 0})
            writer.done()
            writer.merge(1)
        record = _Record(settings, pillow=pillow)

        class Dataset(litdata.StreamingDataset):
            def __getitem__(self, index: Any) -> Any:
                item = super().__getitem__(index)
                return record(item["image"], item["label"])

        dataset = Dataset(str(folder), shuffle=True, drop_last=True)
        return endless(litdata.StreamingDataLoader(dataset, batch_size=settings.batch_size, num_workers=settings.num_workers))

    return batches


def mosaicml_reader(*, pillow: bool) -> Callable[[Settings], Iterator[Any]]:
    """Run mosaicml-streaming's MDS shards of the encoded images."""

    def batches(settings: Settings) -> Iterator[Any]:
        declare_torchvision_operators()
        streaming: Any = importlib.import_module("streaming")

        folder = Path(settings.converted) / "mds"
        if not (folder / "index.json").exists():
            with streaming.MDSWriter(
                out=str(folder), columns={"image": "bytes", "label": "int"}, size_limit=16 << 20
            ) as writer:
                for data in encoded_images(settings):
                    writer.write({"image": data, "label": 0})
        streaming.base.util.clean_stale_shared_memory()
        record = _Record(settings, pillow=pillow)

        class Dataset(streaming.StreamingDataset):
            def __getitem__(self, at: Any) -> Any:
                item = super().__getitem__(at)
                return record(item["image"], item["label"])

        dataset = Dataset(local=str(folder), shuffle=True, batch_size=settings.batch_size)
        return endless(
            torch.utils.data.DataLoader(
                dataset,
                batch_size=settings.batch_size,
                num_workers=settings.num_workers,
                drop_last=True,
                persistent_workers=settings.num_workers > 0,
            )
        )

    return batches


def endless(loader: Any) -> Iterator[Any]:
    """Yield epoch after epoch."""
    while True:
        yield from loader
