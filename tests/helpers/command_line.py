"""Commands for the tests of the command line, and a system that is trained in seconds."""

import subprocess
import sys

from typer.testing import CliRunner

from boltztilt import cli

SYSTEM = """
name = "springs"
title = "Three atoms on springs"
convention = "U = 1/2 stiffness sum_i |x_i - mean|^2, kT = 1"

[potential]
kind = "harmonic"
n_atoms = 3
stiffness = 2.0

[recipe]
n_particles = 64
recentring_steps = 2
steps_per_rung = 10
polish_steps = 80
polish_particles = 64
polish_refresh = 20
polish_chain_steps = 2
batch_size = 32
checkpoint_minutes = 0.0

[recipe.network]
kind = "local_density"
n_hidden = 8
n_channels = 2
n_radial = 8
"""


def boltztilt(*words):
    """The result of one command run inside this process."""
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def command(*words):
    return [sys.executable, "-m", "boltztilt", *(str(word) for word in words)]


def spawn(*words):
    """The finished process of one command."""
    return subprocess.run(command(*words), capture_output=True, text=True, check=False)


def assert_refused(result, *expected):
    """One clear line on stderr that holds the expected words, exit code 2, no traceback."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("boltztilt: error: ")
    assert "Traceback" not in result.output
    for words in expected:
        assert words.lower() in lines[0].lower()
