"""Training steps under CUDA graphs: nothing reads memory that a replay has overwritten.

Without a GPU, a backend of torch.compile simulates the graphs: at each step it overwrites all that
the step before has returned, gradients included.
"""

from __future__ import annotations

import contextlib
import logging
from unittest import mock

import pytest
import torch
from aonet.tiny import aonet_batch, aonet_cfg, aonet_model
from fastreid.utils import comm
from fastreid.utils.events import EventStorage
from fed.tiny import fed_batch, fed_cfg, fed_model
from functorch.compile import make_boxed_func
from ranks import on_ranks
from runs import in_a_child
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from occluded_reid.engine.train_step import TrainingStep, wrap_model
from occluded_reid.utils.errors import UserError

METHODS = pytest.mark.parametrize(
    ("build", "batch", "cfg"),
    [(fed_model, fed_batch, fed_cfg), (aonet_model, aonet_batch, aonet_cfg)],
    ids=["FED", "AONet"],
)
GRAPHS = ("MODEL.COMPILE", True, "MODEL.COMPILE_MODE", "reduce-overhead")


class ReplayBackend:
    """A backend of torch.compile whose graphs overwrite what they returned at the last step."""

    def __init__(self) -> None:
        self._returned: list[torch.Tensor] = []
        self.overwritten = 0
        self.backend = aot_autograd(fw_compiler=self._forward, bw_compiler=self._backward)

    def _forward(self, graph, _):
        def run(*inputs):
            for tensor in self._returned:
                tensor.fill_(torch.nan)
            self.overwritten += len(self._returned)
            self._returned = []
            return self._record(graph(*inputs), inputs)

        return make_boxed_func(run)

    def _backward(self, graph, _):
        return make_boxed_func(lambda *inputs: self._record(graph(*inputs), inputs))

    def _record(self, outputs, inputs):
        shared = {address(each) for each in inputs if torch.is_tensor(each)}
        self._returned += [
            each
            for each in outputs
            if torch.is_tensor(each) and each.is_floating_point() and address(each) not in shared
        ]
        return outputs


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def run_steps(model, batch, cfg, steps):
    """Run ``steps`` steps; return the history of each loss and the model's state."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batches = [batch(seed=number) for number in range(steps)]
    step = TrainingStep(cfg, model, batches, optimizer, iters_per_epoch=steps)
    with EventStorage() as storage:
        for number in range(steps):
            storage.iter = step.iter = number
            step.run_step()
        step.read_losses()
    history = {name: each.values() for name, each in storage.histories().items() if "loss" in name}
    return history, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.slow
@METHODS
def test_a_step_reads_nothing_that_a_replay_overwrites(build, batch, cfg, monkeypatch):
    monkeypatch.setattr(TrainingStep, "reads_losses", False)  # until the end
    torch._dynamo.reset()
    expected = run_steps(build(), batch, cfg(), 4)
    model, replays = build(), ReplayBackend()
    model.compile(fullgraph=True, backend=replays.backend)
    result = run_steps(model, batch, cfg(*GRAPHS), 4)
    assert replays.overwritten
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


class DeviceCheck(TorchDispatchMode):
    """Records operations whose result is not on the GPU: CUDA graphs cannot hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(result) if torch.is_tensor(each)]
        if any(each.device.type != "cuda" for each in tensors):
            self.elsewhere.append(str(func))
        return result


@contextlib.contextmanager
def autocast_for_cuda():
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.is_bf16_supported", lambda: True),
        torch.autocast("cuda", torch.bfloat16),
    ):
        assert torch.is_autocast_enabled("cuda")
        yield


@METHODS
@in_a_child
def test_all_of_a_step_is_on_the_gpu(build, batch, cfg):
    """In bfloat16 too; autocast needs to be told that there is a GPU."""
    model, images = build(), batch()
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with FakeTensorMode(allow_non_fake_inputs=True):
        state, images = (
            {name: torch.empty(x.shape, dtype=x.dtype, device="cuda") for name, x in of.items()}
            for of in (state, images)
        )
        with autocast_for_cuda(), DeviceCheck() as check:
            functional_call(model, state, (images,))
    assert check.elsewhere == []


def test_graphs_are_refused_where_gradients_outlive_a_replay():
    with pytest.raises(UserError, match="SOLVER.ACCUMULATE 2 use MODEL.COMPILE_MODE default"):
        fed_cfg(*GRAPHS, "SOLVER.ACCUMULATE", 2)
    fed_cfg("MODEL.COMPILE_MODE", "reduce-overhead", "SOLVER.ACCUMULATE", 2)  # nothing is compiled
    with pytest.raises(UserError, match="MODEL.COMPILE_MODE is 'fast'; it can be default or red"):
        fed_cfg("MODEL.COMPILE_MODE", "fast")


def test_the_log_warns_that_a_cpu_has_no_graphs(monkeypatch, caplog):
    monkeypatch.setattr(nn.Module, "compile", lambda _, **options: None)
    logging.getLogger("occluded_reid").propagate = True  # fast-reid's log handler may be there
    message = "reduce-overhead has no effect on a CPU, which has no CUDA graphs"
    for words, expected in ((GRAPHS, True), (("MODEL.COMPILE", True), False), (GRAPHS[2:], False)):
        caplog.clear()
        wrap_model(fed_cfg(*words), fed_model())
        assert (message in caplog.text) == expected


def test_several_processes_may_not_replay_graphs(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    cfg = fed_cfg(*GRAPHS).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(UserError, match="several processes; use MODEL.COMPILE_MODE default"):
        wrap_model(cfg, nn.Linear(1, 1))


@pytest.mark.slow
@pytest.mark.distributed
@METHODS
def test_two_processes_train_alike_compiled(build, batch, cfg):
    """The compiled step sums their memory banks. No machine code is generated."""

    def compare(rank):
        def own_batch(seed):
            return batch(seed=10 * rank + seed)

        plain, compiled = build(), build()
        compiled.compile(fullgraph=True, backend="aot_eager")
        expected, result = (
            run_steps(wrap_model(cfg(), x), own_batch, cfg(), 3) for x in (plain, compiled)
        )
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)

    on_ranks(2, compare)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_mode_reaches_the_compiler_and_each_replay_is_announced(compiled, monkeypatch):
    modes, steps = [], []
    monkeypatch.setattr(nn.Module, "compile", lambda _, **options: modes.append(options))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    cfg = fed_cfg(*GRAPHS, "MODEL.COMPILE", compiled)
    run_steps(wrap_model(cfg, fed_model()), fed_batch, cfg, 2)
    assert modes == [{"mode": "reduce-overhead"}] * compiled and len(steps) == 2 * compiled
