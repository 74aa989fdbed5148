"""Runs that are trained in seconds, and whether two of them are the same."""

import csv

import torch

from boltztilt.checkpoint import load_weights
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.systems.system import System
from boltztilt.tilt.training import train

SMALL = {
    "network": {"kind": "perceptron", "n_hidden": 8, "n_layers": 2},
    "n_particles": 64,
    "rollout_steps": 2,
    "recentring_steps": 2,
    "steps_per_rung": 3,
    "polish_steps": 7,
    "polish_refresh": 2,
    "polish_rollout_every": 2,
    "polish_particles": 32,
    "polish_chain_steps": 2,
    "likelihood_steps": 3,
    "likelihood_batch": 4,
    "likelihood_solver_steps": 2,
    "batch_size": 16,
    "cess": 0.7,
    "warmup_steps": 4,
    "optimiser": "adamw",
}


def cluster():
    return System("cluster", Harmonic(3, 3.0, 2))


def result(folder):
    """Weights and log of a run, the time column left out."""
    weights, metadata = load_weights(folder / "weights.safetensors")
    with open(folder / "log.csv", newline="") as file:
        rows = [row[:-1] for row in csv.reader(file)]
    return weights, rows, {**metadata, "wall_time": None}


def assert_same(first, second):
    (weights, rows, metadata), (others, other_rows, other_metadata) = first, second
    assert rows == other_rows
    assert metadata == other_metadata
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name


def finish(system, folder):
    """Continues a run to its end."""
    sampler = train(system, out=folder, resume=True)
    assert sampler.metadata["finished"]
