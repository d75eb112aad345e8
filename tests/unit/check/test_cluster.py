"""The tasks of a matrix on a Dask cluster: a real scheduler and two real workers, on this computer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kodojo.check.cluster import Cluster, do_there
from kodojo.check.examine import Examined
from kodojo.check.matrix import make_tasks
from kodojo.check.sources import GivenModule
from kodojo.check.work import run_here
from kodojo.errors import InputError
from kodojo.image.tree import ModuleTree
from tests.support.checking import paper_kernel, simple_module

ROOT = Path(__file__).resolve().parents[3]
MODULES = 60


def start(*words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "dask", *words, "--host", "127.0.0.1", "--no-dashboard"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return line
    pytest.fail(f"{process.args} ended: {''.join(lines)}")


@pytest.fixture
def cluster() -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """The scheduler's address, and two workers of one thread each; nobody starts them again if they die."""
    processes = [start("scheduler", "--port", "0")]
    try:
        address = wait_for_line(processes[0], "Scheduler at:").split()[-1]
        processes += [start("worker", address, "--nthreads", "1", "--no-nanny") for _ in range(2)]
        for worker in processes[1:]:
            wait_for_line(worker, "Registered to:")
        yield address, processes[1:]
    finally:
        for process in reversed(processes):
            process.kill()
            process.communicate()


def tasks_for(tmp_path: Path):
    content = simple_module()
    given = []
    for number in range(MODULES):
        path = tmp_path / f"m{number}.ko"
        path.write_bytes(content if number % 3 else content[:100])
        given.append(Examined(GivenModule(str(path), path), path.stem))
    modules = [examined.module for examined in given]
    return list(make_tasks("paper", paper_kernel(), given, modules, jobs=2))


def test_a_worker_dies(tmp_path, cluster):
    """One of two workers is killed while there is work left: every result is there, once, and as it should be.

    The workers do not see the files that were given: those travel with the tasks.
    """
    address, workers = cluster
    tasks = tasks_for(tmp_path)
    assert len(tasks) > 5
    expected = [result for results in run_here(tasks) for result in results]
    tasks = [task.travelling() for task in tasks]
    for path in tmp_path.glob("*.ko"):
        path.unlink()
    there = []
    for number, results in enumerate(Cluster(address).run(tasks)):
        there += results
        if number == 1:
            workers[0].kill()
    assert workers[0].wait() != 0
    assert sorted(there, key=lambda result: result.module) == sorted(expected, key=lambda result: result.module)
    assert {result.slug for result in there} == {"ok", "elf-section-table"}


def test_all_workers_die(tmp_path, cluster):
    """Without workers there is an end, too: what was not done is reported as that."""
    address, workers = cluster
    tasks = tasks_for(tmp_path)
    there = []
    for results in Cluster(address, patience=1).run(tasks):
        there += results
        for worker in workers:
            worker.kill()
    assert len(there) == MODULES
    assert "the cluster has no workers left" in {result.failure for result in there}


def test_unseen_kernel(tmp_path, cluster):
    """A worker that does not see the kernel's files says so, and what to do; on all modules, and nothing else."""
    address, _workers = cluster
    tasks = tasks_for(tmp_path)
    for task in tasks:
        task.image.path = tmp_path / "vmlinuz"
    there = [result for results in Cluster(address).run(tasks) for result in results]
    assert len(there) == MODULES
    (failure,) = {result.failure for result in there}
    assert f"does not see the kernel's file {tmp_path / 'vmlinuz'}" in failure
    assert "KODOJO_STORE" in there[0].advice


def test_unseen_tree(tmp_path):
    """So it is with a kernel whose tree of modules is not there."""
    task = tasks_for(tmp_path)[0]
    task.image.modules = ModuleTree(tmp_path / "lib/modules/gone")
    assert {"gone" in result.failure for result in do_there(task)} == {True}


def test_no_scheduler():
    """Where nobody answers, that is said, with what to start."""
    with pytest.raises(InputError) as caught:
        Cluster("tcp://127.0.0.1:1", patience=1)
    assert "no Dask scheduler answers" in caught.value.message
    assert "dask scheduler" in caught.value.hint
