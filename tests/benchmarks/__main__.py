"""`make bench`: run the benchmarks of this folder and print, for each, the ratio of two alternating measurements."""

import importlib
import pkgutil
import sys

from rich.console import Console
from rich.table import Table

import tests.benchmarks
from tests.benchmarks.measure import Comparison

console = Console(highlight=False)


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all, and print a table."""
    found = sorted(module.name for module in pkgutil.iter_modules(tests.benchmarks.__path__) if not module.ispkg)
    benchmarks = [name for name in found if name not in {"__main__", "gpu_training", "measure", "text"}]
    unknown = sorted(set(names) - set(benchmarks))
    if unknown:
        sys.exit(f"No benchmark {', '.join(unknown)}; there are: {', '.join(benchmarks)}.")
    table = Table(
        *("benchmark", "ours", "reference", "ratio", "rounds", "agreement"),
        title="Medians; a ratio above 1 is in our favour",
    )
    for name in names or benchmarks:
        console.print(f"{name} …")
        for result in importlib.import_module(f"tests.benchmarks.{name}").run():
            table.add_row(*_cells(result))
    console.print(table)


def _cells(result: Comparison) -> tuple[str, ...]:
    low, high = min(result.ratios), max(result.ratios)
    rates = [f"{rate:,.4g} {result.unit}" for rate in (result.ours, result.reference)]
    return (
        result.name,
        *rates,
        f"{result.ratio:.2f} ({low:.2f} to {high:.2f})",
        str(len(result.ratios)),
        result.agreement,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
