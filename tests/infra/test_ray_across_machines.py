"""Both jobs on a real Ray of three machines that require a token; one of them is cut off, and comes back."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.machines import RayOfMachines, ray_of_machines, why_not
from tests.pipeline.label_job import Labelling, data_hashes, wait_for
from tests.training.jobs import ENVIRONMENT, LONGER, command, figures, job_config, make_code_dataset, undisturbed_run
from training.data.prepare import prepare

REASON = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

TOKEN = "3" * 64
# phf, which does not wait a minute until it says that there may be no room.
IMPATIENT = "import infra.on_ray.launch as launch, phf; launch._PATIENCE_S = 2.0; phf.main()"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Labelling:
    """A corpus of 60 units, and a home without a token."""
    made = Labelling(tmp_path_factory.mktemp("machines"), scorer="probe=probe:0.05")
    made.write([f"One of {number}. Two. {'x' * 200}" for number in range(240)])
    (made.folder / "home").mkdir()
    made.env = {name: value for name, value in made.env.items() if not name.startswith("RAY_AUTH")}
    made.env["HOME"] = str(made.folder / "home")
    return made


@pytest.fixture(scope="module")
def ray(made: Labelling) -> Iterator[RayOfMachines]:
    """The head on machine 0, and one core on machines 1 and 2."""
    environment = {**made.env, **ENVIRONMENT, "PYTHONPATH": made.env["PYTHONPATH"], **with_token()}
    with ray_of_machines(3, environment, made.folder) as ray:
        yield ray


def with_token() -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


@contextlib.contextmanager
def started(ray: RayOfMachines, made: Labelling, *arguments: str, **environment: str) -> Iterator["Driver"]:
    """Run phf on the machine of the head."""
    printed = made.folder / f"{len(list(made.folder.glob('*.stderr')))}.stderr"
    with printed.open("wb") as sink:
        process = subprocess.Popen(
            ray.machines.on(0, [sys.executable, *arguments]),
            env={**os.environ, **made.env, **environment},
            cwd=made.folder,
            stdout=subprocess.DEVNULL,
            stderr=sink,
        )
    try:
        yield Driver(process, printed)
    finally:
        process.kill()
        process.wait()


@dataclass
class Driver:
    """A running phf, and the file of its stderr."""

    process: "subprocess.Popen[bytes]"
    printed: Path

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, as long as the process runs."""

        def holds() -> bool:
            assert self.process.poll() is None, self.printed.read_text()
            return condition()

        wait_for(holds, 300)

    def stderr(self, status: int) -> str:
        """What it has printed once it has ended with a status."""
        assert self.process.wait(400) == status, self.printed.read_text()
        return self.printed.read_text()


def label(made: Labelling, ray: RayOfMachines, output: Path) -> list[str]:
    options = ("--unit-size", "1000", "--address", ray.address, "--set", "execution.workers=null")
    return made.command(*options, "--set", "execution.attempts=1", output=output)[1:]


def workers(output: Path) -> int:
    """The number of workers of a labelling job."""
    try:
        states = json.loads((output / "job" / "progress.json").read_text())["workers"]
    except FileNotFoundError:
        return 0
    return sum(count for group in states.values() for count in group.values())


def test_a_driver_without_the_token_is_refused(ray: RayOfMachines, made: Labelling) -> None:
    output = made.folder / "refused"
    with started(ray, made, *label(made, ray, output)) as driver:
        stderr = driver.stderr(2)
    assert f"The Ray cluster {ray.address} requires a token" in stderr
    assert "Traceback" not in stderr
    assert not (output / "units").exists()


def test_labelling_survives_a_machine_that_is_cut_off_and_uses_it_when_it_is_back(
    ray: RayOfMachines, made: Labelling
) -> None:
    undisturbed = made.folder / "undisturbed"
    made.run_undisturbed("--unit-size", "1000", output=undisturbed)
    made.hold(made.scored().total() + 40)
    with started(ray, made, *label(made, ray, made.output), **with_token()) as driver:
        driver.wait_for(lambda: workers(made.output) == 2 and len(made.committed()) >= 2)
        ray.machines.cut(2)
        driver.wait_for(lambda: workers(made.output) == 1)
        restore(ray, 2)
        driver.wait_for(lambda: workers(made.output) == 2)
        made.release()
        stderr = driver.stderr(0)
    assert data_hashes(made.output) == data_hashes(undisturbed)
    assert "its machine" in stderr
    assert "given up" not in stderr
    assert TOKEN not in stderr
    assert not [path for path in made.output.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.timeout(900)
def test_training_goes_on_from_its_checkpoint_after_a_machine_was_cut_off(
    ray: RayOfMachines, made: Labelling, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dataset = make_code_dataset(made.folder / "code")
    prepare(job_config(dataset, made.folder / "prepared"))
    whole = undisturbed_run(tmp_path_factory.getbasetemp(), dataset)
    output = made.folder / "run"
    options = ("--ranks", "2", "--on", "ray", "--address", ray.address, "--max-restarts", "2")
    arguments = ["-c", IMPATIENT, *command(dataset, output, "awr", **LONGER)[2:], *options]
    with started(ray, made, *arguments, **ENVIRONMENT, **with_token()) as driver:
        lines = output / "metrics.jsonl"
        driver.wait_for(lambda: lines.is_file() and lines.read_text().count("\n") >= 15)
        ray.machines.cut(2)
        again = "starting again from the newest checkpoint (restart 1 of 2)"
        waiting = "Still waiting: the Ray cluster may have no room for 2 ranks of 1 CPU each."
        # Not only before the ranks first started.
        driver.wait_for(lambda: waiting in driver.printed.read_text().partition(again)[2])
        restore(ray, 2)
        stderr = driver.stderr(0)
    assert figures(output) == figures(whole)
    assert "Traceback" not in stderr


def restore(ray: RayOfMachines, machine: int) -> None:
    """Connect a machine again. The head has given it up: its node ends, and a supervisor would start a new one."""
    ray.machines.heal(machine)
    ray.wait_until_it_ended(machine)
    ray.start(machine)
