"""Configuration: fast-reid's keys, ours beside them, and messages a person can act on."""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from fastreid.config import CfgNode
from fastreid.config import get_cfg as get_fastreid_cfg

from occluded_reid.errors import UserError

logger = logging.getLogger(__name__)

WITH_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Values of MODEL.COMPILE_MODE that record a step on a GPU and replay it."""


def add_occluded_reid_config(cfg: CfgNode) -> None:
    """Add the keys of this package to fast-reid's configuration."""
    # Seed of everything random. One seed on one machine gives one run, whatever NUM_WORKERS is.
    # -1 draws one from the clock; the value used stands in the log and in OUTPUT_DIR/config.yaml.
    cfg.SEED = -1

    # Number type of autocast where SOLVER.AMP.ENABLED: bfloat16, or float16 (CUDA only).
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Iterations (forward and backward passes of IMS_PER_BATCH images) per optimizer step.
    # Batch statistics, hard mining and memory updates stay per iteration.
    cfg.SOLVER.ACCUMULATE = 1
    # Iterations between two readings of the losses (log line, metrics.json, TensorBoard).
    cfg.SOLVER.LOG_PERIOD = 50
    # Warn where a loss term is above so many times its median of the last 100 iterations; 0 = off.
    cfg.SOLVER.SPIKE_FACTOR = 10.0

    # Compile the training step with torch.compile; evaluation stays as it is.
    cfg.MODEL.COMPILE = False
    # How: default; reduce-overhead, which replays CUDA graphs: the host hands a step to the GPU in
    # one piece, and inputs and losses stay in the graphs' memory; max-autotune, which tries kernels
    # for minutes and replays CUDA graphs too. On a CPU there are no graphs; one process only.
    cfg.MODEL.COMPILE_MODE = "default"
    # Lay the weights of convolutions out with their channels last: faster for convolutional
    # networks of full size, not for transformers.
    cfg.MODEL.CHANNELS_LAST = False
    # Exponential moving average of the weights; evaluated and saved beside the raw ones.
    cfg.MODEL.EMA = CfgNode({"ENABLED": False})
    cfg.MODEL.EMA.DECAY = 0.999

    # Protocol of every data set that is not named as `Name:protocol`; "" is its default one.
    cfg.DATASETS.PROTOCOL = ""
    # Go on with a warning where a data set's counts are not the published ones.
    cfg.DATASETS.ALLOW_PARTIAL = False
    # Test on those of TESTS that are on the disk, and name the others, instead of stopping.
    cfg.DATASETS.SKIP_MISSING = False
    # The drawn data set: tiny, small or paper; its own seed; where it is kept ("" = data root).
    cfg.DATASETS.SYNTHETIC = CfgNode({"SIZE": "small", "SEED": 0, "ROOT": ""})
    # Queries of Occluded<Base>: the occluder set whose test split is pasted over them ("" = drawn
    # occluders), the seed of the pasting, where the pictures are kept ("" = data root).
    cfg.DATASETS.OCCLUDED = CfgNode({"OCCLUDERS": "", "SEED": 0, "ROOT": ""})

    # An unreadable image: raise (stop and name it) or skip (name it once and go on without it).
    cfg.INPUT.ON_ERROR = "raise"
    # Who augments training images; a seed gives the same images. transforms: fast-reid's, one by
    # one. workers: the loader's workers by batch, some times faster. device: they crop and mirror
    # only, the GPU does the rest. The last two take padding with zeros, flip, colour jitter without
    # hue, erasing and NPO, and refuse the other augmentations.
    cfg.INPUT.AUGMENTATION = "transforms"
    # Folder where training images are kept decoded at SIZE_TRAIN (98 kB each at 256 x 128), for
    # workers and device; made when first used. "" = decode them in each epoch.
    cfg.INPUT.CACHE = ""
    _add_npo_config(cfg)
    _add_vit_config(cfg)


def _add_npo_config(cfg: CfgNode) -> None:
    """Add the keys of NPO augmentation (FED Sec. 3.1, :mod:`occluded_reid.occlusion`)."""
    # Paste an occluder from an occlusion set over training images.
    cfg.INPUT.NPO = CfgNode({"ENABLED": False})
    # replace: the training image itself is occluded, with probability PROB; any model can use it.
    # pair: each sample holds the image and, as `occluded_images`, its occluded copy (FED).
    cfg.INPUT.NPO.MODE = "replace"
    cfg.INPUT.NPO.PROB = 0.5
    # Folders of patches, opaque pictures of occluders and backgrounds: OS_1 (30 patches of
    # Occluded-Duke) in the paper, OS_1 and OS_2 (30 of MSMT17) for FED*. [] = the drawn set.
    cfg.INPUT.NPO.OCCLUDERS = []
    # A patch with alpha = p_h / p_w above this is a vertical occluder. Paper 3, authors' code 2.
    cfg.INPUT.NPO.VERTICAL_RATIO = 3.0
    # Range of the pasted height of a horizontal occluder as a fraction of H, and of the width of a
    # vertical one as a fraction of W. Paper: 1/4 to 1/2.
    cfg.INPUT.NPO.EXTENT = [0.25, 0.5]
    # The patch's own augmentation; the paper names it without numbers. Least side of its random
    # crop as a fraction of the patch's side (1: no crop, as in the authors' code), probability of a
    # flip, and the greatest relative change of brightness, contrast and saturation (authors: 0.5).
    cfg.INPUT.NPO.CROP = 0.5
    cfg.INPUT.NPO.FLIP = 0.5
    cfg.INPUT.NPO.JITTER = [0.5, 0.5, 0.5]
    # Jitter vertical occluders as well (authors' code: no).
    cfg.INPUT.NPO.JITTER_VERTICAL = True
    # Number N of horizontal stripes that are labelled (paper 4), and the covered fraction of a
    # stripe above which it counts as occluded (paper 3/4).
    cfg.INPUT.NPO.NUM_STRIPES = 4
    cfg.INPUT.NPO.COVERED = 0.75


def _add_vit_config(cfg: CfgNode) -> None:
    """Add the keys of the transformers (:mod:`occluded_reid.backbones`) to fast-reid's."""
    # Side of a patch in pixels; the step between patches is fast-reid's STRIDE_SIZE.
    cfg.MODEL.BACKBONE.PATCH_SIZE = [16, 16]
    # Blocks, heads and width of the hidden layers over FEAT_DIM; read where DEPTH is "custom".
    cfg.MODEL.BACKBONE.NUM_BLOCKS = 12
    cfg.MODEL.BACKBONE.NUM_HEADS = 12
    cfg.MODEL.BACKBONE.MLP_RATIO = 4.0
    # Number of cameras with an embedding of their own, added to all tokens with fast-reid's weight
    # SIE_COE (TransReID's side information). 0 = none.
    cfg.MODEL.BACKBONE.CAMERA_EMBEDDING = 0
    # Compute the blocks again in the backward pass: less memory, some 1.2 times the time.
    cfg.MODEL.BACKBONE.RECOMPUTE = False
    # Which weights PRETRAIN downloads where PRETRAIN_PATH is "", by timm's name; "" = those of
    # DEPTH (base: the ImageNet-21k weights that TransReID and FED start from).
    cfg.MODEL.BACKBONE.PRETRAIN_NAME = ""
    # How pretrained position embeddings are brought to another grid: bicubic (timm, antialiased) or
    # bilinear (fast-reid, TransReID).
    cfg.MODEL.BACKBONE.POSITION_RESIZE = "bicubic"


AddKeys = Callable[[CfgNode], None]


def get_cfg(add_keys: Iterable[AddKeys] = ()) -> CfgNode:
    """Return fast-reid's default configuration with our keys and those of ``add_keys``."""
    cfg = get_fastreid_cfg()
    for add in (add_occluded_reid_config, *add_keys):
        add(cfg)
    return cfg


def load_config(
    path: str = "",
    overrides: Sequence[str] = (),
    *,
    add_keys: Iterable[AddKeys] = (),
    also: Sequence[str] = (),
) -> CfgNode:
    """Read a configuration file, those beside it, then the overrides; freeze the result.

    Without a GPU, ``MODEL.DEVICE: cuda`` becomes ``cpu`` and the log says so.

    Args:
        path: a YAML file, possibly with ``_BASE_``; ``""`` for the defaults.
        overrides: ``KEY VALUE KEY VALUE ...``.
        add_keys: functions that add the keys of methods, such as ``add_fed_config``.
        also: more YAML files, read in this order; the later one wins.

    Raises:
        UserError: no such file, no YAML, an unknown key (the nearest ones are named), or a value
            of another type.
    """
    cfg = get_cfg(add_keys)
    for file in filter(None, (path, *also)):
        _merge_file(cfg, file)
    _merge_overrides(cfg, list(overrides))
    _check_choices(cfg)
    if str(cfg.MODEL.DEVICE).startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU found: going on on the CPU (MODEL.DEVICE cuda -> cpu)")
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def _merge_file(cfg: CfgNode, path: str) -> None:
    if not Path(path).is_file():
        raise UserError(f"no configuration file {path}{_files_beside(Path(path))}")
    try:
        loaded = CfgNode.load_yaml_with_base(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: its _BASE_ {error.filename} does not exist") from error
    except RecursionError as error:
        raise UserError(f"{path}: its _BASE_ leads back to itself") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{path} is no configuration (YAML mapping): {error}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is no configuration (YAML mapping)")
    _refuse_unknown_keys(cfg, (key for key, _ in leaves(loaded)), path)
    sections = {key for key, _ in leaves(cfg)}
    for key, value in leaves(loaded):
        if key not in sections and not isinstance(value, dict):
            raise UserError(f"{path}: {key} is a section; it needs keys below it, not {value!r}")
    _merge(cfg, [(key, value) for key, value in leaves(loaded) if value != {}], path)


def _merge_overrides(cfg: CfgNode, overrides: list[str]) -> None:
    if overrides and overrides[0] == "--":
        overrides = overrides[1:]
    if options := [word for word in overrides if word.startswith("--")]:
        raise UserError(
            f"{options[0]} stands behind KEY VALUE pairs, where words are read as such pairs; "
            "options go before the first KEY"
        )
    if joined := [word for word in overrides[0::2] if "=" in word]:
        key, _, value = joined[0].partition("=")
        raise UserError(f"{joined[0]}: key and value stand apart, {key} {value}")
    if len(overrides) % 2:
        raise UserError(
            f"overrides come as KEY VALUE pairs, but {len(overrides)} words were given: "
            + " ".join(overrides)
        )
    _refuse_unknown_keys(cfg, iter(overrides[0::2]), "the command line")
    _merge(cfg, list(zip(overrides[0::2], overrides[1::2], strict=True)), "the command line")


def _merge(cfg: CfgNode, pairs: Iterable[tuple[str, Any]], source: str) -> None:
    """Set keys; a value may be the text of a Python literal."""
    before = dict(leaves(cfg))
    for key, given in pairs:
        present, value = before.get(key), CfgNode._decode_cfg_value(given)
        if type(present) is float and type(value) is int:
            value = float(value)
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, KeyError, AssertionError) as error:
            kind = _KINDS.get(type(present), "section with keys below it")
            example = "" if present in (None, "", [], ()) else f" such as {present!r}"
            raise UserError(
                f"{source}: {key} cannot be {value!r}; it takes a {kind}{example}"
            ) from error


_KINDS = {
    bool: "truth value",
    float: "number with a decimal point",
    int: "whole number",
    list: "list",
    str: "text",
    tuple: "list",
}


def _refuse_unknown_keys(cfg: CfgNode, keys: Iterator[str], source: str) -> None:
    known = [key for key, _ in leaves(cfg)]
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in range(key.count(".") + 1)}
    for key in keys:
        if key in nodes or key in known:
            continue
        near = _nearest(key, known)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"{source}: there is no configuration key {key}{hint}")


def _nearest(key: str, known: list[str]) -> list[str]:
    """The known keys that look most like ``key``, in any upper or lower case."""
    by_upper = {name.upper(): name for name in known}
    near = difflib.get_close_matches(key.upper(), by_upper, n=3, cutoff=0.6)
    return [by_upper[name] for name in near]


@contextlib.contextmanager
def changed_copy(cfg: CfgNode) -> Iterator[CfgNode]:
    """Give a copy of ``cfg`` whose keys can be set inside the block; it is frozen after it."""
    copy = cfg.clone()
    copy.defrost()
    yield copy
    copy.freeze()


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a configuration with its whole name, such as ``SOLVER.BASE_LR``."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def _files_beside(path: Path) -> str:
    """Name the YAML files a mistyped path may have meant."""
    ours = (found for home in ("configs", "projects") for found in Path(home).rglob("*.yml"))
    candidates = sorted({str(found) for found in (*path.parent.glob("*.yml"), *ours)})
    near = difflib.get_close_matches(str(path), candidates, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


_CHOICES = {
    "INPUT.AUGMENTATION": ("transforms", "workers", "device"),
    "INPUT.NPO.MODE": ("pair", "replace"),
    "INPUT.ON_ERROR": ("raise", "skip"),
    "MODEL.BACKBONE.POSITION_RESIZE": ("bicubic", "bilinear"),
    "MODEL.COMPILE_MODE": ("default", *WITH_CUDA_GRAPHS),
    "SOLVER.AMP.DTYPE": ("bfloat16", "float16"),
    "SOLVER.SCHED": ("CosineAnnealingLR", "MultiStepLR"),
    "TEST.METRIC": ("cosine", "euclidean", "dot"),
}


# least and greatest value
_RANGES = {
    "DATALOADER.NUM_WORKERS": (0, 1024),
    "MODEL.EMA.DECAY": (0, 1),
    "SEED": (-1, 2**31 - 1),
    "SOLVER.ACCUMULATE": (1, 10**9),
    "SOLVER.BASE_LR": (0, float("inf")),
    "SOLVER.IMS_PER_BATCH": (1, 10**9),
    "SOLVER.LOG_PERIOD": (1, 10**9),
    "SOLVER.MAX_EPOCH": (1, 10**9),
    "SOLVER.SPIKE_FACTOR": (0, float("inf")),
    "SOLVER.WARMUP_ITERS": (0, 10**9),
    "TEST.EVAL_PERIOD": (0, 10**9),
    "TEST.IMS_PER_BATCH": (1, 10**9),
}
# fast-reid's Baseline leaves out, without a word, a loss whose name it does not know
_LOSSES = ("CircleLoss", "Cosface", "CrossEntropyLoss", "TripletLoss")


def replays_cuda_graphs(cfg: CfgNode) -> bool:
    """Whether training steps are recorded and replayed, where there is a GPU."""
    return cfg.MODEL.COMPILE and cfg.MODEL.COMPILE_MODE in WITH_CUDA_GRAPHS


def _check_choices(cfg: CfgNode) -> None:
    values = dict(leaves(cfg))
    for key in ("INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST"):
        _check_size(key, values[key])
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise UserError(f"{key} is {values[key]!r}; it can be {' or '.join(choices)}")
    for key, (least, greatest) in _RANGES.items():
        if not least <= values[key] <= greatest:
            raise UserError(f"{key} is {values[key]}; it must be from {least} to {greatest}")
    unknown = [name for name in cfg.MODEL.LOSSES.NAME if name not in _LOSSES]
    if unknown or not cfg.MODEL.LOSSES.NAME:
        raise UserError(
            f"MODEL.LOSSES.NAME is {tuple(cfg.MODEL.LOSSES.NAME)}; it can hold {', '.join(_LOSSES)}"
        )
    if replays_cuda_graphs(cfg) and cfg.SOLVER.ACCUMULATE > 1:
        raise UserError(
            f"MODEL.COMPILE_MODE {cfg.MODEL.COMPILE_MODE} replays CUDA graphs, which write over "
            "the gradients of the iteration before; with SOLVER.ACCUMULATE "
            f"{cfg.SOLVER.ACCUMULATE} take MODEL.COMPILE_MODE default"
        )
    if not cfg.OUTPUT_DIR:
        raise UserError("OUTPUT_DIR is empty; name the folder of the run")
    if not cfg.DATASETS.NAMES:
        raise UserError("DATASETS.NAMES is empty; name a data set to train on")
    pretrained = cfg.MODEL.BACKBONE.PRETRAIN_PATH
    if cfg.MODEL.BACKBONE.PRETRAIN and pretrained and not Path(pretrained).is_file():
        raise UserError(
            f"there are no pretrained weights {pretrained} (MODEL.BACKBONE.PRETRAIN_PATH)"
        )
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise UserError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; it can be cuda or cpu") from error
    without_gpu = not torch.cuda.is_available() or str(cfg.MODEL.DEVICE) == "cpu"
    if cfg.SOLVER.AMP.ENABLED and values["SOLVER.AMP.DTYPE"] == "float16" and without_gpu:
        raise UserError("SOLVER.AMP.DTYPE float16 needs a GPU; use bfloat16 on the CPU")


def _check_size(key: str, size: Sequence[Any]) -> None:
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(f"{key} is {size}; it must be height and width in pixels: [256, 128]")
    height, width = size
    if width > height:
        logger.warning(
            f"{key} is [height, width]: images {width} wide and {height} high are wider than people"
        )
