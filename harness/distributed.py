"""Several processes, one run: who does what, how the weights are split, and who writes.

    torchrun --nproc-per-node 8 train.py --preset qwen3-4b

Weights, gradients and optimizer state are split among the ranks by PyTorch's own engine, FSDP2
(`torch.distributed.fsdp.fully_shard`); this file says where in a step the ranks meet.

    share     each rank samples its own prompts, with the whole weights, gathered once for all of them
    gather    all ranks hold all rollouts: rewards and advantages are computed everywhere, from the same values
    deal      each rank runs its micro-batches; gradients are summed over the ranks with the last one of an update
    whole     weights and moments go to the one rank that writes, whole, so that a checkpoint knows no number of ranks

Mixed precision is FSDP2's too: parameters stay in fp32, what is gathered for the computation is in bf16, so one process
in bf16 is a group of one. One process in fp32 is no group at all: every function here returns what it was given.

Left out: tensor, pipeline and sequence parallelism, replicas of a sharded model, and going on without a lost rank. A
run ends with the first rank that does, and is resumed from its last checkpoint with any number of ranks.
"""

import contextlib
import itertools
import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from harness import lora
from model import Qwen3, assemble

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

TIMEOUT = timedelta(minutes=30)  # for a rank that hangs; longer than one rank's rollouts may take beyond another's


def start(device: str, dtype: str) -> str:
    """Join the ranks that torchrun started, and return this rank's device ("cuda" becomes "cuda:3").

    Only rank 0 prints from here on; errors of all ranks are seen. ValueError if there is no such device.
    """
    is_cuda = device.startswith("cuda")
    if is_cuda and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch finds no such device here")
    launched = dist.is_torchelastic_launched()
    if launched or dtype != "float32":
        if is_cuda:
            device = f"cuda:{os.environ['LOCAL_RANK']}" if launched else device
            if torch.device(device).index is not None:  # "cuda" alone is the current GPU, and set_device refuses it
                torch.cuda.set_device(device)
        alone: dict[str, Any] = {} if launched else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo", timeout=TIMEOUT, **alone)
        if rank() > 0:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return device


@contextlib.contextmanager
def together():
    """Around a run: leave the group at its end, and say it in a line if another rank was lost."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if world() == 1 or not (isinstance(error, dist.DistError) or "gloo" in text):
            raise
        reason = text.splitlines()[0].split(". ")[0]
        print(
            f"rank {rank()} of {world()} stops: another rank is gone ({reason}). The run goes on from its last "
            "checkpoint with --resume and any number of ranks.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # leaving the group in order would wait for the lost rank
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


# --- work -------------------------------------------------------------------------------------------------------


def share(items: list) -> list:
    """This rank's part of a list that all ranks hold, dealt in turn. May be empty."""
    return items[rank() :: world()]


def gather(mine: list, block: int = 1) -> list:
    """The inverse of `share`, on all ranks; each shared item may have become `block` entries."""
    if world() == 1:
        return mine
    parts: list = [None] * world()
    dist.all_gather_object(parts, mine)
    blocks = [[part[i : i + block] for i in range(0, len(part), block)] for part in parts]
    turns = itertools.zip_longest(*blocks, fillvalue=[])
    return [entry for turn in turns for entries in turn for entry in entries]


def deal(batches: list[list]) -> list[list]:
    """This rank's micro-batches, with an empty one at the end where other ranks have one more.

    The layers' weights are gathered by all ranks together, in each forward and backward: a rank that ran fewer would
    leave the others waiting.
    """
    return share(batches + [[]] * (-len(batches) % world()))


def any_rank(flag):
    """The flag of the first rank on which it is true, else this rank's own: a decision that all ranks take alike."""
    return next(filter(None, gather([flag])), flag)


def barrier() -> None:
    """Wait until all ranks are here."""
    gather([])


# --- weights ----------------------------------------------------------------------------------------------------


def shard(model: Qwen3, dtype: torch.dtype) -> Qwen3:
    """Split the parameters among the ranks, in place; they are gathered in `dtype`, layer by layer, when it is called.

    The embedding, the last norm and the head stay whole until the backward is over, because the loss reads the head's
    weight after the forward. Gradients are summed, not averaged: the loss is weighted by shares of the whole batch.
    With adapters nothing is split: the frozen weights are in `dtype` already, and what is trained is small.
    """
    if not dist.is_initialized() or lora.is_adapted(model):
        return model
    # Imported here, because it takes a quarter of a command's start, and a single process in fp32 has no use for it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    weight = model.embed_tokens.weight
    mesh = init_device_mesh(weight.device.type, (world(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=weight.dtype)
    for module in (*model.layers, model):
        split = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=module is not model)
        split.set_gradient_divide_factor(1.0)
        split.set_force_sum_reduction_for_comms(True)  # gloo has no operation that divides
    return model


def is_sharded(model: Qwen3) -> TypeGuard[Any]:
    """Whether `shard` has made an FSDPModule of it; told by a method, to import nothing."""
    return hasattr(model, "set_requires_gradient_sync")


def is_split(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether this rank holds a part of it only: a DTensor."""
    return hasattr(tensor, "full_tensor")


def sum_gradients(model: Qwen3, now: bool) -> None:
    """Whether the next backward sums the gradients over the ranks. Until then they add up on each rank, unsplit."""
    if is_sharded(model):
        model.set_requires_gradient_sync(now)


def drop_gradients(model: Qwen3) -> None:
    """Forget the gradients of a forward or backward that was broken off, those not yet summed included."""
    if is_sharded(model):
        model.reset_iter_state()  # all but what has added up
        for module in (*model.layers, model):
            for group in module._get_fsdp_state()._fsdp_param_groups:
                for parameter in group.fsdp_params:
                    parameter.unsharded_accumulated_grad = None
    model.zero_grad(set_to_none=True)


def clip_gradients(model: Qwen3, max_norm: float) -> float:
    """Scale the gradients down to this norm, over all ranks; returns the norm before."""
    if world() > 1 and not is_sharded(model):  # adapters: each rank has the gradients of its own micro-batches
        for parameter in trained(model).values():
            dist.all_reduce(parameter.grad)
    return float(_full(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)))


def gathered(model: Qwen3, dtype: torch.dtype) -> Qwen3:
    """The whole policy in `dtype` on every rank, as an ordinary module that samples without the others.

    This is where weights would be handed to an inference engine.
    """
    if not is_sharded(model):
        return lora.merged(model)
    weights = {name: _full(weight.detach().to(dtype)) for name, weight in model.named_parameters()}
    return assemble(model.config, weights)


def trained(model: Qwen3) -> dict[str, Tensor]:
    """The parameters that have gradients, by name: the optimizer's, in its order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parts(model: Qwen3) -> dict[str, Tensor]:
    """What this rank holds of each parameter; may be empty."""
    return {name: local(parameter) for name, parameter in model.named_parameters()}


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, without its gradient; the same memory."""
    held = tensor.detach()
    return held.to_local() if is_split(held) else held


def whole_model(model: Qwen3) -> Qwen3 | None:
    """The policy in fp32 on the CPU of the rank that writes, None on the others; where nothing is split, on all: of
    one with adapters the merged weights, in their own dtype."""
    if not is_sharded(model):
        return lora.merged(model).cpu() if lora.is_adapted(model) else model
    weights = whole({name: weight.detach() for name, weight in model.named_parameters()})
    return assemble(model.config, weights) if rank() == 0 else None


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with the parts of all ranks, on the CPU of the rank that writes; nothing on the others."""
    kept = {}
    for name, tensor in tensors.items():  # one at a time: no GPU ever holds them all
        full = _full(tensor)
        if rank() == 0:
            kept[name] = full.cpu()
    return kept


def split_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a whole tensor that belongs to a parameter, such as a moment; needs no other rank."""
    if not is_split(parameter):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if is_split(tensor) else tensor
