"""The command line: reads arguments, calls the package, prints what came out.

Every heavy import (torch and all that needs it) happens inside the verb that uses it, so that
`boltztilt --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from boltztilt import __version__, console
from boltztilt.arguments import open_sampler
from boltztilt.commands.evaluation import evaluate, reference
from boltztilt.commands.sampling import anneal, sample
from boltztilt.commands.training import train
from boltztilt.one_line_errors import OneLineErrors

app = typer.Typer(
    cls=OneLineErrors,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> bool:
    """Prints the version and ends the program, if that is wanted."""
    if wanted:
        typer.echo(f"boltztilt {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def boltztilt(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (works anywhere).")
    ] = False,
) -> None:
    """Samples Boltzmann distributions with flows trained from the energy alone.

    [bold]Examples[/bold]
      boltztilt systems                           what can be sampled
      boltztilt sample lj13 -n 1000 -o lj13.dcd   1000 weighted structures
      boltztilt anneal lj55 -n 1000 -o lj55.dcd   the same without training
      boltztilt train dw4 -o runs/dw4             train from the energy alone
      boltztilt evaluate runs/dw4                 compare with Markov chains

    Each command has its own examples: boltztilt sample --help
    """


@app.command()
def systems() -> None:
    """Lists the systems that are built in.

    [bold]Example[/bold]
      boltztilt systems
    """
    from boltztilt.systems.system import available_systems, load_system

    console.print_columns(
        ("name", "atoms", "dimensions", "shipped weights", "title"),
        [console.system_words(load_system(name)) for name in available_systems()],
    )


@app.command()
def info(
    name: Annotated[
        str, typer.Argument(help="A system, a system TOML, a run folder or a weights file.")
    ],
) -> None:
    """Says what a system is, and how its weights were made.

    [bold]Examples[/bold]
      boltztilt info lj13
      boltztilt info runs/lj13
    """
    from boltztilt.systems.system import load_system

    if Path(name).is_dir() or Path(name).suffix == ".safetensors":
        sampler = open_sampler(name)
        console.print_table(sampler.system.name, console.system_rows(sampler.system))
        console.print_table("weights", console.weight_rows(sampler.metadata))
        return
    system = load_system(name)
    console.print_table(system.name, console.system_rows(system))
    if system.weights_path():
        console.print_table("shipped weights", console.weight_rows(open_sampler(name).metadata))


for verb in (sample, anneal, train, evaluate, reference):
    app.command()(verb)


def main() -> None:
    """Runs the command line."""
    app(prog_name="boltztilt")
