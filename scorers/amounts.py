"""Format counts, sizes, durations and rates for people."""

_SIZES = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_DAYS = 2


def format_count(number: int, what: str, many: str | None = None) -> str:
    """Return `1 unit` or `2,000 units`; `many` is the plural if it is not `what` plus an s."""
    return f"{number:,} {what if number == 1 else many or f'{what}s'}"


def format_ended(number: int) -> str:
    """Return `1 ended by itself` or `2,000 ended by themselves`."""
    return f"{number:,} ended by {'itself' if number == 1 else 'themselves'}"


def format_size(count: float) -> str:
    """Format bytes in decimal units with three digits: `512 B`, `1.2 kB`, `25.3 GB`."""
    for unit, size in _SIZES:
        if count >= 0.9995 * size:
            return f"{count / size:,.3g} {unit}"
    return f"{count:,.0f} B"


def format_duration(seconds: float) -> str:
    """Format seconds: `40 ms`, `0.4 s`, `42 s`, `3 min 20 s`, `5 h 12 min`, `12.5 days`."""
    if 0 < seconds < 0.095:
        return f"{max(1, round(1000 * seconds))} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    if whole <= _DAYS * 86_400:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{whole / 86_400:,.1f} days"


def format_rate(rate: float, what: str) -> str:
    """Format a rate: `0.3 records/s`, `2,000 records/s`."""
    return f"{rate:,.{1 if rate < 10 else 0}f} {what}/s"


def format_mean_rate(count: int, seconds: float, what: str) -> str:
    """Format `count` in `seconds` as a rate, as `format_rate`; 0 where no time has passed."""
    return format_rate(count / seconds if seconds > 0 else 0.0, what)
