"""`rbl doctor`: what is here, what is missing or broken, and what to do about it."""

from __future__ import annotations

from typing import Annotated

import typer

EPILOG = "[bold]Example[/]  rbl doctor"


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check device, versions, cache folder and data; exit status 2 if something is broken."""
    from ..diagnosis import diagnose
    from ..errors import UserError
    from .terminal import print_json

    findings = diagnose()
    broken = [f for f in findings if f.state == "broken"]
    if as_json:
        print_json([{"what": f.what, "state": f.state, "detail": f.detail} for f in findings])
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        colors = {"ok": "green", "missing": "yellow", "broken": "bold red"}
        for f in findings:
            table.add_row(f"[{colors[f.state]}]{f.state}[/]", f.what, f.detail)
        Console(emoji=False, highlight=False).print(table)
    if broken:
        raise UserError(f"{len(broken)} of {len(findings)} parts are broken: {', '.join(f.what for f in broken)}")
