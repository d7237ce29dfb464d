"""Disks that are full, disappear for a while, or become read-only."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.faults.job import COUNT, DONE, INCOMPLETE, Job, check
from tests.pipeline.label_job import wait_for


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """Mount a file system while the context is active; skips the test if mounting is not permitted."""
    place.mkdir(exist_ok=True)
    made = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def fill(folder: Path, leave: int) -> Path:
    """Fill a small file system except for `leave` bytes."""
    ballast = folder / ".ballast"
    free = os.statvfs(folder)
    with ballast.open("wb") as file:
        file.write(b"\0" * max(0, free.f_bavail * free.f_frsize - leave))
    return ballast


def test_a_disk_that_fills_up_anywhere_ends_the_driver_with_4_and_no_half_file_is_trusted(
    reference: Job, tmp_path: Path
) -> None:
    job = Job(tmp_path)
    place = tmp_path / "small"
    with mounted(place, "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        job.output = place / "labelled"
        job.uri = str(job.output)
        reached = []
        # Leave a little more room each time, so that the disk fills up later.
        for room in (4, 16, 32, 64, 96, 128, 144, 160, 176):
            ballast = fill(place, room * 1024)
            ended = job.label()
            ballast.unlink()
            assert ended.code in (INCOMPLETE, DONE), ended.printed
            if ended.code == INCOMPLETE:
                assert "No space left on device" in " ".join(ended.printed.split())
            reached.append((ended.code, len(job.committed())))
            if ended.code == DONE:
                break
        assert len(set(reached)) >= 3, reached
        assert job.label().code == DONE
        check(job, reference, orphans=True)


@pytest.mark.parametrize("kilobytes", [1, 2, 3])
def test_files_that_cannot_grow_end_the_driver_with_4(kilobytes: int, reference: Job, tmp_path: Path) -> None:
    # Needs no privileges: the kernel refuses to let a file grow (EFBIG). Parts are smaller than shards.
    job = Job(tmp_path)
    ended = job.label(file_size=kilobytes * 1024)
    assert ended.code == INCOMPLETE, ended.printed
    assert "same command continues" in " ".join(ended.printed.split())
    assert job.label().code == DONE
    check(job, reference)


def test_an_output_that_becomes_read_only_for_a_while(reference: Job, tmp_path: Path) -> None:
    job = Job(tmp_path)
    place = tmp_path / "share"
    with mounted(place, "-t", "tmpfs", "-o", "size=8m", "tmpfs"):
        job.output = place / "labelled"
        job.uri = str(job.output)
        job.hold(14)
        driver = job.fork()
        wait_for(lambda: len(job.committed()) >= 2)
        # The kernel refuses to remount while a file is open for writing, such as the status file.
        wait_for(lambda: subprocess.run(["mount", "-o", "remount,ro", str(place)], check=False).returncode == 0)
        job.release()
        ended = driver.wait()
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        assert ended.code == INCOMPLETE, ended.printed
        assert "Read-only file system" in " ".join(ended.printed.split())
        assert 2 <= len(job.committed()) < COUNT
        assert job.label().code == DONE
        check(job, reference, orphans=True)


def wait_until_held(job: Job) -> None:
    """Wait until some units are committed and nothing is written any more.

    If the output disappeared between a check and the step after it, the driver could not notice.
    """
    seen: list[Path] = []

    def still() -> bool:
        before, seen[:] = list(seen), sorted(job.output.rglob("*"))
        committed = [path for path in seen if path.suffix == ".parquet" and "units" in path.parts]
        return (
            len(committed) >= 2
            and seen == before
            and not any(path.is_file() for path in seen if "staging" in path.parts)
        )

    wait_for(lambda: still() and (time.sleep(1.5) or still()))


def test_nothing_is_written_in_place_of_an_unmounted_output(reference: Job, tmp_path: Path) -> None:
    job = Job(tmp_path)
    share = tmp_path / "share"
    share.mkdir()
    with mounted(job.output, "--bind", str(share)):
        job.hold(14)
        driver = job.fork()
        wait_until_held(job)
        subprocess.run(["umount", "-l", str(job.output)], check=True)
        job.release()
        ended = driver.wait()
        assert ended.code == INCOMPLETE, ended.printed
        assert "or unmounted" in " ".join(ended.printed.split())
        assert not list(job.output.rglob("*.json"))
        subprocess.run(["mount", "--bind", str(share), str(job.output)], check=True)
        assert len(job.committed()) >= 2
        assert job.label().code == DONE
        check(job, reference, orphans=True)


def test_a_job_resumes_after_its_output_was_moved_away_and_back(reference: Job, tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.hold(14)
    driver = job.fork()
    wait_until_held(job)
    away = tmp_path / "away"
    job.output.rename(away)
    job.release()
    ended = driver.wait()
    assert ended.code == INCOMPLETE, ended.printed
    # The new folder contains only what a worker has staged meanwhile, which is never read.
    assert {path.name for path in job.output.glob("*")} <= {"staging"}
    shutil.rmtree(job.output, ignore_errors=True)
    away.rename(job.output)
    assert job.label().code == DONE
    check(job, reference, orphans=True)
