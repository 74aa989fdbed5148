"""What the wheel and the source archive hold, and where the package can be imported from."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import boltztilt

ROOT = Path(__file__).resolve().parents[1]
MAPPED = {"boltztilt.potentials": "potentials", "boltztilt.systems": "systems"}
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "runs", "*.egg-info", "__pycache__", ".*_cache"
)

BUILD = """
import os, sys
from setuptools import build_meta
print(getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2]))
"""


def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run(source: Path, *arguments: str) -> str:
    """Returns what Python printed when run in a folder without the repository on its path."""
    result = subprocess.run(
        [sys.executable, *arguments], cwd=source, capture_output=True, text=True, check=True
    )
    return result.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    """Returns the path of a wheel or sdist built with the setuptools of this environment."""
    out.mkdir(exist_ok=True)
    return out / run(source, "-c", BUILD, kind, str(out)).strip().splitlines()[-1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Returns the source archive, the wheel, and the wheel built from the source archive."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=NOT_SOURCE)
    sdist = build("sdist", source, folder / "sdist")
    wheel = build("wheel", source, folder / "wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return sdist, wheel, build("wheel", unpacked, folder / "wheel_of_sdist")


def packaged_files() -> set[str]:
    """Returns the archive names of the modules and data files that lie in the repository."""
    names = set()
    for package in settings()["tool"]["setuptools"]["packages"]:
        folder = ROOT / MAPPED.get(package, package.replace(".", "/"))
        for pattern in ("*.py", "*.toml", "*.pdb", "*.safetensors", "*.md", "py.typed"):
            names |= {f"{package.replace('.', '/')}/{path.name}" for path in folder.glob(pattern)}
    return names


def wheel_files(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_packages_are_the_folders_that_exist():
    found = {"boltztilt"}
    for path in (ROOT / "boltztilt").iterdir():
        if path.is_dir() and (path / "__init__.py").is_file():
            found.add(f"boltztilt.{path.name}")
    assert set(settings()["tool"]["setuptools"]["packages"]) == found


def test_mapped_folders_are_linked_into_the_package():
    for package, folder in MAPPED.items():
        link = ROOT / package.replace(".", "/")
        assert link.resolve() == ROOT / folder
        assert settings()["tool"]["setuptools"]["package-dir"][package] == folder


def test_wheel_holds_every_module_system_and_weight(archives):
    assert wheel_files(archives[1]) == packaged_files()


def test_source_archive_builds_the_same_wheel(archives):
    assert wheel_files(archives[2]) == wheel_files(archives[1])


def test_wheel_stays_small(archives):
    assert archives[1].stat().st_size < 6e6


def test_wheel_is_imported_from_another_folder_without_torch(archives, tmp_path):
    """Unpacked anywhere it finds its systems, and importing it loads nothing heavy."""
    zipfile.ZipFile(archives[1]).extractall(tmp_path / "installed")
    where = "import sys; sys.path.insert(0, 'installed'); import boltztilt; "
    heavy = run(tmp_path, "-c", where + "print('torch' in sys.modules, boltztilt.__file__)")
    assert heavy.strip() == f"False {tmp_path / 'installed/boltztilt/__init__.py'}"
    assert "lj13" in run(tmp_path, "-c", where + "print(boltztilt.available_systems())")


@pytest.mark.parametrize("folder", MAPPED.values())
def test_top_level_folders_are_refused_as_packages(folder):
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run(ROOT, "-c", f"import {folder}")
    assert f"boltztilt.{folder}: import it by that name" in failure.value.stderr


def test_package_works_from_the_repository_root():
    printed = run(ROOT, "-S", "-c", "import boltztilt; print(boltztilt.__version__)")
    assert printed.strip() == boltztilt.__version__


@pytest.mark.parametrize("name", [name for name in boltztilt.__all__ if name != "__version__"])
def test_top_level_names_are_there(name):
    assert getattr(boltztilt, name).__module__.startswith("boltztilt.")


def test_unknown_top_level_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        boltztilt.sampel  # noqa: B018
