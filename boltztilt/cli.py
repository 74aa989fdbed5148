"""The command line: reads arguments, calls the package, prints what came out.

Every heavy import (torch and all that needs it) happens inside the verb that uses it, so that
`boltztilt --help` answers at once.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boltztilt import __version__, console
from boltztilt.arguments import (
    check_device,
    check_partial,
    check_run_folder,
    evaluation_folder,
    next_command,
    next_reference_command,
    open_sampler,
    partial_path,
    read_overrides,
)
from boltztilt.one_line_errors import OneLineErrors
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
    from boltztilt.analysis.reference import Reference
    from boltztilt.sampling.ensemble import Ensemble
    from boltztilt.systems.system import System

INTERRUPTED = 130


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


@app.command()
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
    from boltztilt.sampling.ensemble import check_output

    path = output or Path(f"{Path(name).stem}.dcd")
    check_output(path, overwrite=force)
    density = density and not stochastic
    if resample and not density:
        without = "--stochastic" if stochastic else "--no-density"
        raise ValueError(f"--resample draws by weight: it cannot be used with {without}")
    sampler = open_sampler(weights or name, device, system=name if weights else None)
    sampler.check(solver, stochastic)
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
    write_ensemble(raw, path, resample, refine, seed, force)


@app.command()
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
    from boltztilt.sampling.ensemble import check_output

    path = output or Path(f"{Path(name).stem}.dcd")
    check_output(path, overwrite=force)
    from boltztilt.systems.system import load_system
    from boltztilt.tilt.annealing import anneal as anneal_chains

    system = load_system(name)
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
    write_ensemble(raw, path, resample, refine, seed, force)


def write_ensemble(
    raw: Ensemble, path: Path, resample: bool, refine: int, seed: int, force: bool
) -> None:
    """Prints what was drawn, finishes it if that is wanted, and writes its files."""
    rows = console.sample_rows(raw)
    final = raw.resample(seed=seed) if resample else raw
    if refine:
        final = final.refine(refine, seed=seed)
        rows.append(("<U> refined", console.energy_words(final.mean_energy(weighted=False))))
    if final is not raw:
        final.info["sampler"] = raw.report()
    console.print_table(f"{raw.system.name}: {raw.system.convention}", rows)
    console.print_files(final.save(path, overwrite=force))
    for caution in raw.cautions:
        console.standard_error().print(f"warning: {caution}")


@app.command()
def train(
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder, to the same result.")
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
        from boltztilt.tilt.training import train as train_sampler

        check_device(device)
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
        print(f"stopped; {next_command(name, output)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    rows = console.report_rows(sampler.metadata, {"recipe", "start"})
    console.print_table(f"trained {name}", rows)
    console.print_files([output / "weights.safetensors", output / "log.csv"])


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(help="A run folder, a system or a weights file.")],
    n: Annotated[int, typer.Option("-n", help="Number of structures.", min=4)] = 10_000,
    reference: Annotated[
        Path | None,
        typer.Option(help="Samples of the target (.npz). Default: the one kept in the folder."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the report and the plots.")
    ] = None,
    seed: Seed = 0,
    steps: Steps = None,
    solver: ChosenSolver = None,
    stochastic: Stochastic = False,
    refine: Annotated[
        int, typer.Option(help="Compare also after so many steps of sample --refine.", min=0)
    ] = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Compares a sampler with a long Markov chain; writes report.json and plots.

    Without --reference it makes one by MCMC, once, and keeps it in the folder.

    [bold]Examples[/bold]
      boltztilt evaluate runs/lj13
      boltztilt evaluate lj13 -o lj13_evaluation --reference lj13_reference.npz
      boltztilt evaluate aldp --refine 500   raw, reweighted and refined
      boltztilt evaluate lj55 --stochastic --refine 200   without weights
    """
    from boltztilt.analysis.evaluation import evaluate as evaluate_sampler

    sampler = open_sampler(target, device)
    sampler.check(solver, stochastic)
    folder = output or evaluation_folder(target)
    samples = find_reference(sampler.system, reference, folder, n, quiet)
    with console.counting_bar("evaluating", "structures", quiet) as progress:
        report = evaluate_sampler(
            sampler, samples, n, seed, folder, progress, steps, refine, stochastic, solver
        )
    rows = console.report_rows(report, {"system", "convention", "reference", "training"})
    console.print_table(f"{sampler.system.name}: {sampler.system.convention}", rows)
    console.print_files([folder / "report.json", *sorted((folder / "plots").glob("*.png"))])


def find_reference(
    system: System, given: Path | None, folder: Path, n: int, quiet: bool
) -> Reference:
    """The given reference, the one kept in the folder, or a new one that is kept there."""
    from boltztilt.analysis.reference import Reference

    kept = folder / "reference.npz"
    if given is not None or kept.exists():
        return Reference.load(given or kept, system)
    folder.mkdir(parents=True, exist_ok=True)
    partial = partial_path(kept)
    made = sample_reference(system, n, 0, partial, resume=True, quiet=quiet)
    made.save(kept)
    shutil.rmtree(partial, ignore_errors=True)
    return made


def sample_reference(
    system: System, n: int, seed: int, partial: Path, resume: bool, quiet: bool
) -> Reference:
    """A new reference: by OpenMM dynamics for molecules, by Markov chains for all else."""
    from boltztilt.analysis.dynamics import find_source

    if find_source(system.potential) is None:
        from boltztilt.analysis.reference import make_reference

        with console.counting_bar("reference by MCMC", "steps", quiet) as progress:
            return make_reference(system, n_samples=n, seed=seed, progress=progress)
    from boltztilt.analysis.molecular_reference import Tempered, make_molecular_reference, temper

    partial.mkdir(exist_ok=True)
    found = partial / "tempering.pt"
    if resume and found.exists():
        tempered = Tempered.load(found)
    else:
        with console.counting_bar("replica exchange", "rounds", quiet) as progress:
            tempered = temper(system, seed=seed, progress=progress)
        tempered.save(found)
    state = partial / "dynamics.pt"
    with console.counting_bar("Langevin dynamics", "ps", quiet) as progress:
        return make_molecular_reference(
            system, tempered, n, seed, state_path=state, resume=resume, progress=progress
        )


@app.command()
def reference(
    name: Name,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="An .npz file; a .dcd or .xtc adds a trajectory and a .pdb."
        ),
    ],
    n: Annotated[int, typer.Option("-n", help="Number of structures.", min=4)] = 10_000,
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run of a molecule.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Makes reference samples, and checks that they are equilibrated.

    A molecule is simulated by Langevin dynamics with OpenMM, in replicas that
    start where replica exchange left them, up to three times as hot. Any other
    system is sampled by long Markov chains.

    [bold]Examples[/bold]
      boltztilt reference lj13 -o lj13_reference.npz
      boltztilt reference aldp -o aldp_reference.dcd
      boltztilt reference aldp -o aldp_reference.dcd --resume
    """
    from boltztilt.analysis.reference import failed_checks, reference_paths

    paths = reference_paths(output, overwrite=force)
    partial = check_partial(output, resume, force)
    from boltztilt.systems.system import load_system

    system = load_system(name)
    try:
        made = sample_reference(system, n, seed, partial, resume, quiet)
    except KeyboardInterrupt:
        print(f"stopped; {next_reference_command(name, output, n, seed)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    rows = console.report_rows(made.report(), {"system", "convention"})
    console.print_table(f"{system.name}: {system.convention}", rows)
    made.save(output, overwrite=force)
    shutil.rmtree(partial, ignore_errors=True)
    console.print_files(paths)
    for failed in failed_checks(made.checks):
        console.standard_error().print(f"warning: not equilibrated: {failed}")


def main() -> None:
    """Runs the command line."""
    app(prog_name="boltztilt")
