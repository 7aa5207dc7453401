"""Checkpoints in fast-reid's form: checked before anything is used, written atomically."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from fastreid.utils.checkpoint import Checkpointer as FastreidCheckpointer
from torch import nn

from occluded_reid.checkpoint.conversion import join_first
from occluded_reid.checkpoint.fitting import Purpose, fit_weights, is_inside, list_training_parts
from occluded_reid.checkpoint.reading import (
    as_checkpoint,
    as_weights,
    find_not_finite,
    load_safely,
    walk,
)
from occluded_reid.checkpoint.resolve import check_run_id, read_last_checkpoint, resolve_weights
from occluded_reid.checkpoint.states import fit_state, require_progress
from occluded_reid.utils.distributed import run_on_first_rank
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_write
from occluded_reid.utils.terminal import show

logger = logging.getLogger(__name__)

WITHOUT = {
    "best_metric": "starts anew: the next evaluation counts as the best",
    "ema": "starts from the weights",
    "grad_scaler": "starts anew",
}
"""What becomes of a state that a resumed run's checkpoint lacks. It is refused without any other.

Banks and dictionaries are weights. A start from weights makes parts that only training needs anew.
"""


class Loaded(dict[str, Any]):
    """What a file holds beside weights and loaded states, such as ``epoch``; and what was loaded.

    Attributes:
        states: names of the states that were loaded.
        left_out: weights and states of the file that were not used.
        made_anew: weights of the model that keep their initial values.
    """

    states: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    made_anew: tuple[str, ...] = ()


class Checkpointer(FastreidCheckpointer):
    """fast-reid's checkpointer with four differences.

    - Files are written completely or not at all, and only if all their numbers are finite.
    - Files are read with ``weights_only=True`` unless the user trusts them.
    - Weights that do not fit the model raise an error; fast-reid goes on with random ones. See
      :func:`~occluded_reid.checkpoint.fitting.fit_weights` for what may be left out. Training needs
      more than evaluation, where there are no ``checkpointables`` such as an optimizer.
    - So do states that do not fit, or are lacking (:data:`WITHOUT`).

    ``num_classes`` identities is what the model was built for; ``trust`` allows pickled Python
    objects, which can run code; ``checkpointables`` have a ``state_dict`` and ``load_state_dict``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        num_classes: int = 0,
        trust: bool = False,
        save_to_disk: bool = True,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._num_classes = num_classes
        self._trust = trust
        self._resuming = False

    def save(self, name: str, **extra: Any) -> None:
        """Write ``<save_dir>/<name>.pth`` and point ``last_checkpoint`` at it.

        A UserError is raised, and nothing written, if a number in it is not finite.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        kinds = {key: type(item).__name__ for key, item in self.checkpointables.items()}
        checkpoint = {"model": self.model.state_dict(), **states, **extra, "kinds": kinds}
        path = Path(self.save_dir, f"{name}.pth")
        self._require_finite(checkpoint, path)
        logger.info(f"Saving checkpoint to {path}")
        content = io.BytesIO()  # on a full disk torch.save itself would hide the reason
        torch.save(checkpoint, content)
        with atomic_write(path) as stream:
            stream.write(content.getbuffer())
        self.tag_last_checkpoint(path.name)

    def _require_finite(self, checkpoint: dict[str, Any], path: Path) -> None:
        broken = [place for place, value in walk(checkpoint) if find_not_finite(value)]
        if broken:
            last = read_last_checkpoint(self.save_dir)
            then = f"--resume goes on from {last}" if last else "no checkpoint was saved before"
            raise UserError(
                f"the training has diverged: {join_first(broken, 3)} is not finite, so {path} was "
                f"not written; {then}. Try a smaller SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS "
                "or SOLVER.CLIP_GRADIENTS.ENABLED True"
            )

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the newest checkpoint, which ``--resume`` continues."""
        with atomic_write(Path(self.save_dir, "last_checkpoint"), "w") as stream:
            stream.write(last_filename_basename)

    def resume(self, path: str) -> Loaded:
        """Load all states of a run's checkpoint."""
        self._resuming = True
        try:
            return self.load(path)
        finally:
            self._resuming = False

    def load(
        self, path: str, checkpointables: list[str] | None = None, *, part: str = "model"
    ) -> Loaded:
        """Load a file in fast-reid's form, or that of a run's folder (``""``: nothing).

        All of it is checked before any of it is used; a UserError names the file and the entry. Of
        several processes rank 0 reads the file, and sends its content to the others.

        Args:
            path: of the file or the folder.
            checkpointables: states to load besides the weights; None for all.
            part: the file's state that becomes the model's weights, ``model`` or ``ema``.
        """
        if not path:
            return Loaded()
        path, content = run_on_first_rank(lambda: self._read(path))
        found = Loaded(content)
        if part not in found:
            raise UserError(f"{path} holds no averaged weights; set MODEL.EMA.ENABLED False")
        weights = as_weights(found[part], path)
        del found["model"]
        names = list(self.checkpointables) if checkpointables is None else checkpointables
        states = self._take_states(found, names, path)
        purpose: Purpose = "train" if self.checkpointables else "evaluate"
        fit = fit_weights(
            weights, self.model, path, num_classes=self._num_classes,
            purpose="resume" if self._resuming else purpose,
        )  # fmt: skip
        self.model.load_state_dict(fit.weights, strict=False)
        for name, state in states.items():
            self.checkpointables[name].load_state_dict(state)
        if "ema" in self.checkpointables and "ema" not in states:
            self.checkpointables["ema"].set(self.model)
        unread = tuple(name for name in self.checkpointables if name in found)
        found.states, found.made_anew = tuple(states), fit.made_anew
        found.left_out = (*fit.left_out, *unread)
        said: dict[str, Iterable[str]] = {"left out": found.left_out, "made anew": fit.made_anew}
        if purpose == "evaluate":
            said = {"only needed in training": {*fit.left_out, *fit.made_anew}}
        for what, keys in said.items():
            if keys:
                logger.info(f"{path}: {what}: {show(', '.join(sorted(keys)))}")
        return found

    def _read(self, path: str) -> tuple[str, dict[str, Any]]:
        """Return the file's path and its content."""
        if os.path.isdir(path):
            path = resolve_weights(path)[1]
        if not os.path.exists(path):
            raise UserError(f"there is no checkpoint {path} (MODEL.WEIGHTS)")
        logger.info(f"Loading checkpoint from {path}")
        checkpoint = as_checkpoint(load_safely(path, trust=self._trust), path)
        check_run_id(Path(path), checkpoint)
        return path, checkpoint

    def _take_states(self, found: Loaded, names: Sequence[str], path: str) -> dict[str, Any]:
        """Take the states ``names`` out of ``found``, in the form in which they are loaded.

        A UserError is raised if one is another run's, or is lacking and a run cannot do without.
        """
        states: dict[str, Any] = {}
        kinds = found.pop("kinds", None)
        kinds = kinds if isinstance(kinds, dict) else {}
        needed = [*names, "epoch", "best_metric"] if self._resuming else names
        missing = [name for name in needed if name not in found]
        if refused := [name for name in missing if name not in WITHOUT]:
            raise UserError(
                f"{path} holds no {', '.join(refused)} and cannot be resumed; start a new run from "
                "its weights with MODEL.WEIGHTS"
            )
        for name in missing:
            logger.warning(f"{path} holds no {name}, which {WITHOUT[name]}")
        try:
            for name in names:
                if name in found:
                    item, kind = self.checkpointables[name], kinds.get(name)
                    states[name] = fit_state(found.pop(name), item, name, kind=kind)
            if self._resuming:
                require_progress(found)
        except ValueError as error:
            raise UserError(
                f"{path} holds the state of another run ({error}). --resume needs the run's own "
                "SOLVER; MODEL.WEIGHTS starts a new run from its weights"
            ) from error
        return states


def weights_sha256(model: nn.Module) -> str:
    """Return the sha256 of the names, types, shapes and values in a model's state.

    Parts that only training needs are left out: a checkpoint and the weights that are published
    from it have one digest.
    """
    digest, training_parts = hashlib.sha256(), list_training_parts(model)
    for name, tensor in sorted(model.state_dict().items()):
        if is_inside(name, training_parts):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
