"""FED's keys: meaning, the paper's letter, the paper's value."""

from __future__ import annotations

from fastreid.config import CfgNode

from occluded_reid.utils.errors import UserError


def add_fed_config(cfg: CfgNode) -> None:
    """Add ``MODEL.FED.*`` to a configuration."""
    cfg.MODEL.FED = CfgNode()
    fed = cfg.MODEL.FED

    # Horizontal stripes per image, N in the paper: 4. INPUT.NPO.NUM_STRIPES must be the same.
    fed.NUM_PARTS = 4
    # Batch normalisation of the features after erasing, and of those after diffusion, bias frozen.
    # Not in the paper; in the authors' code, and in every strong ReID baseline since BNNeck.
    fed.NECK = True
    # Normalise the parts before they are erased. After it (the authors' code, the default) a part
    # that is erased to zero leaves the normalisation as a large constant vector, not as zero.
    fed.NECK_FIRST = False
    # Compare images by the erased parts as they are before the neck: f' as the paper writes it.
    fed.TEST_BEFORE_NECK = False
    # What images are compared by: the erased parts alone, or with the class token beside them, each
    # of unit length. The paper does not say; the authors' evaluation uses the parts alone.
    fed.CONCATENATE_CLASS_TOKEN = False

    # The occlusion erasing module (OEM, Eq. 1). Off: every part counts as visible.
    fed.ERASING = True
    # L_MSE (Eq. 2) on the scores of the OEM. The paper turns it off on DukeMTMC-reID, whose own
    # occlusions contradict the labels. Without ERASING there is no such term.
    fed.VISIBILITY_LOSS = True
    # The feature diffusion module (FDM, Eq. 4-7), training only.
    fed.DIFFUSION = True
    # L_C (Eq. 9) against the memory banks. Without it and DIFFUSION there are no banks.
    fed.CONTRAST_LOSS = True

    # Centres of other identities that are diffused into a feature, K: 8. With fewer other
    # identities, all there are.
    fed.NUM_NEIGHBORS = 8
    # Heads of the attention over them: 8.
    fed.NUM_HEADS = 8
    # Factor of the attention logits, 1/sqrt(d_k) in Eq. 5. 0 takes a head's own size for d_k,
    # NUM_PARTS * channels / NUM_HEADS = 384. (The authors' code: 1/sqrt(768/8) = 0.10206.)
    fed.ATTENTION_SCALE = 0.0
    # Keys and values come from centres scaled to unit length, as in the authors' code. The paper
    # does not say; the plain centres grow with the features, and the attention with them.
    fed.NORMALIZE_CENTRES = True
    # Hidden size of FFN_1 and FFN_2 over their input's. The paper does not say; 4 is customary.
    fed.FFN_RATIO = 4

    # How much of a centre survives an update, m in Eq. 3: 0.2.
    fed.MEMORY_MOMENTUM = 0.2
    # Temperature of the contrastive loss, tau in Eq. 9: 0.05.
    fed.TEMPERATURE = 0.05

    # Weights of the sums over branches in Eq. 10: 1/2 each.
    fed.VISIBILITY_WEIGHT = 0.5
    fed.IDENTITY_WEIGHT = 0.5
    fed.CONTRAST_WEIGHT = 0.5


def check_values(fed: CfgNode, dim: int) -> None:
    """Check the values of ``MODEL.FED`` that no type can check.

    Args:
        fed: the keys.
        dim: channels of the backbone.

    Raises:
        UserError: a value out of its range.
    """
    size = fed.NUM_PARTS * dim
    rules = {
        "NUM_PARTS": (fed.NUM_PARTS >= 1, "at least 1"),
        "NUM_HEADS": (
            fed.NUM_HEADS >= 1 and size % fed.NUM_HEADS == 0,
            f"a divisor of NUM_PARTS x channels = {size}",
        ),
        "NUM_NEIGHBORS": (fed.NUM_NEIGHBORS >= 1, "at least 1"),
        "FFN_RATIO": (fed.FFN_RATIO >= 1, "at least 1"),
        "TEMPERATURE": (fed.TEMPERATURE > 0, "above 0"),
        "MEMORY_MOMENTUM": (0 <= fed.MEMORY_MOMENTUM <= 1, "in [0, 1]"),
    }
    for key, (fits, wanted) in rules.items():
        if not fits:
            raise UserError(f"MODEL.FED.{key} is {fed[key]}; it must be {wanted}")
