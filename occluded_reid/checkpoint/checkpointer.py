"""Checkpoints in fast-reid's form: read safely, checked against the model, written whole."""

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
from fastreid.config import CfgNode
from fastreid.modeling.heads import EmbeddingHead
from fastreid.utils.checkpoint import Checkpointer as FastreidCheckpointer
from torch import nn

from occluded_reid.checkpoint.conversion import first_of
from occluded_reid.config import changed_copy
from occluded_reid.modeling.build import build_model
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import whole_file, zip_fault

logger = logging.getLogger(__name__)


class Checkpointer(FastreidCheckpointer):
    """fast-reid's checkpointer with three differences.

    Files are written whole or not at all. Files are read with ``weights_only=True`` unless the user
    trusts them. Weights that do not fit the model stop the run; fast-reid skips them with a log
    line and goes on with random ones. Two exceptions: a classifier or memory of another number of
    identities is left out when weights start a new run or are only evaluated; and where they are
    only evaluated, which is where there is nothing else to load, such as an optimizer, the file
    may lack what only training needs, or have it where the model does not.

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
            inside = os.path.join(path, "model_final.pth")
            hint = f"; did you mean {inside}?" if os.path.isdir(path) else ""
            raise UserError(f"there is no checkpoint {path} ({asked}){hint}")
        self._path, self._part = path, part
        try:
            return super().load(path, checkpointables)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{path} holds the state of another run ({error}): --resume continues a run with "
                "its own SOLVER; to start a new one from its weights use MODEL.WEIGHTS"
            ) from error

    def _load_file(self, path: str) -> dict[str, Any]:
        checkpoint = as_checkpoint(load_safely(path, trust=self._trust), path)
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
        unexpected = list(incompatible.unexpected_keys)
        if not self.checkpointables:
            missing, unexpected = self._needed(missing), self._needed(unexpected)
        faults += [f"{key} is not in the file" for key in missing]
        faults += [f"{key} is not in the model" for key in unexpected]
        if faults:
            raise UserError(
                f"{self._path} does not fit the model: {first_of(faults)}"
                + self._if_published(missing)
                + ". Is it from another architecture or configuration?"
            )

    def _needed(self, keys: list[str]) -> list[str]:
        """The keys that evaluation needs; the log names the parts that the others belong to."""
        parts = [
            part
            for part in training_only(self.model)
            if any(is_inside(key, (part,)) for key in keys)
        ]
        if parts:
            logger.info(
                f"Not in both {self._path} and the model, and needed in training alone: "
                + ", ".join(sorted(parts))
            )
        return [key for key in keys if not is_inside(key, parts)]

    def _if_published(self, missing: list[str]) -> str:
        """Say so where all that is missing are parts that only training needs."""
        parts = training_only(self.model)
        if missing and all(is_inside(key, parts) for key in missing):
            return (
                ". These are weights for evaluation, without what only training needs "
                f"({', '.join(parts)}): a training cannot start from them"
            )
        return ""

    def _of_other_identities(self, found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
        """Whether two shapes differ in the number of identities alone, where that is allowed."""
        if self._resuming or not wanted or len(found) != len(wanted):
            return False
        return wanted[0] == self._num_classes and tuple(found[1:]) == tuple(wanted[1:])


def load_safely(path: str, *, trust: bool = False, if_trusted: str = "--trust-checkpoint") -> Any:
    """Read a PyTorch file with ``weights_only=True``; numpy's numbers and arrays may be in it.

    Its parts are compared with their checksums, which PyTorch itself does not do.

    Args:
        path: the file.
        trust: allow pickled Python objects, which can run code.
        if_trusted: what the message tells a user to do who trusts the file.

    Raises:
        UserError: it is damaged, no such file, or holds other objects.
    """
    if zipfile.is_zipfile(path) and (fault := zip_fault(path)):
        raise UserError(f"{path} is no checkpoint or is damaged ({fault})")
    try:
        if trust:
            return torch.load(path, map_location="cpu", weights_only=False)
        return FastreidCheckpointer(nn.Module())._load_file(path)
    except pickle.UnpicklingError as error:
        raise UserError(_why_refused(path, error, if_trusted)) from error
    except Exception as error:  # there is no end of them for bytes that make no sense
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no checkpoint or is damaged ({reason})") from error


def training_only(model: nn.Module) -> tuple[str, ...]:
    """Return the dotted names of what only training needs: a method says it of its model."""
    if type(getattr(model, "heads", None)) is EmbeddingHead:  # fast-reid's classifier
        return ("heads.weight",)
    return getattr(type(model), "training_only", ())


def is_inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a name of the state dict is that of one of these modules, or of a part of one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def without_training_parts(model: nn.Module) -> nn.Module:
    """Delete from ``model`` what only training needs; return the same model."""
    for name in training_only(model):
        parent, _, own = name.rpartition(".")
        delattr(model.get_submodule(parent), own)
    return model


def build_untrained(cfg: CfgNode) -> nn.Module:
    """Build the model of ``cfg``; pretrained weights that it names are not looked for.

    Raises:
        UserError: the configuration names a part that does not exist.
    """
    with changed_copy(cfg) as cfg:
        cfg.MODEL.BACKBONE.PRETRAIN = False
    return build_model(cfg)


def load_trained(model: nn.Module, cfg: CfgNode, weights: str, *, trust: bool = False) -> None:
    """Load the weights of a model that is only evaluated; their average where ``MODEL.EMA``.

    Args:
        model: of ``cfg``, with or without what only training needs.
        cfg: the configuration.
        weights: the file.
        trust: allow pickled Python objects, which can run code.

    Raises:
        UserError: no such file, or weights that do not fit.
    """
    checkpointer = Checkpointer(model, num_classes=cfg.MODEL.HEADS.NUM_CLASSES, trust=trust)
    checkpointer.load(weights, part="ema" if cfg.MODEL.EMA.ENABLED else "model")


def build_inference_model(cfg: CfgNode, weights: str, *, trust: bool = False) -> nn.Module:
    """Build the model of ``cfg`` without what only training needs, and load its weights.

    Args:
        cfg: the configuration.
        weights: the file; its average where ``MODEL.EMA.ENABLED``.
        trust: allow pickled Python objects, which can run code.

    Returns:
        The model in evaluation mode, on ``MODEL.DEVICE``.

    Raises:
        UserError: the model cannot be built, or the weights do not fit.
    """
    model = without_training_parts(build_untrained(cfg))
    load_trained(model, cfg, weights, trust=trust)
    return model.eval()


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


def _why_refused(path: str, error: Exception, if_trusted: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f" (it asks for {named.group(1)})" if named else ""
    return (
        f"{path} is no checkpoint, or holds Python objects beside tensors{what}, and such a file "
        f"can run code when it is read. If you trust where it comes from: {if_trusted}"
    )
