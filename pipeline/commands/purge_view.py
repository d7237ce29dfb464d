"""Print the result of `phf purge`: what was removed where, and what phf cannot remove. No id is printed."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.upkeep.purge import Purged
from scorers.amounts import format_count
from scorers.paths import escape_path

_MOST_NAMES = 5


def show_purged(console: Console, purged: Purged) -> None:
    """Print the result."""
    found = purged.found
    count = len(found.rows) + len(found.quarantined) + len(found.unlabelled)
    if purged.continued:
        console.print("An interrupted purge is finished.")
    if count:
        done = "would be removed from" if purged.dry_run else "removed from"
        console.print(Text(f"{format_count(count, 'record')} {done} {purged.uri}."))
        console.print(_places(purged))
    elif not purged.continued:
        console.print(Text(f"Nothing to remove from {purged.uri}."))
    if found.already:
        console.print(f"{format_count(len(found.already), 'record')} had been purged before.")
    if purged.missing_ids:
        console.print(
            f"{format_count(purged.missing_ids, 'id')} not found in any row. Records that are in quarantine, not "
            "labelled yet or purged have no id here: give --source and --position.",
            style="bold yellow",
        )
    console.print("What phf does not remove:")
    for line in _rest(purged):
        console.print(Text(f"  - {line}"))


def _places(purged: Purged) -> Table:
    found = purged.found
    facts = Table.grid(padding=(0, 2))
    facts.add_row("  rows", f"{len(found.rows):,}, in {format_count(len(found.units), 'unit')}")
    facts.add_row("  quarantine", f"{len(found.quarantined):,}; {found.texts:,} with text")
    if found.unlabelled:
        facts.add_row("  not labelled yet", f"{len(found.unlabelled):,}, which no run will label")
    before, after = purged.before, purged.after
    if purged.dry_run and before is not None:
        facts.add_row("  dataset", "would be sealed again, and older generations deleted")
    if before is not None and after is not None and before != after:
        facts.add_row("  dataset", f"sealed again as generation {after.generation}; older ones are deleted")
        for column, threshold in after.thresholds.items():
            was = before.thresholds[column].value
            if threshold.value != was:
                facts.add_row(f"  {column}", f"threshold {threshold.value:.4g} ({threshold.spec}), was {was:.4g}")
    if stores := purged.derived.stores:
        done = "would be deleted" if purged.dry_run else "deleted"
        names = ", ".join(escape_path(str(each)) for each in stores[:_MOST_NAMES])
        more = ", …" if len(stores) > _MOST_NAMES else ""
        facts.add_row("  token stores", Text(f"{len(stores):,} {done}: {names}{more}", overflow="fold"))
    return facts


def _rest(purged: Purged) -> list[str]:
    lines = [
        "the inputs (leave them unchanged until `phf label` is finished), copies, backups, versions in an object store",
        "token stores at a place of your own (--store), exports, and what trackers such as W&B keep",
        "trained models, and the samples and evaluations of their runs, which may repeat a text",
    ]
    lines += [f"the tokenizer {escape_path(str(each))}, trained on the texts" for each in purged.derived.tokenizers]
    lines += [f"{escape_path(str(each))}: a link, which is not followed" for each in purged.derived.links]
    if purged.shared:
        names = ", ".join(purged.shared[:_MOST_NAMES]) + (", …" if len(purged.shared) > _MOST_NAMES else "")
        lines.append(f"other hard links to the former {names}")
    return lines
