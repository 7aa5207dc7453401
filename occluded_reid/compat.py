"""fast-reid 1.4.0 on today's Python and PyTorch: the one file that knows about versions.

fast-reid was written for Python 3.8, PyTorch 1.13 and NVIDIA GPUs. Import this module first, and
fast-reid imports, trains and evaluates on Python 3.10-3.13 and PyTorch 2.4-2.15, with or without a
GPU::

    import occluded_reid.compat  # noqa: F401

Nothing is imported ahead of time. A finder on ``sys.meta_path`` repairs each module of fast-reid as
it is imported, whoever imports it; modules that were there before are repaired at once. Nothing on
disk is edited, and PyTorch, torchvision and the standard library are left as they were.

One function repairs one thing. Its decorator names the modules that it repairs, its docstring says
what fails, where in fast-reid (file:line), since when, and what is done about it.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import datetime
import functools
import importlib.util
import inspect
import logging
import multiprocessing
import pickle
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

Patch = Callable[[Any], None]
Context = Callable[[], AbstractContextManager[None]]

# By the full name of the module that they repair.
_PATCHES: dict[str, list[Patch]] = {}  # called with the module once it has been executed
_CONTEXTS: dict[str, list[Context]] = {}  # entered while it is being executed
_REPAIRED = "_occluded_reid_repaired"  # attribute of a module whose patches have run
_lock = threading.RLock()


def _after(*modules: str) -> Callable[[Patch], Patch]:
    """Run a patch on each of fast-reid's ``modules`` after its import."""

    def register(patch: Patch) -> Patch:
        for name in modules:
            _PATCHES.setdefault(f"fastreid.{name}", []).append(patch)
        return patch

    return register


def _during(*modules: str) -> Callable[[Context], Context]:
    """Hold a context while each of ``modules`` is imported."""

    def register(context: Context) -> Context:
        for name in modules:
            _CONTEXTS.setdefault(name, []).append(context)
        return context

    return register


class FastreidFinder(MetaPathFinder):
    """Finds the modules that need a repair, and repairs them as part of their import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _PATCHES and fullname not in _CONTEXTS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = functools.partial(_execute_repaired, spec.loader.exec_module)
            vars(spec.loader)["exec_module"] = execute
        return spec


def _execute_repaired(execute: Callable[[types.ModuleType], None], module: Any) -> None:
    with contextlib.ExitStack() as stack:
        for context in _CONTEXTS.get(module.__name__, []):
            stack.enter_context(context())
        execute(module)
    for patch in _PATCHES.get(module.__name__, []):
        patch(module)
    setattr(module, _REPAIRED, True)


def _repair_imported() -> None:
    """Repair what was imported before this module.

    fast-reid imports its functions with ``from``, and so may a user who imported fast-reid first.
    What a module defines is therefore replaced wherever it is held; names that it only imported are
    replaced in that module alone.
    """
    replacements: dict[int, tuple[object, object]] = {}
    for name, patches in _PATCHES.items():
        module = sys.modules.get(name)
        if module is None or hasattr(module, _REPAIRED):
            continue
        before = dict(vars(module))
        for patch in patches:
            patch(module)
        setattr(module, _REPAIRED, True)
        for key, old in before.items():
            new = vars(module)[key]
            if new is not old and getattr(old, "__module__", None) == name:
                replacements[id(old)] = old, new
    if not replacements:
        return
    for module in list(sys.modules.values()):
        for key, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in replacements:
                setattr(module, key, replacements[id(value)][1])


def _install() -> None:
    """Put the finder before all others, in the place of one that a reloaded compat left there."""
    is_ours = FastreidFinder.__qualname__
    sys.meta_path[:] = [one for one in sys.meta_path if type(one).__qualname__ != is_ours]
    sys.meta_path.insert(0, FastreidFinder())
    _repair_imported()


_BY_HAND = {
    "fastreid": "fast-reid is not installed, and pip cannot resolve its pin torch==1.13.1; "
    "install it with: pip install --no-deps fastreid==1.4.0",
    "cv2": "OpenCV is not installed, neither opencv-python nor opencv-python-headless, of which "
    "either serves; install one: pip install opencv-python-headless",
}


def _require_packages() -> None:
    """Name the command that installs what ``pip install .`` cannot choose by itself."""
    for name, advice in _BY_HAND.items():
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(advice, name=name)


# ------------------------------------------------------------------------------ imports


@_during("torchvision")
@contextlib.contextmanager
def torchvision_mismatch() -> Iterator[None]:
    """Explain the failure of a torchvision that was built for another torch.

    ``operator torchvision::nms does not exist`` is what a CPU build of torch beside the default
    torchvision says.
    """
    try:
        yield
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(
            f"torchvision {metadata.version('torchvision')} does not fit torch "
            f"{torch.__version__} ({error}); install both in one command from one package index"
        ) from error


@_during("fastreid.data.build", "fastreid.evaluation.testing")
@contextlib.contextmanager
def legacy_names() -> Iterator[None]:
    """Provide two names that are gone while the files that import them are executed.

    data/build.py:11-12 and evaluation/testing.py:5 import ``torch._six`` (removed in torch 2.0) and
    ``collections.Mapping`` (removed in Python 3.10). Both are there during the import only.
    """
    with _lock:
        stub_six = importlib.util.find_spec("torch._six") is None
        stub_mapping = not hasattr(collections, "Mapping")
        if stub_six:
            sys.modules["torch._six"] = types.ModuleType("torch._six")
            vars(sys.modules["torch._six"])["string_classes"] = (str, bytes)
        if stub_mapping:
            vars(collections)["Mapping"] = Mapping
        try:
            yield
        finally:
            if stub_six:
                del sys.modules["torch._six"]
            if stub_mapping:
                del vars(collections)["Mapping"]


@_during("fastreid.evaluation.rank", "fastreid.evaluation.roc")
@contextlib.contextmanager
def cython_warning() -> Iterator[None]:
    """Silence the warning that the Cython module has not been built.

    evaluation/rank.py:13 and roc.py:17 fall back to Python by themselves; the warning is of no use
    to anyone here.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Cython r")
        yield


@_after("evaluation.reid_evaluation")
def no_runtime_compile(module: Any) -> None:
    """Let the evaluator rank in Python where its Cython module has not been built.

    evaluation/rank_cylib/__init__.py:15-20 runs ``make``, with whatever ``python3`` and compiler
    PATH holds, and ends the process if that fails; the other ranks then wait for ever.
    """
    module.ReidEvaluator._compile_dependencies = lambda self: None


@_after(
    *(f"modeling.backbones.{name}" for name in ("resnet", "osnet", "resnext")),
    *(f"modeling.backbones.regnet.{name}" for name in ("regnet", "effnet")),
)
def gdown(module: Any) -> None:
    """Load a cached pretrained file without gdown, and say where to put one that is missing.

    modeling/backbones/resnet.py:248 (also osnet, resnext, regnet, effnet) imports gdown before it
    looks for the file. Where gdown is missing, a stand-in takes its place during that call.
    """
    if importlib.util.find_spec("gdown") is not None:
        return

    def download(url: str, output: str, **_: object) -> None:
        raise FileNotFoundError(
            f"{output} does not exist: download {url} to that place, or set "
            "MODEL.BACKBONE.PRETRAIN_PATH, or pip install gdown"
        )

    stand_in = types.ModuleType("gdown")
    vars(stand_in)["download"] = download

    load = module.init_pretrained_weights

    @functools.wraps(load)
    def init_pretrained_weights(key: str) -> Any:
        sys.modules["gdown"] = stand_in
        try:
            return load(key)
        finally:
            del sys.modules["gdown"]

    module.init_pretrained_weights = init_pretrained_weights


# --------------------------------------------------------------------------------- data


class DeviceLoader(DataLoader):
    """A DataLoader that hands out dict batches with their tensors on ``device``.

    Stands in for fast-reid's ``DataLoaderX``. PyTorch's own workers do the prefetching, so that
    there is no thread that could die unnoticed.
    """

    def __init__(self, local_rank: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.use_device(f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu")

    def use_device(self, device: str) -> None:
        """Hand out batches on ``device`` from the next iteration on."""
        self.device = torch.device(device)
        self.pin_memory = self.device.type == "cuda"

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return (self.move_batch(batch) for batch in super().__iter__())

    def move_batch(self, batch: Any) -> Any:
        """Move the tensors of a batch to the device."""
        if not isinstance(batch, dict):
            return batch
        return {
            key: value.to(self.device, non_blocking=True) if torch.is_tensor(value) else value
            for key, value in batch.items()
        }


@_after("data.data_utils")
def dataloader(module: Any) -> None:
    """Load data without a GPU, and raise what goes wrong while loading.

    data/data_utils.py:151 makes a CUDA stream (``Found no NVIDIA driver``). Its prefetch thread
    (:126) dies silently of any exception, a broken image for example, and the main thread waits for
    ever, on a GPU as well.
    """
    module.DataLoaderX = DeviceLoader


@_after("data.build")
def loader_config(module: Any) -> None:
    """Let loaders heed the configuration wherever there is one.

    Batches go to ``cfg.MODEL.DEVICE`` instead of the GPU of the local rank, and test loaders no
    longer start four workers (data/build.py:131) where ``DATALOADER.NUM_WORKERS`` asks for fewer.
    """

    def heeding_cfg(original: Callable[..., Any], from_config: Callable[..., Any]) -> Any:
        @functools.wraps(original)
        def build_loader(*args: Any, **kwargs: Any) -> Any:
            cfg: Any = args[0] if args else kwargs.get("cfg")
            if not hasattr(cfg, "DATALOADER"):
                return original(*args, **kwargs)
            workers = {"num_workers": min(4, cfg.DATALOADER.NUM_WORKERS)}  # for the test loader
            result = original(**{**workers, **from_config(*args, **kwargs)})
            loader = result[0] if isinstance(result, tuple) else result
            loader.use_device(cfg.MODEL.DEVICE)
            return result

        return build_loader

    for kind in ("train", "test"):
        name = f"build_reid_{kind}_loader"
        from_config = getattr(module, f"_{kind}_loader_from_config")
        setattr(module, name, heeding_cfg(getattr(module, name), from_config))


@_after("data.transforms.functional")
def to_tensor(module: Any) -> None:
    """Turn PIL images into tensors through numpy.

    data/transforms/functional.py:46 builds a typed storage (deprecated since torch 2.0), and :38-44
    ask numpy 2 for an array without a copy, which it refuses. Values and shapes stay the same.
    """
    original = module.to_tensor
    dtypes = {"I": np.int32, "I;16": np.int16, "F": np.float32}

    @functools.wraps(original)
    def pil_to_tensor(pic: Any) -> torch.Tensor:
        if isinstance(pic, np.ndarray):
            return original(pic)
        pixels = np.array(pic, dtypes.get(pic.mode, np.uint8))
        if pic.mode == "1":
            pixels *= 255
        planes = torch.from_numpy(pixels).view(pic.size[1], pic.size[0], -1).permute(2, 0, 1)
        planes = planes.contiguous()
        return planes.float() if planes.dtype == torch.uint8 else planes

    module.to_tensor = pil_to_tensor


@_after("data.transforms.build")
def random_affine(module: Any) -> None:
    """Accept the old argument names of torchvision's ``RandomAffine`` (``INPUT.AFFINE``).

    data/transforms/build.py:81 says ``resample`` and ``fillcolor``, which are ``interpolation`` and
    ``fill`` since torchvision 0.15. Only the name ``T`` of that file changes.
    """
    from torchvision import transforms

    def old_random_affine(*args: Any, resample: Any = 0, fillcolor: Any = 0, **kwargs: Any) -> Any:
        mode = resample or transforms.InterpolationMode.NEAREST
        return transforms.RandomAffine(*args, interpolation=mode, fill=fillcolor, **kwargs)

    names = {**vars(transforms), "RandomAffine": old_random_affine}
    module.T = types.SimpleNamespace(**names)


# ----------------------------------------------------------------------------- training


@_after("modeling.meta_arch.baseline", "modeling.meta_arch.mgn")
def preprocess_image(module: Any) -> None:
    """Normalise images out of place, on the model's device, from any number type.

    modeling/meta_arch/baseline.py:130 and mgn.py:256 write into the caller's tensor: flip test
    (evaluation/evaluator.py:120) normalises twice, a batch that is fed twice gives two different
    results, DefaultPredictor spoils its argument, and uint8 images raise.
    """

    def normalise(self: Any, batched_inputs: Any) -> torch.Tensor:
        images = batched_inputs["images"] if isinstance(batched_inputs, dict) else batched_inputs
        if not isinstance(images, torch.Tensor):
            raise TypeError(f"images must be a tensor or in a dict, but are {type(images)}")
        return images.to(self.device).sub(self.pixel_mean).div_(self.pixel_std)

    _architecture(module).preprocess_image = normalise


def _architecture(module: Any) -> Any:
    return module.MGN if hasattr(module, "MGN") else module.Baseline


@_after("modeling.meta_arch.baseline", "modeling.meta_arch.mgn")
def losses_in_float32(module: Any) -> None:
    """Compute the losses outside of autocast.

    engine/train_loop.py:338 runs the whole model under autocast, and the triplet loss's distances
    |x|^2 + |y|^2 - 2xy (modeling/losses/utils.py) then cancel in half precision: at 512 dimensions
    of size 3, bfloat16 put a feature at 5.5 from itself and at 0 from one at a distance of 0.4.
    """

    architecture = _architecture(module)
    original = architecture.losses

    @functools.wraps(original)
    def losses(self: Any, *arguments: Any) -> Any:
        *outputs, labels = arguments
        with torch.autocast(labels.device.type, enabled=False):
            single = [{key: value.float() for key, value in of.items()} for of in outputs]
            return original(self, *single, labels)

    architecture.losses = losses


@_after("solver.build")
def zero_grad(module: Any) -> None:
    """Keep the flat gradients that the optimizer and the parameters share.

    engine/train_loop.py:248 and :346 call ``optimizer.zero_grad()``, which drops gradients since
    torch 2.0 instead of filling them with 0. For the buffers of ContiguousParams (utils/params.py)
    this cuts the connection: backward fills the views, ``step`` sees no gradient, and no parameter
    ever changes. No message, only a loss that does not fall.
    """
    original = module.build_optimizer

    @functools.wraps(original)
    def build_optimizer(cfg: Any, model: Any, contiguous: bool = True) -> Any:
        optimizer, params = original(cfg, model, contiguous)
        if isinstance(params, module.ContiguousParams):
            fill = functools.partial(optimizer.zero_grad, set_to_none=False)
            optimizer.zero_grad = lambda set_to_none=False: fill()
        return optimizer, params

    module.build_optimizer = build_optimizer


@_after("engine.train_loop")
def amp(module: Any) -> None:
    """Train in mixed precision on the model's device, and without deprecated names.

    engine/train_loop.py:335 asserts CUDA; :325 and :336 use ``torch.cuda.amp`` (deprecated in torch
    2.4). On a CPU the model runs in bfloat16, which needs no gradient scaling.
    """
    original_init = module.AMPTrainer.__init__

    @functools.wraps(original_init)
    def init(
        self: Any,
        model: Any,
        data_loader: Any,
        optimizer: Any,
        param_wrapper: Any,
        grad_scaler: Any = None,
    ) -> None:
        device = next(model.parameters()).device.type
        if grad_scaler is None:
            grad_scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
        original_init(self, model, data_loader, optimizer, param_wrapper, grad_scaler)

    def run_step(self: Any) -> None:
        assert self.model.training, "the model was changed to eval mode during training"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        waited = time.perf_counter() - start

        device = next(self.model.parameters()).device.type
        precision = torch.float16 if device == "cuda" else torch.bfloat16
        with torch.autocast(device, dtype=precision):
            losses = self.model(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self._write_metrics(losses, waited)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if isinstance(self.param_wrapper, module.ContiguousParams):
            self.param_wrapper.assert_buffer_is_valid()

    module.AMPTrainer.__init__, module.AMPTrainer.run_step = init, run_step


@_after("engine.defaults")
def finished_run(module: Any) -> None:
    """Return from ``train`` at once when every epoch of a resumed run is done.

    engine/hooks.py:380 asks for ``trainer.epoch``, which exists only after a first epoch
    (``AttributeError``).
    """
    original = module.DefaultTrainer.train

    @functools.wraps(original)
    def train(self: Any) -> Any:
        if self.start_epoch < self.max_epoch:
            return original(self)
        logging.getLogger("fastreid.engine.defaults").info(
            "All %d epochs are done already, nothing is left to train", self.max_epoch
        )
        return None

    module.DefaultTrainer.train = train


@_after("utils.events")
def short_run(module: Any) -> None:
    """Print the last step of a run of fewer than four steps once, not twice.

    hooks.py:179-183 lets the printer write after the last step and again after the epoch. Before
    there are timings, utils/events.py:216 divides by the steps in between (ZeroDivisionError): a
    small data set, or the resumed rest of a run.
    """
    original = module.CommonMetricPrinter.write

    @functools.wraps(original)
    def write(self: Any) -> None:
        if self._last_write is None or self._last_write[0] != module.get_event_storage().iter:
            original(self)

    module.CommonMetricPrinter.write = write


@_after("engine.hooks")
def profiler(module: Any) -> None:
    """Profile with the present argument name.

    engine/hooks.py:305 passes ``use_cuda``, which ``torch.autograd.profiler.profile`` replaced by
    ``use_device`` (TypeError in torch 2.15).
    """

    def before_step(self: Any) -> None:
        self._profiler = None
        if self._enable_predicate(self.trainer):
            device = "cuda" if self._use_cuda and torch.cuda.is_available() else None
            self._profiler = torch.autograd.profiler.profile(use_device=device)
            self._profiler.__enter__()

    module.AutogradProfiler.before_step = before_step


@_after("utils.checkpoint")
def checkpoint_load(module: Any) -> None:
    """Load checkpoints without running code from them, numpy numbers and arrays included.

    utils/checkpoint.py:216 leaves ``weights_only`` to PyTorch: up to 2.5 a file may run any code,
    from 2.6 on one numpy scalar in it (a metric, say) makes it unreadable.
    """

    def load_file(self: Any, f: str) -> Any:
        with _numpy_is_safe():
            return torch.load(f, map_location="cpu", weights_only=True)

    module.Checkpointer._load_file = load_file


@contextlib.contextmanager
def _numpy_is_safe() -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` read numpy numbers and arrays of numbers.

    numpy 1 and 2 write different module names, so each function is announced under both.
    """
    core = sys.modules.get("numpy._core.multiarray") or sys.modules["numpy.core.multiarray"]
    allowed: list[Any] = [np.ndarray, np.dtype, codecs.encode]  # encode: how pickle writes bytes
    allowed += {type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"}
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        for name in ("_reconstruct", "scalar"):
            function = functools.partial(getattr(core, name))
            vars(function).update(__module__=module, __name__=name, __qualname__=name)
            allowed.append(function)
    before = list(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals(allowed)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


# --------------------------------------------------------------------------- evaluation


@_after("evaluation.evaluator")
def inference_context(module: Any) -> None:
    """Give each module its own mode back, also after an exception.

    evaluation/evaluator.py:153-165 sets all modules to the model's mode, so frozen layers thaw, and
    has no ``finally``: a failed evaluation leaves the model in eval mode.
    """

    @contextlib.contextmanager
    def restoring(model: torch.nn.Module) -> Iterator[None]:
        modes = [(each, each.training) for each in model.modules()]
        model.eval()
        try:
            yield
        finally:
            for each, training in modes:
                each.training = training

    module.inference_context = functools.wraps(module.inference_context)(restoring)


@_after("utils.compute_dist")
def jaccard(module: Any) -> None:
    """Search the neighbours for re-ranking on the CPU where faiss cannot do it on a GPU.

    utils/compute_dist.py:68-76 wants CUDA, ``faiss.StandardGpuResources`` (not in faiss-cpu) and
    ``faiss.cast_integer_to_long_ptr`` (utils/faiss_utils.py:17; in neither package since 1.7.3).
    The result is that of fast-reid's own CPU search, ``search_option=3``.
    """
    original = module.compute_jaccard_distance
    needed = ("StandardGpuResources", "cast_integer_to_long_ptr")
    on_gpu = torch.cuda.is_available() and all(hasattr(module.faiss, name) for name in needed)

    @functools.wraps(original)
    def compute_jaccard_distance(
        features: torch.Tensor,
        k1: int = 20,
        k2: int = 6,
        search_option: int = 0,
        fp16: bool = False,
    ) -> np.ndarray:
        return original(features, k1, k2, search_option if on_gpu else 3, fp16)

    module.compute_jaccard_distance = compute_jaccard_distance


@_after("utils.compute_dist")
def euclidean(module: Any) -> None:
    """Compute squared Euclidean distances with the present signature of ``addmm_``.

    utils/compute_dist.py:183 passes beta and alpha by position (deprecated since torch 1.5).
    """

    @functools.wraps(module.compute_euclidean_distance)
    @torch.no_grad()
    def compute_euclidean_distance(features: torch.Tensor, others: torch.Tensor) -> np.ndarray:
        squares = features.pow(2).sum(1, keepdim=True) + others.pow(2).sum(1)
        return squares.addmm_(features, others.t(), beta=1, alpha=-2).cpu().numpy()

    module.compute_euclidean_distance = compute_euclidean_distance


# ------------------------------------------------------------------- several processes


@_after("engine.launch")
def launch(module: Any) -> None:
    """Start worker processes through :func:`distributed_worker`.

    engine/launch.py:77-92 asserts CUDA and hard-wires NCCL. Besides, a spawned process unpickles
    the worker before it imports anything of ours, so the worker must live in this package.
    """
    module._distributed_worker = distributed_worker


def distributed_worker(
    local_rank: int,
    main_func: Callable[..., object],
    world_size: int,
    per_machine: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
) -> None:
    """Join the process group as one of ``per_machine`` processes and run ``main_func(*args)``.

    Uses NCCL with one GPU per process, or gloo where there is no GPU or ``args`` ask for the CPU.
    DataLoader workers are forked: the children of a spawned process would be spawned too, and each
    would import PyTorch again (41 of 44 seconds in a toy run).
    """
    from fastreid.utils import comm

    on_cpu = not torch.cuda.is_available() or _asks_for_cpu(args)
    if not on_cpu and per_machine > torch.cuda.device_count():
        raise RuntimeError(
            f"{per_machine} processes need {per_machine} GPUs, but this machine has "
            f"{torch.cuda.device_count()}; start fewer or set MODEL.DEVICE cpu"
        )
    if sys.platform == "linux":
        multiprocessing.set_start_method("fork", force=True)
    rank = machine_rank * per_machine + local_rank
    ranks = {"rank": rank, "world_size": world_size}
    join_process_group(dist_url, local_rank, per_machine, on_cpu=on_cpu, **ranks)
    main_func(*args)
    comm.synchronize()
    dist.destroy_process_group()


def join_process_group(
    url: str, local_rank: int, per_machine: int, *, on_cpu: bool, seconds: float = 300, **ranks: Any
) -> None:
    """Join the process group and tell fast-reid which ranks share this machine.

    Args:
        url: where the processes meet; ``env://`` reads torchrun's environment.
        local_rank: this process's index on its machine, and that of its GPU.
        per_machine: processes on each machine.
        on_cpu: communicate over gloo, else over NCCL.
        seconds: to wait for the other processes; later on PyTorch's own limit holds.
        ranks: ``rank`` and ``world_size``, unless ``url`` tells them.
    """
    from fastreid.utils import comm

    if not on_cpu:
        torch.cuda.set_device(local_rank)
    timeout = datetime.timedelta(seconds=seconds)
    store, rank, world_size = next(dist.rendezvous(url, timeout=timeout, **ranks))
    store.set_timeout(dist.default_pg_timeout)
    backend = "gloo" if on_cpu else "nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    for first in range(0, dist.get_world_size(), per_machine):
        group = dist.new_group(list(range(first, first + per_machine)))
        if first <= dist.get_rank() < first + per_machine:
            comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()


def _asks_for_cpu(args: Iterable[Any]) -> bool:
    """Whether a config, or parsed arguments with ``opts``, among ``args`` set the device to cpu."""
    for arg in args:
        opts = list(getattr(arg, "opts", None) or [])
        device = dict(zip(opts[::2], opts[1::2], strict=False)).get("MODEL.DEVICE")
        device = device or getattr(getattr(arg, "MODEL", None), "DEVICE", None)
        if device is not None:
            return str(device) == "cpu"
    return False


@_after("engine.defaults")
def ddp_wrap(module: Any) -> None:
    """Wrap a model on any device, with equal buffers on all ranks at the start.

    engine/defaults.py:209-212 passes ``device_ids`` (ValueError for a CPU model) and
    ``broadcast_buffers=False``, which warns in torch 2.15 and, between 2.0 and its successor
    ``forward_sync_buffers``, no longer copies rank 0's buffers when wrapping.
    """
    parameters = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers"
    name = name if name in parameters else "broadcast_buffers"

    def wrap(
        model: torch.nn.Module,
        device_ids: Any = None,
        broadcast_buffers: bool = False,
        **kwargs: Any,
    ) -> DistributedDataParallel:
        on_cpu = next(model.parameters()).device.type == "cpu"
        kwargs[name] = broadcast_buffers
        wrapped = DistributedDataParallel(model, None if on_cpu else device_ids, **kwargs)
        for buffer in model.buffers():
            content = buffer.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(content.view(-1).view(torch.uint8), src=0)  # any number type, as bytes
            buffer.copy_(content)
        return wrapped

    module.DistributedDataParallel = wrap


@_after("utils.comm")
def byte_storage(module: Any) -> None:
    """Send pickled objects between ranks without a typed storage.

    utils/comm.py:106 uses ``torch.ByteStorage`` (deprecated since torch 2.0: a warning per rank).
    """

    def serialize_to_tensor(data: object, group: Any) -> torch.Tensor:
        device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
        return torch.frombuffer(bytearray(pickle.dumps(data)), dtype=torch.uint8).to(device)

    module._serialize_to_tensor = serialize_to_tensor


_require_packages()
_install()
