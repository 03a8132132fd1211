"""Wire the data: a plan in, the stream of a rank's images out."""

from __future__ import annotations

from pipeline.config.resolve import ResolvedRun
from pipeline.data.images.crop import TrainTransform
from pipeline.data.section import DataSection
from pipeline.data.shards.remote import RemoteOptions
from pipeline.data.streams.mixture import UnindexedShards
from pipeline.data.streams.train import Division, TrainStream
from pipeline.data.streams.unindexed import UnindexedStream
from pipeline.distributed.world import World


def make_stream(run: ResolvedRun, *, world: World, start_step: int) -> TrainStream | UnindexedStream:
    """Return the training images of this rank, from `start_step` on."""
    data = run.config.data
    transform = TrainTransform(
        image_size=run.model.image_size,
        bounds=data.crop_bounds,
        flip=data.flip,
        resize=data.resize,
        decoder=run.decoder,
        shrink_margin=data.shrink_margin,
        crop=data.crop.build(),
        augmentation=data.augment.build(),
        erasing=data.random_erasing.build(),
    )
    division = Division(
        global_batch_size=run.config.trainer.global_batch_size,
        rank=world.rank,
        world_size=world.size,
        accumulation_steps=run.accumulation_steps,
        together=run.config.objective.images_together,
    )
    if isinstance(run.mixture, UnindexedShards):
        return UnindexedStream(
            source=run.mixture,
            seed=run.config.seed,
            division=division,
            transform=transform,
            num_classes=run.model.num_classes,
            start_step=start_step,
            labels=run.config.objective.labels,
        )
    return TrainStream(
        mixture=run.mixture,
        order=run.mixture.make_order(seed=run.config.seed, num_streams=run.num_streams, repeats=data.repeats),
        division=division,
        transform=transform,
        num_classes=run.model.num_classes,
        start_step=start_step,
        labels=run.config.objective.labels,
        read_ahead=data.read_ahead,
        remote=make_remote_options(data),
    )


def make_remote_options(data: DataSection) -> RemoteOptions:
    """Return how shards behind URLs are read."""
    return RemoteOptions(
        timeout_s=data.read_timeout_s,
        patience_s=data.read_patience_s,
        cache_dir=data.cache_dir,
        cache_bytes=int(data.cache_gib * 2**30),
    )
