"""Kill random processes while a corpus is labelled, scored, extended, retagged and repaired; the result is the same.

`PHF_CHAOS_ROUNDS=16 PHF_CHAOS_SEED=7` runs more rounds; odd rounds use Ray, and kill its processes too.
"""

import os
import random
import sys
import time
from pathlib import Path

import pytest

from pipeline.checking.verify import verify
from tests.pipeline.faults.job import DONE
from tests.pipeline.faults.killing import BEFALLEN, COMMANDS, Commands, Killing

ROUNDS = int(os.environ.get("PHF_CHAOS_ROUNDS", "1"))
SEED = int(os.environ.get("PHF_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
# The linear model takes some seconds to load, in each process.
QUICK, SLOW = "pycodestyle,max_line_length=20", "linear"
_MOST_DEATHS = 3 if ROUNDS > 1 else 1
"""Of a command, before it is left in peace."""

pytestmark = pytest.mark.timeout(600 if ROUNDS == 1 else 0)


class Undisturbed:
    """The results of the undisturbed commands, and the seconds that each takes.

    Repair is left out, because its result is the content before the damage.
    """

    def __init__(self, folder: Path, scorer: str) -> None:
        sequence = Commands(folder, scorer)
        self.seconds: dict[str, float] = {}
        for command in COMMANDS[:-1]:
            start = time.monotonic()
            if command == "extend":
                sequence.prepare(command, random.Random())
            ended = sequence.finish(command)
            assert ended.code == DONE, ended.printed
            self.seconds[command] = time.monotonic() - start
        self.seconds["repair"] = self.seconds["label"]
        sequence.collect()
        self.content = sequence.content()


_undisturbed: dict[str, Undisturbed] = {}


@pytest.mark.parametrize("number", range(ROUNDS))
def test_killing_any_process_of_any_command_does_not_change_the_result(
    number: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = number % 2 == 1
    scorer = SLOW if ray else QUICK
    if scorer not in _undisturbed:
        _undisturbed[scorer] = Undisturbed(tmp_path_factory.mktemp("undisturbed"), scorer)
    whole = _undisturbed[scorer]
    seed = SEED + number
    with capsys.disabled():
        sys.stderr.write(f"\nrandom kills: PHF_CHAOS_SEED={seed}{', with Ray' if ray else ''}\n")
    chance, story = random.Random(seed), [f"seed {seed}, ray {ray}"]
    sequence = Commands(tmp_path / "job", scorer)
    killing = Killing(sequence, chance, whole.seconds, story, ray=ray)
    for command in COMMANDS:
        story.append(sequence.prepare(command, chance))
        for _ in range(chance.randint(1, _MOST_DEATHS)):
            code = killing.disturb(command)
            assert code in BEFALLEN, "\n".join(story)
            assert "Traceback" not in story[-1], "\n".join(story)
            # `phf gc` may refuse a damaged dataset, because it cannot know which files are needed.
            if chance.random() < 0.2 and command != "repair" and sequence.output.exists():
                sequence.collect()
                story.append("gc --delete")
        assert killing.finish(command) == DONE, "\n".join(story)
    history = "\n".join(story)
    assert killing.left_over() == {}, history
    report = verify(str(sequence.output))
    assert report.ok, f"{[str(problem) for problem in report.problems]}\n{history}"
    sequence.collect()
    content = sequence.content()
    assert sorted(content) == sorted(whole.content), history
    assert [name for name in content if content[name] != whole.content[name]] == [], history
