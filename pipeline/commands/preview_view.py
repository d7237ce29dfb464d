"""Print the result of `phf preview`: each record's sentences with their scores and tags."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.labelling.preview import Preview
from pipeline.lost_inputs import left_out_line
from pipeline.sealing.thresholds import percentile_of
from scorers.amounts import format_count
from scorers.formatting import number, shortened
from scorers.printing import printable


def show_preview(console: Console, preview: Preview, *, most_sentences: int) -> None:
    """Print the records, each with at most `most_sentences` sentences."""
    for index in range(len(preview.scored)):
        _show_document(console, preview, index, most_sentences)
    for each in preview.quarantined:
        console.print(
            Text.assemble(
                (f"{each.source}#{each.position}", "bold"), "  quarantined: ", (each.reason, "red"), " ", each.detail
            )
        )
    if line := left_out_line(preview.left_out):
        console.print(Text(line))
    console.print(_legend(preview))


def _show_document(console: Console, preview: Preview, index: int, most_sentences: int) -> None:
    document = preview.scored[index]
    record, sentences = document.record, preview.sentences(index)
    console.print(
        Text.assemble((record.doc_id, "bold"), (f"  {record.kind}, {format_count(len(sentences), 'sentence')}", "dim"))
    )
    if not sentences:
        console.print(Text("  (empty)\n", style="dim"))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in preview.specs:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("sentence", overflow="fold")
    tags = {column: preview.tags(document, column) for column in preview.specs}
    for place, sentence in enumerate(sentences[:most_sentences]):
        cells = []
        for column in preview.specs:
            scores, aligned = document.scores[column], tags[column]
            if scores is None or aligned is None:
                cells.append(Text("–", style="dim"))
            else:
                style, mark = ("green", "✓") if aligned[place] else ("red", "✗")
                cells.append(Text(f"{number(float(scores[place]))} {mark}", style=style))
        table.add_row(*cells, Text(shortened(sentence)))
    console.print(table)
    left_out = len(sentences) - most_sentences
    console.print(Text(f"… and {left_out:,} more sentences\n" if left_out > 0 else "", style="dim"))


def _legend(preview: Preview) -> Text:
    lines = []
    for column, spec in preview.specs.items():
        origin = (
            f" ({spec} of the sentences above; `phf label` takes it over all)"
            if percentile_of(spec) is not None
            else ""
        )
        lines.append(f"✓ aligned by {column}: score <= {number(preview.thresholds[column])}{origin}")
    for column, types in preview.types().items():
        found = ", ".join(f"{printable(kind)} {count:,}" for kind, count in types.items())
        lines.append(f"found by {column}: {found or 'nothing'}")
    return Text("\n".join(lines), style="dim")
