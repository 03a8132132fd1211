"""After a time limit, a preemption, a dead node and a hang the job resumes by itself and ends as if nothing had happened."""

from __future__ import annotations

import os
import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json_lines
from tests.helpers.trainings import STEPS, assert_same_run
from tests.slurm.jobs import Desk, Job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WANDB = "tracking.mode=offline"
Report = Callable[[str, object], None]


def logged_steps(folder: RunFolder) -> list[int]:
    """Return steps as written, with every repetition."""
    return [row["step"] for row in read_json_lines(folder.metrics)]


def is_halted(pid: int) -> bool:
    """Return whether a process is stopped by SIGSTOP."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "T"


def finish(job: Job, reference: RunFolder, record: Report) -> None:
    """Let a job that was requeued once go on, and compare it with the undisturbed run."""
    begin, before = time.monotonic(), len(logged_steps(job.folder))
    job.start_now()
    job.wait(lambda: len(logged_steps(job.folder)) > before, "at its first new step")
    record("seconds from start to first new step", round(time.monotonic() - begin, 1))
    assert job.wait_for_end() == "0:0", job.text
    assert job.show("Restarts") == "1"
    assert_same_run(job.folder, reference)
    assert len({path.name for path in (job.folder.root / "wandb").glob("offline-run-*/*.wandb")}) == 1  # one W&B run


def assert_nothing_lost(job: Job) -> None:
    """Assert that no step was computed twice: it resumed from the very step at which it was asked to stop."""
    assert logged_steps(job.folder) == list(range(1, STEPS + 1))


def test_time_limit(desk: Desk, reference: RunFolder, record_property: Report) -> None:
    """USR1 comes before the limit, to the ranks alone; TIMEOUT would not requeue."""
    job = desk.submit("tiny", WANDB)
    ranks = job.stop_in_step(3, num_ranks=2)
    minutes = int(job.show("RunTime").split(":")[-2]) + 2  # less than USR1@180 from now
    desk.cluster.run("scontrol", "update", f"jobid={job.id}", f"TimeLimit={minutes}")
    # Slurm looks every half minute, and sends SIGCONT with the signal.
    waited_s = job.wait(lambda: not any(is_halted(pid) for pid in ranks), "signalled")
    record_property("seconds from new limit to signal", round(waited_s, 1))
    record_property("seconds from signal to requeue", round(job.wait_for_state("PENDING"), 1))
    assert "[run] stopped by SIGUSR1" in job.text
    assert "[job] stopped and saved; requeued" in job.text
    desk.cluster.run("scontrol", "update", f"jobid={job.id}", "TimeLimit=60")
    finish(job, reference, record_property)
    assert_nothing_lost(job)


def test_preemption_with_grace_time(desk: Desk, reference: RunFolder, record_property: Report) -> None:
    job = desk.submit("tiny", WANDB, "data.num_workers=1")
    job.stop_in_step(3, num_ranks=2)
    desk.urgent_job()  # Slurm sends SIGCONT, then SIGTERM, to every process of the step: W&B's and the decoders too
    record_property("seconds from urgent job to requeue", round(job.wait_for_state("PENDING"), 1))
    assert "[run] stopped by SIGTERM" in job.text
    finish(job, reference, record_property)
    assert_nothing_lost(job)


def test_preemption_without_grace_time(desk: Desk, reference: RunFolder, record_property: Report) -> None:
    """Only KillWait is between SIGTERM and SIGKILL: Slurm requeues by itself, saved or not."""
    job = desk.submit("tiny", WANDB, options=("--partition=scavenge",))
    job.stop_in_step(5, num_ranks=2)
    desk.urgent_job()
    record_property("seconds from urgent job to requeue", round(job.wait_for_state("PENDING"), 1))
    record_property("steps computed twice", logged_steps(job.folder)[-1] - max(job.folder.checkpoint_steps(), default=0))
    finish(job, reference, record_property)


@pytest.mark.parametrize(
    "node",
    [pytest.param("n2", id="another", marks=pytest.mark.long), pytest.param("n1", id="the first, which runs the job's script")],
)
def test_a_node_dies(node: str, desk: Desk, reference: RunFolder, record_property: Report) -> None:
    """A node is unplugged in mid-step. The other rank notices first, Slurm after SlurmdTimeout."""
    job = desk.submit("tiny", WANDB)
    ranks = job.stop_in_step(6, num_ranks=2)
    record_property("steps lost", logged_steps(job.folder)[-1] - max(job.folder.checkpoint_steps(), default=0))
    assert job.show("NodeList") == "n[1-2]"
    desk.cluster.kill_node(node)
    for pid in ranks:
        if is_halted(pid):  # the survivor
            os.kill(pid, signal.SIGCONT)
    record_property("seconds from power cut to requeue", round(job.wait_for_state("PENDING"), 1))
    finish(job, reference, record_property)
    assert node not in desk.cluster.run("scontrol", "show", "hostnames", job.show("NodeList")).split()


def test_a_rank_hangs(desk: Desk, reference: RunFolder, record_property: Report) -> None:
    """One rank never comes back: the other says where it waits, and the job is retried."""
    hang_s = 10
    job = desk.submit("tiny", WANDB, f"trainer.hang_timeout_s={hang_s}", "data.read_patience_s=1", tasks=1)
    halted, alive = job.stop_in_step(6, num_ranks=2)
    os.kill(alive, signal.SIGCONT)
    waited_s = job.wait_for_state("PENDING")
    record_property("seconds from hang to requeue", round(waited_s, 1))
    assert not Path(f"/proc/{halted}").exists()
    report = next((job.folder.root / "hangs").glob("rank-*.txt")).read_text()
    assert re.search(r"\d+ s in this phase: (in a step|at a step's end|waiting for data)( .*)?, after step \d+\n", report), (
        report[:400]
    )
    assert "torch/distributed" in report  # the stack of what it waits in
    assert "[job] broken off with exit code 137; try 1 of 2" in job.text
    finish(job, reference, record_property)


def reach_time_limit(evaluator: Job) -> None:
    minutes, seconds = map(int, evaluator.show("RunTime").split(":")[-2:])
    limit = (
        60 * minutes + seconds + 45
    ) // 60 + 1  # 45 to 105 s from now; the warning comes 60 s ahead, at one of the looks every 30 s
    evaluator.cluster.run("scontrol", "update", f"jobid={evaluator.id}", f"TimeLimit={limit}")


def cut_power(evaluator: Job) -> None:
    evaluator.cluster.kill_node(evaluator.show("NodeList"))


# Partition of the evaluator, and what happens to it.
NO_FAULTS: dict[str, tuple[str, Callable[[Desk, Job], object]]] = {
    "preempted": ("scavenge", lambda desk, _: desk.urgent_job()),
    "preempted with grace time": ("gpu", lambda desk, _: desk.urgent_job()),
    "time limit": ("gpu", lambda _, evaluator: reach_time_limit(evaluator)),
    "its node dies": ("gpu", lambda _, evaluator: cut_power(evaluator)),
}


@pytest.mark.parametrize("cause", NO_FAULTS)
def test_an_evaluator_that_ends_without_its_fault_has_not_failed(
    cause: str, desk: Desk, downstream: dict[str, str], record_property: Report
) -> None:
    """It ends between two results: the next resumes behind what it has written, and no try is counted."""
    partition, happen = NO_FAULTS[cause]
    desk.evaluate_on(downstream)
    desk.set_site(f"SITE_EVAL_PARTITION={partition}")
    training = desk.submit("watched", "checkpoint.every=2 steps", nodes=1)
    with desk.evaluator_of(training) as evaluator:
        evaluator.wait(lambda: len(read_json_lines(training.folder.evaluations)) > 0, "at its first result")
        for pid in evaluator.ranks("evaluate"):
            os.kill(pid, signal.SIGSTOP)
        before = len(read_json_lines(training.folder.evaluations))
        assert training.wait_for_end() == "0:0", training.text
        happen(desk, evaluator)
        record_property(f"seconds to requeue, {cause}", round(evaluator.wait_for_state("PENDING"), 1))
        if cause == "time limit":
            desk.cluster.run("scontrol", "update", f"jobid={evaluator.id}", "TimeLimit=60")
        evaluator.start_now()
        assert evaluator.wait_for_end() == "0:0", evaluator.text
        assert evaluator.show("Restarts") == "1"
    assert not (training.folder.root / "broken-off.log").exists()
    rows = read_json_lines(training.folder.evaluations)
    keys = [(row["step"], row["protocol"], row["measure"], row["seed"]) for row in rows]
    assert len(keys) == len(set(keys)) > before
    assert all(row["accuracy"] is not None for row in rows)
    assert {step for step, *_ in keys} == {0, 2, 4, 6, 8, 10, 12}


def test_an_evaluator_that_is_killed_is_tried_again_and_counted(desk: Desk, downstream: dict[str, str]) -> None:
    """The kernel kills it for lack of memory: this cannot be distinguished from a fault of its own."""
    desk.evaluate_on(downstream)
    training = desk.submit("watched", nodes=1)
    with desk.evaluator_of(training) as evaluator:
        evaluator.wait(lambda: len(read_json_lines(training.folder.evaluations)) > 0, "at its first result")
        for pid in evaluator.ranks("evaluate"):
            os.kill(pid, signal.SIGKILL)
        evaluator.wait_for_state("PENDING")
        evaluator.start_now()
        assert evaluator.wait_for_end() == "0:0", evaluator.text
        assert re.search(r"\[job\] broken off with exit code 137; try 1 of 2", evaluator.text)
    tries = (training.folder.root / "broken-off.log").read_text().splitlines()
    assert [line.partition(" from ")[0] for line in tries] == [f"job {evaluator.id}"]


def test_a_cancelled_evaluator_stays_so_and_is_no_try(desk: Desk, downstream: dict[str, str]) -> None:
    desk.evaluate_on(downstream)
    training = desk.submit("watched", "trainer.duration=100000 steps", nodes=1)
    with desk.evaluator_of(training) as evaluator:
        evaluator.wait(lambda: len(read_json_lines(training.folder.evaluations)) > 0, "at its first result")
        desk.cluster.run("scancel", evaluator.id)
        evaluator.wait_for_state("CANCELLED")
        evaluator.wait(lambda: "[job]" in evaluator.text, "with its last word")
        assert "not requeued from here (the job is over)" in evaluator.text
        assert (evaluator.show("Restarts"), training.state) == ("0", "RUNNING")
    assert not (training.folder.root / "broken-off.log").exists()


def test_a_task_of_an_array_is_requeued_alone(desk: Desk) -> None:
    """The last task's number is also the array's."""
    desk.set_site("SITE_CONTAINER=(bash -c '[ \"$SLURM_ARRAY_TASK_ID\" = 0 ] || exit 75')")
    job = desk.submit("links", nodes=1, options=("--gpus-per-node=1", "--array=0-1%1"))

    def restarts(task: int) -> str:
        text = desk.cluster.run("scontrol", "show", "job", "--oneliner", f"{job.id}_{task}")
        return " ".join(re.findall(r"JobState=(\S+)|Restarts=(\S+)", text)[number][number] for number in (0, 1))

    job.wait(lambda: restarts(1) == "PENDING 1", "requeued")
    assert restarts(0) == "COMPLETED 0"


def test_a_cancelled_job_stays_so_and_takes_its_waiting_evaluator_along(
    desk: Desk, downstream: dict[str, str], tmp_path: Path
) -> None:
    """Slurm says COMPLETING until every node has ended its ranks, as it does of a job that it requeues.

    Ranks that only end as asked take the training's place: on a busy machine four trainings would need longer than KillWait to
    save, and the script is killed then.
    """
    desk.evaluate_on(downstream)
    ends_as_asked = f'touch {tmp_path}/rank-$SLURM_PROCID; trap "exit 75" TERM; while :; do sleep 0.1; done'
    desk.set_site(f"SITE_CONTAINER=(bash -c {shlex.quote(ends_as_asked)})")
    num_nodes = desk.cluster.num_nodes
    job = desk.submit("cancelled", nodes=num_nodes, options=("--gpus-per-node=8",))
    with desk.evaluator_of(job) as evaluator:
        job.wait(lambda: len(list(tmp_path.glob("rank-*"))) == num_nodes, "with all its ranks")
        assert evaluator.state == "PENDING"
        desk.cluster.run("scontrol", "hold", evaluator.id)  # else it might start the moment the first node is free
        desk.cluster.run("scancel", job.id)
        job.wait_for_state("CANCELLED")
        evaluator.wait_for_state("CANCELLED")
        assert job.state == "CANCELLED"
        assert job.show("Restarts") == "0"
    assert "so is the evaluator cancelled-eval that waited: cancelled" in job.text
    assert not (job.folder.root / "broken-off.log").exists()


def test_an_evaluator_at_work_ends_when_its_training_is_cancelled(desk: Desk, downstream: dict[str, str]) -> None:
    """It measures everything that exists first."""
    desk.evaluate_on(downstream)
    training = desk.submit("given-up", "trainer.duration=100000 steps", nodes=1, LOOK_EVERY_S="1")
    with desk.evaluator_of(training) as evaluator:
        evaluator.wait(lambda: len(read_json_lines(training.folder.evaluations)) > 0, "at its first result")
        desk.cluster.run("scancel", training.id)
        assert evaluator.wait_for_end() == "0:0", evaluator.text
        assert "[job] no job given-up is left" in evaluator.text
    measured = {row["step"] for row in read_json_lines(training.folder.evaluations)}
    assert measured == set(training.folder.weight_steps())


def test_what_breaks_off_at_once_is_not_tried_for_ever(desk: Desk) -> None:
    with desk.site.open("a") as site:
        site.write("SITE_CONTAINER=(bash -c 'exit 70')\n")  # in place of the training
    job = desk.submit("broken", nodes=1)
    for restarts in ("1", "2"):
        job.wait(lambda wanted=restarts: job.show("Restarts") == wanted, f"restarted {restarts} times")
        job.start_now()
    assert job.wait_for_end() == "70:0"
    assert job.show("Restarts") == "2"
    assert "after 2 tries from the start: not requeued again" in job.text


def test_an_error_is_not_tried_again(desk: Desk) -> None:
    job = desk.submit("wrong", "trainer.globl_batch_size=8", nodes=1)
    assert job.wait_for_end() == "2:0"
    assert job.show("Restarts") == "0"
    assert "unknown key trainer.globl_batch_size; did you mean trainer.global_batch_size?" in job.text
