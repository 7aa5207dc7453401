"""Ranks compare what they are to do, and take from rank 0 what it alone has."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from fastreid.utils import comm
from ranks import on_ranks

from occluded_reid.config import load_config
from occluded_reid.engine import run
from occluded_reid.utils.distributed import (
    check_agreement,
    find_differences,
    run_on_first_rank,
)
from occluded_reid.utils.errors import UserError


def pretend_ranks(monkeypatch: pytest.MonkeyPatch, *everywhere: dict[str, object]) -> None:
    """Answer a gathering of digests or facts as if the ranks had these facts."""

    def gather(sent: object) -> list[object]:
        return list(everywhere) if isinstance(sent, dict) else [repr(each) for each in everywhere]

    monkeypatch.setattr(comm, "all_gather", gather)


def test_a_difference_is_named_with_its_ranks(monkeypatch):
    facts = {"SOLVER.BASE_LR": 0.1, "list": ["a/1.png, identity t0", "a/2.png, identity t1"]}
    pretend_ranks(monkeypatch, facts, facts)
    check_agreement(facts)
    pretend_ranks(monkeypatch, facts, facts, facts | {"SOLVER.BASE_LR": 0.2})
    with pytest.raises(UserError, match="SOLVER.BASE_LR is 0.1 on rank 0, 0.2 on rank 2. Give all"):
        check_agreement(facts)
    pretend_ranks(monkeypatch, facts, facts | {"list": ["a/1.png, identity t0"]})
    assert find_differences(facts) == [
        "list is a list of 2 with ['a/2.png, identity t1'] at position 1 on rank 0, "
        "a list of 1 with [] at position 1 on rank 1"
    ]
    pretend_ranks(monkeypatch, {"list": []}, {})


def test_machines_of_which_one_resumes_are_refused(monkeypatch):
    args = argparse.Namespace(resume=True, overwrite=False, eval_only=False)
    everywhere: list[dict[str, object]] = []
    monkeypatch.setattr(run, "check_agreement", lambda facts: everywhere.append(facts))
    run._compare_ranks(load_config(), args)
    args.resume = False
    run._compare_ranks(load_config(), args)
    monkeypatch.undo()
    pretend_ranks(monkeypatch, *everywhere)
    with pytest.raises(UserError, match="differ: --resume is True on rank 0, False on rank 1"):
        check_agreement(everywhere[0])


@pytest.mark.distributed
def test_all_ranks_learn_what_differs_and_what_rank_0_reads(tmp_path):
    def work(rank: int) -> None:
        with pytest.raises(UserError, match="SEED is 0 on rank 0, 1 on rank 1"):
            check_agreement({"SEED": rank, "other": [1]})
        check_agreement({"SEED": 7})
        file = Path(tmp_path, "only rank 0 reads")
        assert run_on_first_rank(lambda: file.touch() or comm.get_rank()) == 0

        def fail() -> None:
            raise UserError(f"no file on {rank}")

        with pytest.raises(UserError, match="no file on 0"):
            run_on_first_rank(fail)

    on_ranks(2, work)
