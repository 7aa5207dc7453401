#!/usr/bin/env python
"""Draw a data set, train FED on it, evaluate, show what came out: minutes on two CPU cores."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import train_net
import visualize

from occluded_reid.evaluation.results import results_table

CONFIG = Path(__file__).parents[1] / "projects" / "FED" / "configs" / "synthetic.yml"
FOLDER = Path("logs", "demo")
KINDS = ("batch", "visibility", "ranks")


def command(words: list[str] | None = None) -> int:
    """Run the commands a user would type, one after the other; return the exit code."""
    argparse.ArgumentParser(description=__doc__).parse_args(words)  # --help, and no other
    config = ["--config-file", str(CONFIG)]
    folder = ["OUTPUT_DIR", str(FOLDER)]
    weights = ["MODEL.WEIGHTS", str(FOLDER / "model_final.pth")]
    commands = [(train_net.command, [*config, *folder])]
    commands += [
        (visualize.command, ["--kind", kind, *config, *folder, *weights]) for kind in KINDS
    ]
    for tool, arguments in commands:
        print(f"$ python tools/{tool.__module__}.py {' '.join(arguments)}", flush=True)
        if code := tool(arguments):
            return code
    results = FOLDER / "results.json"
    reports = json.loads(results.read_text())["data_sets"]
    print("\nPer cent, with 95 % intervals over queries:\n")
    print(results_table(reports))
    for report in reports.values():
        if report.get("visibility_auc"):
            areas = report["visibility_auc"].items()
            text = ", ".join(f"{kind} {area:.2f}" for kind, area in areas)
            print(f"\nArea under the ROC curve of the visibility of stripes: {text}")
    print(f"\nResults:  {results}")
    print("Pictures:", *(FOLDER / f"{kind}.png" for kind in KINDS))
    return 0


if __name__ == "__main__":
    sys.exit(command())
