"""Describe inputs that were not read completely, or not at all, in the same words for every command."""

from collections.abc import Sequence

from pipeline.dataset.manifest import LeftOut, SourceEntry
from scorers.amounts import format_count
from scorers.paths import escape_path

_MOST_NAMES = 5


def left_out_line(left_out: Sequence[LeftOut]) -> str:
    """A line with the number, types and first names of the left-out files; empty if there are none."""
    count = sum(each.files for each in left_out)
    if not count:
        return ""
    types = ", ".join(f"{each.type or 'without a suffix'} {each.files:,}" for each in left_out)
    names = [escape_path(uri) for each in left_out for uri in each.uris]
    more = ", …" if count > _MOST_NAMES else ""
    were = "were left out, whose types phf does not read" if count > 1 else "was left out, whose type phf does not read"
    return f"{format_count(count, 'file')} {were}: {types} ({', '.join(names[:_MOST_NAMES])}{more})."


def cut_sources(sources: Sequence[SourceEntry]) -> list[SourceEntry]:
    """The inputs that could not be read to their end."""
    return [each for each in sources if each.unread]


def cut_lines(sources: Sequence[SourceEntry]) -> list[str]:
    """One line for each of the first inputs that were not read completely, and one with the number of others."""
    cut = cut_sources(sources)
    lines = [f"{escape_path(each.uri)}: {_unread(each)}" for each in cut[:_MOST_NAMES]]
    return [*lines, f"… and {len(cut) - _MOST_NAMES:,} more"] if len(cut) > _MOST_NAMES else lines


def _unread(entry: SourceEntry) -> str:
    if not entry.records:
        return "nothing was read"
    if entry.unread >= entry.size:
        return f"it ends early, after {format_count(entry.records, 'record')}"
    return f"{entry.unread:,} of its {entry.size:,} bytes were not read"
