"""What each of two processes does in ``test_compat.py``; here, so that it can be unpickled."""

import json
import multiprocessing
from pathlib import Path

import torch
from torch import distributed as dist

import occluded_reid.compat  # noqa: F401

# isort: split
from fastreid.data import build as data_build
from fastreid.engine import DefaultTrainer
from fastreid.utils import comm


class Trainer(DefaultTrainer):
    """The stock trainer, with a buffer that starts differently on each rank."""

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        model.register_buffer("bank", torch.full((3,), float(comm.get_rank())))
        model.register_buffer("ready", torch.tensor(comm.get_rank() == 0))
        return model


def state(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def work(folder, root, cfg):
    """Train fast-reid's own trainer; rank 0 writes what the ranks saw to result.json."""
    torch.set_num_threads(1)
    data_build._root = root
    trainer = Trainer(cfg)
    model = trainer.model.module
    start = {"bank": model.bank.tolist(), "ready": model.ready.item(), "parameters": state(model)}
    trainer.resume_or_load(resume=False)
    results = trainer.train()

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    ranks = [torch.empty_like(flat) for _ in range(comm.get_world_size())]
    dist.all_gather(ranks, flat)
    seen = comm.gather(
        {
            "rank": comm.get_rank(),
            "backend": dist.get_backend(),
            "start_method": multiprocessing.get_start_method(),
            "bank": start["bank"],
            "ready": start["ready"],
            "moved": sum(
                not torch.equal(v, start["parameters"][k]) for k, v in state(model).items()
            ),
            "parameters": len(start["parameters"]),
            "equal": all(torch.equal(ranks[0], other) for other in ranks),
        }
    )
    if comm.is_main_process():
        result = {"ranks": seen, "results": {k: v for k, v in results.items() if k != "dataset"}}
        Path(folder, "result.json").write_text(json.dumps(result, default=float))
