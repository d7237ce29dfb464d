"""Progress figures and the progress display; error messages and Ray's folders."""

import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.corpus.plan import Unit
from pipeline.corpus.records import Quarantined
from pipeline.job.unit_records import UnitRecord
from pipeline.labelling.monitoring.console import LiveReporter, PlainReporter, figures, reporter_for
from pipeline.labelling.monitoring.progress import Activity, Progress
from pipeline.labelling.on_ray.cluster import _private_folder
from pipeline.labelling.scheduler.events import UnitSent
from pipeline.labelling.workers.isolation import describe_error
from scorers.errors import UserError
from tests.pipeline.simulation import PART


class Clock:
    """A clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(records: int = 10, quarantined: int = 0) -> UnitRecord:
    return UnitRecord(
        unit=0,
        epoch=1,
        parts=[PART],
        records=records,
        empty=0,
        sentences=3 * records,
        bytes_text=100,
        quarantined=[Quarantined("a", position, "not-json") for position in range(quarantined)],
    )


def test_the_remaining_time_follows_the_pace_of_this_run_and_counts_down() -> None:
    clock = Clock()
    progress = Progress(units=14, before=4, workers=2, clock=clock)
    assert progress.remaining_s is None
    clock.now += 20
    for _ in range(2):
        progress.add(record(quarantined=1), [])
    assert (progress.committed, progress.records, progress.sentences) == (6, 20, 60)
    assert progress.quarantined == {"not-json": 2}
    assert progress.records_per_s == 1.0
    assert progress.remaining_s == 80.0
    clock.now += 5
    assert progress.remaining_s == 75.0
    assert progress.records_per_s == 1.0
    assert figures(progress) == "Labelling: 6/14 units, 1.0 records/s, 2 quarantined, 75 s left"
    for _ in range(8):
        progress.add(record(), [])
    assert progress.remaining_s is None


def test_the_remaining_time_grows_and_the_pace_falls_while_no_unit_is_committed() -> None:
    clock = Clock()
    progress = Progress(units=104, before=0, workers=2, clock=clock)
    for _ in range(4):
        clock.now += 10
        progress.add(record(), [])
    assert progress.remaining_s == 1000.0
    seen = []
    for _ in range(20):
        clock.now += 60
        assert progress.remaining_s is not None
        seen.append((progress.remaining_s, progress.records_per_s))
    assert [left for left, _ in seen] == sorted(left for left, _ in seen)
    assert [pace for _, pace in seen] == sorted((pace for _, pace in seen), reverse=True)
    assert seen[-1][0] > 20_000
    assert seen[-1][1] < 0.05


def test_the_remaining_time_follows_the_recent_pace() -> None:
    clock = Clock()
    progress = Progress(units=2000, before=0, workers=2, clock=clock)
    for _ in range(600):
        clock.now += 10  # for 100 minutes, then machines are added
        progress.add(record(), [])
    assert progress.remaining_s == pytest.approx(14_000)
    for _ in range(400):
        clock.now += 1
        progress.add(record(), [])
    assert progress.remaining_s == pytest.approx(1000, rel=0.02)
    assert progress.records_per_s == pytest.approx(10, rel=0.02)
    assert progress.records / progress.elapsed_s < 2, "the mean would say four times as long"


def test_the_time_to_load_models_is_not_part_of_the_pace() -> None:
    clock = Clock()
    activity = Activity(["cpu"], 100)
    progress = Progress(units=100, before=0, workers=1, activity=activity, clock=clock)
    clock.now += 300
    activity(UnitSent(Unit(0, ()), "cpu", 0, 1, isolated=False))
    clock.now += 10
    activity(UnitSent(Unit(1, ()), "cpu", 0, 1, isolated=False))
    progress.add(record(), [])
    assert progress.remaining_s == 990
    assert progress.elapsed_s == 310


@given(
    gaps=st.lists(st.floats(0.001, 500), min_size=1, max_size=200),
    wait=st.floats(0, 2000),
    more=st.integers(1, 1000),
)
def test_the_pace_is_between_the_slowest_and_fastest_observed(gaps: list[float], wait: float, more: int) -> None:
    clock = Clock()
    progress = Progress(units=len(gaps) + more, before=0, workers=1, clock=clock)
    for gap in gaps:
        clock.now += gap
        progress.add(record(), [])
    assert 10 / max(gaps) * 0.999 <= progress.records_per_s <= 10 / min(gaps) * 1.001
    assert progress.remaining_s is not None
    assert min(gaps) * more * 0.999 <= progress.remaining_s <= max(gaps) * more * 1.001
    before = progress.records_per_s
    clock.now += wait
    assert progress.records_per_s <= before
    assert progress.remaining_s >= 0


def test_plain_lines_come_less_often_as_time_goes_by() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = PlainReporter(stream, clock)
    progress = Progress(units=10, before=0, workers=2, clock=clock)
    reporter.step("Labelling")
    times = []
    for _ in range(3600 * 4):
        before = stream.tell()
        reporter.update(progress)
        if stream.tell() != before:
            times.append(clock.now)
        clock.now += 1
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] == 5
    assert gaps[-1] == 60
    assert gaps == sorted(gaps)
    reporter.note("Something happened.")
    assert stream.getvalue().endswith("Something happened.\n")


def test_a_terminal_gets_one_live_line_and_the_notes() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    with reporter_for(console) as reporter:
        assert isinstance(reporter, LiveReporter)
        reporter.step("Loading the scorers")
        reporter.measure("Reading the inputs", 1, 4)
        reporter.update(Progress(units=10, before=5, workers=2))
        reporter.note("A worker [of 2] was lost.")
    assert "A worker [of 2] was lost." in stream.getvalue()
    with reporter_for(Console(file=stream)) as reporter:
        assert isinstance(reporter, PlainReporter)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("The input x has changed."), "The input x has changed"),
        (OSError(28, "No space left on device", "/data/x"), "OSError: No space left on device (/data/x)"),
        (ValueError("secret text of the corpus"), "ValueError"),
    ],
)
def test_errors_of_workers_are_described_without_text_of_the_corpus(error: Exception, text: str) -> None:
    assert describe_error(error) == text


def test_rays_folder_is_private_and_folders_of_killed_runs_are_removed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from pipeline.labelling.on_ray.cluster import _private_folder\n"
        "with _private_folder(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (orphan,) = tmp_path.iterdir()
    with _private_folder(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not orphan.exists()
        with _private_folder(tmp_path) as other:
            assert folder.exists(), "its owner lives"
            assert other != folder
    assert list(tmp_path.iterdir()) == []


def test_only_private_folders_of_this_user_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lay(name: str, mode: int = 0o700) -> Path:
        folder = tmp_path / f"phf-ray-{name}"
        folder.mkdir(mode=mode)
        folder.chmod(mode)
        (folder / "precious").write_text("precious")
        return folder

    (lay("pipe") / "owner").touch()
    (tmp_path / "phf-ray-pipe" / "owner").unlink()
    os.mkfifo(tmp_path / "phf-ray-pipe" / "owner")
    (lay("link") / "owner").symlink_to(tmp_path / "phf-ray-link" / "precious")
    (lay("open", 0o755) / "owner").touch()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "elsewhere" / "owner").touch()
    (tmp_path / "phf-ray-linked").symlink_to("elsewhere")
    (tmp_path / "phf-ray-file").touch()
    left = {path.name for path in tmp_path.iterdir()}
    with _private_folder(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == left
    assert (tmp_path / "elsewhere" / "owner").exists()

    (lay("ours") / "owner").touch()
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with _private_folder(tmp_path):
        pass
    assert (tmp_path / "phf-ray-ours").exists(), "somebody else's"
    monkeypatch.setattr(os, "getuid", lambda: user)
    with _private_folder(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == left
