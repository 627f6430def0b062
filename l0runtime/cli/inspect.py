"""`l0runtime inspect`: what is in a file, and why is this axis not cut?"""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from l0runtime.cli.convert import make_console, parse_settings
from l0runtime.errors import OptionError

_AXIS = re.compile(r"(?P<value>.+)\[(?P<axis>\d+)\]")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--why", metavar="VALUE[AXIS]", help="Answer one question: why is this axis cut as it is, or not?")
@click.option("--model", metavar="PACKAGE.MODULE:FACTORY", help="Builds the architecture for bare parameters.")
@click.option("--format", "format_name", metavar="NAME", help="Source format, where more than one fits.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the source format.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(
    file: Path, why: str | None, model: str | None, format_name: str | None, settings: tuple[str, ...], as_json: bool
) -> None:
    """Say what is in FILE: gates, widths, what could be removed, and why the rest stays.

    FILE is a checkpoint, an ONNX file with zeros or constant gates, or a compact ONNX file made by `convert`.
    """
    from converters import inspect

    question = _AXIS.fullmatch(why) if why is not None else None
    if why is not None and question is None:
        raise OptionError(f"--why {why}: expected a value's name and an axis, such as relu_1[1].")
    found = inspect(file, format=format_name, model=model, options=parse_settings(settings))
    if question is not None:
        answer = found.explain(question["value"], int(question["axis"]))
        click.echo(json.dumps(answer) if as_json else answer)
    elif as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        make_console().print(found.render())
