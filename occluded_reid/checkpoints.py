"""Checkpoints in fast-reid's form: read safely, checked against the model, written whole."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from fastreid.utils.checkpoint import Checkpointer as FastreidCheckpointer
from torch import nn

from occluded_reid.errors import UserError
from occluded_reid.files import whole_file

logger = logging.getLogger(__name__)


class Checkpointer(FastreidCheckpointer):
    """fast-reid's checkpointer with three differences.

    Files are written whole or not at all. Files are read with ``weights_only=True`` unless the user
    trusts them. Weights that do not fit the model stop the run; fast-reid skips them with a log
    line and goes on with random ones. The one exception: a classifier or memory of another number
    of identities is left out when weights start a new run or are only evaluated.

    Args:
        model: the model.
        save_dir: folder of the run.
        num_classes: number of identities the model was built for.
        trust: allow pickled Python objects, which can run code.
        checkpointables: further objects with ``state_dict`` and ``load_state_dict``.
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
        """Write ``<save_dir>/<name>.pth`` and point ``last_checkpoint`` at it."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        path = Path(self.save_dir, f"{name}.pth")
        logger.info(f"Saving checkpoint to {path}")
        content = io.BytesIO()  # on a full disk torch.save itself would hide the reason
        torch.save({"model": self.model.state_dict(), **states, **extra}, content)
        with whole_file(path) as stream:
            stream.write(content.getbuffer())
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the newest checkpoint, which ``--resume`` continues."""
        with whole_file(Path(self.save_dir, "last_checkpoint"), "w") as stream:
            stream.write(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continue the run in ``save_dir`` if it has a checkpoint, else load the weights ``path``.

        Returns:
            What the checkpoint holds besides the states that were loaded, such as ``epoch``.
        """
        self._resuming = resume and self.has_checkpoint()
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self._resuming = False

    def load(
        self, path: str, checkpointables: list[str] | None = None, *, part: str = "model"
    ) -> dict[str, Any]:
        """Load the checkpoint ``path`` (``""``: nothing).

        Args:
            path: a file written by :meth:`save`, or by fast-reid.
            checkpointables: states to load besides the weights; None for all there are.
            part: which of the file's states become the model's weights, ``model`` or ``ema``.

        Raises:
            UserError: no such file, no checkpoint, or weights that do not fit the model.
        """
        if path and not os.path.isfile(path):
            asked = "last_checkpoint names it" if self._resuming else "MODEL.WEIGHTS"
            raise UserError(f"there is no checkpoint {path} ({asked})")
        self._path, self._part = path, part
        try:
            return super().load(path, checkpointables)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{path} holds the state of another run ({error}): --resume continues a run with "
                "its own SOLVER; to start a new one from its weights use MODEL.WEIGHTS"
            ) from error

    def _load_file(self, path: str) -> dict[str, Any]:
        try:
            if self._trust:
                loaded = torch.load(path, map_location="cpu", weights_only=False)
            else:
                loaded = super()._load_file(path)
        except pickle.UnpicklingError as error:
            raise UserError(_why_refused(path, error)) from error
        except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} is no checkpoint or is damaged ({reason})") from error
        checkpoint = as_checkpoint(loaded, path)
        if self._part not in checkpoint:
            raise UserError(f"{path} holds no averaged weights; MODEL.EMA.ENABLED False reads it")
        checkpoint["model"] = checkpoint[self._part]
        return checkpoint

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Stop where fast-reid logs: weights that are missing, left over or of another shape."""
        faults = []
        for key, found, wanted in incompatible.incorrect_shapes:
            if self._of_other_identities(found, wanted):
                logger.info(f"Left out: {key} of {found[0]} identities, the model has {wanted[0]}")
            else:
                faults.append(f"{key} is {tuple(found)} in the file, {tuple(wanted)} in the model")
        reported = {key for key, _, _ in incompatible.incorrect_shapes}
        missing = [key for key in incompatible.missing_keys if key not in reported]
        faults += [f"{key} is not in the file" for key in missing]
        faults += [f"{key} is not in the model" for key in incompatible.unexpected_keys]
        if faults:
            raise UserError(
                f"{self._path} does not fit the model: {'; '.join(faults[:5])}"
                + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
                + ". Is it from another architecture or configuration?"
            )

    def _of_other_identities(self, found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
        """Whether two shapes differ in the number of identities alone, where that is allowed."""
        if self._resuming or not wanted or len(found) != len(wanted):
            return False
        return wanted[0] == self._num_classes and tuple(found[1:]) == tuple(wanted[1:])


def as_checkpoint(loaded: Any, path: str) -> dict[str, Any]:
    """Return ``loaded`` as a dict with the key ``model``; a bare state dict is given that form.

    Raises:
        UserError: it holds no weights.
    """
    if isinstance(loaded, dict):
        if isinstance(loaded.get("model"), dict):
            return loaded
        if loaded and all(torch.is_tensor(value) for value in loaded.values()):
            return {"model": loaded}
    raise UserError(f"{path} holds no weights: neither a state dict nor one under the key 'model'")


def weights_sha256(model: nn.Module) -> str:
    """Return the sha256 over names, types, shapes and values of a model's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _why_refused(path: str, error: Exception) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f" (it asks for {named.group(1)})" if named else ""
    return (
        f"{path} is no checkpoint, or holds Python objects beside tensors{what}, and such a file "
        "can run code when it is read. If you trust where it comes from: --trust-checkpoint"
    )
