"""The command line as a whole: help, what is shipped, and refused input in one line."""

import resource
import subprocess
import sys

import pytest
from command_line import assert_refused, boltztilt, spawn

from boltztilt import __version__, console


def test_help_is_fast_and_imports_no_torch():
    code = (
        "import sys\n"
        "from boltztilt.cli import app\n"
        "try:\n    app(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'numpy', 'mdtraj', 'openmm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert spawn("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 1.5  # seconds of the processor: other load does not count


@pytest.mark.parametrize(
    "verb", ["systems", "info", "sample", "anneal", "train", "evaluate", "reference"]
)
def test_help_of_every_verb_has_an_example(verb):
    result = boltztilt(verb, "--help")
    assert result.exit_code == 0
    assert f"boltztilt {verb}" in result.stdout


def test_version():
    assert boltztilt("--version").stdout == f"boltztilt {__version__}\n"
    assert spawn("--version").stdout == f"boltztilt {__version__}\n"


def test_systems_lists_the_shipped_ones():
    result = boltztilt("systems")
    assert result.exit_code == 0
    assert {"lj13", "lj55", "dw4"} <= set(result.stdout.split())


def test_info_states_the_energy_convention(system_file, run_folder):
    for target in (system_file, run_folder):
        result = boltztilt("info", target)
        assert result.exit_code == 0, result.output
        assert "stiffness sum_i" in " ".join(result.stdout.split())


def test_info_tells_the_runs_before_in_a_row_each():
    words = " ".join(boltztilt("info", "lj55").stdout.split())
    assert "started from lj55: n updates 3,400, n energy 8,547,328, wall time 1343.4" in words
    assert "started from lj55: n updates 5,000, n energy 6,456,320, wall time 2894.2" in words
    assert "started from lj13: n updates 6,650" in words
    assert "placed by errors measured in 16 parts" in words
    assert words.count("recipe, coupling") == 1


# anneal


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sample", "lj31"], "did you mean 'lj13'"),
        (["info", "lj31"], "did you mean 'lj13'"),
        (["train", "lj31", "-o", "run"], "did you mean 'lj13'"),
        (["reference", "lj31", "-o", "r.npz"], "did you mean 'lj13'"),
        (["evaluate", "lj31"], "did you mean 'lj13'"),
        (["sample", "lj13", "-n", "0"], "-n"),
        (["sample", "lj13", "-n", "-5"], "-n"),
        (["sample", "lj13", "-n", "many"], "-n"),
        (["sample", "lj13", "--steps", "0"], "--steps"),
        (["sample", "lj13", "-o", "out.xyz"], ".xyz"),
        (["sample", "lj13", "-o", "out"], "out"),
        (["sample", "lj13", "-o", "absent/out.dcd"], "absent"),
        (["sample", "lj13", "--resample", "--no-density"], "--no-density"),
        (["sample", "lj55", "--resample", "--stochastic"], "--stochastic"),
        (["sample", "lj55", "--stochastic", "--solver", "dopri5"], "dopri5"),
        (["sample", "lj13", "--solver", "multistep"], "use 'rk4'"),
        (["sample", "lj13", "--stochastic"], "boltztilt train lj13 --stochastic"),
        (["evaluate", "lj13", "--stochastic"], "boltztilt train lj13 --stochastic"),
        (["sample", "lj13", "--solver", "euler"], "euler"),
        (["sample", "lj13", "--device", "cuda:77"], "cuda:77"),
        (["sample", "lj13", "--device", "meta"], "meta cannot be used here"),
        (["sample", "dw4", "-q", "-n", "1000000000000000"], "ask for less at once"),
        (["sample", "lj13", "--weights", "absent.safetensors"], "absent.safetensors"),
        (["sample"], "name"),
        (["anneal", "lj31"], "did you mean 'lj13'"),
        (["anneal", "lj13", "-n", "0"], "-n"),
        (["anneal", "lj13", "--cess", "1.5"], "--cess"),
        (["anneal", "lj13", "--per-group", "0"], "--per-group"),
        (["anneal", "lj13", "--leapfrog", "0"], "--leapfrog"),
        (["anneal", "lj13", "--seed", "-1"], "--seed"),
        (["anneal", "lj13", "-o", "out.xyz"], ".xyz"),
        (["anneal", "absent.toml"], "absent.toml"),
        (["sample", "lj13", "--colour"], "--colour"),
        (["paint"], "paint"),
        (["train", "lj13"], "--output"),
        (["train", "lj13", "-o", "run", "--resume"], "run"),
        (["train", "lj13", "-o", "run", "--set", "cess"], "key=value"),
        (["train", "lj13", "-o", "run", "--set", "no_such_key=3"], "no_such_key"),
        (["evaluate", "absent/run"], "absent/run"),
        (["reference", "lj13", "-o", "out.gro"], ".npz"),
        (["reference", "aldp", "-o", "out.npz", "--resume"], "out.partial"),
        (["reference", "lj13", "-o", "out.npz", "-n", "0"], "-n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(boltztilt(*words), expected)
    assert list(tmp_path.iterdir()) == []


def test_bad_input_in_a_real_process():
    finished = spawn("sample", "lj31")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert "lj13" in finished.stderr


def test_debug_shows_the_traceback():
    finished = spawn("sample", "lj31", "--debug")
    assert "Traceback" in finished.stderr
    assert "ValueError" in finished.stderr


# reference and evaluate


def test_titles_show_brackets_as_they_are(capsys):
    console.print_table("U = [r^-12 - 2 r^-6]", [("n", "13")])
    assert "U = [r^-12 - 2 r^-6]" in capsys.readouterr().out
