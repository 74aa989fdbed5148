"""`boltztilt train`: a run folder, and how it goes on after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from boltztilt import console
from boltztilt.arguments import check_device, check_run_folder, next_command, read_overrides
from boltztilt.one_line_errors import stopped
from boltztilt.option_types import Device, Force, Name, Quiet, Seed


def train(
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder.")],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in the folder, with its recipe and seed, to the same result.",
        ),
    ] = False,
    max_minutes: Annotated[
        float | None, typer.Option(help="Stop after this time; --resume continues.", min=0.0)
    ] = None,
    seed: Seed = 0,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one entry of the recipe."),
    ] = None,
    stochastic: Annotated[
        bool,
        typer.Option(
            "--stochastic",
            help="Train a deeper field on independent pairs, which sample --stochastic needs.",
        ),
    ] = False,
    device: Device = "cpu",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Trains a sampler from the energy alone, and keeps everything in a run folder.

    Ctrl-C or a crash costs the work since the last checkpoint and no more:
    --resume goes on to the result of an uninterrupted run.

    [bold]Examples[/bold]
      boltztilt train lj13 -o runs/lj13
      boltztilt train lj13 -o runs/lj13 --resume
      boltztilt train dw4 -o runs/quick --max-minutes 5 --set polish_steps=500
      boltztilt train lj13 -o runs/noisy --stochastic   for sample --stochastic
    """
    changes = read_overrides(overrides or [])
    check_run_folder(output, resume, force)
    try:
        from boltztilt.systems.system import load_system
        from boltztilt.tilt.recipe import check_names
        from boltztilt.tilt.training import train as train_sampler

        check_device(device)
        check_names(changes)
        system = load_system(name)
        with console.TrainingBar(quiet) as progress:
            sampler = train_sampler(
                system,
                out=output,
                seed=seed,
                resume=resume,
                max_minutes=max_minutes,
                progress=progress,
                device=device,
                overwrite=force,
                stochastic=stochastic,
                **changes,
            )
    except KeyboardInterrupt:
        raise stopped(next_command(name, output, device)) from None
    rows = console.report_rows(sampler.metadata, {"recipe", *console.UNPRINTED})
    console.print_table(f"trained {name}", rows)
    console.print_files([output / "weights.safetensors", output / "log.csv"])
