"""A real Ray cluster whose machines join and leave in the middle of a job."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.label_job import Labelling, data_hashes, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Labelling:
    made = Labelling(tmp_path, scorer="probe=probe:0.1")
    made.write([f"One of {number}. Two. {'x' * 200}" for number in range(240)])
    # Workers see the environment with which their machine was started.
    for name in ("PYTHONPATH", "PHF_PROBE_LOG"):
        monkeypatch.setenv(name, made.env[name])
    return made


@pytest.fixture
def cluster(made: Labelling) -> Iterator["Cluster"]:  # type: ignore[name-defined] # noqa: F821 - imported below
    from ray.cluster_utils import Cluster

    # Make Ray notice a lost machine after about two seconds instead of fifteen.
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": quick},
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_a_new_machine_gets_work_and_a_lost_one_costs_no_attempt(
    made: Labelling,
    cluster: "Cluster",  # type: ignore[name-defined] # noqa: F821
    tmp_path: Path,
) -> None:
    options = ("--unit-size", "2000")
    made.run_undisturbed(*options, output=tmp_path / "undisturbed")
    first = cluster.add_node(num_cpus=1)
    # Its worker finishes two units, and stops in the third.
    made.hold(made.scored().total() + 10)
    process = made.start(
        *options, "--address", cluster.address, "--set", "execution.workers=null", "--set", "execution.attempts=1"
    )

    def workers() -> int:
        assert process.poll() is None, process.communicate()
        try:
            states = json.loads((made.output / "job" / "progress.json").read_text())["workers"]
            return sum(count for group in states.values() for count in group.values())
        except FileNotFoundError:
            return 0

    wait_for(lambda: workers() == 1 and len(made.committed()) >= 1)
    cluster.add_node(num_cpus=2)
    wait_for(lambda: workers() == 3)
    # Kill the first machine; the workers of the new one do the rest.
    cluster.remove_node(first, allow_graceful=False)
    made.release()
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert data_hashes(made.output) == data_hashes(tmp_path / "undisturbed")
    assert "its machine" in stderr
    assert "record by record" not in stderr
    assert "given up" not in stderr
