"""A system: the potential to sample, the base it starts from, and how to train on it."""

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boltztilt.energy import CallablePotential, Potential, check_behaviour
from boltztilt.sampling.base import BondGaussian, Gaussian
from boltztilt.suggestions import did_you_mean
from boltztilt.systems.molecule import DEFAULTS, Molecule, full_recipe
from boltztilt.systems.system_table import check_table
from boltztilt.whole_numbers import whole_number

if TYPE_CHECKING:
    import ase
    import mdtraj
    import openmm
    import openmm.app

POTENTIALS = {
    "double_well": "boltztilt.potentials.double_well:DoubleWell",
    "gaussian_mixture": "boltztilt.potentials.gaussian_mixture:GaussianMixture",
    "harmonic": "boltztilt.potentials.harmonic:Harmonic",
    "lennard_jones": "boltztilt.potentials.lennard_jones:LennardJones",
}
BASE_KINDS = ("isotropic", "bonds")


@dataclass(frozen=True)
class ReferenceMoments:
    """The known mean energy of a system in kT, its standard error, and the spread of energies."""

    mean: float
    error: float
    sd: float


@dataclass(frozen=True, eq=False)
class System:
    """What is simulated: an energy in kT, a Gaussian base, and settings for training and export.

    Attributes:
        name: short name; shipped weights are found by it.
        potential: a Potential, also when constructed with a plain function of positions
            `(batch, n_atoms, n_dims)` that returns energies `(batch,)`. A function whose energy is
            that of the mirror image says so as CallablePotential(..., mirror_symmetric=True).
        n_atoms, n_dims: read from the potential, needed only when it is a plain function.
        base_std: standard deviation of the Gaussian base; of a bond along each axis if
            `base_kind` is "bonds".
        base_kind: "isotropic", or "bonds" for a Gaussian that holds bonded atoms together.
        molecule: atoms and bonds, for systems that are a molecule.
        species: one integer per atom; atoms of equal species may be permuted.
        convention: the energy convention in words, printed in reports.
        element, nm_per_length: chemical element and length unit with which files are written.
        reference_energy: known moments of the energy, if any.
        recipe: the training recipe as written in the TOML file; that of a molecule is completed
            with settings in nm.
        source: the TOML file the system was loaded from; shipped weights lie beside it.
        files: other files that the TOML file names, in the same folder.
    """

    name: str
    potential: Any
    n_atoms: int = 0
    n_dims: int = 0
    base_std: float = 1.0
    base_kind: str = "isotropic"
    molecule: Molecule | None = None
    species: tuple[int, ...] = ()
    title: str = ""
    description: str = ""
    convention: str = ""
    element: str = "Ar"
    nm_per_length: float = 0.382
    reference_energy: ReferenceMoments | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    source: Path | None = None
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        potential = as_potential(self.potential, self.n_atoms, self.n_dims)
        given = self.species is not None and len(self.species) > 0
        species = self.species if given else self._default_species(potential)
        derived: dict[str, Any] = {
            "potential": potential,
            "n_atoms": potential.n_atoms,
            "n_dims": potential.n_dims,
            "species": tuple(whole_number("species", each, least=0) for each in species),
        }
        if self.molecule is not None:
            alike = len(set(derived["species"])) == 1
            derived["recipe"] = full_recipe(self.recipe, alike)
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        if len(self.species) != self.n_atoms:
            raise ValueError(
                f"system {self.name!r}: {len(self.species)} species given for {self.n_atoms} atoms"
            )
        if self.molecule is not None and self.molecule.n_atoms != self.n_atoms:
            raise ValueError(
                f"system {self.name!r}: the molecule has {self.molecule.n_atoms} atoms, its "
                f"potential {self.n_atoms}"
            )
        if self.base_kind not in BASE_KINDS:
            raise ValueError(
                f"system {self.name!r}: base_kind = {self.base_kind!r} is unknown; choose one of "
                f"{', '.join(BASE_KINDS)}"
            )
        if self.base_kind == "bonds":
            if self.molecule is None:
                raise ValueError(
                    f"system {self.name!r}: base_kind = 'bonds' needs a molecule with bonds"
                )
            if not potential.centered:
                raise ValueError(
                    f"system {self.name!r}: base_kind = 'bonds' holds the centre of mass at the "
                    "origin, but the energy changes where the molecule moves: leave out the "
                    "external force, or start from the isotropic base (base_kind = 'isotropic')"
                )
            _check_bonds(self.molecule)
        for name in ("base_std", "nm_per_length"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"system {self.name!r}: {name} = {getattr(self, name)} must be positive and "
                    "finite"
                )
        if _is_foreign(potential):
            check_behaviour(potential, self.examples())

    def examples(self) -> Tensor:
        """A few structures at which an energy can be tried, `(4, n_atoms, n_dims)`."""
        generator = torch.Generator().manual_seed(0)
        if self.molecule is not None:
            return self.molecule.distorted(4, generator).float()
        shape = (4, self.n_atoms, self.n_dims)
        return self.base_std * torch.randn(shape, generator=generator, dtype=torch.float32)

    def _default_species(self, potential: Potential) -> tuple[int, ...]:
        """The roles of a molecule's atoms; all atoms of anything else are alike."""
        if self.molecule is None:
            return (0,) * potential.n_atoms
        return self.molecule.roles(potential)

    @classmethod
    def from_openmm(
        cls,
        topology: "openmm.app.Topology",
        system: "openmm.System",
        temperature: Any,
        positions: Any,
        name: str = "molecule",
        **settings: Any,
    ) -> "System":
        """A molecule from OpenMM's own objects.

        Args:
            topology: elements, residues and bonds.
            system: its forces, without constraints and virtual sites.
            temperature: a Quantity, or a number of kelvin.
            positions: one structure of the molecule, a Quantity or numbers in nm.
            settings: further attributes of the System, such as `recipe` or `title`.
        """
        from boltztilt.systems.openmm_molecules import (
            in_kelvin,
            molecule_from_openmm,
            names_of_forces,
        )

        kelvin = in_kelvin(temperature)
        made = molecule_from_openmm(topology, system, kelvin, positions)
        convention = f"OpenMM ({names_of_forces(system)}), {kelvin:g} K, kT, nm"
        return cls(
            name=name,
            potential=made.potential,
            molecule=made.molecule,
            **{**DEFAULTS, "convention": convention, **settings},
        )

    @classmethod
    def from_ase(
        cls,
        atoms: "ase.Atoms",
        calculator: Any,
        temperature: float,
        name: str = "molecule",
        bonds: Iterable[tuple[int, int]] | None = None,
        mirror_symmetric: bool = True,
        energy_zero: float = 0.0,
        trap: float = 0.0,
        **settings: Any,
    ) -> "System":
        """A molecule or cluster with the energy of any ASE calculator, positions in nm.

        The base is one of bonds if these connect all atoms, else isotropic and twice as wide as
        the structure. A cluster evaporates in the long run unless a trap holds it.

        Args:
            atoms: elements and one structure, without periodic cell and constraints.
            temperature: in kelvin.
            bonds: pairs of bonded atoms, by default guessed from covalent radii; metals have none.
            mirror_symmetric, energy_zero, trap: see ASEPotential.
            settings: further attributes of the System, such as `recipe` or `base_std`.
        """
        from boltztilt.potentials.ase_potential import ASEPotential
        from boltztilt.systems.ase_molecules import cluster_spread, molecule_from_ase

        molecule = molecule_from_ase(atoms, bonds)
        potential = ASEPotential(
            atoms, calculator, temperature, mirror_symmetric, energy_zero, trap
        )
        defaults = {
            **DEFAULTS,
            "convention": f"ASE's {type(calculator).__name__}, {temperature:g} K, kT, nm",
        }
        if len(molecule.detached):
            defaults |= {"base_kind": "isotropic", "base_std": cluster_spread(molecule.structure)}
        return cls(name=name, potential=potential, molecule=molecule, **{**defaults, **settings})

    @cached_property
    def base(self) -> Gaussian:
        """The Gaussian base, on the zero-mean subspace when the potential is centered."""
        if self.base_kind == "bonds":
            assert self.molecule is not None
            return BondGaussian(self.n_atoms, self.n_dims, self.base_std, bonds=self.molecule.bonds)
        return Gaussian(self.n_atoms, self.n_dims, self.base_std, self.potential.centered)

    @cached_property
    def one_handed(self) -> bool:
        """Whether samples are given in one of two mirror images with the same energy.

        That is so for molecules with a stereocentre and a mirror-symmetric energy: bases and
        fields are mirror symmetric too, and make both hands alike.
        """
        handed = self.molecule is not None and len(self.molecule.stereocentres) > 0
        return handed and self.potential.mirror_symmetric

    def topology(self) -> "mdtraj.Topology":
        """Returns the mdtraj topology with which trajectories of the system are written."""
        if self.molecule is not None:
            return self.molecule.topology
        from boltztilt.export import cluster_topology

        return cluster_topology(self.n_atoms, self.element)

    def refuse_own_files(self, paths: Iterable[Path]) -> None:
        """Raises FileExistsError where one of the paths is a file that describes the system."""
        own = [path for path in (self.source, *self.files) if path is not None and path.is_file()]
        contents = {path.read_bytes() for path in own}
        for path in paths:
            if path.is_file() and path.read_bytes() in contents:
                raise FileExistsError(
                    f"{path} describes {self.name!r} itself and is never replaced: choose another "
                    f"name, such as {path.with_stem(f'{path.stem}_samples')}"
                )

    def weights_path(self) -> Path | None:
        """Returns the path of the trained weights beside the system's file, if there are any."""
        if self.source is None:
            return None
        path = self.source.with_suffix(".safetensors")
        return path if path.is_file() else None


def as_potential(potential: Any, n_atoms: int = 0, n_dims: int = 0) -> Potential:
    """Returns a Potential: the given one after comparing its size, or a wrapped plain function."""
    if not isinstance(potential, Potential):
        if not callable(potential):
            raise TypeError(
                "potential must be a boltztilt.Potential or a function of positions, got "
                f"{type(potential).__name__}"
            )
        if not n_atoms:
            raise ValueError(
                "a potential given as a function needs n_atoms (and n_dims, default 3)"
            )
        return CallablePotential(potential, n_atoms, n_dims or 3)
    if n_atoms not in (0, potential.n_atoms) or n_dims not in (0, potential.n_dims):
        raise ValueError(
            f"n_atoms={n_atoms}, n_dims={n_dims} disagree with the potential's "
            f"{potential.n_atoms} atoms in {potential.n_dims} dimensions"
        )
    return potential


def _is_foreign(potential: Potential) -> bool:
    """Whether the energy was written by a user, and not checked when it was made."""
    own = type(potential).__module__.startswith("boltztilt.")
    return not own or isinstance(potential, CallablePotential)


def _check_bonds(molecule: Molecule) -> None:
    """Raises unless the bonds connect all atoms, naming the first that is left out."""
    if len(molecule.detached):
        number = int(molecule.detached[0])
        raise ValueError(
            f"the bonds do not connect all atoms: none lead from the first to atom {number + 1} of "
            f"{molecule.n_atoms} ({molecule.topology.atom(number)}); add bonds (in a PDB file, "
            "CONECT records), or start from the isotropic base (base_kind = 'isotropic')"
        )


def available_systems() -> list[str]:
    """Returns the names of the systems that come with the package."""
    return sorted(path.stem for path in _shipped_folder().glob("*.toml"))


def load_system(name_or_path: "str | Path | System") -> System:
    """Returns a system by its name, by the path of its TOML file, or the given System itself."""
    if isinstance(name_or_path, System):
        return name_or_path
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = _shipped_folder() / f"{name_or_path}.toml"
        if str(name_or_path) not in available_systems():
            raise ValueError(_unknown_system(str(name_or_path)))
    if not path.is_file():
        raise FileNotFoundError(f"no such system file: {path}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a valid TOML file: {error}") from error
    return _system_from_table(table, path)


def _system_from_table(table: dict[str, Any], path: Path) -> System:
    """Returns the system that a parsed TOML file describes."""
    settings = dict(table)
    try:
        check_table(settings)
        export = settings.pop("export", {})
        moments = settings.pop("reference_energy", None)
        if "molecule" in settings:
            settings = _with_molecule(settings, path.parent)
        else:
            settings["potential"] = _build_potential(settings.pop("potential", {}))
        return System(
            name=settings.pop("name", path.stem),
            species=tuple(settings.pop("species", ())),
            reference_energy=ReferenceMoments(**moments) if moments else None,
            source=path,
            **settings,
            **export,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _with_molecule(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the settings with the molecule and the potential that their [molecule] describes."""
    from boltztilt.systems.openmm_molecules import molecule_from_table

    if "potential" in settings:
        raise ValueError("a system has either a [molecule] or a [potential], not both")
    table = settings.pop("molecule")
    made = molecule_from_table(table, folder)
    energy = ", ".join(table.get("force_field", [table.get("system_xml")]))
    convention = f"{energy}, {table['temperature']:g} K, kT, nm"
    return {**DEFAULTS, "convention": convention, **settings, **made._asdict()}


def _build_potential(table: Mapping[str, Any]) -> Potential:
    """Returns the potential of a `[potential]` table: its `kind` and constructor arguments."""
    arguments = dict(table)
    kind = arguments.pop("kind", None)
    if kind not in POTENTIALS:
        raise ValueError(
            f"[potential] kind = {kind!r} is unknown: choose one of {', '.join(POTENTIALS)}"
        )
    for size in ("n_atoms", "n_dims"):
        value = arguments.get(size, 1)
        if type(value) is not int or value < 1:
            raise ValueError(f"[potential] {size} = {value!r}: expected a whole number from 1 on")
    module, name = POTENTIALS[kind].split(":")
    try:
        return getattr(import_module(module), name)(**arguments)
    except TypeError as error:
        given = ", ".join(f"{each} = {value!r}" for each, value in arguments.items())
        words = str(error).replace(f"{name}.__init__() ", "")
        with_what = f"with {given}" if given else "alone"
        raise ValueError(f"[potential] kind = {kind!r} {with_what}: {words}") from error


def _unknown_system(name: str) -> str:
    """Returns the message for an unknown name, with the nearest known one."""
    names = available_systems()
    return (
        f"unknown system {name!r}.{did_you_mean(name, names)} Available: {', '.join(names)}; "
        "or give the path of a .toml file"
    )


def _shipped_folder() -> Path:
    return Path(str(resources.files("boltztilt.systems")))
