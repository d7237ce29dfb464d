"""Slurm's commands, and their errors as sentences."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from infra.submission.place import NoAnswerError
from scorers.errors import UserError
from scorers.printing import message

_TIMEOUT_S = 60.0
# For what only asks after jobs: `phf jobs` has other jobs to show.
_ASKING_S = 30.0
# `sbatch: error: Batch job submission failed: Invalid partition name specified`
# A name, a star at the default partition, cores of a machine, machines.
_MACHINES = re.compile(r"^\s*([^|\s]+?)(\*?)\|(\d+)\|(\d+)\s*$", re.MULTILINE)
_ERROR = re.compile(r"^\w+: (?:error|fatal): |^slurm_load_jobs error: |^Batch job submission failed: ")


def run(*words: str, text: str | None = None) -> str:
    """Run a command of Slurm, and return what it printed.

    Args:
        words: the command.
        text: its standard input.

    Raises:
        UserError: it is not installed, failed, or did not answer in time; says why in a sentence.
    """
    limit = _ASKING_S if words[0] in ("squeue", "sacct") else _TIMEOUT_S
    try:
        done = subprocess.run(  # noqa: S603 - a command of Slurm
            words, input=text, capture_output=True, text=True, errors="replace", check=False, timeout=limit
        )
    except FileNotFoundError:
        raise UserError(
            f"{words[0]} is not installed here: --on slurm works on a machine that can submit to the cluster, such as "
            "its login node."
        ) from None
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"Slurm does not answer: {words[0]} took more than {limit:.0f} s.") from None
    if done.returncode:
        why = _why(done.stderr)
        kind = NoAnswerError if "Unable to contact" in why else UserError
        raise kind(f"Slurm's {words[0]} failed: {why}.")
    return done.stdout


def _why(errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if not lines:
        return "it gave no reason"
    # The last is the most general one: `Batch job submission failed: ...`.
    return _strip(message(lines[-1])).rstrip(".")


def _strip(line: str) -> str:
    shorter = _ERROR.sub("", line)
    return line if shorter == line else _strip(shorter)


@dataclass(frozen=True)
class Machines:
    """Machines of a partition that have the same cores, and whether it is the default one."""

    partition: str
    default: bool
    cores: int
    count: int


def machines() -> list[Machines]:
    """Return the machines of all partitions, also those that are down."""
    # --noconvert: 1,024 machines would be `1K`.
    return parse_machines(run("sinfo", "--noheader", "--all", "--exact", "--noconvert", "--format=%P|%c|%D"))


def parse_machines(text: str) -> list[Machines]:
    """Parse lines such as `main*|64|12`; what has another form is left out."""
    return [Machines(name, bool(star), int(cores), int(count)) for name, star, cores, count in _MACHINES.findall(text)]


@dataclass(frozen=True)
class Queued:
    """A job that is queued or runs, by its number, and its user."""

    number: str
    user: str


def find(name: str) -> list[Queued]:
    """Return the jobs of a name that are queued or run, whoever submitted them."""
    lines = [
        line.split("|") for line in run("squeue", "--noheader", f"--name={name}", "--format=%A|%u|%T").splitlines()
    ]
    # One that is completing has ended; it may still be requeued, which its own record shows.
    return [Queued(line[0], line[1]) for line in lines if len(line) == 3 and line[2] != "COMPLETING"]


def submit(script: str, options: Sequence[str] = ()) -> str:
    """Submit a script, and return the number of its job."""
    return run("sbatch", "--parsable", *options, text=script).strip().partition(";")[0]
