"""The benchmarks: every script explains itself, its smallest run works, and its formulas hold."""

import json
import math
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from boltztilt.analysis.reference import Reference
from boltztilt.networks.egnn import EGNN
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.divergence import brute_force_divergence
from boltztilt.sampling.sampler import Sampler
from boltztilt.sampling.solvers import MULTISTEP_STEPS
from boltztilt.systems.system import System, load_system

FOLDER = Path(__file__).parents[1] / "benchmarks"
SHARED = ("conditions", "measurement")
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in SHARED)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script with the given words, as the command line would, and returns what it prints."""
    monkeypatch.syspath_prepend(str(FOLDER))
    n_threads = torch.get_num_threads()

    def call(name, *words):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    yield call
    torch.set_num_threads(n_threads)


@pytest.fixture
def benchmark_module(monkeypatch):
    """The functions of a script."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))


@pytest.fixture
def dw4_reference(tmp_path, generator):
    """Structures in the format of a reference; no samples of the target."""
    system = load_system("dw4")
    positions = system.base.sample(40, generator)
    energies = system.potential.energy(positions).double()
    return Reference(positions, energies, system).save(tmp_path / "reference.npz")


def figures(text, name):
    """The columns of the first row that begins with a name."""
    (line, *_) = [line for line in text.splitlines() if line.startswith(name)]
    return line[len(name) :].split()


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_the_command_and_the_docstring(name, run, capsys):
    with pytest.raises(SystemExit, match="0"):
        run(name, "--help")
    text = capsys.readouterr().out
    assert f"python benchmarks/{name}.py" in text
    assert "--seed" in text


@pytest.mark.parametrize("field", ["--unrolled 1", "--unrolled 2", "--sampler lj55"])
def test_density_cost_compares_with_the_velocity_and_the_exact_field(field, run):
    small = ("-n", 1, "--sizes", 3, "--turns", 1, "--width", 8, "--layers", 1, *field.split())
    text = run("density_cost", *small, "--threads", 1)
    assert figures(text, "field: velocity ")[-2] == "1.0"
    assert figures(text, "field: velocity and divergence")[-1] == "1"
    assert float(figures(text, "EGNN: D products one by one")[-1]) > 0


def test_density_cost_at_the_steps_of_a_sampler(benchmark_module):
    """Equal parts of a batch, each at the time of a step; none at t = 0, where the field is -x."""
    module = benchmark_module("density_cost")
    moments = module["evaluated_at"](Sampler.load("lj55"))
    assert moments[0] > 0
    assert len(moments) == MULTISTEP_STEPS - 1
    seen = module["in_turn"](lambda times, part: (times, len(part)), moments)
    parts = seen(torch.rand(3), torch.randn(2 * len(moments), 4, 3))
    assert [n for _, n in parts] == [2] * len(moments)
    torch.testing.assert_close(torch.stack([times[0] for times, _ in parts]), torch.tensor(moments))


def test_products_together_are_the_exact_divergence(benchmark_module):
    torch.manual_seed(0)
    egnn = EGNN([0] * 4, 8, 2)
    for parameter in egnn.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    point = (torch.rand(3), torch.randn(3, 4, 3))
    together = benchmark_module("density_cost")["velocity_and_divergence"]
    value, divergence = together(egnn, 5, *point)
    expected, trace = brute_force_divergence(egnn, *point)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(divergence, trace)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_cost_against_size_prints_an_exponent(n_layers, run):
    words = ("-n", 1, "--sizes", 3, 4, 5, "--turns", 1, "--no-memory", "--threads", 1)
    words += ("--unrolled", n_layers)
    assert "±" in figures(run("cost_against_size", *words), "all pairs, velocity ")


def test_exponent_of_a_power_law(benchmark_module):
    exponent = benchmark_module("cost_against_size")["exponent"]
    sizes = [13, 38, 55, 147]
    value, error = exponent(sizes, [3e-4 * n**1.7 for n in sizes])
    assert value == pytest.approx(1.7)
    assert error == pytest.approx(0, abs=1e-6)


def test_exponent_and_its_error_agree_with_numpy(benchmark_module):
    sizes, times = [13, 38, 55, 147], [1.0, 9.0, 15.0, 170.0]
    found = benchmark_module("cost_against_size")["exponent"](sizes, times)
    slope, covariance = np.polyfit(np.log(sizes), np.log(times), 1, cov=True)
    assert found.value == pytest.approx(slope[0])
    assert found.error == pytest.approx(math.sqrt(covariance[0, 0]))


def test_droplets_keep_their_density_and_their_distances(benchmark_module):
    module = benchmark_module("measurement")
    clusters = module["droplets"](4, 55, 0)
    pairs = torch.pdist(clusters[0])
    radius = (3 * 55 / (4 * math.pi * module["DENSITY"])) ** (1 / 3)
    assert clusters.shape == (4, 55, 3)
    assert pairs.min() > module["SHORTEST_PAIR"] - 1e-5
    assert pairs.max() < 2 * radius


def test_mcmc_budget_names_who_needs_how_long(run, dw4_reference):
    words = ("dw4", "--reference", dw4_reference, "--first", 0.02, "--budgets", 1, "--seeds", 1)
    text = run("mcmc_budget", *words, "--chains", 3, "--batch", 8, "--threads", 1)
    assert float(figures(text, "sampler")[1]) == 8
    assert "HMC, 3 chains reach it" in text
    assert "training" in text


def test_training_cost_counts_what_a_run_started_from(benchmark_module):
    earlier = {"wall_time": 10.0, "start": {"wall_time": 5.0, "start": None}}
    cost = benchmark_module("mcmc_budget")["training_cost"]
    assert cost({"wall_time": 2.0, "n_energy": 7, "start": earlier}, "wall_time") == 17.0
    assert cost({"wall_time": 2.0, "n_energy": 7, "start": earlier}, "n_energy") == 7.0


def test_crossing_is_interpolated_on_logarithms(benchmark_module):
    module = benchmark_module("mcmc_budget")
    results = [module["Result"](t, 0, 1 / math.sqrt(t), 0) for t in (1.0, 4.0, 16.0)]
    crossing, error = module["crossing"], lambda result: result.energy_error
    assert crossing(results, 2.0, error) == "within 1 s"
    assert crossing(results, 1 / math.sqrt(8), error) == "8 s"
    assert crossing(results, 0.1, error) == "not within 16 s"


def test_ablation_keeps_its_rows_and_refuses_other_conditions(run, dw4_reference, tmp_path):
    out = tmp_path / "rows.json"
    tiny = {"n_particles": 32, "polish_particles": 32, "batch_size": 16, "rollout_steps": 2}
    words = ["dw4", "-n", 8, "--chains", 16, "--steps-per-rung", 1, "--recentring-steps", 1]
    words += ["--minutes", 0.001, "--reference", dw4_reference, "--out", out, "--threads", 1]
    words += ["--rows", "default", "--set", *(f"{key}={value}" for key, value in tiny.items())]
    first = run("ablation", *words)
    assert figures(first, "default")[0] == "only"
    stored = json.loads(out.read_text())
    assert set(stored["rows"]) == {"default"}
    again = run("ablation", *words)
    assert figures(again, "default") == figures(first, "default")
    assert json.loads(out.read_text()) == stored
    with pytest.raises(SystemExit, match="minutes"):
        run("ablation", *words, "--minutes", 0.002)


def test_ablation_shows_refused_settings_and_reads_where_to_start(run, dw4_reference, tmp_path):
    words = ["dw4", "-n", 8, "--chains", 16, "--steps-per-rung", 0, "--minutes", 0.001]
    words += ["--reference", dw4_reference, "--out", tmp_path / "rows.json", "--threads", 1]
    words += ["--rows", "default", "--set", 'start_from="absent"', "polish_rollout_every=0"]
    text = run("ablation", *words)
    assert figures(text, "default")[0] == "refused"
    assert "default was refused: unknown system 'absent'" in text


def test_gradient_variance_is_larger_for_weighted_flow_matching_at_small_steps(run):
    text = run("gradient_variance", "dw4", "-n", 16, "--batches", 20, "--threads", 1)
    ratios = [float(line.split()[-1]) for line in text.splitlines() if "WFM / ITM" in line]
    assert ratios[0] > 5


@pytest.mark.parametrize("excess", [0.0, 1.5])
def test_reducible_error_is_that_beyond_the_conditional_mean(excess, benchmark_module, generator):
    """A harmonic well: the exact field has none, and c x on top of it (1-t)² c² |x_t|² / σ²."""
    module, n, ratio, stiffness = benchmark_module("reducible_error"), 400, 0.1, 100.0
    system = System("well", Harmonic(4, stiffness))

    def field(times, positions):
        t, noise = times[:, None, None], 1 - times[:, None, None]
        rate = (t / stiffness - noise) / (noise**2 + t**2 / stiffness)
        return (rate + excess) * positions

    sampler = SimpleNamespace(system=system, field=field)
    ends = system.potential.sample(n, generator)
    *halves, whole = module["errors"](sampler, ends, ratio, 30, generator)
    time = 1 / (1 + ratio)
    per_mode = (1 - time) ** 2 + time**2 / stiffness
    expected = system.base.dof * ((1 - time) * excess / ratio) ** 2 * per_mode
    for found in halves:
        assert abs(found.mean() - expected) < 4 * found.std() / n**0.5
    unavoidable = system.base.dof / (1 + ratio**2 * stiffness)
    assert abs(whole.mean() - expected - unavoidable) < 4 * whole.std() / n**0.5


def test_chains_that_have_not_forgotten_show_in_the_first_half(benchmark_module, generator):
    """The conditional mean is known here: all that is found stems from the true x1."""
    module, ratio, stiffness = benchmark_module("reducible_error"), 1.0, 0.01
    system = System("well", Harmonic(4, stiffness))

    def field(times, positions):
        t, noise = times[:, None, None], 1 - times[:, None, None]
        return (t / stiffness - noise) / (noise**2 + t**2 / stiffness) * positions

    sampler = SimpleNamespace(system=system, field=field)
    ends = system.potential.sample(200, generator)
    earlier, later, _ = module["errors"](sampler, ends, ratio, 160, generator)
    assert earlier.mean() > 5 * later.mean().abs()


def test_stochastic_rounds_compares_with_the_flow(run, tmp_path, generator):
    system = load_system("lj55")
    positions = system.base.sample(40, generator)
    energies = system.potential.energy(positions).double()
    reference = Reference(positions, energies, system).save(tmp_path / "reference.npz")
    words = ("-n", 4, "--rounds", 2, "--steps", 2, "--refine", 3, "--no-compile", "--threads", 1)
    text = run("stochastic_rounds", "--reference", reference, *words)
    for name in ("reference", "flow alone, 2 steps", "2 rounds ", "2 rounds, refined"):
        assert "E-W2" in figures(text, name)


def test_solvers_are_compared_by_time_and_worth(run):
    words = ("-n", 4, "--multistep", 2, "--rk4", 1, "--log-z", 384, "--no-compile", "--threads", 1)
    text = run("solvers", "lj55", *words)
    assert float(figures(text, "multistep, 2")[1]) == 1
    assert float(figures(text, "rk4, 1")[1]) > 0
    for name in ("multistep, 2", "rk4, 1"):
        assert figures(text, name)[2].endswith("%")


@pytest.mark.slow
def test_ess_prints_every_yardstick(run, dw4_reference):
    words = ("dw4", "-n", 40, "--chains", 40, "--reference", dw4_reference, "--threads", 1)
    text = run("ess", *words)
    for name in ("ESS, reverse", "<U> reweighted", "energy w2", "log Z, BAR", "4 short pairs"):
        assert figures(text, name)


@pytest.mark.slow
def test_startup_times_both_commands(run):
    text = run("startup", "dw4", "-n", 2, "--threads", 1)
    assert float(figures(text, "boltztilt --help")[0]) > 0
    assert float(figures(text, "boltztilt sample dw4 -n 2")[0]) > 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_structures(run):
    text = run("memory", "--quick", "--threads", 1)
    rows = [line.split() for line in text.splitlines() if line.startswith("lj13")]
    few, many, smaller_batch = (int(row[-1]) for row in rows)
    assert many < 1.3 * few
    assert smaller_batch < few


@pytest.mark.slow
def test_memory_of_updates_is_measured(run):
    small = ["--doublings", 0, "-n", 4, "--batch", 2, "--points", 16, "--particles", 2]
    text = run("memory", "--systems", "lj13", *small, "--solver-steps", 2, "--threads", 1)
    for work in ("sampling with density", "flow matching", "likelihood, 2 solver steps"):
        assert f"lj13: {work}" in text


@pytest.mark.slow
def test_polishing_continues_one_field_in_every_way(run, tmp_path, generator):
    """Three atoms in a well: tiny runs, whose rows are found again and not made twice."""
    lines = ['[potential]\nkind = "harmonic"\nn_atoms = 3\nstiffness = 2.0', "[recipe]"]
    settings = {"n_particles": 64, "steps_per_rung": 2, "recentring_steps": 2, "batch_size": 16}
    settings |= {"polish_particles": 32, "polish_chain_steps": 2, "rollout_steps": 2}
    settings |= {"likelihood_batch": 8, "likelihood_solver_steps": 2}
    lines += [f"{name} = {value}" for name, value in settings.items()]
    lines += ["[recipe.network]", 'kind = "local_density"', "n_hidden = 4", "n_channels = 2"]
    (tmp_path / "well.toml").write_text("\n".join(lines))
    system = load_system(tmp_path / "well.toml")
    positions = system.potential.sample(40, generator)
    energies = system.potential.energy(positions).double()
    reference = Reference(positions, energies, system).save(tmp_path / "reference.npz")
    words = (tmp_path / "well.toml", "--reference", reference, "--out", tmp_path / "kept")
    words += ("-n", 20, "--start", 0.03, "--minutes", 0.002, "--chains", 32, "--threads", 1)
    text = run("polishing", *words)
    rows = ("start aligned", "exact weights", "likelihood", "likelihood along paths")
    for name in (*rows, "target score"):
        assert figures(text, name)[2].endswith("%")
    assert run("polishing", *words).splitlines()[-10:] == text.splitlines()[-10:]
    with pytest.raises(SystemExit, match="other seed; give another"):
        run("polishing", *words, "--seed", 1)


def test_targets_informed_by_forces_have_the_mean_of_the_usual_ones(benchmark_module, generator):
    """A Gaussian target, where b(t, x) is known: both targets regress on it, the second closer."""
    module = benchmark_module("polishing")
    n, stiffness, time = 20_000, 4.0, 0.8
    starts, noise = torch.randn(2, n, 1, 3, generator=generator)
    ends = noise / stiffness**0.5
    pairs = module["Pairs"](starts, ends, torch.ones(n))
    bridge = module["interpolate"](pairs, torch.full((n,), time))
    informed = module["force_informed"](bridge, -stiffness * ends, 1.0)
    variance = (1 - time) ** 2 + time**2 / stiffness
    exact = (time / stiffness - (1 - time)) / variance * bridge.positions
    usual, better = bridge.rates - exact, informed.rates - exact
    error = better.square().mean().sqrt() / n**0.5
    assert ((better * bridge.positions).mean() / error).abs() < 4
    assert better.square().mean() < 0.7 * usual.square().mean()
