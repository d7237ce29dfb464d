"""A full disk at any point of a run: exit status 4, a one-sentence message, and the same command continues."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from typer.testing import CliRunner

from phf import app
from pipeline.dataset import open_dataset
from scorers.errors import IncompleteError, StoppedError, UserError
from tests.training import forked
from tests.training.jobs import ENVIRONMENT, command, figures, job_config, metrics, run_job, run_phf
from training.data.prepare import prepare
from training.data.tokenizers import ensure_tokenizer
from training.disk import os_errors, writing
from training.loop.callbacks import Callback
from training.loop.trainer import DivergedError
from training.runs.folder import RunFolder

CHANGES = {"training__save_every": 4}
REMEDY = "Make room and run the same command again"


@contextmanager
def no_room(size=10):
    """Limit the size of files of this process: writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class At(Callback):
    """Does something at a moment of the run, before the run's own callbacks."""

    def __init__(self, moment, work):
        setattr(self, moment, work)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, code_dataset):
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    run_job(code_dataset, output, **CHANGES)
    return output


def check_resumes(dataset, output, undisturbed, step):
    """Check that the same command resumes from the checkpoint of that step and gives the same result."""
    assert RunFolder(output).read_facts().status == "running"
    facts, printed = run_job(dataset, output, **CHANGES)
    assert f"step {step} of 12" in printed
    assert facts.status == "finished"
    assert figures(output) == figures(undisturbed)
    assert [path.name for path in output.glob(".*")] == [".lock"]


def test_the_metrics(tmp_path, code_dataset, undisturbed):
    output = tmp_path / "run"

    def fill(trainer, step):
        if step.number == 6:
            files = [Path(each) for each in Path("/proc/self/fd").iterdir()]
            (own,) = [int(each.name) for each in files if each.resolve() == (output / "metrics.jsonl").resolve()]
            with Path("/dev/full").open("wb") as full:
                os.dup2(full.fileno(), own)

    with pytest.raises(IncompleteError, match=rf"metrics\.jsonl cannot be written: No space left on device\. {REMEDY}"):
        run_job(code_dataset, output, callbacks=[At("after_step", fill)], **CHANGES)
    assert len(metrics(output)) == 5
    check_resumes(code_dataset, output, undisturbed, 4)


def test_the_tokenizer_that_is_trained_first(code_dataset):
    dataset = open_dataset(str(code_dataset))
    with no_room(2000) as fill:
        fill()
        with pytest.raises(UserError, match="File too large"):
            ensure_tokenizer(dataset, 290)
    assert ensure_tokenizer(dataset, 290).base_size == 290


def test_the_facts_after_a_checkpoint(tmp_path, code_dataset, undisturbed):
    output = tmp_path / "run"
    with no_room() as fill:
        callback = At("after_save", lambda trainer: fill())
        with pytest.raises(IncompleteError, match=rf"run\.json cannot be written: File too large\. {REMEDY}"):
            run_job(code_dataset, output, callbacks=[callback], **CHANGES)
    check_resumes(code_dataset, output, undisturbed, 4)


def test_the_model_at_the_end(tmp_path, code_dataset, undisturbed):
    output = tmp_path / "run"
    with no_room(20_000) as fill:
        callback = At("after_training", lambda trainer: fill())
        with pytest.raises(IncompleteError, match=rf"run/model cannot be written: File too large\. {REMEDY}"):
            run_job(code_dataset, output, callbacks=[callback], **CHANGES)
    assert [path.name for path in output.glob(".*")] == [".lock"]
    check_resumes(code_dataset, output, undisturbed, 12)


def stop(trainer, step):
    if step.number == 2:
        os.kill(os.getpid(), signal.SIGTERM)


def diverge(trainer, step):
    if step.number == 3:
        raise DivergedError("the loss is not finite")


@pytest.mark.parametrize(("end", "error"), [(stop, StoppedError), (diverge, DivergedError)])
def test_the_facts_of_a_run_that_ends_by_something_else_hide_nothing(tmp_path, code_dataset, end, error):
    with no_room() as fill:
        callbacks = [At("after_step", end), At("after_training", lambda trainer: fill())]
        with pytest.raises(error):
            run_job(code_dataset, tmp_path / "run", callbacks=callbacks, **CHANGES)
    assert RunFolder(tmp_path / "run").read_facts().status == "running"


def test_the_model_of_a_checkpoint(tmp_path, undisturbed):
    arguments = ["export-model", str(undisturbed), "--output", str(tmp_path / "model")]
    with no_room(20_000) as fill:
        fill()
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 4, result.output
    assert f"{tmp_path}/model cannot be written: File too large. {REMEDY}" in result.output
    assert not list(tmp_path.iterdir())
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_what_libraries_in_rust_say_is_an_error_of_the_system():
    failure = pytest.raises(IncompleteError, match="a place cannot be written: No space left on device")
    with failure, writing(Path("a place")), os_errors():
        Tokenizer(BPE()).save("/dev/full")
    with pytest.raises(ValueError, match="something else"), os_errors():
        raise ValueError("something else")


@pytest.mark.slow
def test_ranks_are_not_started_again_for_it_and_none_hangs(tmp_path, code_dataset):
    prepare(job_config(code_dataset, tmp_path / "prepared"))
    output = tmp_path / "run"
    arguments = command(
        code_dataset, output, training__batch_size=8, training__num_tokens=60 * 8 * 32, training__save_every=0
    )
    arguments += ["--ranks", "2", "--max-restarts", "3"]
    with forked.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        deadline = time.monotonic() + 200
        lines = output / "metrics.jsonl"
        while not (lines.is_file() and lines.read_text().count("\n") >= 5):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        forked.ranks_of(process)[0].rlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        # The next line would not fit.
        (output / ".model.staging").touch()
        _, stderr = process.communicate(timeout=200)
    assert process.returncode == 4, stderr
    assert stderr.count("cannot be written: File too large") == stderr.count(REMEDY) == 1
    assert "starting again" not in stderr
    assert "defect" not in stderr
    # A file where the model would be written aside.
    done = run_phf(arguments)
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("run/model cannot be written: File exists. Fix that and run the same command") == 1
    assert "starting again" not in done.stderr
    assert "defect" not in done.stderr


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "Make room"), (errno.EDQUOT, "Make room"), (errno.EACCES, "Fix that")]
)
def test_room_is_asked_for_where_it_is_wanted(tmp_path, number, remedy):
    with pytest.raises(IncompleteError, match=rf"{remedy} and run the same command again"), writing(tmp_path):
        raise OSError(number, os.strerror(number))


def test_an_output_that_cannot_be_is_found_before_anything_is_made(tmp_path, code_dataset):
    (tmp_path / "file").write_text("")
    store = tmp_path / "store"
    with pytest.raises(UserError, match=r"Cannot write .*file/run: Not a directory\. Give another --output"):
        run_job(code_dataset, tmp_path / "file" / "run", data__store=store)
    assert not store.exists()
