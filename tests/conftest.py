"""Shapes in the signatures are enforced here and nowhere else; fixtures shared by the tests."""

import os
import resource
import sys

import pytest
import torch
from jaxtyping import install_import_hook

assert "boltztilt.energy" not in sys.modules, "the import hook has to come first"
install_import_hook("boltztilt", "beartype.beartype")

# parallel workers (pytest -n) share the cores: one thread each, also in the processes they start;
# and tests that fork must not have started threads, which a child of theirs would wait for
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


pytest.register_assert_rewrite("command_line", "small_runs")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    """Both precisions, one after the other."""
    return request.param


@pytest.fixture
def generator():
    """A seeded generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def two_threads():
    """Two threads of torch for the calling thread, in place of one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_disk():
    """Files cannot grow beyond 20 kB, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def aldp():
    """Alanine dipeptide in implicit water."""
    from boltztilt.systems.system import load_system

    return load_system("aldp")


@pytest.fixture(scope="session")
def jacobian_trace():
    """The divergence of a field at `(times, positions)` from the full Jacobian of each."""

    def trace(field, times, positions):
        traces = []
        for time, configuration in zip(times, positions, strict=True):

            def velocity(x, time=time):
                return field(time[None], x[None])[0].flatten()

            jacobian = torch.autograd.functional.jacobian(velocity, configuration)
            traces.append(jacobian.flatten(1).trace())
        return torch.stack(traces)

    return trace


@pytest.fixture(scope="session")
def system_file(tmp_path_factory):
    """The file of a system that is trained in seconds."""
    from command_line import SYSTEM

    path = tmp_path_factory.mktemp("system") / "springs.toml"
    path.write_text(SYSTEM)
    return path


@pytest.fixture(scope="session")
def training_words(system_file):
    """The arguments of its training, all but the run folder."""
    return ["train", system_file, "--quiet"]


@pytest.fixture(scope="session")
def run_folder(training_words, tmp_path_factory):
    """A finished, uninterrupted run."""
    from command_line import spawn

    folder = tmp_path_factory.mktemp("runs") / "springs"
    finished = spawn(*training_words, "-o", folder)
    assert finished.returncode == 0, finished.stderr
    return folder
