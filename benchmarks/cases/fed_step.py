"""Check FED's training step against the reference in loops."""

from __future__ import annotations

import torch
from harness.comparison import require_equal
from references import fed_in_loops

from cases.fed_case import THIN, build_batch, build_fed, equal_views
from cases.training import our_step


def check_steps(device: str = "cpu") -> None:
    """Raise MismatchError if losses, gradients or banks of both steps differ.

    They must agree if both views are equal, which makes batch statistics equal, and if no identity
    occurs twice, which makes the order of bank updates irrelevant. Thin layers keep rounding small.
    A GPU sums in varying order, so its bounds are wider; TF32 is off because it depends on the
    batch size.
    """
    tolerance = 1 if device == "cpu" else 10
    case = THIN.smaller(pairs=8, drop_path=0.0)
    ours = build_fed(case, device)
    reference = fed_in_loops.plain_copy(ours)
    batch = equal_views(build_batch(case, device))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        our_terms, terms = our_step(ours, batch), fed_in_loops.training_step(reference, batch)
    require_equal("number of loss terms", len(our_terms), len(terms), atol=0)
    for name, value in terms.items():
        require_equal(name, our_terms[name], value, atol=tolerance * 1e-4)
    parameters = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        other = parameters[name].grad
        if parameter.grad is not None and other is not None:
            # before a neck, some gradients are 0 up to rounding
            atol = 1e-6 + tolerance * 1e-3 * float(other.abs().max())
            require_equal(f"gradient of {name}", parameter.grad, other, atol=atol)
        else:
            require_equal(f"no gradient of {name}", parameter.grad is None, other is None, atol=0)
    for name, memory in fed_in_loops.banks(reference).items():
        centres = fed_in_loops.banks(ours)[name].centres
        require_equal(
            f"the bank of {name} features", centres, memory.centres, atol=tolerance * 1e-4
        )
