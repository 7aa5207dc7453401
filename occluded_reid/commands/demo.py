"""Generate a data set, train FED on it, evaluate and draw figures: minutes on two CPU cores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from occluded_reid.utils.cli import build_parser

CONFIG = "projects/FED/configs/synthetic.yml"
FOLDER = Path("logs", "demo")
FIGURES = ("batch", "visibility", "ranks")


def command(words: list[str] | None = None) -> int:
    """Run the commands that a user would type; return the exit code."""
    build_parser(__doc__).parse_args(words)  # there are no options but --help
    for each in list_commands(FOLDER):
        print("$ occluded-reid", *each, flush=True)
        started = subprocess.run([sys.executable, "-m", "occluded_reid.commands.main", *each])
        if started.returncode:
            return started.returncode
    print_results(FOLDER / "results.json")
    print("Figures:", *(FOLDER / f"{kind}.png" for kind in FIGURES))
    return 0


def list_commands(folder: Path) -> list[list[str]]:
    """Return the commands: the training with its evaluation, then the figures."""
    train = ["train", "--overwrite", "--config-file", CONFIG, "OUTPUT_DIR", str(folder)]
    return [train, *(["visualize", "--kind", kind, "--weights", str(folder)] for kind in FIGURES)]


def print_results(path: Path) -> None:
    """Print the table of metrics and the visibility AUC."""
    from occluded_reid.evaluation.results import format_results, read_results

    reports = read_results(path)["data_sets"]
    print("\nIn per cent, with 95 % intervals over queries:\n")
    print(format_results(reports))
    for report in reports.values():
        if report.get("visibility_auc"):
            areas = report["visibility_auc"].items()
            text = ", ".join(f"{kind} {area:.2f}" for kind, area in areas)
            print(f"\nArea under the ROC curve of the visibility of stripes: {text}")
    print(f"\nResults: {path}")
