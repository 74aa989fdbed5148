"""ASE calculators as potentials: units, failures, bonds and what is refused."""

import math
import sys

import ase
import numpy as np
import pytest
import torch
from ase import units
from ase.build import molecule as build
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones as ASELennardJones
from ase.constraints import FixAtoms

from boltztilt.networks.build import build_network
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.potentials.ase_potential import ASEPotential
from boltztilt.potentials.lennard_jones import LennardJones
from boltztilt.systems.ase_molecules import guessed_bonds
from boltztilt.systems.system import System
from boltztilt.testing import check_potential, jittered_lattice
from boltztilt.tilt.annealing import anneal

COPPER = ase.Atoms("Cu4", [[0, 0, 0], [2.3, 0, 0], [1.15, 2, 0], [1.15, 0.7, 1.9]])


class Springs(Calculator):
    """Springs between bonded atoms of water, 2 eV/angstrom² and 1 angstrom long; fails if wanted.

    Args:
        field: eV/angstrom along z on the first atom, a field that breaks every symmetry.
        chiral: eV/angstrom³ on the volume that three bonds span, which has a hand.
    """

    implemented_properties = ("energy", "forces")

    def __init__(self, pairs=((0, 1), (0, 2)), field=0.0, chiral=0.0):
        super().__init__()
        self.pairs, self.field, self.chiral = pairs, field, chiral
        self.failing = False
        self.n_calculations = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.n_calculations += 1
        x = torch.tensor(self.atoms.positions, requires_grad=True)
        if self.failing and x[0, 0] > 0.3:
            raise CalculationFailed("no convergence\nafter 100 cycles")
        lengths = torch.stack([(x[i] - x[j]).norm() for i, j in self.pairs])
        energy = (lengths - 1).square().sum() + self.field * x[0, 2]
        if self.chiral:
            energy = energy + self.chiral * torch.linalg.det(x[1:4] - x[0])
        energy.backward()
        self.results = {"energy": energy.item(), "forces": -x.grad.numpy()}


def frames(n, generator, spread=0.01):
    start = torch.from_numpy(build("H2O").positions / 10)
    return start + spread * torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)


def test_lennard_jones_of_ase_is_ours(generator):
    """r_min = 10 angstrom = 1 nm and a well of 2 kT, with the trap: the convention "dem"."""
    kt = 300 * units.kB
    theirs = ASELennardJones(sigma=10 / 2 ** (1 / 6), epsilon=2 * kt, rc=1e6)
    potential = ASEPotential(
        ase.Atoms("Ar5", jittered_lattice(5, 3, generator)[0].numpy() * 10), theirs, 300.0, trap=1.0
    )
    positions = jittered_lattice(5, 3, generator)
    energy, force = potential.energy_and_force(positions)
    expected, expected_force = LennardJones(5, "dem").energy_and_force(positions)
    torch.testing.assert_close(energy, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(force, expected_force, rtol=1e-9, atol=1e-9)


def test_emt_passes_the_battery(generator):
    noise = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    positions = torch.from_numpy(COPPER.positions / 10) + 0.005 * noise
    check_potential(ASEPotential(COPPER, EMT(), 300.0, trap=3.0), positions, tolerance=1e-5)


def test_energies_are_those_of_ase_in_kt_above_the_zero():
    potential = ASEPotential(COPPER, EMT(), 300.0, energy_zero=1.5)
    atoms = COPPER.copy()
    atoms.calc = EMT()
    energy, force = potential.energy_and_force(torch.from_numpy(COPPER.positions / 10)[None])
    kt = 300 * units.kB
    assert energy.item() == pytest.approx((atoms.get_potential_energy() - 1.5) / kt)
    np.testing.assert_allclose(force[0], atoms.get_forces() * 10 / kt)


def test_energy_and_force_are_one_calculation(generator):
    calculator = Springs()
    potential = ASEPotential(build("H2O"), calculator, 300.0)
    before = calculator.n_calculations
    potential.energy_and_force(frames(5, generator))
    assert calculator.n_calculations == before + 5


def test_frames_that_fail_have_no_energy_and_spare_the_others(dtype, generator):
    calculator = Springs()
    potential = ASEPotential(build("H2O"), calculator, 300.0)
    positions = frames(4, generator).to(dtype)
    expected, expected_force = potential.energy_and_force(positions)
    calculator.failing = True
    positions[1, :, 0] += 0.1
    positions[2, 0, 0] = math.nan
    with pytest.warns(UserWarning, match=r"CalculationFailed: no convergence") as noted:
        energy, force = potential.energy_and_force(positions)
    assert len(noted) == 1
    assert torch.equal(potential.energy(positions).isnan(), energy.isnan())
    assert energy.isnan().tolist() == [False, True, True, False]
    assert (force[1:3] == 0).all()
    torch.testing.assert_close(energy[::3], expected[::3])
    torch.testing.assert_close(force[::3], expected_force[::3])


def test_the_given_atoms_are_left_as_they_are(generator):
    atoms = build("H2O")
    ASEPotential(atoms, Springs(), 300.0).energy(frames(2, generator))
    assert atoms.calc is None
    np.testing.assert_array_equal(atoms.positions, build("H2O").positions)


def test_ethanol_is_a_molecule_with_bonds_and_interchangeable_hydrogens():
    atoms = build("CH3CH2OH")
    system = System.from_ase(atoms, EMT(), 300.0, name="ethanol")
    assert (system.name, system.base_kind, system.nm_per_length) == ("ethanol", "bonds", 1.0)
    assert system.convention == "ASE's EMT, 300 K, kT, nm"
    assert system.molecule.bonds.shape == (2, 8)
    groups = [system.species.count(role) for role in set(system.species)]
    assert sorted(groups) == [1, 1, 1, 1, 2, 3]
    torch.testing.assert_close(
        system.molecule.structure.double(),
        torch.from_numpy(atoms.positions / 10),
        atol=1e-6,
        rtol=0.0,
    )


@pytest.mark.parametrize(
    ("name", "n_bonds"), [("C6H6", 12), ("CH3CONH2", 8), ("CH3SH", 5), ("SiH4", 4), ("N2", 1)]
)
def test_bonds_are_those_of_the_formula(name, n_bonds):
    assert len(guessed_bonds(build(name))) == n_bonds


def test_cluster_of_a_metal_has_alike_atoms_on_an_isotropic_base():
    system = System.from_ase(COPPER, EMT(), 300.0, trap=1.0)
    assert (system.base_kind, system.species) == ("isotropic", (0, 0, 0, 0))
    spread = (COPPER.positions / 10).std(axis=0)
    assert system.base_std == pytest.approx(2 * np.sqrt((spread**2).mean()), rel=1e-5)
    assert system.molecule.bonds.shape == (2, 0)
    assert isinstance(build_network(system.recipe["network"], system), LocalDensityField)


def test_atoms_that_the_energy_tells_apart_keep_their_roles():
    """Three argon atoms, two of which a spring connects."""
    atoms = ase.Atoms("Ar3", [[0, 0, 0], [1, 0, 0], [0, 5, 0]])
    system = System.from_ase(atoms, Springs(pairs=((0, 1),)), 300.0, trap=1.0)
    assert system.species == (0, 0, 2)


def test_given_bonds_and_settings_replace_the_guesses():
    system = System.from_ase(
        COPPER, EMT(), 300.0, bonds=[(0, 1), (1, 2), (2, 3)], base_std=0.2, convention="mine"
    )
    assert (system.base_kind, system.base_std, system.convention) == ("bonds", 0.2, "mine")
    assert system.molecule.bonds.tolist() == [[0, 1, 2], [1, 2, 3]]


def test_annealed_springs_have_the_mean_energy_of_a_quadrature():
    """Lengths of two independent springs have the density r² exp(-u(r)), the angle is free."""
    kt = 5000 * units.kB
    system = System.from_ase(build("H2O"), Springs(), 5000.0, name="springs")
    assert system.species == (0, 1, 1)
    ensemble = anneal(system, 64, n_per_group=4, cess=0.6, n_steps=1, n_leapfrog=6)
    r = np.linspace(1e-6, 6, 20_000)
    weight = r**2 * np.exp(-((r - 1) ** 2) / kt)
    exact = 2 * (weight * (r - 1) ** 2 / kt).sum() / weight.sum()
    energy = ensemble.mean_energy()
    assert abs(energy.value - exact) < 4 * energy.error


def with_cell():
    atoms = build("H2O", vacuum=3.0)
    atoms.pbc = True
    return atoms


def with_constraint():
    atoms = build("H2O")
    atoms.set_constraint(FixAtoms([0]))
    return atoms


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (with_cell, r"periodic cell.*atoms\.pbc = False"),
        (with_constraint, r"constraints \(FixAtoms\).*atoms\.set_constraint\(\)"),
        (lambda: ase.Atoms("H"), "at least 2 atoms are needed.*have 1"),
        (lambda: ase.Atoms("HXH", build("H2O").positions), "atom 1 has no element"),
    ],
)
def test_atoms_without_a_density_are_refused(atoms, message):
    with pytest.raises(ValueError, match=message):
        System.from_ase(atoms(), Springs(), 300.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        System.from_ase(build("H2O"), Springs(), temperature)


def test_negative_trap_is_refused():
    with pytest.raises(ValueError, match=r"trap = -1\.0"):
        ASEPotential(COPPER, EMT(), 300.0, trap=-1.0)


def test_calculator_without_parameters_for_an_element_is_refused():
    with pytest.raises(ValueError, match=r"EMT cannot compute.*NotImplementedError.*Fe"):
        System.from_ase(ase.Atoms("Fe2", [[0, 0, 0], [2, 0, 0]]), EMT(), 300.0)


def test_structure_without_a_finite_energy_is_refused():
    atoms, calculator = ase.Atoms("Ar2", [[0, 0, 0], [3, 0, 0]]), ASELennardJones(sigma=1e60)
    with pytest.raises(ValueError, match=r"energy of the given structure is .*without overlaps"):
        System.from_ase(atoms, calculator, 300.0)


def test_external_field_is_refused():
    with pytest.raises(ValueError, match="under rotation and translation, as in an external field"):
        System.from_ase(build("H2O"), Springs(field=1.0), 300.0)


def test_energy_with_a_hand_has_to_be_declared():
    bonds = ((0, 1), (0, 2), (0, 3))
    atoms = build("NH3")
    with pytest.raises(ValueError, match=r"under reflection.*mirror_symmetric=False"):
        System.from_ase(atoms, Springs(bonds, chiral=1.0), 300.0)
    system = System.from_ase(atoms, Springs(bonds, chiral=1.0), 300.0, mirror_symmetric=False)
    assert not system.potential.mirror_symmetric


@pytest.mark.parametrize("bond", [(0, 0), (0, 4), (-1, 2)])
def test_impossible_bonds_are_refused(bond):
    with pytest.raises(ValueError, match=r"two different atoms of 0 to 3"):
        System.from_ase(COPPER, EMT(), 300.0, bonds=[bond])


def test_bonds_that_leave_an_atom_out_are_refused_by_its_name():
    with pytest.raises(ValueError, match=r"atom 4 of 4 \(MOL0-Cu4\).*isotropic"):
        System.from_ase(COPPER, EMT(), 300.0, bonds=[(0, 1), (1, 2)], base_kind="bonds")


def test_what_is_not_of_ase_is_refused():
    with pytest.raises(TypeError, match=r"expected ase\.Atoms, got str"):
        ASEPotential("water.xyz", EMT(), 300.0)
    with pytest.raises(TypeError, match="expected an ASE calculator, got str"):
        ASEPotential(COPPER, "emt", 300.0)


def test_missing_ase_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ase", None)
    with pytest.raises(ImportError, match=r"pip install 'boltztilt\[ase\]'"):
        System.from_ase(COPPER, EMT(), 300.0)
