"""Every figure at a tiny size; what is counted, at the paper's."""

from __future__ import annotations

import collections
import copy
import functools
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import run
import tiny_runs  # noqa: F401  # its backbones
import torch
from cases.training import THIN, AONetCase, FEDCase, our_step
from figures import (
    SUITES,
    allocator,
    cpu_training,
    demo,
    evaluation,
    gpu_training,
    imports,
    latency,
    loading,
    search,
    step,
)
from harness.comparison import (
    Figure,
    MismatchError,
    choose_clock,
    make_figure,
    require_equal,
    time_alternately,
)
from large import rerank_large, search_scale
from references import fed_in_loops, pil_pairs
from references.fed_in_loops import check_steps
from runs import TINY as TINY_RUN
from runs import in_a_child
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeCopyMode,
    FakeTensorMode,
)
from torch.func import functional_call
from torch.utils.benchmark import timer as synchronized_timer

from occluded_reid.utils.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = FEDCase(pairs=4, instances=2, identities=8, channels=16, blocks=1, heads=2, image=(64, 32))
TINY_AONET = AONetCase(images=4, identities=4, depth="18x", channels=512, image=(64, 32))
SCHEDULE = (
    "SOLVER.IMS_PER_BATCH", "8", "INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]",
    "MODEL.BACKBONE.DEPTH", "custom", "MODEL.BACKBONE.FEAT_DIM", "16",
    "MODEL.BACKBONE.NUM_BLOCKS", "1", "MODEL.BACKBONE.NUM_HEADS", "2",
)  # fmt: skip
GPU = dict(device="cpu", rounds=1, in_a_row=1)
SIZES = {
    allocator.measure_allocators: dict(images=8, steps=1, rounds=1),
    cpu_training.measure_training: dict(lite0=(1, 1), r50=(1, 1)),
    demo.measure_demo: dict(
        size="tiny",
        options=(
            "DATASETS.SYNTHETIC.SIZE",
            "tiny",
            "SOLVER.MAX_EPOCH",
            "1",
            "SOLVER.IMS_PER_BATCH",
            "8",
            "SOLVER.WARMUP_ITERS",
            "2",
        ),
    ),
    evaluation.measure_gpu_evaluation: dict(
        queries=8, gallery=60, channels=5, device="cpu", rounds=1
    ),
    evaluation.measure_ranking: dict(queries=20, gallery=150, rounds=1),
    evaluation.measure_reranking: dict(queries=8, gallery=60, channels=8, k1=6, k2=3, rounds=1),
    evaluation.measure_similarity: dict(queries=8, gallery=9, landmarks=3, channels=5, rounds=1),
    loading.measure_schedule: dict(
        images=20, identities=5, workers=0, options=SCHEDULE, device="cpu"
    ),
    gpu_training.measure_aonet: dict(case=TINY_AONET, peak_side=64, timing=GPU),
    gpu_training.measure_compiled: dict(
        fed=TINY.smaller(drop_path=0.0), aonet=TINY_AONET, timing=GPU
    ),
    gpu_training.measure_fed: dict(case=TINY, peak_side=64, timing=GPU),
    imports.measure_imports: dict(rounds=1),
    latency.measure_latency: dict(fed=TINY, aonet=TINY_AONET, rounds=1),
    latency.measure_runtimes: dict(fed=TINY, aonet=TINY_AONET, rounds=1),
    loading.measure_loading: dict(images=4, size=(64, 32), rounds=1),
    search.measure_gpu_search: dict(items=150, channels=8, batch=3, device="cpu", rounds=1),
    search.measure_search: dict(items=150, channels=8, batch=3, rounds=1),
    step.count_operations: dict(case=THIN),
    step.measure_activations: dict(case=TINY),
    step.measure_head: dict(case=TINY, rounds=1),
    step.measure_optimizer: dict(case=TINY, rounds=1),
    step.measure_step: dict(case=TINY, rounds=1),
}
NAMES = {measure: names for suite in SUITES.values() for names, measure in suite.items()}
SLOW = {
    allocator.measure_allocators, cpu_training.measure_training, demo.measure_demo,
    gpu_training.measure_compiled, imports.measure_imports, latency.measure_runtimes,
}  # fmt: skip
# What only a GPU, an extra or a compiler can give.
OPTIONAL = re.compile("gpu_.*memory|latency_aonet_int8|latency_.*(compiled|openvino|onnxruntime).*")


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """Compiling takes long."""
    monkeypatch.setattr(latency, "has_compiler", lambda: False)


@pytest.fixture(autouse=True)
def one_check(monkeypatch):
    """The steps are checked once, in a test of their own; nothing is compiled."""
    monkeypatch.setattr(fed_in_loops, "check_steps", lambda *_: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode: None)
    monkeypatch.setattr(gpu_training, "FIRST", 1)
    # convolutions in bf16 take a second where the processor has none
    monkeypatch.setattr(gpu_training, "our_step", lambda model, batch, *_: our_step(model, batch))


def test_every_figure_is_in_a_suite_and_here():
    assert set(SIZES) == set(NAMES)
    names = [name for each in NAMES.values() for name in each]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "measure",
    [pytest.param(each, marks=[pytest.mark.slow] * (each in SLOW)) for each in SIZES],
    ids=lambda measure: measure.__name__,
)
def test_a_figure_at_a_tiny_size(measure):
    found = dict(measure(**SIZES[measure]))
    missing = set(NAMES[measure]) - set(found)
    assert set(found) <= set(NAMES[measure])
    assert all(map(OPTIONAL.fullmatch, missing))
    for each in found.values():
        assert isinstance(each, Figure) and each.unit
        assert each.ours >= 0 and each.reference > 0


def test_the_demo_is_timed_by_its_commands(monkeypatch):
    ran = []
    monkeypatch.setattr(demo, "run_python", lambda words, datasets: ran.append(words))
    monkeypatch.setattr(demo, "read_processor_time", lambda: 2.0 * len(ran))
    found = dict(demo.measure_demo())
    spent = {name: figure.reference for name, figure in found.items()}
    assert spent == {
        "demo_drawing": 2, "demo_training": 2, "demo_figures": 6, "demo_evaluation": 2, "demo": 10
    }  # fmt: skip
    assert [words[2] for words in ran[1:]] == ["train", *["visualize"] * 3, "evaluate"]


def test_a_trainer_is_timed_beside_a_loop_that_does_the_same(tmp_path, monkeypatch, capsys):
    config = tmp_path / "tiny.yml"
    config.write_text(TINY_RUN.replace("build_test_backbone", "build_tiny_map_backbone"))
    words = [str(config), "8", "32", "16", "2", "3"]
    monkeypatch.setattr(cpu_training, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(cpu_training, "WORKERS", 1)
    monkeypatch.setattr("sys.argv", ["-c", *words])
    monkeypatch.setenv("FASTREID_DATASETS", "")  # put back what main() changes
    cpu_training.main()
    seconds = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [len(each) for each in seconds] == [3, 3, 3]
    assert min(seconds[0] + seconds[1]) > 0 and sum(seconds[2]) > 0
    monkeypatch.setattr(cpu_training.PlainLoop, "_train", lambda _: 0.0)
    with pytest.raises(MismatchError, match="first loss"):
        cpu_training.main()


@pytest.mark.extras
def test_one_image_by_all_that_is_installed():
    own, others = latency.measure_latency, latency.measure_runtimes
    found = dict(own(**SIZES[own])) | dict(others(**SIZES[others]))
    assert {name for name in NAMES[own] + NAMES[others] if "compiled" not in name} == set(found)
    assert all("int8 by OpenVINO" in found[name].unit for name in NAMES[own] if "int8" in name)
    assert "int8 by ONNX Runtime" in found["latency_onnxruntime_int8"].unit


def test_both_steps_agree(monkeypatch):
    tf32 = []

    def noted_step(*args):
        tf32.append(torch.backends.cudnn.allow_tf32)
        return our_step(*args)

    monkeypatch.setattr(fed_in_loops, "our_step", noted_step)
    check_steps()
    assert tf32 == [False] and torch.backends.cudnn.allow_tf32


def test_a_step_does_not_wait_and_launches_little():
    found = step.count_operations()
    assert (found["syncs"].ours, found["syncs"].ratio) == (0, None)
    assert found["syncs"].reference > 2 * THIN.pairs
    assert found["launches"].ours <= 950
    assert found["launches"].reference > 2 * found["launches"].ours


def forward_on_a_pretended_gpu(then):
    """Count the forward pass, and ``then`` with its terms, where tensors hold no numbers."""
    model, batch = THIN.build_model(), THIN.build_batch()
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with FakeTensorMode(allow_non_fake_inputs=True):
        state, batch = (
            {name: torch.empty(x.shape, dtype=x.dtype, device="cuda") for name, x in of.items()}
            for of in (state, batch)
        )
        with step.OperationCounter() as counter:
            then(functional_call(model, state, (batch,)))
    return counter


@in_a_child
def test_the_forward_pass_reads_nothing_on_the_host():
    """Also not by ways that a CPU does not show; the backward pass is PyTorch's alone."""
    assert forward_on_a_pretended_gpu(len).syncs == 0
    with pytest.raises(DataDependentOutputException):
        forward_on_a_pretended_gpu(lambda terms: sum(terms.values()).tolist())


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(), lambda x: bool(x[0] > 0), lambda x: x[x > 0],
        lambda x: x.nonzero(), lambda x: x.unique(), lambda x: x.masked_select(x > 0),
    ],
)  # fmt: skip
def test_what_waits_is_counted(wait):
    numbers = torch.tensor([1.0, -1.0])
    with step.OperationCounter() as counter:
        numbers.view(2, 1).add(1)
    assert (counter.launches, counter.syncs) == (1, 0)
    with step.OperationCounter() as counter:
        wait(numbers)
    assert counter.syncs == 1


def test_bf16_and_one_pass_keep_less_for_the_backward_pass():
    case = FEDCase(
        pairs=4, instances=1, identities=8, channels=192, heads=3, blocks=2, image=(128, 64)
    )
    found = step.measure_activations(case)["activations"]
    assert found.ratio > 1.6


def test_what_an_image_of_the_paper_keeps():
    """In megabytes; the blocks are alike, so that two of them tell what twelve keep."""
    case = FEDCase(pairs=2, instances=1, identities=8, blocks=2)
    mode = FakeTensorMode()  # of tensors that hold no numbers
    with FakeCopyMode(mode):
        model = copy.deepcopy(case.build_model())
    bf16_step = functools.partial(our_step, model, dtype=torch.bfloat16)
    kept = {}
    with mode:
        for blocks in (2, 1):
            model.backbone.blocks = model.backbone.blocks[:blocks]
            for recompute in (False, True):
                model.backbone.set_grad_checkpointing(recompute)
                kept[recompute, blocks] = step.measure_kept(bf16_step, model, case)
    for recompute, most in ((False, 42), (True, 6)):
        block = kept[recompute, 2] - kept[recompute, 1]
        assert kept[recompute, 1] + 11 * block <= most


def test_memories_that_a_compiled_step_leaves_are_found():
    moved, left = torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    gpu_training.require_equal_buffers(moved, left)
    moved(torch.randn(8, 4) + 9)
    with pytest.raises(MismatchError, match="running_mean"):
        gpu_training.require_equal_buffers(left, moved)


def test_a_step_is_not_said_to_be_in_graphs_where_it_is_not(monkeypatch):
    found = collections.Counter()
    monkeypatch.setitem(gpu_training.counters, "inductor", found)
    with pytest.raises(RuntimeError, match="no part of the step"):
        gpu_training.describe_graphs()
    found["cudagraph_recorded_non_static_inputs"] = 4
    assert gpu_training.describe_graphs() == "all in CUDA graphs"
    for name in ("cudagraph_skips", "cudagraph_partitions"):
        with monkeypatch.context() as patch:
            patch.setitem(found, name, 2)
            assert gpu_training.describe_graphs().startswith("not all in CUDA graphs")


def test_memory_of_a_gpu_is_beyond_what_was_there(monkeypatch):
    for name, held in (("memory_allocated", 3), ("max_memory_allocated", 10)):
        monkeypatch.setattr(torch.cuda, name, lambda held=held: held)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    assert gpu_training.measure_memory(lambda: None) == 7


def test_different_losses_gradients_and_banks_are_found(monkeypatch):
    original = fed_in_loops.update
    monkeypatch.setattr(fed_in_loops, "update", lambda memory, x, who: original(memory, -x, who))
    with pytest.raises(MismatchError, match="the bank of erased features"):
        check_steps()
    monkeypatch.setattr(fed_in_loops, "update", original)
    contrast = fed_in_loops.contrast_loss
    monkeypatch.setattr(
        fed_in_loops, "contrast_loss", lambda x, *others: contrast(x.detach(), *others)
    )
    with pytest.raises(MismatchError, match="gradient of"):
        check_steps()
    monkeypatch.setattr(
        fed_in_loops, "search", lambda x, centres, *_: centres[None, :8].expand(len(x), -1, -1)
    )
    with pytest.raises(MismatchError, match="loss_.*diffused"):
        check_steps()


def backwards(way):
    return way._replace(run=lambda images: [x[:, ::-1] for x in way.run(images)])


def changed(function, by):
    return lambda *args, **options: by(function(*args, **options))


@pytest.mark.parametrize(
    ("measure", "holder", "name", "by"),
    [
        (evaluation.measure_similarity, evaluation, "similarities", lambda x: 1.01 * x),
        (evaluation.measure_reranking, evaluation, "re_ranking", lambda x: x + 0.01),
        (search.measure_search, search.faiss.IndexFlatIP, "search",
         lambda x: (x[0] + 0.01, x[1])),
        (evaluation.measure_ranking, evaluation, "evaluate_rank",
         lambda x: (x[0], [0.9 * y for y in x[1]], x[2])),
        (evaluation.measure_ranking, evaluation, "evaluate_rank",
         lambda x: (x[0], x[1], [0.9 * y for y in x[2]])),
        (evaluation.measure_ranking, evaluation, "evaluate_rank",
         lambda x: (0.9 * x[0], x[1], x[2])),
        (evaluation.measure_gpu_evaluation, evaluation, "evaluate_rank", lambda x: (x[0], [0.0])),
        (loading.measure_loading, pil_pairs, "read_image", lambda image: image.rotate(180)),
        (loading.measure_loading, pil_pairs.PairsInPIL, "_labels", lambda labels: 1 - labels),
        (loading.measure_loading, pil_pairs.PairsInPIL, "_occluded",
         lambda image: image.rotate(180)),
        (latency.measure_latency, latency, "in_bf16", backwards),
        (step.measure_optimizer, fed_in_loops, "build_sgd",
         lambda sgd: (sgd.param_groups[0].update(lr=1), sgd)[1]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_a_reference_with_another_result_is_not_timed(measure, holder, name, by, monkeypatch):
    monkeypatch.setattr(holder, name, changed(getattr(holder, name), by))
    with pytest.raises(MismatchError):
        dict(measure(**SIZES[measure]))


def test_arrays_of_other_shapes_are_not_equal():
    require_equal("x", [1.0, 2.0], torch.tensor([1.0, 2.01]), atol=0.02)
    with pytest.raises(MismatchError, match=r"x: .*0\.01"):
        require_equal("x", [1.0, 2.0], torch.tensor([1.0, 2.01]), atol=0.001)
    with pytest.raises(MismatchError, match="shape"):
        require_equal("x", [1.0], [1.0, 1.0], atol=1)


def test_medians_ratios_and_spread():
    assert make_figure(([1, 2, 9], [4, 4, 9]), "s") == Figure(2, 4, 2, "s", [1, 4])
    assert make_figure(([4, 4, 9], [1, 2, 9]), "per s", rate=True).ratio == 2
    assert make_figure(([0], [8]), "waits") == Figure(0, 8, None, "waits", [])


def test_the_sides_take_turns():
    calls: list[str] = []
    times = time_alternately(lambda: calls.append("a"), lambda: calls.append("b"), rounds=3)
    assert "".join(calls) == "abababab" and [len(each) for each in times] == [3, 3]


def test_json_and_table(tmp_path, capsys, monkeypatch):
    measured_by({("launches", "syncs"): step.count_operations}, monkeypatch)
    file = tmp_path / "new" / "cpu.json"
    assert run.command(["--only", "syncs", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert set(content) == {"machine", "figures", "failed", "left_out"} and content["failed"] == {}
    assert set(content["figures"]) == {"syncs"}
    fields = {"ours", "reference", "ratio", "unit", "spread"}
    assert set(content["figures"]["syncs"]) == fields
    assert content["machine"]["cores"] >= 1 and content["machine"]["packages"]["torch"]
    assert "| syncs " in capsys.readouterr().out


def one_by_one(*then):
    """Measure ``first``, and then what each of ``then`` does."""
    yield "first", make_figure(([1], [2]), "s")
    for each in then:
        each()


def unusable():
    raise UserError("disk full")


def measured_by(suite, monkeypatch):
    monkeypatch.setitem(SUITES, "cpu", suite)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


def test_a_figure_that_fails_loses_no_other(tmp_path, capsys, monkeypatch):
    suite = {
        ("first", "second"): lambda: one_by_one(lambda: 1 / 0),
        ("unusable",): unusable,
        ("third",): lambda: {"third": make_figure(([3], [3]), "s")},
    }
    measured_by(suite, monkeypatch)
    file = tmp_path / "found.json"
    assert run.command(["--json", str(file)]) == 1
    content = json.loads(file.read_text())
    assert set(content["figures"]) == {"first", "third"}
    reasons = {"second": "ZeroDivisionError: division by zero", "unusable": "UserError: disk full"}
    assert content["failed"] == reasons
    out, err = capsys.readouterr()
    assert "| third " in out and "not measured: second: ZeroDiv" in err
    assert err.count("Traceback") == 1
    assert run.command(["--only", "first", "--json", str(file)]) == 0


def test_several_threads_are_timed_on_the_wall(monkeypatch):
    asked = []
    measured_by({("first",): lambda: {"first": make_figure(([1], [1]), "s")}}, monkeypatch)
    for library, name in ((torch, "set_num_threads"), (run.faiss, "omp_set_num_threads")):
        monkeypatch.setattr(library, name, asked.append)
    assert run.command([]) == 0 and run.command(["--threads", "2"]) == 0
    assert asked == [1, 1, 2, 2]
    for threads, expected in ((1, time.process_time), (2, synchronized_timer)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert choose_clock() is expected


def test_what_was_measured_is_there_when_the_time_is_up(tmp_path, capsys, monkeypatch):
    seen = []
    file = tmp_path / "found.json"
    suite = {
        ("broken",): lambda: 1 / 0,
        ("first", "second"): lambda: one_by_one(
            lambda: seen.append(json.loads(file.read_text())),
            lambda: os.kill(os.getpid(), signal.SIGTERM),
            lambda: time.sleep(5),
        ),
        ("third",): lambda: 1 / 0,
    }
    measured_by(suite, monkeypatch)
    assert run.command(["--json", str(file)]) == 1
    assert set(seen[0]["figures"]) == {"first"}
    content = json.loads(file.read_text())
    assert set(content["figures"]) == {"first"}
    late = dict.fromkeys(("second", "third"), "the time was up")
    assert content["failed"] == {"broken": "ZeroDivisionError: division by zero", **late}
    assert "| first " in capsys.readouterr().out


def test_a_result_that_cannot_be_written_ends_in_one_message(tmp_path, capsys, monkeypatch):
    measured_by({("first",): one_by_one}, monkeypatch)
    (tmp_path / "file").touch()
    assert run.command(["--json", str(tmp_path / "file" / "found.json")]) == 2
    assert "error: " in capsys.readouterr().err


def test_the_suite_gpu_ends_in_one_message_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.command(["--suite", "gpu"]) == 2
    assert "the suite gpu needs a GPU" in capsys.readouterr().err


PYTHON = """#!/bin/sh
echo "$@ TF32=${TORCH_ALLOW_TF32_CUBLAS_OVERRIDE:-} $PYTHONPATH" >> "$CALLS"
case "$*" in *--suite*) exit 3 ;; *pip*) exit "$PIP" ;; esac
"""


def run_gpu_sh(folder: Path, pip: int = 0) -> tuple[int, list[str]]:
    """Run a copy of gpu.sh with a Python that notes what it is asked; return its exit code too."""
    calls, python, script = folder / "calls", folder / "python", folder / "benchmarks" / "gpu.sh"
    (script.parent / "wheels").mkdir(parents=True, exist_ok=True)
    script.write_bytes((BENCHMARKS / "gpu.sh").read_bytes())
    python.write_text(PYTHON)
    python.chmod(0o755)
    calls.write_text("")
    others = {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "PIP": str(pip), "PYTHON": str(python)}
    done = subprocess.run(
        ["sh", script, "found.json"], env={**os.environ, **others, "CALLS": str(calls)}, check=False
    )
    return done.returncode, calls.read_text().splitlines()


def test_gpu_sh_measures_the_machines_own_packages(tmp_path):
    code, (asked, measured) = run_gpu_sh(tmp_path)
    assert code == 3 and "run.py --help" in asked  # the exit code is that of the figures
    assert "--suite gpu --json found.json TF32= " in measured and f":{tmp_path}" in measured
    for name in ("yacs-0.1.8-py3-none-any.whl", "torch-9.0-py3-none-any.whl"):
        (tmp_path / "benchmarks" / "wheels" / name).touch()
    code, (installed, *_) = run_gpu_sh(tmp_path)
    assert code == 3 and "yacs-0.1.8" in installed and "torch-9.0" not in installed


def test_gpu_sh_says_which_wheels_do_not_fit(tmp_path, capfd):
    (tmp_path / "benchmarks" / "wheels").mkdir(parents=True)
    (tmp_path / "benchmarks" / "wheels" / "x-1-cp39-cp39-linux_x86_64.whl").touch()
    code, (_, version) = run_gpu_sh(tmp_path, pip=1)
    assert code == 2 and version.startswith("-V ")
    assert "the wheels in benchmarks/wheels do not fit" in capfd.readouterr().err


def test_a_mistyped_figure_ends_in_one_message(capsys):
    assert run.command(["--only", "rankin"]) == 2
    assert "did you mean ranking" in capsys.readouterr().err
    assert run.command(["--only", "gpu_search"]) == 2
    assert "use --suite gpu" in capsys.readouterr().err


def test_what_is_optional_is_named_where_it_is_left_out(tmp_path, capsys, monkeypatch):
    measured_by({("one", "two"): lambda: {"one": Figure(1, 2, 2, "s", [])}}, monkeypatch)
    file = tmp_path / "found.json"
    assert run.command(["--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert (set(content["figures"]), content["left_out"]) == ({"one"}, ["two"])
    assert run.command(["--only", "one"]) == 0
    assert run.command(["--only", "one", "two"]) == 2
    assert "--only two: an extra, a C++ compiler" in capsys.readouterr().err


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure", None)
    assert run.command(["--json", str(tmp_path)]) == 2


def test_committed_results_have_the_form():
    files = [path for path in (BENCHMARKS / "results").glob("*.json") if path.stem in SUITES]
    assert files
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {name for each in SUITES[file.stem] for name in each}
        assert set(content["figures"]) <= names
        for each in content["figures"].values():
            assert set(each) == {"ours", "reference", "ratio", "unit", "spread"}


def test_search_by_size_at_a_tiny_one(tmp_path, capsys):
    file = tmp_path / "scale.json"
    words = ["--items", "1000", "--dim", "8", "--kinds", "exact", "ivf", "--json", str(file)]
    assert search_scale.command([*words, "--folder", str(tmp_path)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["kind"] for row in rows] == ["exact", "ivf"]
    assert rows[0]["recall_queries"] == 1 and rows[1]["recall_queries"] > 0.8
    assert all(row["ms_one"] > 0 and row["bytes_per_item"] > 0 for row in rows)
    assert search_scale.command(["--items", "10"]) == 2
    assert "at least 1000" in capsys.readouterr().err


def test_committed_searches_have_the_form():
    for file in (BENCHMARKS / "results").glob("search_*.json"):
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        assert rows and all(row["kind"] in search_scale.KINDS for row in rows)


def test_reranking_at_another_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    file = tmp_path / "large.json"
    sizes = ["--queries", "6", "--gallery", "60", "--channels", "8"]
    assert rerank_large.command([*sizes, "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["agreement"] == {
        "results": 360, "off_by_more_than_1e-5": 0, "largest": content["agreement"]["largest"]
    }  # fmt: skip
    assert content["ours"]["seconds"] > 0 and content["reference"]["peak_mb"] > 0
    zeros, ones = np.zeros((10, 10)), np.ones((10, 10))
    with pytest.raises(MismatchError, match="100 of 100"):
        rerank_large.check_agreement(zeros, ones)
    committed = BENCHMARKS / "results" / "rerank_large.json"
    assert set(json.loads(committed.read_text(encoding="utf-8"))) == set(content)


def test_work_apart_is_measured_with_its_memory():
    pieces = [np.ones(2**14, np.float32) for _ in range(2**12)]
    held = pieces.pop()  # behind the others: their memory is free and stays with the process
    pieces.clear()
    taken = rerank_large.run_forked(lambda: np.ones(2**25, np.float32)[:5].copy())
    assert taken.result.tolist() == [1] * 5
    assert 2**27 <= taken.peak_bytes < 2**28 and taken.seconds > 0 and held.all()
    with pytest.raises(EOFError):
        rerank_large.run_forked(lambda: 1 / 0)
