"""Make a tiny site to try the job scripts on: shards of a few images, a site file, and the settings that shrink ViT-L/16.

python -m tests.slurm.site FOLDER
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from data_tools.index import index_folder
from data_tools.parallel import LocalWorkers
from tests.conftest import REPOSITORY, encode, make_image, write_tar

# These make configs/l16_in21k.yaml train in seconds: the same run as the fixture `tiny_config`.
TINY = (
    "seed=3", "model.name=Ti/8", "model.image_size=16", "model.num_classes=4", "model.width=32", "model.depth=2",
    "model.num_heads=2",
    "data.num_workers=0", "data.min_area=0.5", "data.flip=false", "objective.name=softmax", "optimizer.learning_rate=2e-3",
    "optimizer.weight_decay=0.05", "schedule.warmup=2 steps", "trainer.duration=12 steps", "trainer.global_batch_size=8",
    "trainer.zero_stage=2", "trainer.precision=fp32", "trainer.peak_tflops=1.0", "checkpoint.every=4 steps",
    "checkpoint.keep_last=2",
    "checkpoint.keep_every=null", "trainer.hardware=found", "evaluation.hardware=found",  # GPUs are declared alone
    "evaluation.protocols.few_shot.shots=[1, 5]", "evaluation.protocols.few_shot.seeds=[0, 1]", "evaluation.num_workers=0",
    "tracking.log_every=1",
)  # fmt: skip


def write_site(folder: Path, **settings: str) -> Path:
    """Write a site file in `folder` with SITE_... settings in bash's own notation; runs go to `folder`/runs.

    The settings are the project's own except those given.
    """
    lines = (REPOSITORY / "slurm" / "site.env").read_text()
    values = {"VENV": shlex.quote(sys.prefix), "RUNS": shlex.quote(str(folder / "runs")), **settings}
    path = folder / "site.env"
    path.write_text(lines + "\n" + "".join(f"SITE_{name}={value}\n" for name, value in values.items()))
    return path


def write_bars(folder: Path, *, count: int) -> Path:
    """Write indexed shards of `count` pictures of four classes that can be learnt."""
    folder.mkdir(parents=True)
    members: list[tuple[str, bytes]] = []
    for number in range(count):
        image = encode(make_image(number, num_classes=4, size=24), format="JPEG")
        members += [(f"{number:05d}.jpg", image), (f"{number:05d}.cls", str(number % 4).encode())]
    write_tar(folder / "shard-000.tar", members)
    index_folder(str(folder), block_samples=4, workers=LocalWorkers(1))
    return folder


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    train, test = (write_bars(folder / "bars" / split, count=count) for split, count in (("train", 400), ("test", 100)))
    sets = f"[{{name: bars, train: {train}, test: {test}}}]"
    site = write_site(folder, DATA=shlex.quote(str(train)), EVAL_SETS=shlex.quote(sets))
    script = folder / "submit"
    overrides = " ".join(
        shlex.quote(setting) for setting in (*TINY, "trainer.duration=2000 steps", "checkpoint.every=500 steps")
    )
    script.write_text(
        "#!/usr/bin/env bash\n# sbatch options as arguments\n"
        f'cd {shlex.quote(str(REPOSITORY))} && SITE_ENV={shlex.quote(str(site))} OMP_NUM_THREADS=1 exec sbatch "$@" '
        f"slurm/pretrain_l16.sh {overrides}\n"
    )
    script.chmod(0o755)
    print(f"wrote {site} and {script}")


if __name__ == "__main__":
    main()
