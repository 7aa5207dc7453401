"""Checkpoints in fast-reid's form: read safely, checked against the model, written atomically."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fastreid.modeling.heads import EmbeddingHead
from fastreid.utils.checkpoint import Checkpointer as FastreidCheckpointer
from torch import nn

from occluded_reid.checkpoint.conversion import join_first
from occluded_reid.checkpoint.resolve import resolve_weights
from occluded_reid.checkpoint.safetensors_file import read_safetensors
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_write, diagnose_zip

logger = logging.getLogger(__name__)


class Checkpointer(FastreidCheckpointer):
    """fast-reid's checkpointer with three differences.

    - Files are written completely or not at all.
    - Files are read with ``weights_only=True`` unless the user trusts them.
    - Weights that do not fit the model raise an error; fast-reid goes on with random ones. Two
      exceptions. A classifier or memory bank for another number of identities is left out, unless
      a run is resumed. Parts that only training needs may be missing or left over when a model is
      only evaluated, that is, when there are no ``checkpointables`` such as an optimizer.

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
        """Write ``<save_dir>/<name>.pth`` and point ``last_checkpoint`` at it."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        path = Path(self.save_dir, f"{name}.pth")
        logger.info(f"Saving checkpoint to {path}")
        content = io.BytesIO()  # on a full disk torch.save itself would hide the reason
        torch.save({"model": self.model.state_dict(), **states, **extra}, content)
        with atomic_write(path) as stream:
            stream.write(content.getbuffer())
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the newest checkpoint, which ``--resume`` continues."""
        with atomic_write(Path(self.save_dir, "last_checkpoint"), "w") as stream:
            stream.write(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume the run in ``save_dir`` if it has a checkpoint, else load the weights ``path``.

        Returns the checkpoint's other content, such as ``epoch``.
        """
        self._resuming = resume and self.has_checkpoint()
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self._resuming = False

    def load(
        self, path: str, checkpointables: list[str] | None = None, *, part: str = "model"
    ) -> dict[str, Any]:
        """Load a file in fast-reid's form, or that of a run's folder (``""``: nothing).

        Args:
            path: of the file or the folder.
            checkpointables: states to load besides the weights; None for all.
            part: the file's state that becomes the model's weights, ``model`` or ``ema``.
        """
        if os.path.isdir(path):
            path = resolve_weights(path)[1]
        if path and not os.path.isfile(path):
            source = "last_checkpoint names it" if self._resuming else "MODEL.WEIGHTS"
            raise UserError(f"there is no checkpoint {path} ({source})")
        self._path, self._part = path, part
        try:
            return super().load(path, checkpointables)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{path} holds the state of another run ({error}). --resume needs the run's own "
                "SOLVER; MODEL.WEIGHTS starts a new run from its weights"
            ) from error

    def _load_file(self, path: str) -> dict[str, Any]:
        checkpoint = as_checkpoint(load_safely(path, trust=self._trust), path)
        if self._part not in checkpoint:
            raise UserError(f"{path} holds no averaged weights; set MODEL.EMA.ENABLED False")
        checkpoint["model"] = checkpoint[self._part]
        return checkpoint

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Raise where fast-reid logs: weights that are missing, left over or of another shape."""
        faults = []
        for key, shape, wanted in incompatible.incorrect_shapes:
            if self._differ_in_identities(shape, wanted):
                logger.info(f"Left out: {key} of {shape[0]} identities, the model has {wanted[0]}")
            else:
                faults.append(f"{key} is {tuple(shape)} in the file, {tuple(wanted)} in the model")
        reported = {key for key, _, _ in incompatible.incorrect_shapes}
        missing = [key for key in incompatible.missing_keys if key not in reported]
        unexpected = list(incompatible.unexpected_keys)
        if not self.checkpointables:
            missing = self._drop_training_only(missing)
            unexpected = self._drop_training_only(unexpected)
        faults += [f"{key} is not in the file" for key in missing]
        faults += [f"{key} is not in the model" for key in unexpected]
        if faults:
            raise UserError(
                f"{self._path} does not fit the model: {join_first(faults)}{self._hint(missing)}. "
                "Is it from another architecture or configuration?"
            )

    def _drop_training_only(self, keys: list[str]) -> list[str]:
        """Return the keys that evaluation needs; log which parts the others belong to."""
        all_parts = list_training_parts(self.model)
        parts = [part for part in all_parts if any(is_inside(key, (part,)) for key in keys)]
        if parts:
            names = ", ".join(sorted(parts))
            logger.info(f"{self._path}: skipped parts only needed in training: {names}")
        return [key for key in keys if not is_inside(key, parts)]

    def _hint(self, missing: list[str]) -> str:
        """Return a hint if all that is missing are parts that only training needs."""
        parts = list_training_parts(self.model)
        if missing and all(is_inside(key, parts) for key in missing):
            return (
                f". These are weights for evaluation, without {', '.join(parts)}: training cannot "
                "start from them"
            )
        return ""

    def _differ_in_identities(self, shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
        """Whether two shapes differ only in the number of identities, and may do so."""
        if self._resuming or not wanted or len(shape) != len(wanted):
            return False
        return wanted[0] == self._num_classes and tuple(shape[1:]) == tuple(wanted[1:])


def load_safely(path: str, *, trust: bool = False, if_trusted: str = "--trust-checkpoint") -> Any:
    """Read a PyTorch file with ``weights_only=True``; numpy numbers and arrays are allowed.

    The checksums of its parts are verified, which PyTorch itself does not do. ``trust`` allows
    pickled Python objects, which can run code; ``if_trusted`` is the advice to who trusts the file.
    """
    if path.endswith(".safetensors"):
        return read_safetensors(path)
    if zipfile.is_zipfile(path) and (fault := diagnose_zip(path)):
        raise UserError(f"{path} is no checkpoint or is damaged ({fault})")
    try:
        if trust:
            return torch.load(path, map_location="cpu", weights_only=False)
        return FastreidCheckpointer(nn.Module())._load_file(path)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" (it asks for {match.group(1)})" if match else ""
        raise UserError(
            f"{path} is no checkpoint, or holds Python objects beside tensors{what}; such a file "
            f"can run code when it is read. If you trust its source: {if_trusted}"
        ) from error
    except Exception as error:  # invalid bytes raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no checkpoint or is damaged ({reason})") from error


def list_training_parts(model: nn.Module) -> tuple[str, ...]:
    """Return the dotted names of the modules and parameters that only training needs.

    A method names them in its model's class attribute ``training_only``.
    """
    if type(getattr(model, "heads", None)) is EmbeddingHead:  # fast-reid's classifier
        return ("heads.weight",)
    return getattr(type(model), "training_only", ())


def is_inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a name of the state dict is one of ``modules`` or lies inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def as_checkpoint(loaded: Any, path: str) -> dict[str, Any]:
    """Return ``loaded`` as a dict with the key ``model``; a bare state dict is wrapped in one."""
    if isinstance(loaded, dict):
        if isinstance(loaded.get("model"), dict):
            return loaded
        if loaded and all(torch.is_tensor(value) for value in loaded.values()):
            return {"model": loaded}
    raise UserError(f"{path} holds no weights: neither a state dict nor one under the key 'model'")


def weights_sha256(model: nn.Module) -> str:
    """Return the sha256 of the names, types, shapes and values in a model's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
