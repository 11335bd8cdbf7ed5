"""An update that does not fit into memory: the same update in smaller parts, or an error.

    train.update -> within_memory -> its metrics;  OutOfMemory, TornUpdate

Used by train.py. `Progress` is what a second attempt goes on from; harness/forecast.py says beforehand what fits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness import distributed
from harness.guard import Outage
from model import Qwen3
from sampler import Rollout

HALVINGS = 3  # of the token budget, for one step


class OutOfMemory(Outage):
    """The update does not fit, however small its micro-batches; the policy has not moved."""


class TornUpdate(Exception):
    """An update ended between its optimizer steps, or inside of one: its weights are no step's, and not to be saved."""


@dataclass
class Progress:
    """How far an update has come: after a lack of memory the next attempt goes on from there."""

    log: Any = None  # its UpdateLog
    old: dict = field(default_factory=dict)  # number of a rollout -> its log-probs [T] before the policy moved
    done: int = 0  # minibatches

    def left(self, minibatches: list) -> Iterator[tuple[int, list]]:
        """(number, minibatch) of those that are not done; one is done when the next is asked for."""
        for number in range(self.done, len(minibatches)):
            yield number, minibatches[number]
            self.done = number + 1

    def old_logps(self, batch: list[int], T: int) -> Tensor:
        """The old log-probs of these rollouts, however they were cut when those were computed: [B, T]."""
        return torch.nn.utils.rnn.pad_sequence([self.old[i] for i in batch], batch_first=True)[:, :T]


def within_memory(update, model: Qwen3, optimizer, rollouts: list[Rollout], advantages, config, vocab: int) -> dict:
    """`update` of train.py; where it runs out of memory, once more with half the tokens in a micro-batch.

    Nothing is copied for that. Memory runs out in a forward or a backward, before the optimizer steps: gradients are
    let go and the minibatch is taken again; those before it stay taken. How it is cut changes only the order of sums.
    How it went is printed. After `HALVINGS` it raises OutOfMemory if the policy has not moved, else TornUpdate, and
    that at once where memory runs out inside the optimizer.

    Several ranks wait for each other in the middle of an update, so that one cannot begin it again: a rank that runs
    out of memory ends the run, as any lost rank does.
    """
    tokens, so_far, steps = config.micro_tokens, Progress(), []
    hooks = [
        optimizer.register_step_pre_hook(lambda *_: steps.append("begun")),
        optimizer.register_step_post_hook(lambda *_: steps.append("ended")),
    ]
    try:
        for _ in range(1 + HALVINGS):
            try:
                smaller = replace(config, micro_tokens=tokens)
                return update(model, optimizer, rollouts, advantages, smaller, vocab, so_far)
            except RuntimeError as error:
                if distributed.world() > 1 or not _is_out_of_memory(error):
                    raise
            if not so_far.done:
                so_far = Progress()  # the policy has not moved: everything again
            else:
                so_far.log.begin_again()
            if steps[-1:] == ["begun"]:
                raise TornUpdate("the optimizer itself is out of memory; on more GPUs its moments are split")
            distributed.drop_gradients(model)  # here the error is gone, and with it the tensors that its traceback held
            if model.embed_tokens.weight.is_cuda:
                torch.cuda.empty_cache()
            again = "minibatch" if steps else "step"
            print(f"out of memory with --micro-tokens {tokens}: the {again} is taken again with {max(1, tokens // 2)}")
            failed, tokens = tokens, max(1, tokens // 2)
    finally:
        for hook in hooks:
            hook.remove()
    raise (TornUpdate if steps else OutOfMemory)(
        f"the update is out of memory even with --micro-tokens {failed}; a smaller --micro-tokens needs less, and "
        "so does --checkpoint-activations"
    )


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)  # on a GPU; on a CPU
