"""After a kill at any point, all commands report the same progress, and the command they recommend resumes."""

import shutil
from pathlib import Path

import pytest

from pipeline.checking.status import job_status
from pipeline.checking.verify import verify
from pipeline.sealing.extent import unfinished
from pipeline.storage.open import open_storage
from tests.pipeline import forked
from tests.pipeline.label_job import Labelling

SCORE = ("--scorer", "style=probe:0.0", "--threshold", "style=p10")
# The last point before anything of the new generation is durable, and those before and after its swap.
POINTS = ("record-created", "generation-created", "manifest-written")


class Steps(Labelling):
    """A corpus, and the commands that run on it one after another."""

    def run_command(self, command: str, failpoints: str = "") -> "forked.subprocess.CompletedProcess[str]":
        out = str(self.output)
        arguments = {
            "phf label": self.command("--unit-size", "200")[3:],
            "phf label --extend": self.command("--unit-size", "200", "--extend")[3:],
            "phf score": ["score", out, *SCORE],
            "phf retag": ["retag", out, "--threshold", "probe=p90"],
            "phf repair": ["repair", out],
        }[command]
        return forked.run(arguments, folder=self.folder, env={**self.env, "PHF_FAILPOINTS": failpoints})

    def run_to_end(self, command: str) -> None:
        done = self.run_command(command)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Steps]:
    """By command, a job on which it can be run next."""
    made: dict[str, Steps] = {}

    def copy(name: str, before: Steps | None = None) -> Steps:
        folder = tmp_path_factory.mktemp("started") / "made"
        if before is not None:
            shutil.copytree(before.folder, folder)
        made[name] = Steps(folder)
        return made[name]

    copy("phf label").write([f"Sentence one of {number}. And a second one. " * 3 for number in range(4)])
    copy("phf score", made["phf label"]).run_to_end("phf label")
    copy("phf retag", made["phf score"]).run_to_end("phf score")
    copy("phf label --extend", made["phf retag"]).write(["New one. And another."] * 3, "more.jsonl")
    return made


def check(step: Steps, command: str) -> None:
    """Check what the other commands report after a kill, and that the recommended command resumes."""
    storage = open_storage(str(step.output))
    status = job_status(storage)
    left = [each.command for each in status.unfinished]
    assert left in ([], [command])
    assert [each.command for each in unfinished(storage)] == left
    assert (status.generation is not None) == storage.exists("manifest.json")
    if status.generation is not None:
        report = verify(str(step.output))
        assert [str(each) for each in report.unfinished] == [str(each) for each in unfinished(storage)]
        assert all(each.stray or left for each in report.problems), report.problems
    if left:
        goes_on = step.run_command(status.unfinished[0].command)
        assert goes_on.returncode == 0, goes_on.stderr
    done = job_status(storage)
    assert (done.unfinished, done.committed) == ([], done.units)
    assert [each for each in verify(str(step.output)).problems if not each.stray] == []


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("command", ["phf label", "phf score", "phf retag", "phf label --extend"])
def test_a_killed_command_is_the_one_recommended_to_resume(
    command: str, point: str, started: dict[str, Steps], tmp_path: Path
) -> None:
    if (command, point) == ("phf retag", "record-created"):
        pytest.skip("it scores nothing")
    step = Steps(Path(shutil.copytree(started[command].folder, tmp_path / "made")))
    assert step.run_command(command, f"{point}=kill").returncode == -9
    check(step, command)


def test_a_committed_part_that_is_still_staged_survives_other_commands(
    started: dict[str, Steps], tmp_path: Path
) -> None:
    step = Steps(Path(shutil.copytree(started["phf score"].folder, tmp_path / "made")))
    assert step.run_command("phf score", "record-created=kill").returncode == -9
    step.run_to_end("phf retag")
    check(step, "phf score")
