"""Each row of the papers' tables: its configuration, resolved, against all that the paper states.

What the papers leave open (and where a value here is our choice) stands on the projects' pages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastreid.config import CfgNode
from recipes import find_differences

from occluded_reid.config import leaves, load_config
from occluded_reid.config.methods import installed_methods

ADD_KEYS = installed_methods()
PROJECTS = Path(__file__).parents[1] / "projects"
OS_1, OS_2 = "datasets/occluders/OS1", "datasets/occluders/OS2"


def on(train: str, *tests: str) -> dict[str, Any]:
    return {"DATASETS.NAMES": (train,), "DATASETS.TESTS": tests or (train,)}


COMMON = {  # to both papers
    **on("OccludedDuke"),
    "INPUT.SIZE_TRAIN": (256, 128), "INPUT.SIZE_TEST": (256, 128),
    "MODEL.BACKBONE.PRETRAIN": True,
    "DATALOADER.SAMPLER_TRAIN": "NaiveIdentitySampler",
    "batch": (4,) * 16,  # 16 identities, 4 images of each
    "SOLVER.MAX_EPOCH": 120, "SOLVER.ACCUMULATE": 1, "MODEL.EMA.ENABLED": False,
    "TEST.RERANK.ENABLED": False, "TEST.AQE.ENABLED": False, "TEST.FLIP.ENABLED": False,
}  # fmt: skip
CROP_AND_FLIP = [
    ("Resize", (256, 128)), ("Pad", 10), ("RandomCrop", (256, 128)),
    ("RandomHorizontalFlip", 0.5), ("ToTensor",),
]  # fmt: skip

# --------------------------------------------------------------------------------------- FED

VIT = COMMON | {  # Sec. 4.2
    "augmentation": CROP_AND_FLIP, "INPUT.NPO.ENABLED": False,
    "MODEL.META_ARCHITECTURE": "Baseline",
    "MODEL.BACKBONE.NAME": "build_class_token_vit_backbone", "MODEL.BACKBONE.DEPTH": "base",
    "MODEL.BACKBONE.PATCH_SIZE": (16, 16), "MODEL.BACKBONE.STRIDE_SIZE": (16, 16),
    "MODEL.BACKBONE.CAMERA_EMBEDDING": 0,
    "MODEL.LOSSES.NAME": ("CrossEntropyLoss", "TripletLoss"), "MODEL.LOSSES.TRI.HARD_MINING": True,
    "MODEL.HEADS.WITH_BNNECK": True, "TEST.METRIC": "cosine",
    "optimizer": "SGD", "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4,
    "warm-up": 5,
    "rates": {5: 0.008, 33: 0.00688, 62: 0.00406, 91: 0.001205, 119: 0.0000175},  # cosine
}  # fmt: skip
FED = VIT | {
    "INPUT.NPO.ENABLED": True, "INPUT.NPO.MODE": "pair", "INPUT.NPO.OCCLUDERS": (OS_1,),
    "INPUT.NPO.VERTICAL_RATIO": 3.0, "INPUT.NPO.EXTENT": (0.25, 0.5),
    "INPUT.NPO.NUM_STRIPES": 4, "INPUT.NPO.COVERED": 0.75,
    "MODEL.META_ARCHITECTURE": "FED", "MODEL.BACKBONE.NAME": "build_token_vit_backbone",
    "MODEL.LOSSES.NAME": ("CrossEntropyLoss",), "MODEL.LOSSES.TRI.HARD_MINING": False,  # not read
    "MODEL.HEADS.WITH_BNNECK": False,  # not read
    "MODEL.FED.NUM_PARTS": 4, "MODEL.FED.ERASING": True, "MODEL.FED.DIFFUSION": True,
    "MODEL.FED.NUM_NEIGHBORS": 8, "MODEL.FED.NUM_HEADS": 8, "MODEL.FED.MEMORY_MOMENTUM": 0.2,
    "MODEL.FED.TEMPERATURE": 0.05, "MODEL.FED.VISIBILITY_LOSS": True,
    "MODEL.FED.CONTRAST_LOSS": True, "MODEL.FED.VISIBILITY_WEIGHT": 0.5,
    "MODEL.FED.IDENTITY_WEIGHT": 0.5, "MODEL.FED.CONTRAST_WEIGHT": 0.5,
}  # fmt: skip
RE = VIT | {
    "augmentation": [*CROP_AND_FLIP, ("RandomValueErasing", 0.5, (123.675, 116.28, 103.53))]
}
SIE = RE | {"MODEL.META_ARCHITECTURE": "CameraBaseline"}
MARKET = on("Market1501", "Market1501", "OccludedREID", "PartialREID")
DUKE = on("DukeMTMC") | {"MODEL.FED.VISIBILITY_LOSS": False}
FED_STAR = {"INPUT.NPO.OCCLUDERS": (OS_1, OS_2)}
NO_OEM, NO_FDM = {"MODEL.FED.ERASING": False}, {"MODEL.FED.DIFFUSION": False}


def neighbors(prefix: str, row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"ablation/{prefix}k{k}": row | {"MODEL.FED.NUM_NEIGHBORS": k} for k in (2, 4, 6, 8)}


FED_ROWS = {
    "baselines/vit_occ_duke": RE,  # Table 1
    "baselines/transreid_occ_duke": SIE | {"MODEL.BACKBONE.CAMERA_EMBEDDING": 8},
    "occ_duke": FED,
    "fed_star": FED | FED_STAR,
    "fed_star_market1501": FED | MARKET | FED_STAR,
    "baselines/vit_market1501": RE | MARKET,  # and Table 2
    "market1501": FED | MARKET,
    "baselines/vit_dukemtmc": RE | on("DukeMTMC"),  # Table 2
    "baselines/transreid_market1501": SIE | on("Market1501") | {
        "MODEL.BACKBONE.CAMERA_EMBEDDING": 6
    },
    "baselines/transreid_dukemtmc": SIE | on("DukeMTMC") | {"MODEL.BACKBONE.CAMERA_EMBEDDING": 8},
    "dukemtmc": FED | DUKE,
    "ablation/baseline": VIT,  # Table 3
    "ablation/re": RE,
    "ablation/npo": FED | NO_OEM | NO_FDM,
    "ablation/npo_oem": FED | NO_FDM,
    "ablation/npo_fdm": FED | NO_OEM,
    "ablation/full": FED,
    **neighbors("", FED),  # Table 4
    **neighbors("dukemtmc_", FED | DUKE),
    **neighbors("market1501_", FED | on("Market1501")),
}  # fmt: skip

# ------------------------------------------------------------------------------------- AONet

AONET = COMMON | {  # Sec. 4.1
    "augmentation": [*CROP_AND_FLIP, ("RandomErasing", 0.5, (123.675, 116.28, 103.53))],
    "INPUT.NPO.ENABLED": False,
    "MODEL.META_ARCHITECTURE": "AONet", "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.DEPTH": "50x", "MODEL.BACKBONE.LAST_STRIDE": 1,
    "MODEL.BACKBONE.WITH_IBN": False, "TEST.METRIC": "dot",
    "optimizer": "Adam", "betas": (0.9, 0.999),
    "warm-up": 20,
    "rates": {9: 1.925e-4, 20: 3.5e-4, 49: 3.5e-4, 50: 3.5e-5, 89: 3.5e-5, 90: 3.5e-6, 119: 3.5e-6},
    "MODEL.AONET.NUM_LANDMARKS": 6, "MODEL.AONET.MEMORY_MOMENTUM": 0.9,
    "MODEL.AONET.OCCLUSION_AWARE_FEATURES": True, "MODEL.AONET.VISIBILITY": "awareness",
    "MODEL.AONET.SELF_ATTENTION": "sagan", "MODEL.AONET.ORTHOGONAL_WEIGHT": 0.01,
    "MODEL.AONET.OVERLAP_WEIGHT": 0.0, "MODEL.AONET.TRIPLET_WEIGHT": 0.0,
    "MODEL.AONET.LABEL_SMOOTHING": 0.0,
}  # fmt: skip
PARTIAL = ("PartialREID:occluded", "PartialREID:partial", "PartialiLIDS:whole", "PartialiLIDS:crop")
GAP = AONET | {
    "MODEL.META_ARCHITECTURE": "Baseline", "MODEL.LOSSES.NAME": ("CrossEntropyLoss",),
    "MODEL.LOSSES.CE.EPSILON": 0.0, "MODEL.HEADS.POOL_LAYER": "GlobalAvgPool",
    "MODEL.HEADS.WITH_BNNECK": True, "TEST.METRIC": "cosine",
}  # fmt: skip
DOUBLE_DAGGER = AONET | {"MODEL.AONET.ORTHOGONAL_WEIGHT": 0.0}
DAGGER = DOUBLE_DAGGER | {"MODEL.AONET.VISIBILITY": "none"}
SATT = DAGGER | {"MODEL.AONET.OCCLUSION_AWARE_FEATURES": False}
AONET_ROWS = {
    "occ_duke": AONET,  # Table 1
    "occ_duke_ibn": AONET | {"MODEL.BACKBONE.WITH_IBN": True},
    "market1501": AONET | on("Market1501", "Market1501", *PARTIAL),  # Tables 2 and 3
    "dukemtmc": AONET | on("DukeMTMC"),  # Table 2
    "ablation/base_gap": GAP,  # Table 4
    "ablation/base_slfea": SATT | {"MODEL.AONET.SELF_ATTENTION": "none"},
    "ablation/base_satt": SATT,
    "ablation/aonet_dagger": DAGGER,
    "ablation/aonet_double_dagger": DOUBLE_DAGGER,
    "ablation/aonet": AONET,
    "ablation/base_max": DAGGER | {"MODEL.AONET.VISIBILITY": "maximum"},  # Table 5
    "ablation/base_regl": DOUBLE_DAGGER | {"MODEL.AONET.OVERLAP_WEIGHT": 0.01},
    **{  # Table 6
        f"ablation/k{k}": AONET | {"MODEL.AONET.NUM_LANDMARKS": k} for k in (2, 4, 6, 8, 10)
    },
}

# ------------------------------------------------------------------------------------- tests

ROWS = {"FED": FED_ROWS, "AONet": AONET_ROWS}
NO_ROWS = {"npo", "occ_duke_official"}  # of a paper; nor is anything on the small sets


def resolve(project: str, row: str, *overrides: object) -> CfgNode:
    words = ["MODEL.DEVICE", "cpu", *map(str, overrides)]
    path = PROJECTS / project / "configs" / f"{row}.yml"
    return load_config(str(path), words, add_keys=ADD_KEYS)


@pytest.mark.parametrize(("project", "row"), [(p, row) for p in ROWS for row in ROWS[p]])
def test_row_is_what_the_paper_says(project: str, row: str) -> None:
    assert find_differences(resolve(project, row), ROWS[project][row]) == {}


@pytest.mark.parametrize("project", ROWS)
def test_every_configuration_on_the_papers_sets_is_a_row(project: str) -> None:
    folder = PROJECTS / project / "configs"
    files = [path for path in folder.rglob("*.yml") if not path.name.startswith("Base-")]
    names = {str(path.relative_to(folder).with_suffix("")) for path in files}
    small = {name for name in names if name.startswith(("synthetic", "market_split", "drawn"))}
    assert names - small - NO_ROWS == set(ROWS[project])
    for name in small:
        trained_on = resolve(project, name).DATASETS.NAMES
        assert trained_on in (("SyntheticOccluded",), ("MarketSplit",)), name


SMALL_ROWS = [
    (project, str(path.relative_to(PROJECTS / project / "configs").with_suffix("")))
    for project in ROWS
    for path in sorted((PROJECTS / project / "configs" / "synthetic_ablation").glob("*.yml"))
]


@pytest.mark.parametrize(("project", "name"), SMALL_ROWS)
def test_a_small_row_has_the_modules_of_the_papers(project: str, name: str) -> None:
    row = ROWS[project][name.removeprefix("synthetic_").removesuffix("_neck_first")]
    own = dict(leaves(resolve(project, name)))
    read = (f"MODEL.{project.upper()}.", "MODEL.META_ARCHITECTURE", "TEST.METRIC")
    assert [key for key in row if key.startswith(read) and own[key] != row[key]] == []


BREAKS = {
    "another sampler": ("DATALOADER.SAMPLER_TRAIN", "BalancedIdentitySampler"),
    "no sampler of identities": ("DATALOADER.SAMPLER_TRAIN", "TrainingSampler"),
    "other instances": ("DATALOADER.NUM_INSTANCE", 8),
    "another batch": ("SOLVER.IMS_PER_BATCH", 32),
    "no flip": ("INPUT.FLIP.ENABLED", False),
    "no padding": ("INPUT.PADDING.ENABLED", False),
    "color jitter": ("INPUT.CJ.ENABLED", True),
    "another size": ("INPUT.SIZE_TEST", [384, 128]),
    "another set to train on": ("DATASETS.NAMES", "('DukeMTMC',)"),
    "another test set": ("DATASETS.TESTS", "('DukeMTMC',)"),
    "another warm-up": ("SOLVER.WARMUP_ITERS", 100),
    "fewer epochs": ("SOLVER.MAX_EPOCH", 100),
    "another rate": ("SOLVER.BASE_LR", 0.001),
    "no weights": ("MODEL.BACKBONE.PRETRAIN", False),
    "re-ranking": ("TEST.RERANK.ENABLED", True),
}
OWN_BREAKS = {
    "FED": {
        "no momentum": ("SOLVER.MOMENTUM", 0.0),
        "another optimizer": ("SOLVER.OPT", "Adam"),
        "another decay": ("SOLVER.WEIGHT_DECAY_NORM", 0.0),
        "steps": ("SOLVER.SCHED", "MultiStepLR"),
        "erasing": ("INPUT.REA.ENABLED", True),
        "drawn occluders": ("INPUT.NPO.OCCLUDERS", []),
        "one branch": ("INPUT.NPO.MODE", "replace"),
        "alpha of a patch": ("INPUT.NPO.VERTICAL_RATIO", 2.0),
        "K": ("MODEL.FED.NUM_NEIGHBORS", 4),
        "tau": ("MODEL.FED.TEMPERATURE", 0.1),
        "heads": ("MODEL.FED.NUM_HEADS", 4),
        "m": ("MODEL.FED.MEMORY_MOMENTUM", 0.8),
        "no MSE": ("MODEL.FED.VISIBILITY_LOSS", False),
    },
    "AONet": {
        "another optimizer": ("SOLVER.OPT", "SGD"),
        "cosine": ("SOLVER.SCHED", "CosineAnnealingLR"),
        "other steps": ("SOLVER.STEPS", [50, 90]),
        "no erasing": ("INPUT.REA.ENABLED", False),
        "random erasing": ("INPUT.REA.RANDOM", True),
        "K": ("MODEL.AONET.NUM_LANDMARKS", 4),
        "alpha": ("MODEL.AONET.MEMORY_MOMENTUM", 0.99),
        "lambda": ("MODEL.AONET.ORTHOGONAL_WEIGHT", 0.1),
        "stride": ("MODEL.BACKBONE.LAST_STRIDE", 2),
        "metric": ("TEST.METRIC", "cosine"),
    },
}


@pytest.mark.parametrize(
    ("project", "name"), [(p, name) for p in ROWS for name in (*BREAKS, *OWN_BREAKS[p])]
)
def test_a_row_that_breaks_is_noticed(project: str, name: str) -> None:
    overrides = (BREAKS | OWN_BREAKS[project])[name]
    assert find_differences(resolve(project, "occ_duke", *overrides), ROWS[project]["occ_duke"])


# ------------------------------------------------------- what the papers leave open

LEFT_OUT = "left out"
OPEN = {  # question on the page: the keys of its readings, or that the other one is left out
    "FED": {
        "biases in OEM": ("ERASING_BIAS",),
        '"part pooling"': ("PART_POOLING",),
        "in Eq. 9": LEFT_OUT,
        "features in Eq. 3": ("NORMALIZE_MEMORY",),
        "keys and values in Eq. 4": ("NORMALIZE_CENTRES",),
        "TransReID in Table 1": LEFT_OUT,
    },
    "AONet": {
        "features in Eq. 8": ("TEST_FEATURE", "TEST_AFTER_NECK"),
        "gradient through a_k": ("DETACH_AVERAGE_RESPONSE",),
        "Table 3's two groups": LEFT_OUT,
    },
}


@pytest.mark.parametrize(("project", "question"), [(p, q) for p in OPEN for q in OPEN[p]])
def test_an_open_reading_is_a_key_or_said_to_be_left_out(project: str, question: str) -> None:
    page = (PROJECTS / project / "README.md").read_text(encoding="utf-8")
    section = page.partition("## Where the paper is open")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")]
    ((_, here, key, *_),) = [cells for cells in rows if question in cells[0]]
    keys = OPEN[project][question]
    if keys == LEFT_OUT:
        assert LEFT_OUT in here
        return
    known = resolve(project, "occ_duke").MODEL[project.upper()]
    assert all(each in known and each in key for each in keys)
