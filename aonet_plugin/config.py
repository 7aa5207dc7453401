"""AONet's configuration keys: meaning, the paper's symbol, the paper's value."""

from __future__ import annotations

from fastreid.config import CfgNode

from occluded_reid.config import check_ranges
from occluded_reid.utils.errors import UserError

CHOICES = {
    "VISIBILITY": ("awareness", "maximum", "none"),
    "SELF_ATTENTION": ("sagan", "multi_head", "none"),
    "STRIDE_ONE_STAGE": ("last", "third", "both"),
    "PATTERN_INIT": ("uniform", "orthogonal"),
    "CLASSIFIERS": ("shared", "per_landmark"),
    "ORTHOGONAL_FEATURE": ("before_neck", "after_neck"),
    "ORTHOGONAL_REDUCTION": ("mean", "sum"),
    "TEST_FEATURE": ("before", "after", "both"),
}


def add_aonet_config(cfg: CfgNode) -> None:
    """Add ``MODEL.AONET.*`` to a configuration."""
    cfg.MODEL.AONET = CfgNode()
    aonet = cfg.MODEL.AONET

    # Latent landmarks per image, K: 6.
    aonet.NUM_LANDMARKS = 6
    # Weight of a landmark in Eq. 5 and Eq. 8. awareness: the score beta_k of Eq. 4 (OAScore);
    # maximum: the largest normalized response of Eq. 2, no memory (Base_Max); none: always 1.
    aonet.VISIBILITY = "awareness"
    # Landmark features from the referenced maps of Eq. 3 (OAFea), or from those of Eq. 2 (SLFea).
    aonet.OCCLUSION_AWARE_FEATURES = True
    # The block over the landmarks (SAtt). The paper gives no sizes. sagan: query and key of
    # C / ATTENTION_REDUCTION channels, value of C, a gate that starts at 0; one such block meets
    # the parameters of Table 7. multi_head: ATTENTION_HEADS heads and a layer norm. none: no block.
    aonet.SELF_ATTENTION = "sagan"
    aonet.ATTENTION_REDUCTION = 8
    aonet.ATTENTION_HEADS = 8
    # One batch normalization, bias frozen, before the classifier, shared by all landmarks and by
    # the features before and after the block. Not in the paper, and too small to show in Table 7.
    aonet.NECK = True
    # The stage with stride 1, for the 16x8 map. last: fast-reid's LAST_STRIDE. third: the paper's
    # "conv4_1" in the names conv1 to conv5; then the last stage has stride 2, and the map has the
    # same size. both: the map has 32x16 pixels.
    aonet.STRIDE_ONE_STAGE = "last"
    # Initial landmark patterns, I; the paper does not say. uniform: as PyTorch initializes a 1x1
    # convolution, rows of norm about 0.58; orthogonal: orthonormal rows. Both are multiplied by
    # PATTERN_SCALE.
    aonet.PATTERN_INIT = "uniform"
    aonet.PATTERN_SCALE = 1.0
    # Temperature T of phi, exp(i . F / T) in Eq. 2 and 3; the paper has none. Above 1, the maps are
    # wider, and visibility is nearer to 1.
    aonet.TEMPERATURE = 1.0

    # Share of the memorized dictionary that survives an update, alpha in Eq. 1: 0.9.
    aonet.MEMORY_MOMENTUM = 0.9
    # Weight each image in Eq. 1 by the landmark's visibility, as the abstract suggests; Eq. 1 and
    # Algorithm 1 take the plain mean.
    aonet.UPDATE_WEIGHTED_BY_AWARENESS = False

    # Treat the pattern in the average response a_k as a constant (a stop-gradient), so that Eq. 3
    # compares with the memory but does not move the patterns to it. The paper does not say.
    aonet.DETACH_AVERAGE_RESPONSE = False
    # Treat the weight beta_k of Eq. 5 as a constant. With its gradient, the loss falls by calling
    # everything occluded. The paper does not say.
    aonet.DETACH_VISIBILITY = True
    # Classifiers behind the probabilities p_k of Eq. 5: one that all landmarks share, whose size
    # meets Table 7, or one per landmark; either serves the features before and after the block.
    aonet.CLASSIFIERS = "shared"
    # Label smoothing of the cross entropy in Eq. 5. The paper names none.
    aonet.LABEL_SMOOTHING = 0.0
    # Weight of the orthogonal loss (OLoss), lambda_ot in Eq. 7: 0.01. 0 leaves a loss out, here and
    # below.
    aonet.ORTHOGONAL_WEIGHT = 0.01
    # The f_k that it compares, always before the block: before the neck, as the paper has none,
    # where all cosines are positive after a ReLU; or after it, where features are centered.
    aonet.ORTHOGONAL_FEATURE = "before_neck"
    # How it joins the images of a batch. Eq. 1 writes its 1/B out and Eq. 6 has none: as a sum over
    # a batch of 64, the paper's 0.01 is a weight of 0.64 on the mean. Eq. 5 is always a mean.
    aonet.ORTHOGONAL_REDUCTION = "mean"
    # Weight of the overlap of the landmarks' maps, the position regularization of Base_RegL.
    aonet.OVERLAP_WEIGHT = 0.0
    # Weight of a batch-hard triplet loss on an image's concatenated landmark features after the
    # block and before the neck, with the margin MODEL.LOSSES.TRI.MARGIN. Not in the paper.
    aonet.TRIPLET_WEIGHT = 0.0

    # The landmark features of Eq. 8: before or after the block, or both, with averaged
    # similarities. The paper does not say.
    aonet.TEST_FEATURE = "after"
    # Compare them after the neck.
    aonet.TEST_AFTER_NECK = True


def check_values(aonet: CfgNode, dim: int) -> None:
    """Check the values of ``MODEL.AONET`` for a backbone of ``dim`` channels."""
    for key, choices in CHOICES.items():
        if aonet[key] not in choices:
            words = " or ".join(choices)
            raise UserError(f"MODEL.AONET.{key} is {aonet[key]!r}; it can be {words}")
    heads = aonet.ATTENTION_HEADS
    rules = {
        "NUM_LANDMARKS": (aonet.NUM_LANDMARKS >= 1, "1 or more"),
        "ATTENTION_REDUCTION": (
            aonet.SELF_ATTENTION != "sagan" or 1 <= aonet.ATTENTION_REDUCTION <= dim,
            f"from 1 to the {dim} channels of the backbone",
        ),
        "ATTENTION_HEADS": (
            aonet.SELF_ATTENTION != "multi_head" or (heads >= 1 and dim % heads == 0),
            f"a divisor of the {dim} channels of the backbone",
        ),
        "PATTERN_SCALE": (aonet.PATTERN_SCALE > 0, "above 0"),
        "TEMPERATURE": (aonet.TEMPERATURE > 0, "above 0"),
        "MEMORY_MOMENTUM": (0 <= aonet.MEMORY_MOMENTUM <= 1, "in [0, 1]"),
        "LABEL_SMOOTHING": (0 <= aonet.LABEL_SMOOTHING < 1, "in [0, 1)"),
        "ORTHOGONAL_WEIGHT": (aonet.ORTHOGONAL_WEIGHT >= 0, "0 or more"),
        "OVERLAP_WEIGHT": (aonet.OVERLAP_WEIGHT >= 0, "0 or more"),
        "TRIPLET_WEIGHT": (aonet.TRIPLET_WEIGHT >= 0, "0 or more"),
    }
    check_ranges("MODEL.AONET", aonet, rules)
