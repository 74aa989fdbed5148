"""`boltztilt evaluate` and `boltztilt reference`: samplers beside equilibrated samples."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boltztilt import console
from boltztilt.arguments import (
    check_partial,
    check_trajectory,
    evaluation_folder,
    holds_part,
    next_reference_command,
    open_sampler,
    partial_path,
)
from boltztilt.one_line_errors import stopped
from boltztilt.option_types import (
    ChosenSolver,
    Device,
    Force,
    Name,
    Quiet,
    Seed,
    Steps,
    Stochastic,
)

if TYPE_CHECKING:
    from boltztilt.analysis.reference import Reference
    from boltztilt.analysis.tempered import Tempered
    from boltztilt.systems.system import System


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
    """Compares a sampler with reference samples; writes report.json and plots.

    Without --reference it makes them, as boltztilt reference does, once, and
    keeps them in the folder. An earlier report there is replaced.

    [bold]Examples[/bold]
      boltztilt evaluate runs/lj13
      boltztilt evaluate lj13 -o lj13_evaluation --reference lj13_reference.npz
      boltztilt evaluate aldp --refine 500   raw, reweighted and refined
      boltztilt evaluate lj55 --stochastic --refine 200   without weights
    """
    from boltztilt.analysis.evaluation import check_extras, check_folder
    from boltztilt.analysis.evaluation import evaluate as evaluate_sampler

    check_extras()
    folder = evaluation_folder(target, output)
    check_folder(folder)
    sampler = open_sampler(target, device)
    sampler.check(solver, stochastic, steps)
    samples = find_reference(sampler.system, reference, folder, n, quiet)
    with console.counting_bar("evaluating", "structures", quiet) as progress:
        report = evaluate_sampler(
            sampler, samples, n, seed, folder, progress, steps, refine, stochastic, solver
        )
    rows = console.report_rows(report, {"system", "convention", "reference", "training"})
    rows.append(("reference", f"{len(samples)} structures, {samples.info.get('method', 'given')}"))
    console.print_table(f"{sampler.system.name}: {sampler.system.convention}", rows)
    console.print_files([folder / "report.json", *sorted((folder / "plots").glob("*.png"))])
    warn_of_failed_checks(samples)


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
    from boltztilt.analysis.reference import reference_paths

    paths = reference_paths(output, overwrite=force)
    partial = check_partial(output, resume, force)
    from boltztilt.systems.system import load_system

    system = load_system(name)
    check_trajectory(paths, system)
    try:
        made = sample_reference(system, n, seed, partial, resume, quiet)
    except KeyboardInterrupt:
        raise stopped(next_reference_command(name, output, n, seed)) from None
    rows = console.report_rows(made.report(), {"system", "convention"})
    console.print_table(f"{system.name}: {system.convention}", rows)
    made.save(output, overwrite=force)
    shutil.rmtree(partial, ignore_errors=True)
    console.print_files(paths)
    warn_of_failed_checks(made)


def warn_of_failed_checks(samples: Reference) -> None:
    """Says what the checks of reference samples object to."""
    from boltztilt.analysis.equilibration import failed_checks

    for failed in failed_checks(samples.checks):
        console.standard_error().print(f"warning: the reference is not equilibrated: {failed}")


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
    try:
        made = sample_reference(system, n, 0, partial, resume=True, quiet=quiet)
    except KeyboardInterrupt:
        if not holds_part(partial):
            raise
        raise stopped("the same command continues with the reference") from None
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
    from boltztilt.analysis.molecular_reference import make_molecular_reference

    partial.mkdir(exist_ok=True)
    if not resume:
        for old in partial.glob("*.pt"):
            old.unlink()
    tempered = _tempered(system, seed, partial, resume, quiet)
    state = partial / "dynamics.pt"
    with console.counting_bar("Langevin dynamics", "ps", quiet) as progress:
        return make_molecular_reference(
            system, tempered, n, seed, state_path=state, resume=resume, progress=progress
        )


def _tempered(system: System, seed: int, partial: Path, resume: bool, quiet: bool) -> Tempered:
    """What replica exchange finds, or has found already in the folder of an interrupted run."""
    from boltztilt.analysis.tempered import Tempered, temper

    found, ladders = partial / "tempering.pt", partial / "ladders.pt"
    if resume and found.exists():
        tempered = Tempered.load(found)
        if (kept := tempered.info.get("tempering_seed")) != seed:
            raise ValueError(
                f"{found} was made with seed {kept}, not {seed}: resume with the same, or delete "
                "it to start anew"
            )
        return tempered
    with console.counting_bar("replica exchange", "rounds", quiet) as progress:
        tempered = temper(system, seed=seed, progress=progress, state_path=ladders, resume=resume)
    tempered.save(found)
    ladders.unlink(missing_ok=True)
    return tempered
