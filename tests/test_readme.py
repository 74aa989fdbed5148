"""The README: its Python runs, its commands exist, and two of them serve a fresh machine."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from boltztilt.cli import app
from boltztilt.systems.system import available_systems

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def marked_block(mark):
    """The code block that follows an HTML comment."""
    (block,) = re.findall(rf"<!-- {mark} -->\n```\w+\n(.*?)```", README, re.S)
    return block.strip()


def commands():
    """Every boltztilt command that the README shows."""
    found = re.findall(
        r"\bboltztilt ((?:sample|anneal|train|evaluate|reference|info|systems)[^\n`|&]*)", README
    )
    return sorted({re.sub(r"\[.*?\]", "", words.split("  ")[0]).strip() for words in found})


def test_python_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = marked_block("python-api")
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert "±" in capsys.readouterr().out
    assert (tmp_path / "lj13.xtc").exists()


@pytest.mark.parametrize("mark", ["main-command", "test-command"])
def test_fresh_machine_takes_one_command(mark):
    block = marked_block(mark)
    assert "\n" not in block
    assert block.index("pip install torch==2.13.0") < block.index(
        "pip install", block.index("torch")
    )


@pytest.mark.parametrize("words", commands())
def test_commands_are_understood(words):
    verb, *rest = shlex.split(words)
    assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0
    if rest and "/" not in rest[0] and not rest[0].startswith("-") and ".toml" not in rest[0]:
        assert rest[0] in available_systems()
    known = CliRunner().invoke(app, [verb, "--help"]).stdout
    assert all(word in known for word in rest if word.startswith("-"))


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
def test_linked_files_exist(page):
    path = ROOT / page
    links = re.findall(r"\]\((?!http)([^)#]+)", path.read_text(encoding="utf-8"))
    assert links
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
def test_benchmarks_that_are_named_exist(page):
    scripts = set(re.findall(r"benchmarks/\w+\.py", (ROOT / page).read_text(encoding="utf-8")))
    assert scripts
    assert all((ROOT / script).exists() for script in scripts)


def test_every_benchmark_is_listed():
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+\.py)`", page)) == scripts
