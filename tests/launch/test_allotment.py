"""A difference between what was set aside and what is used is refused, with its likely cause and the setting that allows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.launch.allotment import (
    Torch,
    check_enough,
    check_hidden,
    check_nodes,
    check_ranks,
    check_visible,
    gpus_visible,
    likely_cause,
    nodes_allotted,
    remarks,
)
from tests.conftest import run_command
from tests.helpers.trainings import WriteConfig

SETTING = "trainer.hardware=found"


def sees(num_gpus: int, *, cuda: bool = True, driver: bool = True, problem: str | None = None) -> Torch:
    return Torch(num_gpus=num_gpus, is_cuda_build=cuda, version="2.9.0", has_driver_library=driver, problem=problem)


GIVEN = {
    "CUDA_VISIBLE_DEVICES=0,1": 2, "CUDA_VISIBLE_DEVICES=GPU-8932f937,GPU-1f2a": 2, "CUDA_VISIBLE_DEVICES=0,1,-1,3": 2,
    "CUDA_VISIBLE_DEVICES=MIG-c6d4f1ef,MIG-cba663e8": 1, "CUDA_VISIBLE_DEVICES=": None, "CUDA_VISIBLE_DEVICES=-1": None,
    "CUDA_VISIBLE_DEVICES=NoDevFiles": None, "HIP_VISIBLE_DEVICES=0,1": 2, "ROCR_VISIBLE_DEVICES=3": 1,
    "SLURM_JOB_GPUS=0-3,6": 5, "SLURM_STEP_GPUS=2": 1, "SLURM_GPUS_ON_NODE=8": 8, "SLURM_GPUS_ON_NODE=0": None,
    "SLURM_GPUS_PER_NODE=h100:8": 8, "SLURM_GPUS_PER_NODE=a100:2,v100:1": 3, "NVIDIA_VISIBLE_DEVICES=all": None,
    "NVIDIA_VISIBLE_DEVICES=void": None, "NVIDIA_VISIBLE_DEVICES=GPU-1,GPU-2": 2, "SLURM_JOB_ID=7": None,
}  # fmt: skip


@pytest.mark.parametrize("text", GIVEN)
def test_how_many_gpus_a_variable_gives(text: str, tmp_path: Path) -> None:
    name, _, value = text.partition("=")
    given = gpus_visible({name: value}, devices=tmp_path)
    assert (given and given.count) == GIVEN[text]
    assert given is None or given.source == text


def test_what_is_nearer_to_the_process_counts(tmp_path: Path) -> None:
    job = {"SLURM_JOB_GPUS": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}
    assert gpus_visible({**job, "SLURM_STEP_GPUS": "2,3"}, devices=tmp_path).count == 2  # type: ignore[union-attr]
    assert gpus_visible({**job, "CUDA_VISIBLE_DEVICES": "0"}, devices=tmp_path).count == 1  # type: ignore[union-attr]
    assert gpus_visible({"SLURM_GPUS": "16"}, devices=tmp_path).count is None  # type: ignore[union-attr]  # of all nodes


def test_gpus_that_are_there_must_be_seen_but_not_all(tmp_path: Path) -> None:
    """Device files of a node that is shared may be closed to this process."""
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    given = gpus_visible({}, devices=tmp_path)
    assert given is not None
    assert given.count is None
    assert gpus_visible({"CUDA_VISIBLE_DEVICES": ""}, devices=tmp_path) is None


@pytest.mark.parametrize(
    ("environment", "num_gpus", "pattern"),
    [
        (
            {"SLURM_JOB_GPUS": "0"},
            0,
            r"1 GPU is there for this process \(SLURM_JOB_GPUS=0\), but torch sees none: .*trainer.hardware=found, and it "
            "computes on the CPU$",
        ),
        ({"SLURM_GPUS_ON_NODE": "8"}, 0, r"8 GPUs are there .*SLURM_GPUS_ON_NODE=8"),
        ({"SLURM_GPUS": "16"}, 0, r"^GPUs are there for this process \(SLURM_GPUS=16\)"),
        (
            {"CUDA_VISIBLE_DEVICES": "0,1,7"},
            2,
            r"3 GPUs are there .*torch sees 2 of them: a number in the list.*If this is intended: trainer.hardware=found$",
        ),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-1"}, 0, "NVIDIA_VISIBLE_DEVICES=GPU-1"),
    ],
)
def test_torch_must_see_them(environment: dict[str, str], num_gpus: int, pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        check_visible(environment, sees(num_gpus), setting=SETTING)


@pytest.mark.parametrize(
    ("environment", "num_gpus"),
    [({"CUDA_VISIBLE_DEVICES": "0,1"}, 2), ({"CUDA_VISIBLE_DEVICES": "MIG-1,MIG-2"}, 1), ({"CUDA_VISIBLE_DEVICES": ""}, 0),
     ({"SLURM_GPUS": "16"}, 8), ({"SLURM_JOB_GPUS": "0,1"}, 2)],
)  # fmt: skip
def test_those_it_sees_are_no_reason_to_refuse(environment: dict[str, str], num_gpus: int) -> None:
    check_visible(environment, sees(num_gpus), setting=SETTING)


def test_a_reservation_is_not_hidden_by_a_variable_left_empty() -> None:
    with pytest.raises(
        ConfigError, match=r"4 GPUs are there .*CUDA_VISIBLE_DEVICES= is empty: exported by.*trainer.hardware=found"
    ):
        check_hidden({"SLURM_JOB_GPUS": "0-3", "CUDA_VISIBLE_DEVICES": ""}, setting=SETTING)
    with pytest.raises(
        ConfigError, match=r"CUDA_VISIBLE_DEVICES=NoDevFiles says that this step has none.*srun --gpus-per-node"
    ):
        check_hidden({"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, setting=SETTING)
    check_hidden({"CUDA_VISIBLE_DEVICES": ""}, setting=SETTING)  # no scheduler: it says that no GPU is wanted
    check_hidden({"SLURM_JOB_GPUS": "0-3", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, setting=SETTING)


def test_the_likely_cause(tmp_path: Path) -> None:
    assert "build of torch without CUDA (2.9.0)" in likely_cause({}, sees(0, cuda=False), root=tmp_path)
    assert "apptainer exec --nv" in likely_cause({"APPTAINER_CONTAINER": "x.sif"}, sees(0), root=tmp_path)
    assert "no device files of GPUs" in likely_cause({}, sees(0), root=tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()  # apptainer shows them without --nv too
    assert "apptainer exec --nv" in likely_cause({"APPTAINER_CONTAINER": "x.sif"}, sees(0, driver=False), root=tmp_path)
    assert "driver is not loaded" in likely_cause({}, sees(0), root=tmp_path)
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.touch()
    assert "libcuda.so.1 is not installed" in likely_cause({}, sees(0, driver=False), root=tmp_path)
    old = sees(0, problem="CUDA initialization: The NVIDIA driver on your system is too old")
    assert "most likely the driver is older than this torch needs, or CUDA_VISIBLE_DEVICES names" in likely_cause(
        {"CUDA_VISIBLE_DEVICES": "1"}, sees(0), root=tmp_path
    )
    assert "CUDA does not start (CUDA initialization: The NVIDIA driver" in likely_cause({}, old, root=tmp_path)


JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_NTASKS": "24"}
BATCH = {**JOB, "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967291", "SLURMD_NODENAME": "n1"}
STEP = {**JOB, "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "1"}


def test_nodes_that_are_set_aside(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("n1\nn1\nn2\n")
    assert nodes_allotted({}) is None
    assert nodes_allotted({"SLURM_JOB_NUM_NODES": "3"}) is None  # of no job: left behind
    assert nodes_allotted(BATCH) == (3, "SLURM_JOB_NUM_NODES=3")
    assert nodes_allotted(STEP) == (1, "SLURM_STEP_NUM_NODES=1")
    assert nodes_allotted({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3,7]"}) == (4, "SLURM_JOB_NODELIST=n[1-3,7]")
    assert nodes_allotted({"PBS_NODEFILE": str(tmp_path / "nodes")}) == (2, f"PBS_NODEFILE={tmp_path / 'nodes'}")
    assert nodes_allotted({"PBS_NODEFILE": "/none"}) is None
    assert nodes_allotted({"LSB_MCPU_HOSTS": "n1 4 n2 4"}) == (2, "LSB_MCPU_HOSTS=n1 4 n2 4")


def test_an_allocation_of_several_nodes_is_not_trained_on_one() -> None:
    with pytest.raises(
        ConfigError,
        match=r"3 nodes are set aside \(SLURM_JOB_NUM_NODES=3\), but these ranks are on 1: start them with "
        "srun.*trainer.hardware=found",
    ):
        check_nodes(BATCH, num_nodes=1, launcher="none", setting=SETTING)
    with pytest.raises(ConfigError, match="but these ranks are on 2"):
        check_nodes(BATCH, num_nodes=2, launcher="torchrun", setting=SETTING)
    check_nodes(BATCH, num_nodes=3, launcher="torchrun", setting=SETTING)
    check_nodes(STEP, num_nodes=1, launcher="none", setting=SETTING)  # a step of one task, as it was asked for
    check_nodes({**STEP, "SLURM_STEP_NUM_NODES": "2"}, num_nodes=2, launcher="slurm", setting=SETTING)


def test_a_shell_of_salloc_is_not_where_the_nodes_are() -> None:
    shell = {**JOB, "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}
    with pytest.raises(ConfigError, match="Slurm has set n1 aside, but this is login, from where salloc was called"):
        check_nodes(shell, num_nodes=1, launcher="none", setting=SETTING, host="login.site.org")
    check_nodes(shell, num_nodes=1, launcher="none", setting=SETTING, host="n1.site.org")
    check_nodes({**shell, **BATCH, "SLURM_JOB_NUM_NODES": "1"}, num_nodes=1, launcher="none", setting=SETTING, host="other")


def test_gpus_that_were_given_are_not_left_idle() -> None:
    given = {"SLURM_JOB_GPUS": "0,1,2,3"}
    with pytest.raises(
        ConfigError, match=r"4 GPUs are there .*, but only 2 would be used: ask for trainer.devices=4, or auto. If this"
    ):
        check_ranks(given, sees(4), local_size=2, launcher="none", setting=SETTING)
    with pytest.raises(ConfigError, match="ask for --ntasks-per-node=4"):
        check_ranks(given, sees(4), local_size=1, launcher="slurm", setting=SETTING)
    check_ranks(given, sees(4), local_size=4, launcher="slurm", setting=SETTING)
    check_ranks({}, sees(4), local_size=1, launcher="none", setting=SETTING)  # a workstation, and trainer.devices=1


@pytest.mark.parametrize("seen", [1, 4])
def test_tasks_of_srun_have_a_gpu_each_whether_they_see_one_or_all(seen: int) -> None:
    """A step of Slurm 22.05 sets all its GPUs on the node, and those that the task sees."""

    def check(on_node: int, tasks: int) -> None:
        step = {"SLURM_GPUS_ON_NODE": str(on_node), "SLURM_STEP_GPUS": "0", "CUDA_VISIBLE_DEVICES": ",".join("0123"[:seen])}
        check_ranks(step, sees(seen), local_size=tasks, launcher="slurm", setting=SETTING)

    check(4, 4)
    with pytest.raises(
        ConfigError, match=r"4 GPUs are there .*SLURM_GPUS_ON_NODE=4\), but only 2 would be used: ask for --ntasks-per-node=4"
    ):
        check(4, 2)
    with pytest.raises(ConfigError, match=r"2 tasks on a node share 1 GPU \(SLURM_GPUS_ON_NODE=1\): .*--gpus-per-node=2"):
        check(1, 2)


@pytest.mark.parametrize(("gpus", "ranks"), [(1, 2), (4, 8)])
def test_more_ranks_than_gpus_are_refused(gpus: int, ranks: int) -> None:
    with pytest.raises(ConfigError, match=f"trainer.devices={ranks}, but this machine has {gpus} GPU"):
        check_enough(sees(gpus), local_size=ranks, launcher="none")
    with pytest.raises(ConfigError, match=f"torchrun has started {ranks} ranks here, but"):
        check_enough(sees(gpus), local_size=ranks, launcher="torchrun")
    check_enough(sees(gpus), local_size=gpus, launcher="none")
    check_enough(sees(0), local_size=ranks, launcher="none")  # on the CPU


def test_what_is_worth_a_line() -> None:
    def lines(
        environment: dict[str, str], num_gpus: int, *, size: int, asked: int | None = None, launcher: str = "none"
    ) -> str:
        return "\n".join(remarks(environment, sees(num_gpus), local_size=size, asked=asked, launcher=launcher))  # type: ignore[arg-type]

    assert lines({}, 0, size=1, asked=1) == ""
    assert lines({}, 0, size=2, asked=1, launcher="torchrun").startswith(
        "trainer.devices=1 does not count: torchrun has started 2"
    )
    assert lines({}, 4, size=1) == "1 of the 4 GPUs of this machine are used"
    assert lines(BATCH, 0, size=1).startswith("Slurm has set 24 tasks aside")
    assert lines(STEP, 0, size=1) == "this step takes 1 of the 3 nodes of its job"


@pytest.mark.slow
def test_training_and_evaluator_refuse_before_they_begin(write_config: WriteConfig, tmp_path: Path) -> None:
    """Here torch sees no GPU, or too few."""
    gpus = ",".join(map(str, range(64)))
    slurm = {"SLURM_JOB_ID": "991235", "SLURM_JOB_GPUS": gpus, "CUDA_VISIBLE_DEVICES": gpus}
    config = write_config()
    result = run_command("train", str(config), **slurm)
    assert (result.returncode, "trainer.hardware=found" in result.stdout, "Traceback" in result.stdout) == (2, True, False)
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    run.joinpath("config.yaml").write_text(config.read_text())
    result = run_command("evaluate", str(run), **slurm)
    assert (result.returncode, "evaluation.hardware=found" in result.stdout) == (2, True), result.stdout
