"""Every key that this package adds to fast-reid's, with its default, choices and range."""

from __future__ import annotations

from fastreid.config import CfgNode

WITH_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Values of MODEL.COMPILE_MODE that record a step on a GPU and replay it."""


def add_occluded_reid_config(cfg: CfgNode) -> None:
    """Add the keys of this package to fast-reid's configuration."""
    # Seed of all randomness. One seed gives one run on one machine, whatever NUM_WORKERS is. -1 =
    # from the clock; the log and OUTPUT_DIR/config.yaml hold the value used.
    cfg.SEED = -1
    # Name of the run, drawn when it starts, in all files that it leaves; not to be set.
    cfg.RUN_ID = ""

    # Data type of autocast with SOLVER.AMP.ENABLED: bfloat16, or float16 (CUDA only).
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Iterations (forward and backward passes of IMS_PER_BATCH images) per optimizer step.
    # Batch statistics, hard mining and memory updates stay per iteration.
    cfg.SOLVER.ACCUMULATE = 1
    # When SCHED steps after the warm-up: each EPOCH, as in fast-reid, or each ITERATION, so that
    # short runs follow the curve too. STEPS and DELAY_EPOCHS count epochs in both.
    cfg.SOLVER.SCHED_BY = "EPOCH"
    # Iterations between two records of the losses (log, metrics.json, TensorBoard).
    cfg.SOLVER.LOG_PERIOD = 50
    # Add pictures of the first batch, and of the worst queries at each evaluation, to TensorBoard's
    # events. They then hold images of people, which a tracker elsewhere gets too.
    cfg.SOLVER.LOG_IMAGES = False
    # Warn if a loss term exceeds its median of the last 100 iterations by this factor; 0 = off.
    cfg.SOLVER.SPIKE_FACTOR = 10.0

    # Compile the training step with torch.compile; evaluation is not compiled.
    cfg.MODEL.COMPILE = False
    # Mode of torch.compile: default; reduce-overhead replays CUDA graphs; max-autotune also tunes
    # kernels for minutes. CUDA graphs need a GPU and a single process.
    cfg.MODEL.COMPILE_MODE = "default"
    # Store convolution weights channels-last: faster for full-size convolutional networks, not for
    # transformers.
    cfg.MODEL.CHANNELS_LAST = False
    # Exponential moving average of the weights; evaluated and saved beside the raw ones.
    cfg.MODEL.EMA = CfgNode({"ENABLED": False, "DECAY": 0.999})

    # Protocol of data sets without one in their name (`Name:protocol`); "" = each set's default.
    cfg.DATASETS.PROTOCOL = ""
    # Only warn if a data set's counts differ from the published ones.
    cfg.DATASETS.ALLOW_PARTIAL = False
    # Skip those of TESTS that are not on the disk, with a warning, instead of stopping.
    cfg.DATASETS.SKIP_MISSING = False
    # The drawn data set: size (tiny, small, paper or large), its own seed, folder ("" = data root).
    cfg.DATASETS.SYNTHETIC = CfgNode({"SIZE": "small", "SEED": 0, "ROOT": ""})
    # Queries of Occluded<Base>: the occluder set whose test split is pasted over them ("" =
    # synthetic occluders), the seed of the pasting, folder of the images ("" = data root).
    cfg.DATASETS.OCCLUDED = CfgNode({"OCCLUDERS": "", "SEED": 0, "ROOT": ""})

    # For an unreadable image: raise an error, or skip it with a warning.
    cfg.INPUT.ON_ERROR = "raise"
    # How visibility enters the comparison of images (:mod:`occluded_reid.modeling.similarity`).
    # paper: as the method's paper has it; METRIC compares one vector per image, and dot is AONet's
    # Eq. 8. The others compare part by part, whatever METRIC is. shared: the mean cosine of the
    # parts, weighted by their visibility in both images; query: weighted by that in the query.
    cfg.TEST.SIMILARITY = "paper"
    # Gallery images at the same distance: against ranks a match behind them; gallery_order lets the
    # order of the gallery decide, as fast-reid's tables do.
    cfg.TEST.TIES = "against"
    # How training images are augmented; a seed gives the same images. transforms: image by image,
    # by fast-reid. workers: batch by batch in the loader's workers, several times faster; supports
    # zero padding, flip, color jitter without hue, erasing and NPO, and refuses the others.
    cfg.INPUT.AUGMENTATION = "transforms"
    # Folder where training images are kept decoded at SIZE_TRAIN (98 kB each at 256 x 128), for
    # AUGMENTATION workers; made on first use. "" = decode them in each epoch.
    cfg.INPUT.CACHE = ""
    # Random erasing: give each erased pixel a random value, not all of them fast-reid's VALUE.
    cfg.INPUT.REA.RANDOM = False
    # Probability of fast-reid's random resized crop (INPUT.CROP), which shows a part of the image,
    # of an area in SCALE and a width / height in RATIO, at the size of a whole one.
    cfg.INPUT.CROP.PROB = 1.0
    _add_npo_config(cfg)
    _add_backbone_config(cfg)


def _add_npo_config(cfg: CfgNode) -> None:
    """Add the keys of NPO augmentation (FED Sec. 3.1, :mod:`occluded_reid.data.transforms.npo`)."""
    # Paste an occluder from an occlusion set over training images. replace: the image itself is
    # occluded, with probability PROB; any model can use it. pair: each sample holds the image and,
    # as `occluded_images`, its occluded copy (FED).
    cfg.INPUT.NPO = CfgNode({"ENABLED": False, "MODE": "replace", "PROB": 0.5})
    # Folders of patches, opaque images of occluders and backgrounds: OS_1 (30 patches of
    # Occluded-Duke) in the paper, OS_1 and OS_2 (30 of MSMT17) for FED*. [] = synthetic patches.
    cfg.INPUT.NPO.OCCLUDERS = []
    # A patch with alpha = p_h / p_w above this is a vertical occluder. Paper 3, authors' code 2.
    cfg.INPUT.NPO.VERTICAL_RATIO = 3.0
    # Range of the pasted height of a horizontal occluder as a fraction of H, and of the width of a
    # vertical one as a fraction of W. Paper: 1/4 to 1/2.
    cfg.INPUT.NPO.EXTENT = [0.25, 0.5]
    # Augmentation of the patch itself; the paper gives no values. Minimum side of its random crop
    # as a fraction of the patch's side (1: no crop, as in the authors' code), flip probability, and
    # maximum relative change of brightness, contrast and saturation (authors' code: 0.5).
    cfg.INPUT.NPO.CROP = cfg.INPUT.NPO.FLIP = 0.5
    cfg.INPUT.NPO.JITTER = [0.5, 0.5, 0.5]
    # Jitter vertical occluders as well (authors' code: no).
    cfg.INPUT.NPO.JITTER_VERTICAL = True
    # Number N of horizontal stripes that are labelled (paper 4), and the covered fraction of a
    # stripe above which it counts as occluded (paper 3/4).
    cfg.INPUT.NPO.NUM_STRIPES, cfg.INPUT.NPO.COVERED = 4, 0.75


def _add_backbone_config(cfg: CfgNode) -> None:
    """Add the keys of our backbones (:mod:`occluded_reid.modeling.backbones`) to fast-reid's."""
    # Number of channels; 0 = the backbone's. fast-reid's default is 2048.
    cfg.MODEL.BACKBONE.FEAT_DIM = 0
    # Network of build_timm_backbone, by timm's name, and where its features end: block, or, of
    # networks that have one before the pooling, head, their head convolution.
    cfg.MODEL.BACKBONE.TIMM_NAME = ""
    cfg.MODEL.BACKBONE.FEATURE = "block"
    # Side of a patch in pixels; the step between patches is fast-reid's STRIDE_SIZE.
    cfg.MODEL.BACKBONE.PATCH_SIZE = [16, 16]
    # Number of blocks and heads, hidden size of the MLPs over FEAT_DIM; used if DEPTH is "custom".
    cfg.MODEL.BACKBONE.NUM_BLOCKS = cfg.MODEL.BACKBONE.NUM_HEADS = 12
    cfg.MODEL.BACKBONE.MLP_RATIO = 4.0
    # Number of the training set's cameras, each with an embedding that is added to all tokens with
    # fast-reid's weight SIE_COE (TransReID's side information); for MODEL.META_ARCHITECTURE
    # CameraBaseline, and never across data sets. 0 = none.
    cfg.MODEL.BACKBONE.CAMERA_EMBEDDING = 0
    # Recompute the blocks in the backward pass: less memory, about 1.2 times the time.
    cfg.MODEL.BACKBONE.RECOMPUTE = False
    # timm's name of the weights that PRETRAIN downloads if PRETRAIN_PATH is ""; "" = those of DEPTH
    # (base: the ImageNet-21k weights that TransReID and FED start from).
    cfg.MODEL.BACKBONE.PRETRAIN_NAME = ""
    # Interpolation of pretrained position embeddings to another grid: bicubic (timm, antialiased)
    # or bilinear (fast-reid, TransReID).
    cfg.MODEL.BACKBONE.POSITION_RESIZE = "bicubic"


CHOICES = {
    "INPUT.AUGMENTATION": ("transforms", "workers"),
    "INPUT.NPO.MODE": ("pair", "replace"),
    "INPUT.ON_ERROR": ("raise", "skip"),
    "MODEL.BACKBONE.FEATURE": ("block", "head"),
    "MODEL.BACKBONE.POSITION_RESIZE": ("bicubic", "bilinear"),
    "MODEL.COMPILE_MODE": ("default", *WITH_CUDA_GRAPHS),
    "SOLVER.AMP.DTYPE": ("bfloat16", "float16"),
    "SOLVER.SCHED": ("CosineAnnealingLR", "MultiStepLR"),
    "SOLVER.SCHED_BY": ("EPOCH", "ITERATION"),
    "TEST.METRIC": ("cosine", "euclidean", "dot"),
    "TEST.SIMILARITY": ("paper", "shared", "query"),
    "TEST.TIES": ("against", "gallery_order"),
}

# minimum and maximum
RANGES = {
    "DATALOADER.NUM_INSTANCE": (1, 10**9),
    "DATALOADER.NUM_WORKERS": (0, 1024),
    "INPUT.CROP.PROB": (0, 1),
    "MODEL.EMA.DECAY": (0, 1),
    "SEED": (-1, 2**31 - 1),
    "SOLVER.ACCUMULATE": (1, 10**9),
    "SOLVER.BASE_LR": (0, float("inf")),
    "SOLVER.CHECKPOINT_PERIOD": (0, 10**9),
    "SOLVER.DELAY_EPOCHS": (0, 10**9),
    "SOLVER.ETA_MIN_LR": (0, float("inf")),
    "SOLVER.FREEZE_ITERS": (0, 10**9),
    "SOLVER.GAMMA": (0, float("inf")),
    "SOLVER.IMS_PER_BATCH": (1, 10**9),
    "SOLVER.LOG_PERIOD": (1, 10**9),
    "SOLVER.MAX_EPOCH": (1, 10**9),
    "SOLVER.MOMENTUM": (0, 1),
    "SOLVER.SPIKE_FACTOR": (0, float("inf")),
    "SOLVER.WARMUP_ITERS": (0, 10**9),
    "SOLVER.WEIGHT_DECAY": (0, float("inf")),
    "SOLVER.WEIGHT_DECAY_NORM": (0, float("inf")),
    "TEST.EVAL_PERIOD": (0, 10**9),
    "TEST.IMS_PER_BATCH": (1, 10**9),
}
# fast-reid's Baseline silently ignores a loss whose name it does not know
LOSSES = ("CircleLoss", "Cosface", "CrossEntropyLoss", "TripletLoss")
