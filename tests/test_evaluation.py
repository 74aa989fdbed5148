"""Evaluation of a sampler whose density, weights and distances all have closed forms."""

import dataclasses
import json
import math

import pytest
import torch

from boltztilt.analysis import metrics, plots
from boltztilt.analysis.comparison import NoiseFloors, compare, compare_molecules
from boltztilt.analysis.evaluation import comparison_figures, evaluate
from boltztilt.analysis.reference import Reference, make_reference
from boltztilt.console import report_rows, sample_rows
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.systems.system import System, load_system

for extra in ("matplotlib", "ot", "pymbar"):
    pytest.importorskip(extra)

STIFFNESS, DOF, N = 1.5, 6, 4000
SYSTEM = System("well", Harmonic(3, stiffness=STIFFNESS), convention="U = 0.75 sum |x|^2")
LOG_Z = SYSTEM.potential.log_z


class BaseSampler:
    """Samples the Gaussian base itself and knows its density."""

    device = torch.device("cpu")

    def __init__(self, std=1.0):
        self.law = Gaussian(3, std=std)
        self.system = SYSTEM
        self.field = torch.nn.Linear(1, 1)
        self.metadata = {"seed": 11, "n_energy": 0}

    def sample(self, n, seed=0, n_steps=20, progress=None, stochastic=False, solver=None):
        positions = self.law.sample(n, torch.Generator().manual_seed(seed))
        if progress is not None:
            progress(n, n)
        info = {"seed": seed, "solver": "rk4", "n_steps": n_steps, "n_energy": n, "wall_time": 0.1}
        energies = SYSTEM.potential.energy(positions)
        return Ensemble(positions, energies, self.law.log_density(positions), SYSTEM, info)

    def log_density(self, positions, n_steps=20, solver=None):
        return self.law.log_density(positions)

    def integration_error(self, ensemble):
        return 0.0


@pytest.fixture(scope="module")
def reference():
    positions = SYSTEM.potential.sample(N, torch.Generator().manual_seed(5))
    return Reference(positions, SYSTEM.potential.energy(positions).double(), SYSTEM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def report(reference, folder):
    lines = ["stage,rung,a,cess,loss,ess,acceptance,mean_energy,seconds"]
    lines += [
        f"ladder,{k},{10.0 ** (k - 4)},0.9,{2 - 0.2 * k},,0.6,{-k},{60 * k}" for k in range(5)
    ]
    lines += ["polish,5,1.0,,1.0,0.4,0.6,-5,400", "likelihood,5,1.0,,9.0,0.4,0.6,-5,500"]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return evaluate(BaseSampler(), reference, n=N, seed=1, out=folder)


class LosingSampler(BaseSampler):
    """One that does not find the origin of the first structures."""

    def __init__(self, n_lost):
        super().__init__()
        self.n_lost = n_lost

    def log_density(self, positions, n_steps=20, solver=None):
        log_density = super().log_density(positions)
        log_density[: self.n_lost] = math.nan
        return log_density


def test_reference_structures_of_unknown_density_are_left_out_and_counted(reference):
    report = evaluate(LosingSampler(3), reference, n=200, seed=4)
    assert report["reference_lost"] == 3
    assert math.isfinite(report["ess_forward"])
    report = evaluate(LosingSampler(200), reference, n=200, seed=4)
    assert report["reference_lost"] == 200
    assert "ess_forward" not in report


def test_effective_sizes_and_bounds_agree_with_closed_forms(report):
    variance = 1 / STIFFNESS
    ess = (variance * (2 - variance)) ** (DOF / 2)
    gap = 0.5 * DOF * (STIFFNESS - 1 - math.log(STIFFNESS))
    forward_gap = 0.5 * DOF * (variance - 1 + math.log(STIFFNESS))
    assert report["ess"] == pytest.approx(ess, abs=0.03)
    assert report["ess_forward"] == pytest.approx(ess, abs=0.03)
    for name, truth in (
        ("log_z", LOG_Z),
        ("log_z_bar", LOG_Z),
        ("elbo", LOG_Z - gap),
        ("eubo", LOG_Z + forward_gap),
        ("energy_raw", STIFFNESS * DOF / 2),
        ("energy_reweighted", DOF / 2),
        ("energy_reference", DOF / 2),
    ):
        assert abs(report[name].value - truth) < 3.5 * report[name].error, name


def test_raw_distances_show_the_error_and_reweighted_ones_stand_at_the_floor(report):
    for name in ("energy_w1", "energy_w2", "pair_distance_w1"):
        distances = report[name]
        floor = distances["floor_effective"]
        assert distances["raw"] > 5 * floor.value, name
        assert distances["reweighted"] < floor.value + 4 * floor.error, name
    assert report["beyond_reference"]["raw"] > 0.005
    assert report["beyond_reference"]["reweighted"] < 0.003


def test_the_exact_sampler_stands_at_every_floor(reference):
    exact = evaluate(BaseSampler(std=STIFFNESS**-0.5), reference, n=N, seed=2)
    assert exact["ess"] == pytest.approx(1.0, abs=1e-9)
    assert exact["log_z"].value == pytest.approx(LOG_Z)
    for name in ("energy_w1", "energy_w2", "pair_distance_w1"):
        floor = exact[name]["floor"]
        assert exact[name]["raw"] < floor.value + 4 * floor.error, name


def test_refined_samples_are_compared_and_drawn_without_weights(reference, tmp_path):
    report = evaluate(BaseSampler(), reference, n=2000, seed=3, refine_steps=120, out=tmp_path)
    refined = report["refined"]
    assert refined["refine_steps"] == 120
    assert abs(refined["energy"].value - DOF / 2) < 4 * refined["energy"].error
    for name in ("energy_w1", "energy_w2"):
        floor = refined[name]["floor"]
        assert set(refined[name]) == {"raw", "floor"}
        assert refined[name]["raw"] < floor.value + 4 * floor.error < report[name]["raw"]
    assert "reweighted" not in refined["beyond_reference"]
    names = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert {"refined_energy", "refined_pair_distances"} < names
    assert "refined_log_weights" not in names
    evaluate(BaseSampler(), reference, n=100, out=tmp_path)
    names = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert names == {"energy", "pair_distances", "log_weights"}


def test_floors_are_measured_once_for_each_number_of_structures(reference, monkeypatch):
    measured = []
    noise_floor = metrics.noise_floor

    def counted(distance, target, n, *rest):
        measured.append(n)
        return noise_floor(distance, target, n, *rest)

    monkeypatch.setattr(metrics, "noise_floor", counted)
    floors = NoiseFloors(seed=4)
    ensemble = BaseSampler().sample(500)
    first = compare(ensemble, reference, 4, floors)
    assert sorted(measured) == sorted(3 * [500] + 3 * [round(ensemble.n_effective)])
    unweighted = Ensemble(ensemble.positions, ensemble.energies, None, SYSTEM)
    second = compare(unweighted, reference, 4, floors)
    assert len(measured) == 6
    for name in ("energy_w1", "energy_w2", "pair_distance_w1"):
        assert second[name]["floor"] == first[name]["floor"]


def test_report_and_figures_are_written(report, folder):
    written = json.loads((folder / "report.json").read_text())
    assert written["log_z"]["value"] == pytest.approx(report["log_z"].value)
    assert written["training"] == {"seed": 11, "n_energy": 0}
    assert written["n"] == N
    assert written["convention"] == SYSTEM.convention
    names = {path.stem for path in (folder / "plots").glob("*.png")}
    assert names == {"energy", "pair_distances", "log_weights", "ladder"}
    assert all(path.stat().st_size > 5000 for path in (folder / "plots").glob("*.png"))


def test_noise_of_pair_distances_is_that_of_independent_chains():
    """Frames of a chain that are all alike tell no more than one of them."""
    generator = torch.Generator().manual_seed(0)
    positions = SYSTEM.potential.sample(100, generator).repeat_interleave(16, 0)
    order = torch.randperm(len(positions), generator=generator)
    chains = torch.arange(100).repeat_interleave(16)[order]
    shuffled = Reference(positions[order], torch.zeros(1600).double(), SYSTEM)
    edges = torch.linspace(0, 3, 9).double()
    in_chains = plots._density_noise(dataclasses.replace(shuffled, groups=chains), edges)
    alone = plots._density_noise(shuffled, edges)
    assert 2.5 < (in_chains / alone).median() < 6  # 4 = sqrt(16)


def test_progress_covers_samples_and_reference(reference):
    seen = []
    evaluate(
        BaseSampler(), reference, n=2000, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (4000, 4000)


def test_overlapping_structures_are_counted_and_weigh_nothing(reference):
    ensemble = BaseSampler().sample(2000)
    ensemble.energies[0] = math.inf
    compared = compare(ensemble, reference)
    assert compared["energy_w2"]["raw"] == math.inf
    assert math.isfinite(compared["energy_w2"]["reweighted"])


def test_double_well_reports_its_occupancies():
    system = load_system("dw4")
    positions = system.base.sample(200, torch.Generator().manual_seed(0))
    energies = system.potential.energy(positions).double()
    ensemble = Ensemble(positions, energies, -energies, system)
    compared = compare(ensemble, Reference(positions, energies, system))
    assert compared["short_pair_occupancy"]["raw"] == compared["short_pair_occupancy"]["reference"]


class PeptideSampler(BaseSampler):
    """Alanine dipeptide near its structure, extended; in a tenth the acetyl group is misplaced."""

    def __init__(self):
        super().__init__()
        self.system = load_system("aldp")

    def sample(self, n, seed=0, n_steps=20, progress=None, stochastic=False, solver=None):
        positions = peptides(self.system, n, seed)
        positions[: n // 10, :6] += 1.0
        energies = torch.linspace(-20, -10, n, dtype=torch.float64)
        log_density = -energies - 0.1 * torch.arange(n) / n
        return Ensemble(
            positions, energies, log_density, self.system, {"n_energy": n, "solver": "rk4"}
        )

    def log_density(self, positions, n_steps=20, solver=None):
        return torch.zeros(len(positions), dtype=torch.float64)


def peptides(system, n, seed):
    noise = torch.randn(n, 22, 3, generator=torch.Generator().manual_seed(seed))
    return system.molecule.structure + 1e-3 * noise


@pytest.fixture(scope="module")
def peptide_report(tmp_path_factory):
    sampler, folder = PeptideSampler(), tmp_path_factory.mktemp("peptide")
    positions = peptides(sampler.system, 60, seed=9)
    positions[30:] = -positions[30:]  # mirror images of the molecule are the molecule
    energies = torch.linspace(-20, -10, 60, dtype=torch.float64)
    samples = Reference(positions, energies, sampler.system)
    return evaluate(sampler, samples, n=40, seed=1, out=folder), folder


def test_basins_stand_behind_the_ess_of_a_molecule(peptide_report):
    report, folder = peptide_report
    names = list(report)
    assert names.index("basins") == names.index("ess") + 1
    assert report["basins"]["ALA2"]["beta"]["reference"].value == 1.0
    assert report["basins"]["ALA2"]["beta"]["raw"].value >= 0.9
    assert {"ramachandran.png", "torsions.png"} <= {p.name for p in (folder / "plots").iterdir()}


def test_faulty_structures_of_a_molecule_are_counted(peptide_report):
    structures = peptide_report[0]["structures"]
    assert structures["broken"]["raw"].value == pytest.approx(0.1)
    assert structures["intact"]["reference"].value == 1.0
    assert structures["other_stereoisomer"]["reference"].value == 0.0


def test_reference_against_itself_is_at_no_distance():
    system = load_system("aldp")
    positions = peptides(system, 30, seed=2)
    energies = torch.zeros(30, dtype=torch.float64)
    same = Ensemble(positions, energies, energies, system)
    compared = compare_molecules(same, Reference(positions, energies, system))
    distances = compared["ramachandran"]["ALA2"]
    for name in ("total_variation", "jensen_shannon"):
        assert distances[name]["raw"] == pytest.approx(0.0, abs=1e-12)
        assert distances[name]["reweighted"] == pytest.approx(0.0, abs=1e-12)
    for name in ("bond_lengths_nm", "bond_angles_degrees"):
        assert all(each["raw"] == pytest.approx(0.0, abs=1e-9) for each in compared[name].values())
        assert compared[name]["mean_rms"]["floor"].value > 0


def test_conformations_of_what_is_no_molecule_are_refused(reference):
    with pytest.raises(ValueError, match="not a molecule"):
        compare_molecules(BaseSampler().sample(10), reference)


def test_basins_are_printed_as_values_with_errors(peptide_report):
    rows = dict(report_rows(peptide_report[0], {"reference", "training"}))
    assert rows["basins, ALA2, beta"].startswith("raw ")
    assert "reference 1 ± unknown" in rows["basins, ALA2, beta"]
    assert rows["ramachandran, ALA2, bins per angle"] == "12"
    ensemble = PeptideSampler().sample(40)
    ensemble.info["wall_time"] = 1.0
    labels = [label for label, _ in sample_rows(ensemble)]
    assert labels.index("basins of ALA2") == labels.index("ESS") + 1


def test_a_single_particle_has_no_pair_distances():
    system = System("one", Harmonic(1, centered=False))
    generator = torch.Generator().manual_seed(0)
    first, second = (system.potential.sample(200, generator) for _ in range(2))
    ensemble = Ensemble(first, system.potential.energy(first), None, system)
    reference = Reference(second, system.potential.energy(second).double(), system)
    compared = compare(ensemble, reference)
    assert "energy_w2" in compared
    assert "pair_distance_w1" not in compared
    assert list(comparison_figures(ensemble, reference, compared)) == ["energy"]


def test_systems_in_an_external_field_are_compared_where_they_are():
    """Shapes laid over each other, and pair distances, do not see that all atoms are moved."""
    system = System("well", Harmonic(3, stiffness=4.0, centered=False))
    reference = make_reference(system, 400, seed=1, n_chains=100, n_between=10)
    ensemble = Ensemble(
        reference.positions + torch.tensor([5.0, 0, 0]), reference.energies, None, system
    )
    compared = compare(ensemble, reference)
    assert "geometric_w2" not in compared
    assert compared["centre_w1"]["axis_1"]["raw"] == pytest.approx(5.0)
    assert compared["centre_w1"]["axis_2"]["raw"] == pytest.approx(0.0, abs=1e-6)
    assert 0 < compared["centre_w1"]["axis_1"]["floor"].value < 0.1
