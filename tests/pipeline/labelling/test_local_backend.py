"""`phf label --workers 0`: the same bytes and the same promises as with Ray, from processes of this machine."""

import os
import signal
import subprocess
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipeline.storage.open import open_storage
from tests.pipeline import probe
from tests.pipeline.label_job import Labelling, alive, data_hashes, descendants, wait_for

OPTIONS = ("--workers", "0", "--unit-size", "2000")
CANARY = "xyzzy-canary"


def texts(count: int = 20) -> list[str]:
    return [f"{CANARY} one of {number:02}. Two. Three. {'x' * 300}" for number in range(count)]


@pytest.fixture
def made(tmp_path: Path) -> Labelling:
    return Labelling(tmp_path / "made")


@pytest.fixture
def bare(made: Labelling) -> list[str]:
    """The command without a number of workers."""
    command = made.command()
    at = command.index("--workers")
    return command[:at] + command[at + 2 :]


def pids(made: Labelling) -> set[int]:
    """The processes that have scored."""
    return {int(path.name.rpartition(".by-")[2]) for path in made.folder.glob("scored.by-*")}


def check_same(made: Labelling, folder: Path) -> None:
    """An undisturbed job that names its inputs alike has the same bytes."""
    calm = Labelling(folder)
    calm.write(texts())
    calm.run_undisturbed(*OPTIONS[2:])
    assert data_hashes(made.output) == data_hashes(calm.output)


def test_units_get_the_same_bytes_in_one_process_of_their_own(made: Labelling, tmp_path: Path) -> None:
    made.write(texts())
    result = made.run(*OPTIONS)
    assert result.returncode == 0, result.stderr
    assert "Starting Ray" not in result.stderr
    assert len(pids(made)) == 1
    assert len(made.committed()) > 3
    check_same(made, tmp_path / "calm")


def test_records_that_kill_or_hang_the_process_are_quarantined(made: Labelling, tmp_path: Path) -> None:
    disturbed = texts()
    disturbed[3] += probe.SEGFAULT
    disturbed[9] += probe.HANG_IN_C
    disturbed[15] += probe.KILL_ONCE
    options = (*OPTIONS[2:], "--set", "execution.attempts=1", "--max-quarantined", "2")
    made.scorer = "probe=poison_probe"
    calm = Labelling(tmp_path / "calm", scorer=made.scorer, env={probe.MILD: "1"})
    for each in (made, calm):
        each.write(disturbed)
    calm.log.with_suffix(".killed").touch()
    calm.run_undisturbed(*options)
    limits = ("--set", "execution.unit_deadline_s=4", "--set", "execution.deadlines.probe=0.5")
    result = made.run("--workers", "0", *options, *limits)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("is retried record by record") == 3
    assert "SIGSEGV" in result.stderr
    assert CANARY not in result.stdout + result.stderr
    assert data_hashes(made.output) == data_hashes(calm.output)


def test_the_process_dies_with_the_driver_and_the_same_command_continues(made: Labelling, tmp_path: Path) -> None:
    made.write(texts())
    made.hold(10)
    driver = made.start(*OPTIONS)
    wait_for(lambda: len(made.committed()) == 2 and made.scored().total() >= 10, 60)
    (worker,) = pids(made)
    assert worker in descendants(driver.pid)
    driver.kill()
    driver.communicate()
    wait_for(lambda: not alive({worker}), 60)
    before = made.committed()
    made.release()
    result = made.run(*OPTIONS)
    assert result.returncode == 0, result.stderr
    assert f"{len(before)} of " in result.stderr
    check_same(made, tmp_path / "calm")


def test_a_signal_ends_the_driver_with_75(made: Labelling, tmp_path: Path) -> None:
    made.write(texts())
    made.hold(10)
    driver = made.start(*OPTIONS)
    wait_for(lambda: made.scored().total() >= 10, 60)
    # A terminal sends Ctrl-C to the driver's process group, to which its worker does not belong.
    os.killpg(driver.pid, signal.SIGINT)
    made.release()
    _, stderr = driver.communicate(timeout=100)
    assert driver.returncode == 75, stderr
    assert "the same command continues" in " ".join(stderr.split())
    assert not alive(pids(made))
    result = made.run(*OPTIONS)
    assert result.returncode == 0, result.stderr
    check_same(made, tmp_path / "calm")


def test_a_process_that_exceeds_the_memory_limit_loses_only_its_record(made: Labelling) -> None:
    disturbed = texts(4)
    disturbed[1] += probe.EAT_MEMORY
    made.write(disturbed)
    made.scorer = "probe=poison_probe"
    result = made.run(
        *("--workers", "0", "--set", "execution.memory_limit=600MB"),
        *("--set", "execution.attempts=1", "--max-quarantined", "1"),
    )
    assert result.returncode == 0, result.stderr
    assert "memory-limit 1" in result.stdout


def test_scorers_that_fail_to_start_end_the_job(made: Labelling) -> None:
    made.write(texts(3))
    made.scorer = "probe=poison_probe"
    made.env[probe.DIE_ALWAYS] = "1"
    result = made.run("--workers", "0", "--set", "execution.attempts=1")
    assert result.returncode == 4, result.stderr
    assert "Traceback" not in result.stderr
    assert CANARY not in result.stderr


def test_a_single_unit_needs_no_ray(made: Labelling, bare: list[str]) -> None:
    made.write(texts(3))
    result = subprocess.run(
        bare, cwd=made.folder, env=made.env, capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Ray" not in result.stderr
    assert len(pids(made)) == 1


def test_an_output_in_an_object_store_is_written_by_a_new_interpreter(
    made: Labelling, s3: dict[str, str], tmp_path: Path
) -> None:
    pafs.FileSystem.from_uri("s3://bucket/?allow_bucket_creation=true")[0].create_dir("bucket")
    made.write(texts())
    made.env.update(s3)
    result = made.run(*OPTIONS, output="s3://bucket/labelled")
    assert result.returncode == 0, result.stderr
    assert len(pids(made)) == 1
    storage = open_storage("s3://bucket/labelled")
    calm = Labelling(tmp_path / "calm")
    calm.write(texts())
    calm.run_undisturbed(*OPTIONS[2:])
    shards = {info.path: storage.read(info.path) for info in storage.list("data")}
    assert shards == {path: (calm.output / path).read_bytes() for path in data_hashes(calm.output)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--address", "auto"), "execution.address needs it"),
        (("--set", "execution.pools.probe.max=2"), "execution.pools needs it"),
        (("--set", "execution.metrics_port=9999"), "execution.metrics_port needs it"),
        (("--workers", "-1"), "--workers"),
    ],
)
def test_options_that_need_ray_are_refused(made: Labelling, options: tuple[str, ...], message: str) -> None:
    made.write(texts(1))
    result = made.run_without_ray("--workers", "0", *options)
    assert result.returncode == 2, result.stderr
    assert message in " ".join(result.stderr.split())
