"""FED's configuration keys: meaning, the paper's symbol, the paper's value."""

from __future__ import annotations

from fastreid.config import CfgNode

from occluded_reid.config import check_ranges


def add_fed_config(cfg: CfgNode) -> None:
    """Add ``MODEL.FED.*`` to a configuration."""
    cfg.MODEL.FED = CfgNode()
    fed = cfg.MODEL.FED

    # Horizontal stripes per image, N: 4. INPUT.NPO.NUM_STRIPES must be equal.
    fed.NUM_PARTS = 4
    # The paper's part pooling of a stripe's tokens into its part feature: mean or max.
    fed.PART_POOLING = "mean"
    # Batch normalization, bias frozen, of the features after erasing and of those after diffusion.
    # Not in the paper, but in the authors' code and in every strong ReID baseline since BNNeck.
    fed.NECK = True
    # Normalize the parts before erasing. After erasing (the authors' code, the default), a part
    # that is erased to zero leaves the neck as a large constant vector, not as zero.
    fed.NECK_FIRST = False
    # Compare images by the erased parts before the neck: f' as the paper writes it.
    fed.TEST_BEFORE_NECK = False
    # Concatenate the class token to the erased parts for retrieval, each scaled to unit norm. The
    # paper does not say; the authors' evaluation uses the parts alone.
    fed.CONCATENATE_CLASS_TOKEN = False

    # The occlusion erasing module (OEM, Eq. 1). False: every part counts as visible.
    fed.ERASING = True
    # Give the OEM's two linear layers biases, as a linear layer usually has. Eq. 1 writes none.
    fed.ERASING_BIAS = True
    # L_MSE (Eq. 2) on the OEM's scores. The paper turns it off on DukeMTMC-reID, whose own
    # occlusions contradict the labels. Without ERASING there is no such term.
    fed.VISIBILITY_LOSS = True
    # The feature diffusion module (FDM, Eq. 4-7), training only.
    fed.DIFFUSION = True
    # L_C (Eq. 9) against the memory banks. Without it and DIFFUSION there are no banks.
    fed.CONTRAST_LOSS = True

    # Centres of other identities that are diffused into a feature, K: 8. If there are fewer other
    # identities, all of them.
    fed.NUM_NEIGHBORS = 8
    # Attention heads over them: 8.
    fed.NUM_HEADS = 8
    # Scale of the attention logits, 1/sqrt(d_k) in Eq. 5. 0 takes a head's own dimension as d_k,
    # NUM_PARTS * channels / NUM_HEADS = 384. (The authors' code: 1/sqrt(768/8) = 0.10206.)
    fed.ATTENTION_SCALE = 0.0
    # Scale centres to unit norm before they become keys and values, as in the authors' code. The
    # paper does not say; plain centres grow with the features, and the attention logits with them.
    fed.NORMALIZE_CENTRES = True
    # Hidden size of FFN_1 and FFN_2 over their input size. The paper does not say; 4 is usual.
    fed.FFN_RATIO = 4

    # Share of a centre that survives an update, m in Eq. 3: 0.2.
    fed.MEMORY_MOMENTUM = 0.2
    # Scale features to unit norm before their mean moves a centre, as SpCL does, whose strategy the
    # paper follows. Eq. 3 writes the features as they are.
    fed.NORMALIZE_MEMORY = False
    # Temperature of the contrastive loss, tau in Eq. 9: 0.05.
    fed.TEMPERATURE = 0.05

    # Weights of the sums over both branches in Eq. 10: 1/2 each.
    fed.VISIBILITY_WEIGHT = 0.5
    fed.IDENTITY_WEIGHT = 0.5
    fed.CONTRAST_WEIGHT = 0.5


def check_values(fed: CfgNode, dim: int) -> None:
    """Check the values of ``MODEL.FED`` for a backbone of ``dim`` channels."""
    size, heads = fed.NUM_PARTS * dim, fed.NUM_HEADS
    divides = heads >= 1 and size % heads == 0
    rules = {
        "NUM_PARTS": (fed.NUM_PARTS >= 1, "at least 1"),
        "PART_POOLING": (fed.PART_POOLING in ("mean", "max"), "mean or max"),
        "NUM_HEADS": (divides, f"a divisor of NUM_PARTS x channels = {size}"),
        "NUM_NEIGHBORS": (fed.NUM_NEIGHBORS >= 1, "at least 1"),
        "FFN_RATIO": (fed.FFN_RATIO >= 1, "at least 1"),
        "TEMPERATURE": (fed.TEMPERATURE > 0, "above 0"),
        "MEMORY_MOMENTUM": (0 <= fed.MEMORY_MOMENTUM <= 1, "in [0, 1]"),
    }
    check_ranges("MODEL.FED", fed, rules)
