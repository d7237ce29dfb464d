"""`python -m tests.stored.make FOLDER`: write what `test_stored.py` opens, with the version of phf that is checked out.

FOLDER is new, and becomes part of some stored settings, so give a neutral one such as `/tmp/phf-fixture`. The archive
`FOLDER.tar.gz` holds all of it. Only the parts of `tests/` that every version has are used.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

from typer.testing import CliRunner

from phf import app
from scorers.errors import StoppedError
from scorers.fingerprint import library_versions
from tests.pipeline import probe
from tests.training.jobs import COMPARABLE, ENVIRONMENT, StopAfter, run_job

LABEL = [
    *("label", "corpus", "--kind", "python", "--scorer", "style=probe", "--threshold", "style=p60"),
    *("--unit-size", "2500", "--workers", "1", "--max-quarantined", "1"),
]
# A model of 4,000 parameters; 16 steps of 4 blocks of 32 tokens.
TRAIN = {
    "data__column": "style",
    "data__vocab_size": 280,
    "model__overrides": "{n_layer: 1, n_embd: 8, n_head: 2, n_positions: 32}",
    "training__num_tokens": 16 * 4 * 32,
    "training__save_every": 4,
    "training__keep_checkpoints": 1,
    "training__evaluate_every": 8,
    "training__validate_every": 8,
    "training__adam_epsilon": COMPARABLE,
    "evaluation__num_samples": 30,
    "evaluation__max_new_tokens": 12,
    "evaluation__leakage_samples": 8,
}
STOPPED = 6


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    packages = folder.with_name(f"{folder.name}.packages")
    probe.install(packages)
    sys.path.insert(0, str(packages))
    os.environ.update(ENVIRONMENT, **{probe.LOG: str(folder.with_name(f"{folder.name}.log"))})
    os.chdir(folder)
    write_corpus(Path("corpus"))
    without_ray(packages, *LABEL, "--output", "labelled")
    # Killed between the record and the move of the third unit.
    without_ray(packages, *LABEL, "--output", "half", failpoint="record-created=kill@3")
    shutil.copytree("labelled", "twice")
    without_ray(packages, "score", "twice", "--scorer", "length=probe", "--workers", "1", "--max-quarantined", "1")
    without_ray(packages, "retag", "twice", "--threshold", "style=p30")
    for objective in ("mle", "conditional"):
        run_job(Path("labelled"), Path(objective), objective, **TRAIN)
        evaluated = CliRunner().invoke(app, ["evaluate", objective])
        assert evaluated.exit_code == 0, evaluated.output
    with suppress(StoppedError):
        run_job(Path("labelled"), Path("stopped"), "conditional", callbacks=[StopAfter(STOPPED)], **TRAIN)
    Path("versions.json").write_text(json.dumps(library_versions("phf", "torch", "deepspeed", "pyarrow", "spacy")))
    pack(folder)


def write_corpus(folder: Path) -> None:
    """Write lines of Python in 80 documents; one is empty, and the scorer raises on another."""
    folder.mkdir()
    draw = random.Random(7)
    names = ("total", "rows", "value", "index", "path")
    for number in range(2):
        documents = []
        for index in range(40):
            lines = [
                f"{draw.choice(names)} = {draw.choice(names)}[{draw.randrange(9)}]{'  # why' * draw.randrange(3)}\n"
                for _ in range(draw.randrange(3, 9))
            ]
            documents.append({"id": f"{number}-{index}", "text": "".join(lines), "licence": "MIT"})
        if number:
            documents[5]["text"] = ""
            documents[20]["text"] = f"# {probe.RAISE}\n"
        (folder / f"{number}.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in documents))


def without_ray(packages: Path, *command: str, failpoint: str = "") -> None:
    """Run a command of phf, without Ray, to its end or to the failpoint."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.without_ray", *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), root]), "PHF_FAILPOINTS": failpoint},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (-9 if failpoint else 0), done.stderr


def pack(folder: Path) -> None:
    """Pack the folder without locks and names of the machine."""
    for path in Path().glob("*/job/progress.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "host": "host"}))

    def neutral(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return None if member.name.endswith(".lock") else member

    with tarfile.open(f"{folder}.tar.gz", "w:gz") as archive:
        for path in sorted(Path().iterdir()):
            archive.add(path, filter=neutral)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
