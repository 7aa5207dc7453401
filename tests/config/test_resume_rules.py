"""The rule of each key for a resumed run."""

from __future__ import annotations

from pathlib import Path

import pytest

from occluded_reid.config import get_cfg, leaves, load_config
from occluded_reid.config.methods import installed_methods
from occluded_reid.config.resume import RULES, Rule, digest_recipe, find_rule


def test_rules_cover_every_key_and_nothing_else() -> None:
    keys = [key for key, _ in leaves(get_cfg(installed_methods()))]
    for key in keys:
        assert any(key == name or (name[-1] == "." and key.startswith(name)) for name in RULES), key
    for name in RULES:
        assert any(key == name or key.startswith(name) for key in keys), name


def test_unknown_key_is_refused() -> None:
    assert find_rule("SOMEBODY.ELSES_KEY") is Rule.REFUSED


@pytest.mark.parametrize(
    ("key", "value", "matters"),
    [("OUTPUT_DIR", "elsewhere", False), ("TEST.METRIC", "dot", False), ("SEED", "3", True),
     ("DATALOADER.NUM_WORKERS", "1", False), ("SOLVER.BASE_LR", "0.1", True),
     ("MODEL.WEIGHTS", "start.pth", True)],
)  # fmt: skip
def test_digest_of_a_recipe(key: str, value: str, matters: bool) -> None:
    assert (digest_recipe(load_config("", [key, value])) != digest_recipe(load_config())) == matters


def format_rows() -> list[str]:
    """Return the table of docs/reliability.md."""
    rows = []
    for rule in Rule:
        names = (f"`{name}*`" if name[-1] == "." else f"`{name}`" for name in sorted(RULES))
        own = [name for name in names if find_rule(name.strip("`*")) is rule]
        rows.append(f"| {rule.value} | {', '.join(own)} |")
    return rows


def test_the_page_shows_the_rules() -> None:
    page = Path(__file__).parents[2] / "docs" / "reliability.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    start = lines.index("| A new value | Keys |") + 2
    assert lines[start : start + len(Rule)] == format_rows()
