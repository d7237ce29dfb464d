"""Options that several places have."""

from typing import Annotated

import typer

PANEL = "Where it runs"
Nodes = Annotated[
    int | None, typer.Option("--nodes", min=1, metavar="N", help="Machines. (default: 1)", rich_help_panel=PANEL)
]
Cpus = Annotated[
    int | None,
    typer.Option(
        "--cpus", min=1, metavar="N", help="Cores of a machine, or of each rank. (default: 8)", rich_help_panel=PANEL
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option("--gpus", min=1, metavar="N", help="GPUs of each machine. (default: none)", rich_help_panel=PANEL),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="SIZE", help="Memory of each machine, such as 64G; 0 for all of it.", rich_help_panel=PANEL
    ),
]
