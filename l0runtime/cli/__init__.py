"""The `l0runtime` command: which subcommands exist, and how does an error become an exit code?

Each subcommand lives in a file of its own and is imported only when it runs, so that
`l0runtime --help` loads neither torch nor the converters.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from l0runtime.errors import L0RuntimeError

# name: (module with a click command called `command`, help line shown by `l0runtime --help`)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": (
        "l0runtime.cli.demo",
        "Train, convert, verify and measure a small gated network on real digits.",
    ),
    "convert": (
        "l0runtime.cli.convert",
        "Turn a gated checkpoint or ONNX file into a compact, verified ONNX file.",
    ),
    "inspect": ("l0runtime.cli.inspect", "Say what is in a file: gates, widths, what was kept and why."),
    "run": ("l0runtime.cli.run", "Run an ONNX file on arrays from an .npz or .npy file."),
    "bench": (
        "l0runtime.cli.bench",
        "Say whether one model is faster than another, by how much and how surely.",
    ),
    "serve": (
        "l0runtime.cli.serve",
        "Answer the Open Inference Protocol over REST and gRPC.",
    ),
    "export": (
        "l0runtime.cli.export",
        "Hand a model to Triton, or to Kubernetes through KServe.",
    ),
    "doctor": (
        "l0runtime.cli.doctor",
        "Check versions, execution providers and conflicting installs; name each fix.",
    ),
}


class _LazyGroup(click.Group):
    """A click group that imports a subcommand only when it is invoked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except L0RuntimeError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="l0runtime")
def main() -> None:
    """Make trained gated networks small and fast without changing what they compute.

    Results go to stdout, progress to stderr. Exit codes: 0 done, 1 refused or
    mismatch (no output file is written), 2 wrong usage.
    """
