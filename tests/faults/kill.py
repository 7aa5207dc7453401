#!/usr/bin/env python
"""Kill tiny trainings at random moments of every phase, resume, compare with an uninterrupted run.

Each trial trains FED, AONet or a plain network on generated images in a forked process. SIGKILL,
SIGTERM or SIGINT ends it in a chosen phase, at a random moment. It is resumed, sometimes killed
again, until it finishes. Its ``model_final.pth`` must equal that of the uninterrupted run bit for
bit: weights, memory banks, average, optimizer, schedules, best metric.

With --ranks several processes share each training (gloo). SIGKILL goes to one of them, SIGTERM to
one or all, SIGINT to all. After one has failed, the others get SIGTERM, as torchrun and --num-gpus
send it, and must end within a minute.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

_TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_TESTS / "helpers"), str(_TESTS), str(_TESTS.parent)]

from aonet.tiny import aonet_run_cfg  # noqa: E402
from fed.tiny import fed_run_cfg  # noqa: E402
from ranks import fork_ranks, has_ended  # noqa: E402
from runs import draw_market, final_states, status_of, tiny_cfg, train  # noqa: E402

from fed_plugin import hooks as fed_hooks  # noqa: E402
from occluded_reid.checkpoint.checkpointer import Checkpointer  # noqa: E402
from occluded_reid.engine.interruption import EXIT_CODE  # noqa: E402
from occluded_reid.engine.launch import launch  # noqa: E402
from occluded_reid.engine.train_step import TrainingStep  # noqa: E402
from occluded_reid.evaluation import testing  # noqa: E402
from occluded_reid.utils.cli import run_command  # noqa: E402

STATEFUL = ("MODEL.EMA.ENABLED", True, "SOLVER.ACCUMULATE", 2)
METHODS: dict[str, Callable[[Path], Any]] = {
    "plain": lambda folder: tiny_cfg(folder, *STATEFUL, "DATALOADER.NUM_WORKERS", 1),
    "FED": lambda folder: fed_run_cfg(folder, *STATEFUL),
    "AONet": lambda folder: aonet_run_cfg(folder, *STATEFUL),
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
EXIT_CODES = {  # a starting process has no handler yet; an ending one has finished
    signal.SIGKILL: {0, -signal.SIGKILL},
    signal.SIGTERM: {0, -signal.SIGTERM, EXIT_CODE},
    signal.SIGINT: {0, 130},
}
AFTER_A_FAILED_RANK = {1, 2, -signal.SIGTERM, -signal.SIGABRT}  # connection lost; still starting
SECONDS_TO_END = 60.0
PHASES = ("start", "bank initialisation", "step", "evaluation", "checkpoint write")
ENTRY_POINTS = {
    "bank initialisation": (fed_hooks, "fill_memories"),
    "step": (TrainingStep, "run_step"),
    "evaluation": (testing, "test"),
    "checkpoint write": (Checkpointer, "save"),
}


class PhaseMonitor:
    """Shares a training's phase, and how often it has entered each phase, with its parent."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 4 * (len(PHASES) + 1))

    def report(self, phase: int, entered: list[int]) -> None:
        self._shared[:] = struct.pack(f"{len(PHASES) + 1}i", phase, *entered)

    def read(self) -> tuple[int, list[int]]:
        phase, *entered = struct.unpack(f"{len(PHASES) + 1}i", self._shared[:])
        return phase, entered

    @contextlib.contextmanager
    def instrument(self) -> Iterator[list[float]]:
        """Report the phases inside the block; yield the seconds spent in each."""
        entered, seconds = [1] + [0] * (len(PHASES) - 1), [0.0] * len(PHASES)
        self.report(0, entered)

        def wrap(phase: int, function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                outer = self.read()[0]
                entered[phase] += 1
                self.report(phase, entered)
                start = time.perf_counter()
                try:
                    return function(*args, **kwargs)
                finally:
                    seconds[phase] += time.perf_counter() - start
                    self.report(outer, entered)

            return call

        for number, phase in enumerate(PHASES):
            if phase in ENTRY_POINTS:
                owner, name = ENTRY_POINTS[phase]
                setattr(owner, name, wrap(number, vars(owner)[name]))
        yield seconds


class Reference(NamedTuple):
    """The uninterrupted run: its states, and how often and how long it is in each phase.

    The trials send their signals in ``phases``.
    """

    states: dict[str, torch.Tensor]
    entered: list[int]
    seconds: list[float]
    phases: list[int]


def start(
    method: str, folder: Path, watch: PhaseMonitor, ranks: int = 1, seconds_file: Path | None = None
) -> list[int]:
    """Start or resume a training in forked processes; return their ids.

    Rank 0 reports its phases.
    """
    cfg = METHODS[method](folder)

    def work(rank: int) -> None:
        with open(folder.parent / f"{folder.name}.out{rank}", "a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & would ignore it
        with watch.instrument() if rank == 0 else contextlib.nullcontext([0.0]) as seconds:
            began = time.perf_counter()
            try:
                code = run_command(lambda: train_as_one_of(ranks, cfg))
            except SystemExit as leaving:
                code = leaving.code
            seconds[0] = time.perf_counter() - began - sum(seconds[1:])
        if seconds_file and rank == 0:
            seconds_file.write_text(" ".join(map(str, seconds)))
        os._exit(code)

    return fork_ranks(ranks, work)


def train_as_one_of(ranks: int, cfg: Any) -> None:
    if ranks == 1:
        train(cfg, resume=True)
    else:
        launch(lambda: train(cfg, resume=True), device="cpu")


def wait_for_all(pids: list[int]) -> list[int]:
    """Wait for all processes, and stop the others once one has failed; return their exit codes.

    Raises:
        AssertionError: one of them does not end.
    """
    statuses: dict[int, int] = {}
    while len(statuses) < len(pids):
        for pid in set(pids) - set(statuses):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                statuses[pid] = status_of(pid)
                if statuses[pid]:
                    stop(set(pids) - set(statuses))
        time.sleep(0.001)
    return [statuses[pid] for pid in pids]


def stop(pids: set[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    for pid in pids:
        assert has_ended(pid, SECONDS_TO_END), (
            f"process {pid} does not end after another rank has failed"
        )


def run_uninterrupted(method: str, folder: Path, phases: Sequence[str], ranks: int) -> Reference:
    watch, file = PhaseMonitor(), folder.parent / f"{folder.name}.seconds"
    assert not any(wait_for_all(start(method, folder, watch, ranks, file))), f"see {folder}.out0"
    seconds = [float(word) for word in file.read_text().split()]
    chosen = [PHASES.index(phase) for phase in phases]
    return Reference(final_states(folder), watch.read()[1], seconds, chosen)


def kill(
    pids: list[int], watch: PhaseMonitor, reference: Reference, number: int, rng: random.Random
) -> tuple[str, list[int]] | None:
    """Send the signal at a random moment of one of ``reference.phases``.

    Returns:
        The phase of rank 0, and the processes that got the signal; None if all ended before.
    """
    phase = rng.choice([n for n in reference.phases if reference.entered[n]])
    visit = rng.randint(1, reference.entered[phase])
    delay = rng.random() * reference.seconds[phase] / reference.entered[phase]
    victims = rng.choice([pids, [rng.choice(pids)]])
    victims = {signal.SIGKILL: victims[-1:], signal.SIGINT: pids}.get(number, victims)
    while watch.read()[1][phase] < visit:
        if any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in pids):
            return None  # a resumed run may skip this phase
        time.sleep(0.0002)
    time.sleep(delay)
    hit = PHASES[watch.read()[0]]
    for pid in victims:
        os.kill(pid, number)
    return hit, victims


def trial(
    method: str, folder: Path, reference: Reference, rng: random.Random, ranks: int
) -> list[tuple[str, str]]:
    """Kill and resume until the run has finished; return the signals and their phases.

    Raises:
        AssertionError: a process ended with a wrong code, or the final states differ.
    """
    kills: list[tuple[str, str]] = []
    for kills_left in range(rng.choice([1, 1, 2, 3]), -1, -1):
        watch = PhaseMonitor()
        pids = start(method, folder, watch, ranks)
        number = rng.choice(SIGNALS)
        phase, victims = (kills_left and kill(pids, watch, reference, number, rng)) or ("", [])
        statuses = wait_for_all(pids)
        for pid, status in zip(pids, statuses, strict=True):
            expected = EXIT_CODES[number] if phase else {0}
            if phase and ranks > 1 and (pid not in victims or number == signal.SIGINT):
                expected = expected | AFTER_A_FAILED_RANK
            assert status in expected, f"{number} in {phase} ended in {statuses}: {folder}.out*"
        if any(statuses):
            kills.append((signal.Signals(number).name, phase))
    states = final_states(folder)
    assert states.keys() == reference.states.keys()
    different = [
        name for name, value in reference.states.items() if not torch.equal(states[name], value)
    ]
    assert not different, f"{folder} differs after {kills} in {different[:5]}"
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert not left and not (folder / "model_interrupted.pth").exists(), left
    return kills


def run_trials(
    folder: Path,
    trials: int,
    seed: int,
    methods: Sequence[str] = tuple(METHODS),
    phases: Sequence[str] = PHASES,
    ranks: int = 1,
) -> collections.Counter[tuple[str, str]]:
    """Run the trials; count the runs that each signal ended in each phase."""
    os.environ["FASTREID_DATASETS"] = str(draw_market(folder / "data"))
    references = {
        method: run_uninterrupted(method, folder / method, phases, ranks) for method in methods
    }
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for number in range(trials):
        rng = random.Random(f"{seed} {number}")
        method = methods[number % len(methods)]
        counts.update(trial(method, folder / f"trial{number}", references[method], rng, ranks))
        print(f"{number + 1} trials, {counts.total()} kills", flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--ranks", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        counts = run_trials(
            Path(folder), args.trials, args.seed, args.methods, args.phases, args.ranks
        )
    print(f"{args.trials} runs, killed {counts.total()} times, equal uninterrupted ones bitwise")
    for phase in PHASES:
        kills = [f"{number.name} {counts[number.name, phase]}" for number in SIGNALS]
        print(f"  {phase}: {', '.join(kills)}")


if __name__ == "__main__":
    main()
