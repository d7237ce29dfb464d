"""Every command in the Markdown pages: those that need only this machine are run unchanged, the others parsed."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import zstandard

from phf import app
from tests.pages import NEEDS, PAGES, ROOT, Block, blocks, run

SHELL = [block for page in PAGES for block in blocks(page) if block.language in ("sh", "bash", "console")]
# Run in this order in one folder: a page may use the output of an earlier one.
TOURED = [ROOT / name for name in ("README.md", "pipeline/README.md", "training/README.md")]
ELSEWHERE = {ROOT / "scorers" / "README.md"}  # with files of its own: tests/scorers/test_readme.py
COMMANDS = typer.main.get_command(app)


def lines(code: str) -> list[list[str]]:
    whole = code.replace("\\\n", " ")
    words = [shlex.split(line, comments=True) for line in whole.splitlines()]
    return [each for each in words if each]


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that the words after `phf` name, and the remaining words."""
    command = COMMANDS
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def after_phf(words: list[str]) -> list[str]:
    return words[words.index("phf") + 1 :]


def test_every_block_is_run_or_declares_what_it_needs() -> None:
    for block in SHELL:
        needs = block.attributes.get("needs")
        assert needs in NEEDS if needs else block.page in {*TOURED, *ELSEWHERE}, block.name


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.name)
def test_the_command_line_accepts_every_command(block: Block) -> None:
    for words in lines(block.code):
        if "phf" in words and words[0] != "kubectl":  # also the name of a namespace
            command, rest = command_of(after_phf(words))
            command.make_context("phf", rest)
        elif words[0] == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert words[1] in targets
        else:
            assert words[0] in ("pip", "python", ".", "docker", "kubectl", "sbatch"), words


def mentioned() -> list[tuple[str, str]]:
    """Return each `phf …` in the prose of the pages, and each example in the help texts."""
    found = [
        (str(page.relative_to(ROOT)), snippet)
        for page in PAGES
        for snippet in re.findall(r"`((?:[\w./-]+ )*phf [^`]+)`", page.read_text(encoding="utf-8"))
    ]

    def walk(command: Any, path: str) -> None:
        found.extend((path, example) for example in re.findall(r"Example: ((?:.+\n?)+)", command.help or ""))
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{path} {name}")

    walk(COMMANDS, "phf")
    return found


@pytest.mark.parametrize(("where", "snippet"), mentioned())
def test_what_is_mentioned_exists(where: str, snippet: str) -> None:
    words = after_phf(re.sub(r"[\[\]|]", " ", snippet.replace("`", "")).split())
    command, rest = command_of(words)
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options |= {"--help", "-h"}
    if words and words[0].isalpha() and words[0].islower():
        assert command is not COMMANDS, f"{where}: there is no command {words[0]}"
    for word in rest:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0].rstrip(",;.:") in options, f"{where}: {snippet}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus that the pages use."""
    place = tmp_path_factory.mktemp("tour")
    (place / "corpus").mkdir()
    text = (
        "Sentence {} is here, and Mr. Smith from Boston reads it. Another damn one follows. Write to a{}@example.org."
    )
    records = [{"id": str(each), "text": text.format(each, each) * 10} for each in range(60)]
    content = "".join(json.dumps(record) + "\n" for record in records)
    (place / "corpus" / "a.jsonl.zst").write_bytes(zstandard.compress(content.encode()))
    return place


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_pages_run_as_they_stand(folder: Path) -> None:
    tour = [block for page in TOURED for block in blocks(page) if block.language == "sh" and not block.attributes]
    printed = [run(block.code, folder) for block in tour]
    assert len(printed) == len(tour) > 3
    assert (folder / "comparison" / "index.html").is_file()
    assert (folder / "scores.jsonl.gz").is_file()
