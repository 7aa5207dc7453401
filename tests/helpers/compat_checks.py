"""One small check per patch of :mod:`occluded_reid.compat`, run with the patch and without it.

``python compat_checks.py FOLDER`` imports compat before fast-reid, then forks for every check
(``with``). In a second process it imports fast-reid with no patch at all, then forks for every
case: each child repairs what is imported with all patches (``late``) or all but one (``without``)
and runs the check of that patch. The outcomes are printed as JSON, ``{patch: {"with": "ok",
"late": "ok", "without": "the traceback"}}``. Orders of import are tried in the same way.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import traceback
import types
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


def module(name):
    return importlib.import_module(f"fastreid.{name}")


def toy_cfg(*opts):
    cfg = module("config").get_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return cfg


class Toy(torch.nn.Module):
    """A model with fast-reid's interface: a batch dict in, a dict of losses out."""

    pixel_mean, pixel_std, device = torch.tensor(10.0), torch.tensor(2.0), torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.heads = torch.nn.Linear(4, 1)
        self.register_buffer("flags", torch.tensor([True, False]))

    def forward(self, batch):
        self.seen = self.heads(batch["images"])
        return {"loss": self.seen.float().pow(2).mean()}


def toy_trainer(name):
    model = Toy()
    optimizer, params = module("solver.build").build_optimizer(toy_cfg(), model)
    batch = {"images": torch.ones(2, 4), "targets": torch.zeros(2)}
    loop = module("engine.train_loop")
    return getattr(loop, name)(model, [batch] * 4, optimizer, params), model


def step(trainer):
    trainer.iter = 0
    with module("utils.events").EventStorage(0):
        trainer.run_step()


def one_process_group():
    store = f"file://{FOLDER}/store-{os.getpid()}"
    torch.distributed.init_process_group("gloo", init_method=store, world_size=1, rank=0)


# ------------------------------------------------------------------------------- checks


def legacy_names():
    import collections

    for name in ("data.build", "evaluation.testing"):
        importlib.reload(module(name))
    assert "torch._six" not in sys.modules
    assert not hasattr(collections, "Mapping")


def cython_warning():
    for name in ("rank", "roc"):
        importlib.reload(module(f"evaluation.{name}"))


def no_runtime_compile():
    os.environ["PATH"] = ""  # so that without the patch nothing is built either
    module("evaluation").ReidEvaluator(toy_cfg(), 1)


def gdown():
    warnings.filterwarnings("ignore", message="You are using `torch.load`")  # torch 2.4 and 2.5
    os.environ["TORCH_HOME"] = str(FOLDER)
    resnet = module("modeling.backbones.resnet")
    cached = FOLDER / "checkpoints" / Path(resnet.model_urls["18x"]).name
    cached.parent.mkdir(exist_ok=True)
    torch.save({"weight": torch.ones(1)}, cached)
    assert resnet.init_pretrained_weights("18x") == {"weight": torch.ones(1)}
    with contextlib.suppress(FileNotFoundError):
        resnet.init_pretrained_weights("101x")
        raise AssertionError("a missing file was not reported")
    assert "gdown" not in sys.modules


def dataloader():
    build = module("data.build")
    data = [{"images": torch.ones(3) * i, "targets": i, "img_paths": "a"} for i in range(4)]
    loader = build.build_reid_train_loader(
        data, sampler=range(4), total_batch_size=2, num_workers=0
    )
    for _ in range(2):  # it can be read again
        batches = list(loader)
        assert [b["targets"].tolist() for b in batches] == [[0, 1], [2, 3]]
        assert batches[0]["img_paths"] == ["a", "a"]


def loader_config():
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    cfg = toy_cfg("DATALOADER.NUM_WORKERS", 1)
    loader, _ = module("data").build_reid_test_loader(cfg, test_set=[0], num_query=0)
    assert loader.num_workers == 1 and loader.device == torch.device("cpu")


def to_tensor():
    rgb = np.random.RandomState(0).randint(0, 255, (5, 4, 3), np.uint8)
    convert = module("data.transforms").ToTensor()
    for mode, planes in (("RGB", 3), ("L", 1), ("I", 1), ("F", 1), ("1", 1)):
        image = Image.fromarray(rgb).convert(mode)
        values = np.array(image).reshape(5, 4, planes).transpose(2, 0, 1)
        tensor = convert(image)
        expected = torch.from_numpy(values * 255.0 if mode == "1" else values)
        torch.testing.assert_close(tensor, expected.to(tensor.dtype))
        assert tensor.is_contiguous()
        assert tensor.dtype == (torch.int32 if mode == "I" else torch.float32)
    assert torch.equal(convert(rgb), convert(Image.fromarray(rgb)))


def random_affine():
    cfg = toy_cfg("INPUT.AFFINE.ENABLED", True)
    transforms = module("data.transforms").build_transforms(cfg)
    image = transforms(Image.new("RGB", (20, 40), (200, 100, 50)))
    assert image.shape == (3, *cfg.INPUT.SIZE_TRAIN)
    assert "resample" not in repr(transforms)


def preprocess_image():
    for name, model in (("baseline", "Baseline"), ("mgn", "MGN")):
        preprocess = getattr(module(f"modeling.meta_arch.{name}"), model).preprocess_image
        images = torch.full((2, 3, 4, 4), 16.0)
        for given in (images, {"images": images}, images.byte()):
            for _ in range(2):
                assert torch.equal(preprocess(Toy(), given), torch.full((2, 3, 4, 4), 3.0))
        assert torch.equal(images, torch.full((2, 3, 4, 4), 16.0))


def losses_in_float32():
    baseline = module("modeling.meta_arch.baseline").Baseline
    base = torch.randn(8, 512).repeat_interleave(2, 0) + 3
    features = base + 0.3 * torch.randn(16, 512) / 512**0.5  # two near ones per identity
    logits = torch.randn(16, 8)
    outputs = {"pred_class_logits": logits, "cls_outputs": logits, "features": features}
    model = baseline(
        backbone=torch.nn.Identity(),
        heads=torch.nn.Identity(),
        pixel_mean=[0.0],
        pixel_std=[1.0],
        loss_kwargs={
            "loss_names": ("CrossEntropyLoss", "TripletLoss"),
            "ce": {"eps": 0.1, "alpha": 0.2, "scale": 1.0},
            "tri": {"margin": 40.0, "norm_feat": False, "hard_mining": True, "scale": 1.0},
        },
    )
    losses = []
    for enabled in (False, True):
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=enabled),
            module("utils.events").EventStorage(),
        ):
            losses.append(model.losses(outputs, torch.arange(8).repeat_interleave(2)))
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=0)


def zero_grad():
    trainer, model = toy_trainer("SimpleTrainer")
    for _ in range(2):
        before = model.heads.weight.detach().clone()
        step(trainer)
        assert not torch.equal(model.heads.weight, before), "the weight did not move"
        assert model.heads.weight.grad.abs().sum() > 0
    torch.testing.assert_close(  # the gradients were set to 0 in between
        model.heads.weight.grad,
        torch.autograd.grad(
            Toy.forward(model, {"images": torch.ones(2, 4)})["loss"], model.heads.weight
        )[0],
        rtol=0.05,
        atol=0.05,
    )


def amp():
    trainer, model = toy_trainer("AMPTrainer")
    before = model.heads.weight.detach().clone()
    step(trainer)
    assert model.seen.dtype == torch.bfloat16
    assert not torch.equal(model.heads.weight, before)
    assert not trainer.grad_scaler.is_enabled()


def finished_run():
    defaults, hooks = module("engine.defaults"), module("engine.hooks")
    trainer = object.__new__(defaults.DefaultTrainer)
    defaults.TrainerBase.__init__(trainer)
    trainer.start_epoch = trainer.max_epoch = 2
    trainer.iters_per_epoch = 1
    trainer.register_hooks([hooks.EvalHook(1, dict)])
    assert trainer.train() is None


def short_run():
    events = module("utils.events")
    printer = events.CommonMetricPrinter(10)
    with events.EventStorage(0) as storage:
        storage.epoch = 0
        for storage.iter in (3, 3, 4, 4):
            storage.put_scalar("loss", 1.0)
            printer.write()
            assert printer._last_write[0] == storage.iter


def profiler():
    hook = module("engine.hooks").AutogradProfiler(lambda trainer: True, str(FOLDER))
    hook.trainer = types.SimpleNamespace(iter=3)
    hook.before_step()
    torch.ones(2).add(1)
    hook.after_step()
    assert (FOLDER / "profiler-trace-iter3.json").stat().st_size > 0


class Harmful:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (str(FOLDER / "harm"),)


def checkpoint_load():
    checkpointer = module("utils.checkpoint").Checkpointer(Toy(), str(FOLDER))
    numbers = {
        "metric": np.float64(0.5),
        "half": np.float16(2),
        "flag": np.bool_(True),
        "count": np.int64(3),
        "array": np.arange(6.0).reshape(2, 3),
    }
    allowed = set(torch.serialization.get_safe_globals())
    checkpointer.save("numbers", **numbers)
    loaded = checkpointer.load(str(FOLDER / "numbers.pth"))
    for key, value in numbers.items():
        assert type(loaded[key]) is type(value) and np.array_equal(loaded[key], value), key
    renamed = b"numpy.core.multiarray" if int(np.__version__[0]) > 1 else b"numpy._core.multiarray"
    checkpointer.load(str(other_numpys_file(FOLDER / "numbers.pth", renamed)))

    checkpointer.save("harmful", metric=Harmful())
    try:
        checkpointer.load(str(FOLDER / "harmful.pth"))
    except Exception as error:
        assert "weights" in str(error).lower(), error
    assert not (FOLDER / "harm").exists(), "loading a checkpoint ran code from it"
    assert set(torch.serialization.get_safe_globals()) == allowed


def other_numpys_file(path, new):
    """Write the checkpoint as numpy of the other major version would have."""
    import re
    import zipfile

    changed = path.with_name("other_numpy.pth")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                content, count = re.subn(rb"numpy\._?core\.multiarray", new, content)
                assert count
            target.writestr(name, content)
    return changed


def inference_context():
    model = Toy()
    with contextlib.suppress(KeyError), module("evaluation").inference_context(model):
        assert not model.training
        raise KeyError
    assert model.training
    evaluator = module("evaluation.evaluator")
    assert evaluator.inference_context is module("evaluation").inference_context


def jaccard():
    compute_dist = module("utils.compute_dist")
    features = torch.nn.functional.normalize(torch.randn(40, 8))
    distances = compute_dist.build_dist(features[:10], features[10:], "jaccard", k1=7, k2=3)
    own_cpu_search = compute_dist.compute_jaccard_distance(features, 7, 3, search_option=3)
    assert np.array_equal(distances, own_cpu_search[:10, 10:])
    assert distances.min() < 0.9


def euclidean():
    a, b = torch.randn(3, 5), torch.randn(4, 5)
    distances = module("utils.compute_dist").build_dist(a, b, "euclidean")
    expected = (a[:, None] - b[None]).pow(2).sum(2).numpy()
    np.testing.assert_allclose(distances, expected, rtol=1e-4, atol=1e-5)


def launch():
    import multiprocessing

    comm = module("utils.comm")
    seen = []

    def main(text):
        seen.append(
            (text, comm.get_world_size(), comm.get_local_rank(), torch.distributed.get_backend())
        )

    worker = sys.modules["fastreid.engine.launch"]._distributed_worker
    worker(0, main, 1, 1, 0, f"file://{FOLDER}/launch-{os.getpid()}", ("hello",))
    assert seen == [("hello", 1, 0, "gloo")]
    assert worker.__module__ == "occluded_reid.compat"
    assert multiprocessing.get_start_method() == "fork"


def ddp_wrap():
    one_process_group()
    model = Toy()
    wrapped = module("engine.defaults").DistributedDataParallel(
        model, device_ids=[0], broadcast_buffers=False
    )
    assert wrapped.module is model
    assert model.flags.tolist() == [True, False]
    wrapped({"images": torch.ones(2, 4)})["loss"].backward()
    assert model.heads.weight.grad.abs().sum() > 0


def byte_storage():
    one_process_group()
    comm = module("utils.comm")
    group = torch.distributed.group.WORLD
    tensor = comm._serialize_to_tensor({"a": 1}, group)
    assert tensor.dtype == torch.uint8 and tensor.dim() == 1
    comm.get_world_size = lambda: 2  # or all_gather would return at once
    assert comm.all_gather({"a": 1}) == [{"a": 1}]


# ------------------------------------------------- orders of import, and what is left behind


def load_all():
    """Import every module that has a patch, and what imports them."""
    compat = load_compat()
    importlib.import_module("fastreid.engine")
    for name in {**compat._PATCHES, **compat._CONTEXTS}:
        importlib.import_module(name)


def load_compat():
    return importlib.import_module("occluded_reid.compat")


def nothing_is_imported_ahead():
    load_compat()
    assert [name for name in sys.modules if name.startswith("fastreid")] == []
    module("config")
    assert not {"fastreid.data", "fastreid.engine", "fastreid.evaluation"} & set(sys.modules)


def config_first():
    import fastreid.config

    load_compat()
    from fastreid.data import build_reid_train_loader  # noqa: F401
    from fastreid.engine import DefaultTrainer  # noqa: F401

    assert fastreid.config.get_cfg()


def transforms_first():
    with contextlib.suppress(ImportError):  # this is how one learns that something is missing
        importlib.import_module("fastreid.data.transforms")
    load_compat()
    from fastreid.data.transforms import build_transforms

    build_transforms(toy_cfg("INPUT.AFFINE.ENABLED", True))


def names_held_by_the_user():
    from fastreid.modeling.meta_arch import Baseline, build_model
    from fastreid.solver import build_optimizer

    user = types.ModuleType("user")
    vars(user).update(Baseline=Baseline, build=build_model, optimizer=build_optimizer)
    sys.modules["user"] = user
    load_compat()

    assert user.optimizer is module("solver").build_optimizer is not build_optimizer
    assert user.Baseline.preprocess_image.__module__ == "occluded_reid.compat"


def imported_twice():
    load_all()
    finders = len(sys.meta_path)
    load = module("utils.checkpoint").Checkpointer._load_file
    train = module("engine").DefaultTrainer.train
    importlib.reload(load_compat())
    assert module("utils.checkpoint").Checkpointer._load_file is load
    for name in ("occluded_reid", "occluded_reid.compat"):
        del sys.modules[name]
    load_compat()
    assert module("engine").DefaultTrainer.train is train
    assert len(sys.meta_path) == finders


def reloaded():
    compat = load_compat()
    defaults = importlib.reload(module("engine.defaults"))
    train = defaults.DefaultTrainer.train
    assert train.__code__.co_filename == compat.__file__
    assert train.__wrapped__.__code__.co_filename == defaults.__file__  # repaired once


def nothing_else_changed():
    kept = ("torch", "torchvision", "collections", "multiprocessing", "threading", "sys")
    before = {
        (name, key): value
        for name, content in list(sys.modules.items())
        if name.split(".")[0] in kept
        for key, value in list(vars(content).items())
        + [
            (f"{cls}.{attribute}", value)
            for cls, held in list(vars(content).items())
            if isinstance(held, type)
            for attribute, value in vars(held).items()
        ]
        if callable(value)
    }
    assert len(before) > 10_000
    load_all()

    for (name, key), value in before.items():
        held, _, attribute = key.partition(".")
        now = vars(sys.modules[name])[held]
        now = vars(now)[attribute] if attribute else now
        assert now is value, (name, key)


ORDERS = (
    nothing_is_imported_ahead,
    config_first,
    transforms_first,
    names_held_by_the_user,
    imported_twice,
    reloaded,
    nothing_else_changed,
)


# ------------------------------------------------------------------------ with, late, without


def run(check):
    """Run a patch's check with warnings as errors."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check()


def run_with(names):
    """Import compat first, then fast-reid, and write the outcome of every check to with.json."""
    load_all()
    outcomes = {name: outcome(run, globals()[name]) for name in names}
    (FOLDER / "with.json").write_text(json.dumps(outcomes))


def run_late(name, patches, contexts, *, without):
    """Repair what is imported, with all patches or all but ``name``, then run its check."""
    left_out = {name} if without else set()
    for registry, full in ((load_compat()._PATCHES, patches), (load_compat()._CONTEXTS, contexts)):
        registry.clear()
        for module_name, functions in full.items():
            registry[module_name] = [one for one in functions if one.__name__ not in left_out]
    load_compat()._repair_imported()
    run(globals()[name])


def outcome(function, *args, **kwargs):
    """Fork, call ``function`` there, and return ``ok`` or the end of the traceback."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                function(*args, **kwargs)
                text = "ok"
            except BaseException:
                text = traceback.format_exc()
        os.write(write, text.encode()[-4000:])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return text


def main():
    import faiss  # noqa: F401  (what takes long is imported once, before the forks)
    import sklearn.metrics  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    result = {order.__name__: outcome(order) for order in ORDERS}

    compat = load_compat()
    patches, contexts = dict(compat._PATCHES), dict(compat._CONTEXTS)
    registered = [one for many in (*patches.values(), *contexts.values()) for one in many]
    names = {one.__name__ for one in registered} - {"torchvision_mismatch"}
    result["import"] = outcome(run_with, names)
    with_patch = json.loads((FOLDER / "with.json").read_text())

    compat._PATCHES.clear()
    compat._CONTEXTS.pop("fastreid.evaluation.rank")
    compat._CONTEXTS.pop("fastreid.evaluation.roc")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_all()
    for name in patches:
        vars(importlib.import_module(name)).pop(compat._REPAIRED, None)
    for name in names:
        late = {
            key: outcome(run_late, name, patches, contexts, without=key == "without")
            for key in ("late", "without")
        }
        result[name] = {"with": with_patch[name], **late}
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
