"""Hostile files crash no process: each is scored or refused with a reason, and the next file is scored as usual."""

import json
import subprocess
import sys

import pytest

DEPTH = 100_000

# The text as Python source, and the result with pycodestyle and with pylint: a reason, or None for scores.
HOSTILE = {
    "parentheses": ("'x = ' + '(' * N + '1' + ')' * N", None, None),
    "unary operators": ("'x = ' + '-' * N + '1'", "too-deep", "too-deep"),
    "lambdas": ("'x = ' + 'lambda: ' * N + '1'", "too-deep", "too-deep"),
    "conditions": ("'x = ' + '1 if 1 else ' * N + '1'", "too-deep", "too-deep"),
    "operators": ("'x = ' + '1+' * 20_000 + '1'", None, "too-deep"),
    "attributes": ("'x = a' + '.b' * 20_000", None, "too-deep"),
    "calls": ("'x = f' + '(1)' * 20_000", None, "too-deep"),
    "branches": ("'if x:\\n pass\\n' + 'elif x:\\n pass\\n' * 2_000", None, "too-deep"),
    "a dotted import": ("'import a' + '.b' * N", "too-deep", "too-deep"),
    "blocks": ("''.join(' ' * i + 'if x:\\n' for i in range(95)) + ' ' * 95 + 'pass\\n'", None, None),
    "a long integer": ("'x = ' + '9' * N", None, None),
    "a longer integer": ("'x = 0x' + 'f' * N", None, None),
    "a power": ("'x = 9 ** 9 ** 9 ** 9\\ny = 1 << 10 ** 10\\nz = [0] * 10 ** 10 * 10 ** 10\\n'", None, None),
    "a long string": ("'x = \"' + 'a' * 1_000_000 + '\"\\n'", None, None),
    "a line of 10 MB": ("'x = [' + 'a, ' * 3_300_000 + ']\\n'", "too-long", "too-long"),
    "a NUL": ("'x = \"\\0\"\\n'", None, None),
    "wrong escapes": (r"'x = \"\\d\\q\\N{no such}\"\\n'", None, None),
    "ends of lines": ("'\\ufeffx=1\\ry=2\\r\\n\\x0c\\nz=3\\x1c\\u2028\\n'", None, None),
    "prose": ("'This is prose, in \"quotes\" and (brackets.\\n\\nIt goes on.\\n'", None, None),
    "nothing": ("''", None, None),
}  # fmt: skip

SCRIPT = """
import json, sys
from scorers.contract import ScoringError
from scorers.registry import ScorerSpec, build
from scorers.sentences import document

N = int(sys.argv[2])
scorer = build("x", ScorerSpec(kind=sys.argv[1]))
fine = document("x=1\\n", "python")
expected = scorer.score([fine])[0].tolist()
for line in sys.stdin:
    name, expression = json.loads(line)
    hostile, next_one = scorer.score([document(eval(expression), "python"), fine])
    assert next_one.tolist() == expected
    print(json.dumps([name, hostile.reason if isinstance(hostile, ScoringError) else None]), flush=True)
"""


@pytest.mark.parametrize(("kind", "column"), [("pycodestyle", 1), ("pylint", 2)])
def test_no_file_ends_the_process(kind, column):
    lines = "".join(json.dumps([name, each[0]]) + "\n" for name, each in HOSTILE.items())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, str(DEPTH)], input=lines, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert dict(json.loads(line) for line in done.stdout.splitlines()) == {
        name: each[column] for name, each in HOSTILE.items()
    }
