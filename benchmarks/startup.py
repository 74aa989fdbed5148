"""Wall time of the command line: `boltztilt --help`, and `sample lj13 -n 1000` with start-up.

python benchmarks/startup.py
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from conditions import arguments, begin, median_seconds, row


def run(words: list[str], threads: int) -> None:
    """Runs one command in a fresh process and a scratch folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(
        [sys.executable, "-m", "boltztilt", *words],
        env=environment,
        check=True,
        capture_output=True,
    )


def main() -> None:
    parser = arguments(__doc__, n=1000)
    parser.add_argument("system", nargs="?", default="lj13")
    options = begin(parser)
    help_time = median_seconds(lambda: run(["--help"], options.threads))
    row("boltztilt --help", f"{help_time:.2f} s", "median of 7")
    with TemporaryDirectory() as folder:
        output = str(Path(folder) / "out.dcd")
        words = ["sample", options.system, "-n", str(options.n), "--seed", str(options.seed)]
        words += ["-o", output, "--force"]
        sample_time = median_seconds(lambda: run(words, options.threads), n_repeats=3)
    row(f"boltztilt sample {options.system} -n {options.n}", f"{sample_time:.1f} s", "median of 3")


if __name__ == "__main__":
    main()
