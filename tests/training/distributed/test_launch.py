"""`phf train --ranks`: ranks start and stop together, and are restarted when one is killed or hangs."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.training import forked
from tests.training.forked import ranks_of
from tests.training.jobs import ENVIRONMENT, LONGER, command, figures, job_config, run_phf
from training.data.prepare import prepare
from training.runs.folder import RunFolder


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory, code_dataset):
    prepare(job_config(code_dataset, tmp_path_factory.mktemp("prepared") / "run"))


def start(dataset, output, *options, popen=forked.Popen, **changes):
    return popen(
        [sys.executable, *command(dataset, output, "awr", **{**LONGER, **changes}), "--ranks", "2", *options],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=output.parent,
    )


def ranks_at_step(process, output, step):
    """Wait until this many steps are done; return the processes of the ranks, by rank."""
    deadline = time.monotonic() + 200
    lines = output / "metrics.jsonl"
    while not (lines.is_file() and lines.read_text().count("\n") >= step):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    return ranks_of(process)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "rank"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 1)])
def test_a_rank_that_dies_or_hangs_costs_the_steps_since_the_checkpoint(tmp_path, code_dataset, undisturbed, how, rank):
    output = tmp_path / "run"
    options = ("--max-restarts", "1")
    with start(code_dataset, output, *options, training__hang_timeout_s=20) as process:
        ranks = ranks_at_step(process, output, 12)
        ranks[rank].send_signal(how)
        _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert "starting again from the newest checkpoint (restart 1 of 1)" in stderr
    assert "Traceback" not in stderr
    assert "defect of phf" not in stderr
    assert figures(output) == figures(undisturbed)
    assert not any(child.is_running() for child in ranks.values())
    stacks = [path.read_text() for path in (output / "stacks").glob("*")]
    if how == signal.SIGSTOP:
        assert "rank 0 has hung for 20 s" in stderr
        assert "Rank 0 ended with status 1" in stderr
        assert len(stacks) == 1
        # In whichever message to the other rank the stop has met it: of the step, its figures or its checkpoint.
        assert "_loop" in stacks[0]
    else:
        assert "Rank 0 was killed by SIGKILL" in stderr
        assert stacks == []


@pytest.mark.slow
def test_ranks_stop_together_when_their_parent_is_asked_to(tmp_path, code_dataset):
    output = tmp_path / "run"
    with start(code_dataset, output, "--max-restarts", "3") as process:
        ranks_at_step(process, output, 3)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 75, stderr
    stopped = RunFolder(output).read_facts()
    assert stopped.status == "stopped"
    assert stderr.count("asked to stop after step") == 1
    with start(code_dataset, output) as process:
        ranks = ranks_at_step(process, output, stopped.step + 3)
        # Without a parent nobody would collect them: they save, and stop.
        process.kill()
        for each in ranks.values():
            each.wait(60)
    assert RunFolder(output).read_facts().status == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_while_the_ranks_start_they_leave_resumable(tmp_path, code_dataset, number):
    with start(code_dataset, tmp_path / "run", "--max-restarts", "1", popen=subprocess.Popen) as process:
        while len(ranks_of(process)) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 75, stderr
    assert stderr.count("received SIG") <= 1
    assert f"received SIG{'TERM' if number == signal.SIGINT else 'INT'}" not in stderr
    assert "Traceback" not in stderr
    assert "KeyboardInterrupt" not in stderr
    assert "starting again" not in stderr


# Rank 1 alone finds something missing on its machine.
UNFIT = """
import os
if os.environ.get("RANK") == "1":
    from scorers.errors import UserError
    import training.{module} as module

    def missing(*_):
        raise UserError("There is no such thing here.")

    module.{name} = missing
"""


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name"), [("distributed.world", "World._check_device"), ("loop.train", "_prepare")])
def test_what_one_rank_alone_cannot_do_ends_all_at_once_and_is_said_once(tmp_path, code_dataset, module, name):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(UNFIT.format(module=module, name=name))
    path = os.pathsep.join([str(tmp_path / "site"), ENVIRONMENT["PYTHONPATH"]])
    began = time.monotonic()
    done = run_phf(
        [*command(code_dataset, tmp_path / "run", training__batch_size=8), "--ranks", "2", "--max-restarts", "2"],
        start_python=True,
        PYTHONPATH=path,
    )
    assert done.returncode == 2, done.stderr
    stderr = " ".join(done.stderr.split())
    assert re.search(r"Error: on rank 1 \(\S+\): There is no such thing here\.", stderr)
    assert stderr.count("no such thing") == 1
    assert "Error: rank 1 could not start, so no rank starts; see its own message." in stderr
    assert "starting again" not in stderr
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_ranks_that_are_lost_too_often_are_given_up(tmp_path, code_dataset):
    output = tmp_path / "run"
    with start(code_dataset, output, popen=subprocess.Popen) as process:
        # As they start; the other one waits for it, and is not waited for.
        while 1 not in (ranks := ranks_of(process)):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        ranks[1].kill()
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 4, stderr
    assert "Rank 1 was killed by SIGKILL. The same command continues" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("options", "environment", "status", "message"),
    [
        (["--ranks", "3"], {}, 2, "cannot be divided among 3 ranks"),
        (["--ranks", "2"], {"WORLD_SIZE": "2"}, 2, "A launcher started this process"),
        (["--max-restarts", "2"], {"WORLD_SIZE": "1"}, 2, "A launcher started this process"),
    ],
)
def test_what_cannot_be_started_is_refused_once_and_not_again(
    tmp_path, code_dataset, monkeypatch, options, environment, status, message
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = run_phf([*command(code_dataset, tmp_path / "run", training__batch_size=8), *options, "--max-restarts", "2"])
    assert done.returncode == status, done.stderr
    assert done.stderr.count(message) == 1
    assert "starting again" not in done.stderr
