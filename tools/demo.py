#!/usr/bin/env python
"""Draw a data set, train on it, evaluate, and show what came out: minutes on two CPU cores."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import train_net
import visualize

from occluded_reid.evaluation import results_table

CONFIG = Path(__file__).parents[1] / "configs" / "synthetic_baseline.yml"
FOLDER = Path("logs", "demo")


def main() -> int:
    """Run the commands a user would type, one after the other."""
    config = ["--config-file", str(CONFIG)]
    folder = ["OUTPUT_DIR", str(FOLDER)]
    weights = ["MODEL.WEIGHTS", str(FOLDER / "model_final.pth")]
    commands = [
        (train_net.command, [*config, *folder]),
        (visualize.command, ["--kind", "batch", *config, *folder]),
        (visualize.command, ["--kind", "ranks", *config, *folder, *weights]),
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
    print(f"\nResults:  {results}")
    print(f"Pictures: {FOLDER / 'batch.png'}  {FOLDER / 'ranks.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
