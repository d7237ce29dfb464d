"""The table of architectures in `training/README.md`."""

import re
from collections.abc import Mapping
from pathlib import Path

import transformers

from tests.architectures.configs import KINDS
from tests.architectures.lifecycle import WORKS

PAGE = Path(__file__).resolve().parents[2] / "training" / "README.md"
_BEGIN, _END = "<!-- architectures: begin -->", "<!-- architectures: end -->"


def write_table(outcomes: Mapping[str, str]) -> None:
    """Write the outcomes of all architectures between the markers of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(_BEGIN)
    _, after = rest.split(_END)
    PAGE.write_text(f"{before}{_BEGIN}\n{_table(outcomes)}\n{_END}{after}", encoding="utf-8")


def read_table() -> dict[str, str]:
    """The stored outcome of every architecture in the page: `works`, `refused: why` or `not tried: why`."""
    page = PAGE.read_text(encoding="utf-8").split(_BEGIN)[1].split(_END)[0]
    rows = (line.strip("|").split("|", 1) for line in page.splitlines() if line.startswith("| `"))
    return {kind: outcome.strip() for names, outcome in rows for kind in re.findall(r"`([^`]+)`", names)}


def _table(outcomes: Mapping[str, str]) -> str:
    kinds: dict[str, list[str]] = {}
    for kind in KINDS:
        kinds.setdefault(outcomes[kind], []).append(f"`{kind}`")
    order = sorted(kinds, key=lambda outcome: (outcome != WORKS, not outcome.startswith("refused"), outcome))
    counts = {
        name: sum(outcome.startswith(name) for outcome in outcomes.values()) for name in (WORKS, "refused", "not tried")
    }
    lines = [
        f"With transformers {transformers.__version__}: {counts[WORKS]} work, {counts['refused']} are refused before "
        f"step 0, {counts['not tried']} have no tiny config of their own.",
        "",
        "| architecture (`model_type`) | outcome |",
        "|---|---|",
        *(f"| {', '.join(kinds[outcome])} | {outcome} |" for outcome in order),
    ]
    return "\n".join(lines)
