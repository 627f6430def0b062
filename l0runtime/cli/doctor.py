"""`l0runtime doctor`: check the installation, name each fix, exit 1 if something is broken."""

from __future__ import annotations

import json
import sys

import click

_COLOURS = {"ok": "green", "absent": "dim", "warning": "yellow", "broken": "bold red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(as_json: bool) -> None:
    """Check versions, execution providers and conflicting installs; name each fix.

    Exit codes: 0 sound, 1 something is broken.
    """
    from l0runtime.diagnosis import doctor

    report = doctor()
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for column in ("check", "status", "found", "fix"):
            table.add_column(column, overflow="fold")
        for finding in report.findings:
            status = Text(finding.status, style=_COLOURS[finding.status])
            table.add_row(Text(finding.name), status, Text(finding.found), Text(finding.fix or ""))
        Console().print(table)
    if not report.is_sound:
        click.echo("error: something is broken; see the fixes above.", err=True)
        sys.exit(1)
