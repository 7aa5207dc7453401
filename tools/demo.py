#!/usr/bin/env python
"""Draw a data set, train FED on it, evaluate, show what came out: minutes on two CPU cores."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import train_net
import visualize

from occluded_reid.evaluation import results_table

CONFIG = Path(__file__).parents[1] / "projects" / "FED" / "configs" / "synthetic.yml"
FOLDER = Path("logs", "demo")
KINDS = ("batch", "visibility", "ranks")


def main() -> int:
    """Run the commands a user would type, one after the other."""
    config = ["--config-file", str(CONFIG)]
    folder = ["OUTPUT_DIR", str(FOLDER)]
    weights = ["MODEL.WEIGHTS", str(FOLDER / "model_final.pth")]
    commands = [(train_net.command, [*config, *folder])]
    commands += [
        (visualize.command, ["--kind", kind, *config, *folder, *weights]) for kind in KINDS
    ]
    for command, words in commands:
        print(f"$ python tools/{command.__module__}.py {' '.join(words)}", flush=True)
        code = command(words)
        if code:
            return code
    results = FOLDER / "results.json"
    reports = json.loads(results.read_text())["data_sets"]
    print("\nPer cent, with 95 % intervals over queries:\n")
    print(results_table(reports))
    for report in reports.values():
        if report.get("visibility_auc"):
            areas = report["visibility_auc"].items()
            words = ", ".join(f"{kind} {area:.2f}" for kind, area in areas)
            print(f"\nArea under the ROC curve of the visibility of stripes: {words}")
    print(f"\nResults:  {results}")
    print("Pictures:", *(FOLDER / f"{kind}.png" for kind in KINDS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
