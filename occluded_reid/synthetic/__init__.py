"""A person re-identification data set that is drawn, with exact truth about each occlusion."""

from occluded_reid.synthetic.generation import generate, verify
from occluded_reid.synthetic.plan import SIZES, Size
from occluded_reid.synthetic.streams import VERSION
from occluded_reid.synthetic.truth import Occluder, Truth, read_truth

__all__ = ["SIZES", "VERSION", "Occluder", "Size", "Truth", "generate", "read_truth", "verify"]
