"""`boltztilt sample` and `boltztilt anneal`: structures with weights, and the files they go to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boltztilt import console
from boltztilt.arguments import check_trajectory, checked_output, open_sampler
from boltztilt.option_types import (
    ChosenSolver,
    Count,
    Device,
    Force,
    Name,
    Output,
    Quiet,
    Refine,
    Resample,
    Seed,
    Steps,
    Stochastic,
)

if TYPE_CHECKING:
    from boltztilt.sampling.ensemble import Ensemble


def sample(
    name: Annotated[str, typer.Argument(help="A system, a system TOML or a run folder.")],
    n: Count = 1000,
    output: Output = None,
    seed: Seed = 0,
    steps: Steps = None,
    solver: ChosenSolver = None,
    density: Annotated[
        bool, typer.Option("--density/--no-density", help="Exact log-density, hence weights.")
    ] = True,
    stochastic: Stochastic = False,
    refine: Refine = 0,
    resample: Resample = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Structures integrated at once.", min=1)
    ] = None,
    compile_field: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the field: twice as fast after a minute. Default: if that pays.",
        ),
    ] = None,
    device: Device = "cpu",
    weights: Annotated[
        Path | None, typer.Option(help="A weights file instead of the shipped one.")
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Draws weighted structures from a trained sampler and writes a trajectory.

    Beside the trajectory it writes the topology (.pdb), positions and weights
    in the units of the system (.npz) and a report (.report.json).

    [bold]Examples[/bold]
      boltztilt sample lj13 -n 1000 -o lj13.dcd
      boltztilt sample lj13 -n 1000 --resample --refine 20 -o equilibrium.xtc
      boltztilt sample lj55 -n 1000 --stochastic   better structures, no weights
      boltztilt sample runs/lj13 -n 200 -o trial.npz --seed 7
    """
    paths = checked_output(name, output, force)
    density = density and not stochastic
    if resample and not density:
        without = "--stochastic" if stochastic else "--no-density"
        raise ValueError(f"--resample draws by weight: it cannot be used with {without}")
    sampler = open_sampler(weights or name, device, system=name if weights else None)
    sampler.check(solver, stochastic, steps)
    check_trajectory(paths, sampler.system)
    sampler.compile = compile_field
    with console.counting_bar(f"sampling {sampler.system.name}", "structures", quiet) as progress:
        raw = sampler.sample(
            n,
            seed=seed,
            n_steps=steps,
            batch_size=batch_size,
            with_density=density,
            solver=solver,
            progress=progress,
            stochastic=stochastic,
        )
    if density and raw.info["solver"] == "rk4":
        raw.info["integration_error"] = sampler.integration_error(raw, n=max(n // 20, 40))
    write_ensemble(raw, paths[0], resample, refine, seed, force)


def anneal(
    name: Name,
    n: Count = 1000,
    output: Output = None,
    seed: Seed = 0,
    per_group: Annotated[
        int, typer.Option(help="Chains in a group; they share one weight.", min=1)
    ] = 32,
    cess: Annotated[
        float,
        typer.Option(help="Share of the chains that a rung keeps effective.", min=0.01, max=0.99),
    ] = 0.8,
    steps: Annotated[
        int, typer.Option("--steps", help="Hamiltonian trajectories at each rung.", min=1)
    ] = 4,
    leapfrog: Annotated[int, typer.Option(help="Leapfrog steps in a trajectory.", min=1)] = 16,
    refine: Refine = 0,
    resample: Resample = False,
    batch_size: Annotated[int | None, typer.Option(help="Structures moved at once.", min=1)] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Draws weighted structures without any training, by annealed Markov chains.

    Groups of chains start at the Gaussian base and climb a ladder of tilts to
    the target; a pilot run chooses the ladder. The weight of a group is the
    product of its mean weights on the way, and is exact whatever the chains
    have forgotten. Slower than a trained sampler, but good for any system at once.

    ESS says how even the weights are. Chains of a group may share ancestors:
    the number of independent structures says what averages are worth.
    It writes the same files as boltztilt sample.

    [bold]Examples[/bold]
      boltztilt anneal lj55 -n 1000 -o lj55.dcd
      boltztilt anneal my_system.toml -n 200 --resample --refine 100
      boltztilt anneal lj13 -n 2000 --per-group 64 --steps 8   steadier weights
    """
    paths = checked_output(name, output, force)
    from boltztilt.systems.system import load_system
    from boltztilt.tilt.annealing import anneal as anneal_chains

    system = load_system(name)
    check_trajectory(paths, system)
    with console.counting_bar(f"annealing {system.name}", "structures", quiet) as progress:
        raw = anneal_chains(
            system,
            n,
            seed=seed,
            n_per_group=per_group,
            cess=cess,
            n_steps=steps,
            n_leapfrog=leapfrog,
            batch_size=batch_size,
            progress=progress,
        )
    write_ensemble(raw, paths[0], resample, refine, seed, force)


def write_ensemble(
    raw: Ensemble, path: Path, resample: bool, refine: int, seed: int, force: bool
) -> None:
    """Prints what was drawn, finishes it if that is wanted, and writes its files."""
    if resample and not raw.any_weight:
        raw.save(path, overwrite=force)
        raise ValueError(f"{raw.cautions[0]}; {path} holds the structures as they were drawn")
    final = raw.resample(seed=seed) if resample else raw
    if refine:
        final = final.refine(refine, seed=seed)
    if final is not raw:
        final.info["sampler"] = raw.report()
    rows = console.sample_rows(raw) + console.refined_rows(final) + console.cost_rows(final)
    console.print_table(f"{raw.system.name}: {raw.system.convention}", rows)
    console.print_files(final.save(path, overwrite=force))
    for caution in raw.cautions:
        console.standard_error().print(f"warning: {caution}")
