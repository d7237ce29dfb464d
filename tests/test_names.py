"""Foreign names, ids and messages are shown literally: no terminal, page or plot interprets them."""

import io
import json
import re

import matplotlib as mpl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from phf import app
from pipeline.dataset.card import _code
from scorers.errors import UserError
from scorers.printing import holds_secret, message, printable, printable_json, refuse_secret, without_secrets
from scorers.terminal import Terminal
from training.comparison.style import Look, drawing, new_figure, render

# Characters with which text can move the cursor, set colours, links or the title, or hide and reverse text.
ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
HOSTILE = "\x1b]0;owned\x07\x9b31m\u202egpj.exe\r\n[red]x[/red] [link=http://x]y[/link] :bomb: $x^2_$"

names = st.text(st.characters(codec=None)) | st.text(alphabet="\x1b\x9b\x07\r\n\t[]/=link$_^{}`|<>&\u202e\ud800a:")


@given(names)
@example(HOSTILE)
def test_active_characters_are_escaped_and_others_stay(text):
    shown = printable(text)
    assert not ACTIVE.search(shown)
    assert "\n" not in shown
    shown.encode()
    if text.isprintable():
        assert shown == text


@given(names)
@example(HOSTILE)
def test_a_terminal_shows_names_as_text(text):
    for options in ({}, {"force_terminal": True, "color_system": None}):
        stream = io.StringIO()
        Terminal(file=stream, width=10_000, legacy_windows=False, **options).print(text, soft_wrap=True, end="")
        assert not ACTIVE.search(stream.getvalue())
        if text.isprintable():
            assert stream.getvalue() == text


@given(names)
@example(HOSTILE)
def test_a_cell_of_a_table_is_text_too(text):
    from rich.table import Table

    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    stream = io.StringIO()
    Terminal(file=stream, width=10_000, force_terminal=True, color_system=None, legacy_windows=False).print(table)
    written = stream.getvalue()
    # Remove rich's own styles: it prints the title in italics and the header in bold.
    assert not ACTIVE.search(re.sub(r"\x1b\[[0-9;]*m", "", written))
    assert "\x1b]8" not in written


@given(st.recursive(names, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)))
def test_printable_json_has_the_same_value(value):
    shown = printable_json(json.dumps(value, ensure_ascii=False))
    assert not ACTIVE.search(shown)
    assert json.loads(shown) == value


@given(names)
@example("`|\x1b\n")
def test_a_cell_of_the_card_is_code(text):
    cell = _code(text)
    assert not ACTIVE.search(cell)
    assert "\n" not in cell
    if cell:
        assert cell[0] == cell[-1] == "`"
        assert "`" not in cell[1:-1]
        assert not re.search(r"(?<!\\)\|", cell)


@pytest.mark.parametrize("name", ["$lr_1_2$", "$\\frac{$", "a_b^c $ d $", "100 $"])
def test_a_dollar_sign_in_a_plot_is_literal(name):
    with drawing(Look()):
        figure = new_figure(2, 2)
        axes = figure.add_subplot()
        axes.plot([0, 1], label=name)
        axes.set_title(name)
        axes.legend()
        assert render(figure, Look()).png
        assert not axes.title.get_parse_math()
    assert mpl.rcParams["text.parse_math"]


def test_an_error_that_quotes_a_name_shows_it_escaped(tmp_path):
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "\x1b[31m\x9bred\u202e")])
    assert done.exit_code == 2
    assert "\\x1b[31m\\x9bred\\u202e" in done.output.replace("\n", "")
    assert not ACTIVE.search(done.output)


SECRETS = [
    "s3://AKIAKEY:SECRETq1@bucket/out",
    "s3://AKIAKEY%3ASECRETq1@bucket/out",
    "s3://AKIAKEY:SECRETq1/x+y@bucket/out",
    "http://user:SECRETq1@host:9000/x",
    "ray://user:SECRETq1@head:10001",
    "https://host/x?X-Amz-Signature=SECRETq1&y=1",
    "az://container/x?se=2030&sig=SECRETq1",
    "s3://bucket/x?token=SECRETq1",
    "s3://bucket/x?secret_key=SECRETq1",
    "s3://bucket/x?endpoint_override=http%3A%2F%2Fu%3ASECRETq1%40host",
    "https://host/x?y=1;sig=SECRETq1",
    "https://host/x#access_token=SECRETq1",
    "https://host/x?sessionToken=SECRETq1",
    "https://host/x?SharedAccessSignature=SECRETq1",
    "https://host/x?authorization=SECRETq1",
    "https://host/x?jwt=SECRETq1",
    "https://host/x?pass=SECRETq1",
    "hf://hf_SECRETq1SECRETq1SECRETq1@datasets/a/b",
]
HARMLESS = [
    "s3://bucket/a:b@c/x",
    "s3://bucket/x?endpoint_override=http%3A%2F%2F127.0.0.1%3A8333&scheme=http",
    "hf://datasets/owner/name@main/x",
    "abfss://container@account.dfs.core.windows.net/x",
    "hdfs://user@host:8020/x",
    "ray://[::1]:10001",
    "ray://head:10001",
    "gs://bucket/tokens/x",
    "https://host/x?bypass=1&tokens=3&author=a#part;b",
    "relative/a:b@c?token=x",
]


@pytest.mark.parametrize("uri", SECRETS)
def test_a_secret_is_found_and_not_repeated(uri):
    assert holds_secret(uri)
    with pytest.raises(UserError) as caught:
        refuse_secret(uri, "output")
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in without_secrets(f"Cannot access {uri}: {uri!r} answered 403")
    assert message(f"Cannot access {uri} now.").endswith(" now.")


@pytest.mark.parametrize("uri", HARMLESS)
def test_a_uri_without_a_secret_passes(uri):
    assert not holds_secret(uri)
    for text in (f"Cannot join {uri}: refused.", f"It is in {uri}.", f"({uri}), {uri!r}; {uri}"):
        assert without_secrets(text) == text
    refuse_secret(uri, "input")


@pytest.mark.parametrize("uri", SECRETS)
@pytest.mark.parametrize(
    "command",
    [
        ["label", "x.jsonl", "--scorer", "toxicity=linear", "--output", "{}"],
        ["label", "{}", "--scorer", "toxicity=linear", "--output", "out"],
        ["label", "x.jsonl", "--scorer", "toxicity=linear", "--output", "out", "--address", "{}"],
        ["preview", "{}", "--scorer", "toxicity=linear"],
        ["score", "{}", "--scorer", "toxicity=linear"],
        ["select", "{}", "--group", "g", "--scorer", "toxicity=linear", "--output", "out.jsonl"],
        ["select", "x.jsonl", "--group", "id", "--scorer", "toxicity=linear", "--output", "{}/out.jsonl"],
        *([each, "{}"] for each in ("status", "verify", "inspect", "gc", "repair", "purge")),
        ["retag", "{}", "--threshold", "toxicity=1"],
        ["tokenize", "{}"],
        ["train", "{}", "--task", "toxicity", "--objective", "mle", "--output", "run"],
        ["train", "d", "--task", "toxicity", "--objective", "mle", "--output", "{}"],
        ["train", "d", "--task", "toxicity", "--objective", "mle", "--output", "r", "--init-from", "{}"],
        ["train", "d", "--task", "toxicity", "--objective", "mle", "--output", "r", "--tokenizer", "{}"],
        ["train", "d", "--task", "toxicity", "--objective", "mle", "--output", "r", "--set",
         "tracking.mlflow.tracking_uri={}"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_command_takes_or_prints_a_secret(tmp_path, monkeypatch, command, uri):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"id": "a", "text": "One."}\n')
    done = CliRunner().invoke(app, [each.format(uri) for each in command])
    assert done.exit_code == 2, done.output
    assert "SECRET" not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_preview_of_hostile_ids_and_texts_is_text(tmp_path):
    file = tmp_path / "\x1b[31m\x9b[red]$x$.jsonl"
    file.write_text(json.dumps({"id": HOSTILE.replace("\ud800", ""), "text": f"A sentence. {HOSTILE} Another."}) + "\n")
    for more in ([], ["--json"]):
        done = CliRunner().invoke(app, ["preview", str(file), "--scorer", "toxicity=linear", *more])
        assert done.exit_code == 0, done.output
        assert not ACTIVE.search(done.output)
        assert "[red]" in done.output
