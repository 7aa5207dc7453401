"""Write configuration.md from the code that adds the keys: comments, defaults, choices, ranges."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import occluded_reid.compat  # noqa: F401  (first: makes fast-reid importable)

# isort: split
from fastreid.config import get_cfg as get_fastreid_cfg

from aonet_plugin import config as aonet
from fed_plugin import config as fed
from occluded_reid.config import defaults, get_cfg, leaves
from occluded_reid.config.methods import installed_methods

PAGE = Path(__file__).with_name("configuration.md")
INTRODUCTION = """\
# Configuration keys

What this toolbox adds to [fast-reid's keys](#fast-reids-keys). Every key can be set in a YAML file,
or after a command's options as `KEY VALUE`. *This page is generated: `make configuration`.*
"""
FASTREID = """
## fast-reid's keys

Their defaults here; fast-reid's own documentation explains them.
"""
CHOICES = defaults.CHOICES | {f"MODEL.AONET.{key}": each for key, each in aonet.CHOICES.items()}


def read_comments(add_keys: Callable[..., None]) -> Iterator[tuple[str, str]]:
    """Yield each key, or section, that a function assigns, and the comment above it."""
    source = inspect.getsource(add_keys)
    lines, aliases = source.splitlines(), {"cfg": ""}
    comment, last = "", 0

    def name(node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return f"{name(node.value)}.{node.attr}".lstrip(".")
        return aliases[node.id] if isinstance(node, ast.Name) else ""

    for statement in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(statement, ast.Assign):
            continue
        above = [line.strip()[2:] for line in lines[last : statement.lineno - 1] if "# " in line]
        comment, last = " ".join(above) or comment, statement.end_lineno or 0
        for target in statement.targets:
            if isinstance(target, ast.Name):
                aliases[target.id] = name(statement.value)
                continue
            for key in target.elts if isinstance(target, ast.Tuple) else [target]:
                yield name(key), comment


def describe_values(key: str) -> str:
    """Return the choices or the range of a key as text; ``""`` if there are none."""
    if key in CHOICES:
        return ", ".join(f"`{choice}`" for choice in CHOICES[key])
    if key not in defaults.RANGES:
        return ""
    low, high = defaults.RANGES[key]
    return f"{low} or more" if high in (10**9, float("inf")) else f"{low} to {high}"


def write_table(rows: list[list[str]], *titles: str) -> str:
    """Return a table; its first rows are the titles and the line below them."""
    lines = [titles, ["---"] * len(titles), *rows]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return text.replace("<", "\\<") + "\n"


def write_page() -> str:
    """Return the page: one table for each section."""
    values = dict(leaves(get_cfg(installed_methods())))
    theirs = dict(leaves(get_fastreid_cfg()))
    adders = (
        defaults.add_occluded_reid_config, defaults._add_npo_config, defaults._add_backbone_config,
        fed.add_fed_config, aonet.add_aonet_config,
    )  # fmt: skip
    comments = {key: text for add in adders for key, text in read_comments(add)}
    sections: dict[str, list[list[str]]] = {"": []}
    above = ""
    for key, value in values.items():
        parts = key.split(".")
        names = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        text = next((comments[name] for name in names if name in comments), "")
        row = [f"`{key}`", f"`{value!r}`".replace("'", '"'), describe_values(key)]
        if text:
            section = ".".join(parts[:2][: len(parts) - 1]) or "The run"
            own = "as above" if text == above else text
            sections.setdefault(section, []).append([*row, own])
            above = text
        else:
            sections[""].append(row)
    rest = sections.pop("")
    page = INTRODUCTION
    for section, rows in sorted(sections.items()):
        page += f"\n## {section}\n\n{write_table(rows, 'Key', 'Default', 'Values', 'Meaning')}"
    assert [row[0] for row in rest] == [f"`{key}`" for key in theirs if key not in comments]
    return page + f"{FASTREID}\n{write_table(rest, 'Key', 'Default', 'Values')}"


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")
