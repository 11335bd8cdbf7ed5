"""A smaller card: low-rank adapters (LoRA, arXiv 2106.09685) on all projections of a base that is frozen.

    W [out, in] frozen, A [r, in], B [out, r] trained:   W' = W + alpha / r * B A

Adapters are merged wherever the policy runs: an update computes with W', made anew in each forward, and rollouts and
what is saved hold the very same W'. So old log-probs, new ones and the sampler's are numbers of one policy, rounded
alike. The usual x W^T + alpha / r * (x A^T) B^T is the same in exact arithmetic, but in bf16 it keeps changes that W',
which is what gets served, would round away.

Frozen weights are kept in the dtype of the computation, adapters and their moments in fp32. Each rank holds them all,
and the adapters' gradients are summed over the ranks (harness/distributed.py).

Left out: adapters on the embedding, the head and the norms, dropout, quantised bases, and a speed-up: the gradient by
W' is made for each projection, so that an update takes the time of a full one. What is saved is memory.
"""

import hashlib

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model import Qwen3, assemble

PROJECTIONS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
FILE = "adapters.safetensors"  # in a checkpoint, beside the merged weights


class Adapted(nn.Module):
    """A projection of the base, and its adapter. B begins at 0: the policy begins as the base, bit for bit."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        self.weight, self.scale = linear.weight, alpha / rank
        (out, into), device = linear.weight.shape, linear.weight.device
        A = (2 * torch.rand(rank, into, generator=generator) - 1) / into**0.5  # drawn on the CPU, for any device
        self.A = nn.Parameter(A.to(device))  # [r, in]
        self.B = nn.Parameter(torch.zeros(out, rank, device=device))  # [out, r]

    def merged(self) -> Tensor:
        """W' [out, in], added in at least fp32 and rounded once to the dtype of W."""
        return (self.weight + self.scale * (self.B @ self.A)).to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.merged())


def adapt(model: Qwen3, rank: int, alpha: float, seed: int) -> Qwen3:
    """Freeze the model and give each projection an adapter of this rank, in place."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.layers:
        for part, names in PROJECTIONS.items():
            block = getattr(layer, part)
            for name in names:
                setattr(block, name, Adapted(getattr(block, name), rank, alpha, generator))
    return model


def is_adapted(model: Qwen3) -> bool:
    return any(isinstance(module, Adapted) for module in model.modules())


def merged(model: Qwen3) -> Qwen3:
    """An ordinary module with the merged weights, which shares all others with `model`; the model itself if it has no
    adapters."""
    if not is_adapted(model):
        return model
    with torch.no_grad():
        weights = {f"{n}.weight": module.merged() for n, module in model.named_modules() if isinstance(module, Adapted)}
    frozen = {name: weight.detach() for name, weight in model.named_parameters() if not weight.requires_grad}
    return assemble(model.config, frozen | weights)


def save(model: Qwen3, directory) -> None:
    """Write the adapters, and of which base they are."""
    adapters = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    save_file(adapters, directory / FILE, metadata={"base": _fingerprint(model)})


def restore(model: Qwen3, directory) -> None:
    """Put saved adapters back. ValueError if the model's base is not the one that they were trained on."""
    with safe_open(directory / FILE, framework="pt") as file, torch.no_grad():
        if file.metadata()["base"] != _fingerprint(model):
            raise ValueError(
                f"{directory / FILE}: these adapters belong to other weights than those of --model: it has changed "
                "since the run began, put it back as it was"
            )
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.copy_(file.get_tensor(name))


def _fingerprint(model: Qwen3) -> str:
    """SHA-256 of the frozen weights."""
    found = hashlib.sha256()
    for weight in model.parameters():
        if not weight.requires_grad:
            found.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()
