"""List the models that --weights takes by name, get one, or show its card.

list        the models of the zoo, with their numbers
get NAME    download the weights of a model unless they are here, and print the path of the file
card NAME   print what a person should know of a model
"""

from __future__ import annotations

import argparse

from occluded_reid.utils.cli import build_parser, run_command


def start(args: argparse.Namespace) -> None:
    """List the models, or print a file or the card of one."""
    from occluded_reid.checkpoint.zoo import get_model
    from occluded_reid.utils.logs import setup_logging

    setup_logging()
    if args.action == "list":
        print(format_models())
    elif args.action == "get":
        print(get_model(args.name).find_files()[1])
    else:
        print(get_model(args.name).read_card())


def format_models() -> str:
    """Return the registry as a table, one row per model and data set."""
    from tabulate import tabulate

    from occluded_reid.checkpoint.zoo import list_models

    rows = [
        [
            model.name, f"{model.size / 1e6:.1f} MB", "x".join(map(str, model.input_size)),
            model.metric, model.data_license, data_set, *values.values(),
        ]
        for model in list_models().values()
        for data_set, values in model.results.items()
    ]  # fmt: skip
    if not rows:
        return "The zoo has no models yet."
    heads = ["model", "size", "input", "metric", "training data", "data set"]
    return tabulate(rows, [*heads, "Rank-1", "mAP", "mINP"], "pipe", ".1f")


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = build_parser(__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    for action in ("list", "get", "card"):
        options = actions.add_parser(action)
        options.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if action != "list":
            options.add_argument("name", help="of a model, as list shows it")
    args = parser.parse_args(words)
    return run_command(lambda: start(args), debug=args.debug)
