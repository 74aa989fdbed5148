"""Arguments and options that several verbs of the command line share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Solver(StrEnum):
    """Ways to follow the flow."""

    multistep = "multistep"
    rk4 = "rk4"
    dopri5 = "dopri5"


Name = Annotated[str, typer.Argument(help="A shipped system, or the path of a system TOML.")]
Count = Annotated[int, typer.Option("-n", help="Number of structures.", min=1)]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="A .dcd, .xtc, .pdb or .npz file. Default: NAME.dcd, and NAME_samples.dcd for TOML "
        "files and run folders.",
    ),
]
Refine = Annotated[
    int,
    typer.Option(
        help="Hamiltonian Monte Carlo at the target after sampling: leapfrog steps.", min=0
    ),
]
Resample = Annotated[
    bool, typer.Option("--resample", help="Draw by weight: equally weighted structures.")
]
Seed = Annotated[
    int, typer.Option("--seed", help="Seed of every random number.", min=0, max=2**32 - 1)
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        help="Steps of the solver. Default: multistep 16; rk4 14, at a measured pace 9, without "
        "density 8; rounds of noise: 25.",
        min=1,
    ),
]
ChosenSolver = Annotated[
    Solver | None,
    typer.Option(
        "--solver",
        help="multistep, the default for fields like that of lj55, needs the fewest evaluations, "
        "and its density is exact at any number of steps. rk4 follows the flow; dopri5 does so "
        "with steps of its own choice.",
    ),
]
Stochastic = Annotated[
    bool,
    typer.Option(
        "--stochastic", help="Add noise on the way: better structures, without density and weights."
    ),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:1.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace existing output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
