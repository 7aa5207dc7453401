"""fast-reid 1.4.0 on today's Python and PyTorch: the one file that knows about versions.

fast-reid was written for Python 3.8, PyTorch 1.13 and NVIDIA GPUs. Importing :mod:`occluded_reid`
calls :func:`apply`, after which fast-reid imports, trains and evaluates on Python 3.10-3.13 and
PyTorch 2.4-2.15, with or without a GPU. Nothing on disk is edited, and PyTorch, torchvision and the
standard library are left as they were.

One function repairs one thing. Its docstring says what fails, where in fast-reid (file:line), since
when, and what is done about it; it returns None, or the reason why this installation needs no
repair. ``_PATCHES`` lists them in order, :func:`applied` tells what became of each.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import functools
import importlib
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

_RECORD = "_occluded_reid_compat"  # attribute of the fastreid package: what was done to it
_lock = threading.RLock()


def apply() -> None:
    """Make fast-reid work on this installation. Calling it again does nothing.

    Raises:
        ImportError: fast-reid is missing, or torch and torchvision do not fit each other.
    """
    _require_fastreid()
    _require_matching_torchvision()
    import fastreid

    with _lock:
        record = vars(fastreid).setdefault(_RECORD, {})
        for patch in _PATCHES:
            if patch.__name__ not in record:
                reason = patch()
                record[patch.__name__] = f"not needed: {reason}" if reason else "applied"


def applied() -> dict[str, str]:
    """Return each patch's name with ``applied`` or ``not needed: reason``, for a bug report."""
    return dict(getattr(sys.modules.get("fastreid"), _RECORD, {}))


def _require_fastreid() -> None:
    """Name the one command that installs fast-reid, which pip cannot resolve by itself."""
    if importlib.util.find_spec("fastreid") is None:
        raise ModuleNotFoundError(
            "fast-reid is not installed, and pip cannot resolve its pin torch==1.13.1; "
            "install it with: pip install --no-deps fastreid==1.4.0",
            name="fastreid",
        )


def _require_matching_torchvision() -> None:
    """Explain the failure of a torchvision that was built for another torch.

    ``operator torchvision::nms does not exist`` is what a CPU build of torch beside the default
    torchvision says.
    """
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        raise
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(
            f"torchvision {metadata.version('torchvision')} does not fit torch "
            f"{torch.__version__} ({error}); install both in one command from one package index"
        ) from error


def _module(name: str) -> Any:
    """Return fast-reid's module ``name``; several are hidden behind a function of their name."""
    return importlib.import_module(f"fastreid.{name}")


def _rebind(old: object, new: object) -> None:
    """Let every module that holds ``old`` under some name hold ``new`` instead.

    fast-reid imports its functions with ``from``, and so may a user who imported fast-reid first.
    """
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is old:
                setattr(module, name, new)


# ------------------------------------------------------------------------------ imports


def legacy_names() -> str | None:
    """Import the two files that use names which are gone, while these names exist.

    data/build.py:11-12 and evaluation/testing.py:5 import ``torch._six`` (removed in torch 2.0) and
    ``collections.Mapping`` (removed in Python 3.10). Both are there during the import only.
    """
    stub_six = importlib.util.find_spec("torch._six") is None
    stub_mapping = not hasattr(collections, "Mapping")
    if stub_six:
        sys.modules["torch._six"] = types.ModuleType("torch._six")
        vars(sys.modules["torch._six"])["string_classes"] = (str, bytes)
    if stub_mapping:
        vars(collections)["Mapping"] = Mapping
    try:
        _module("data.build")
        _module("evaluation.testing")
    finally:
        if stub_six:
            del sys.modules["torch._six"]
        if stub_mapping:
            del vars(collections)["Mapping"]
    return None if stub_six or stub_mapping else "torch._six and collections.Mapping exist"


def no_runtime_compile() -> None:
    """Let the evaluator rank in Python where its Cython module has not been built.

    evaluation/rank_cylib/__init__.py:15-20 runs ``make``, with whatever ``python3`` and compiler
    PATH holds, and ends the process if that fails; the other ranks then wait for ever. rank.py and
    roc.py fall back to Python by themselves, with a warning that is of no use to anyone here.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Cython r")
        _module("evaluation.rank")
        _module("evaluation.roc")
    _module("evaluation").ReidEvaluator._compile_dependencies = lambda self: None


def gdown() -> str | None:
    """Load a cached pretrained file without gdown, and say where to put one that is missing.

    modeling/backbones/resnet.py:248 (also osnet, resnext, regnet, effnet) imports gdown before it
    looks for the file. Where gdown is missing, a stand-in takes its place during that call.
    """
    if importlib.util.find_spec("gdown") is not None:
        return "gdown is installed"

    def download(url: str, output: str, **_: object) -> None:
        raise FileNotFoundError(
            f"{output} does not exist: download {url} to that place, or set "
            "MODEL.BACKBONE.PRETRAIN_PATH, or pip install gdown"
        )

    stand_in = types.ModuleType("gdown")
    vars(stand_in)["download"] = download

    def with_stand_in(load: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(load)
        def init_pretrained_weights(key: str) -> Any:
            sys.modules["gdown"] = stand_in
            try:
                return load(key)
            finally:
                del sys.modules["gdown"]

        return init_pretrained_weights

    for name in ("resnet", "osnet", "resnext", "regnet.regnet", "regnet.effnet"):
        backbone = _module(f"modeling.backbones.{name}")
        backbone.init_pretrained_weights = with_stand_in(backbone.init_pretrained_weights)
    return None


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
        return (self._moved(batch) for batch in super().__iter__())

    def _moved(self, batch: Any) -> Any:
        if not isinstance(batch, dict):
            return batch
        return {
            key: value.to(self.device, non_blocking=True) if torch.is_tensor(value) else value
            for key, value in batch.items()
        }


def dataloader() -> None:
    """Load data without a GPU, and raise what goes wrong while loading.

    data/data_utils.py:151 makes a CUDA stream (``Found no NVIDIA driver``). Its prefetch thread
    (:126) dies silently of any exception, a broken image for example, and the main thread waits for
    ever, on a GPU as well. Batches go to ``cfg.MODEL.DEVICE`` instead of the GPU of the local rank
    wherever there is a config, and test loaders no longer start four workers (build.py:131) where
    ``DATALOADER.NUM_WORKERS`` asks for fewer.
    """
    build = _module("data.build")
    _rebind(build.DataLoaderX, DeviceLoader)

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

    _module("engine.defaults")  # holds both names too
    for kind in ("train", "test"):
        original = getattr(build, f"build_reid_{kind}_loader")
        _rebind(original, heeding_cfg(original, getattr(build, f"_{kind}_loader_from_config")))


def to_tensor() -> None:
    """Turn PIL images into tensors through numpy.

    data/transforms/functional.py:46 builds a typed storage (deprecated since torch 2.0), and :38-44
    ask numpy 2 for an array without a copy, which it refuses. Values and shapes stay the same.
    """
    functional = _module("data.transforms.functional")
    original = functional.to_tensor
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

    _rebind(original, pil_to_tensor)


def random_affine() -> None:
    """Accept the old argument names of torchvision's ``RandomAffine`` (``INPUT.AFFINE``).

    data/transforms/build.py:81 says ``resample`` and ``fillcolor``, which are ``interpolation`` and
    ``fill`` since torchvision 0.15. Only the name ``T`` of that file changes.
    """
    from torchvision import transforms

    def old_random_affine(*args: Any, resample: Any = 0, fillcolor: Any = 0, **kwargs: Any) -> Any:
        mode = resample or transforms.InterpolationMode.NEAREST
        return transforms.RandomAffine(*args, interpolation=mode, fill=fillcolor, **kwargs)

    names = {**vars(transforms), "RandomAffine": old_random_affine}
    _module("data.transforms.build").T = types.SimpleNamespace(**names)


# ----------------------------------------------------------------------------- training


def preprocess_image() -> None:
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

    for name, model in (("baseline", "Baseline"), ("mgn", "MGN")):
        getattr(_module(f"modeling.meta_arch.{name}"), model).preprocess_image = normalise


def losses_in_float32() -> None:
    """Compute the losses outside of autocast.

    engine/train_loop.py:338 runs the whole model under autocast, and the triplet loss's distances
    |x|^2 + |y|^2 - 2xy (modeling/losses/utils.py) then cancel in half precision: at 512 dimensions
    of size 3, bfloat16 put a feature at 5.5 from itself and at 0 from one at a distance of 0.4.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def losses(self: Any, *arguments: Any) -> Any:
            *outputs, labels = arguments
            with torch.autocast(labels.device.type, enabled=False):
                single = [{key: value.float() for key, value in of.items()} for of in outputs]
                return original(self, *single, labels)

        return losses

    for name, model in (("baseline", "Baseline"), ("mgn", "MGN")):
        architecture = getattr(_module(f"modeling.meta_arch.{name}"), model)
        architecture.losses = wrap(architecture.losses)


def zero_grad() -> None:
    """Keep the flat gradients that the optimizer and the parameters share.

    engine/train_loop.py:248 and :346 call ``optimizer.zero_grad()``, which drops gradients since
    torch 2.0 instead of filling them with 0. For the buffers of ContiguousParams (utils/params.py)
    this cuts the connection: backward fills the views, ``step`` sees no gradient, and no parameter
    ever changes. No message, only a loss that does not fall.
    """
    solver = _module("solver.build")
    original = solver.build_optimizer

    @functools.wraps(original)
    def build_optimizer(cfg: Any, model: Any, contiguous: bool = True) -> Any:
        optimizer, params = original(cfg, model, contiguous)
        if isinstance(params, solver.ContiguousParams):
            fill = functools.partial(optimizer.zero_grad, set_to_none=False)
            optimizer.zero_grad = lambda set_to_none=False: fill()
        return optimizer, params

    _module("engine.defaults")  # holds the name too
    _rebind(original, build_optimizer)


def amp() -> None:
    """Train in mixed precision on the model's device, and without deprecated names.

    engine/train_loop.py:335 asserts CUDA; :325 and :336 use ``torch.cuda.amp`` (deprecated in torch
    2.4). On a CPU the model runs in bfloat16, which needs no gradient scaling.
    """
    loop = _module("engine.train_loop")
    trainer, original_init = loop.AMPTrainer, loop.AMPTrainer.__init__

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
        if isinstance(self.param_wrapper, loop.ContiguousParams):
            self.param_wrapper.assert_buffer_is_valid()

    trainer.__init__, trainer.run_step = init, run_step


def finished_run() -> None:
    """Return from ``train`` at once when every epoch of a resumed run is done.

    engine/hooks.py:380 asks for ``trainer.epoch``, which exists only after a first epoch
    (``AttributeError``).
    """
    trainer = _module("engine.defaults").DefaultTrainer
    original = trainer.train

    @functools.wraps(original)
    def train(self: Any) -> Any:
        if self.start_epoch < self.max_epoch:
            return original(self)
        logging.getLogger("fastreid.engine.defaults").info(
            "All %d epochs are done already, nothing is left to train", self.max_epoch
        )
        return None

    trainer.train = train


def short_run() -> None:
    """Print the last step of a run of fewer than four steps once, not twice.

    hooks.py:179-183 lets the printer write after the last step and again after the epoch. Before
    there are timings, utils/events.py:216 divides by the steps in between (ZeroDivisionError): a
    small data set, or the resumed rest of a run.
    """
    events = _module("utils.events")
    original = events.CommonMetricPrinter.write

    @functools.wraps(original)
    def write(self: Any) -> None:
        if self._last_write is None or self._last_write[0] != events.get_event_storage().iter:
            original(self)

    events.CommonMetricPrinter.write = write


def profiler() -> None:
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

    _module("engine.hooks").AutogradProfiler.before_step = before_step


def checkpoint_load() -> None:
    """Load checkpoints without running code from them, numpy numbers and arrays included.

    utils/checkpoint.py:216 leaves ``weights_only`` to PyTorch: up to 2.5 a file may run any code,
    from 2.6 on one numpy scalar in it (a metric, say) makes it unreadable.
    """

    def load_file(self: Any, f: str) -> Any:
        with _numpy_is_safe():
            return torch.load(f, map_location="cpu", weights_only=True)

    _module("utils.checkpoint").Checkpointer._load_file = load_file


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


def inference_context() -> None:
    """Give a model its training mode back also after an exception.

    evaluation/evaluator.py:153-165 has no ``finally``: a failed evaluation leaves the model in eval
    mode.
    """
    original = _module("evaluation.evaluator").inference_context

    @contextlib.contextmanager
    def restoring(model: torch.nn.Module) -> Iterator[None]:
        training = model.training
        model.eval()
        try:
            yield
        finally:
            model.train(training)

    _rebind(original, functools.wraps(original)(restoring))


def jaccard() -> None:
    """Search the neighbours for re-ranking on the CPU where faiss cannot do it on a GPU.

    utils/compute_dist.py:68-76 wants CUDA, ``faiss.StandardGpuResources`` (not in faiss-cpu) and
    ``faiss.cast_integer_to_long_ptr`` (utils/faiss_utils.py:17; in neither package since 1.7.3).
    The result is that of fast-reid's own CPU search, ``search_option=3``.
    """
    import faiss

    original = _module("utils.compute_dist").compute_jaccard_distance
    needed = ("StandardGpuResources", "cast_integer_to_long_ptr")
    on_gpu = torch.cuda.is_available() and all(hasattr(faiss, name) for name in needed)

    @functools.wraps(original)
    def compute_jaccard_distance(
        features: torch.Tensor,
        k1: int = 20,
        k2: int = 6,
        search_option: int = 0,
        fp16: bool = False,
    ) -> np.ndarray:
        return original(features, k1, k2, search_option if on_gpu else 3, fp16)

    _rebind(original, compute_jaccard_distance)


def euclidean() -> None:
    """Compute squared Euclidean distances with the present signature of ``addmm_``.

    utils/compute_dist.py:183 passes beta and alpha by position (deprecated since torch 1.5).
    """
    original = _module("utils.compute_dist").compute_euclidean_distance

    @functools.wraps(original)
    @torch.no_grad()
    def compute_euclidean_distance(features: torch.Tensor, others: torch.Tensor) -> np.ndarray:
        squares = features.pow(2).sum(1, keepdim=True) + others.pow(2).sum(1)
        return squares.addmm_(features, others.t(), beta=1, alpha=-2).cpu().numpy()

    _rebind(original, compute_euclidean_distance)


# ------------------------------------------------------------------- several processes


def launch() -> None:
    """Start worker processes through :func:`distributed_worker`.

    engine/launch.py:77-92 asserts CUDA and hard-wires NCCL. Besides, a spawned process unpickles
    the worker before it imports anything of ours, so the worker must live in this package.
    """
    _module("engine.launch")._distributed_worker = distributed_worker


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
    _module("utils.comm").synchronize()
    dist.destroy_process_group()


def join_process_group(
    url: str, local_rank: int, per_machine: int, *, on_cpu: bool, **ranks: int
) -> None:
    """Join the process group and tell fast-reid which ranks share this machine.

    Args:
        url: where the processes meet; ``env://`` reads torchrun's environment.
        local_rank: this process's index on its machine, and that of its GPU.
        per_machine: processes on each machine.
        on_cpu: communicate over gloo, else over NCCL.
        ranks: ``rank`` and ``world_size``, unless ``url`` tells them.
    """
    comm = _module("utils.comm")
    if not on_cpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("gloo" if on_cpu else "nccl", init_method=url, **ranks)
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


def ddp_wrap() -> None:
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

    _module("engine.defaults").DistributedDataParallel = wrap


def byte_storage() -> None:
    """Send pickled objects between ranks without a typed storage.

    utils/comm.py:106 uses ``torch.ByteStorage`` (deprecated since torch 2.0: a warning per rank).
    """

    def serialize_to_tensor(data: object, group: Any) -> torch.Tensor:
        device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
        return torch.frombuffer(bytearray(pickle.dumps(data)), dtype=torch.uint8).to(device)

    _module("utils.comm")._serialize_to_tensor = serialize_to_tensor


_PATCHES: tuple[Callable[[], str | None], ...] = (
    legacy_names,  # first: the others import what it makes importable
    no_runtime_compile,
    gdown,
    dataloader,
    to_tensor,
    random_affine,
    preprocess_image,
    losses_in_float32,
    zero_grad,
    amp,
    finished_run,
    short_run,
    profiler,
    checkpoint_load,
    inference_context,
    jaccard,
    euclidean,
    launch,
    ddp_wrap,
    byte_storage,
)
