"""The update's log-probs and gradients: equal texts run once, against padded rows and against other trainers' paths.

    OMP_NUM_THREADS=1 python -m bench.update             # about a minute on one core
    pip install -r requirements-bench.txt                # for the peers, which are left out where they are missing

    shared          logprob.policy_logps: rows laid end to end, each prompt once, and each answer
    padded          our model on rows with their prompts, padded, and the head in chunks
    transformers    its model on rows padded as TRL pads them, log_softmax of the answers' logits, gather
    trl             the same with TRL's own head (`add_fused_lm_head`), which its GRPO trainer calls

The short prompts are one step's of the shipped base, half of the rows with a call in them; the long ones have 512 ids,
as with the tool's schema in Qwen3's format. All ways must give the same log-probs of the sampled tokens and the same
gradient of a weight of the first layer.
"""

import argparse
import importlib.util
import random
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bench.growth import GROUP
from bench.growth import rollouts as random_rollouts
from bench.turns import in_turns, table
from harness.options import Options
from harness.rundir import load_policy, policy_directory
from logprob import policy_logps, token_logps
from sampler import Rollout, rollout
from tiny.languages import LexiconTranslator, languages
from tiny.world import tasks


def shared(model, rollouts: list[Rollout], valid_vocab: int) -> Tensor:
    """Log-probs [N] of the sampled tokens, row after row, as of all ways here."""
    logps, _, sampled = policy_logps(model, rollouts, 1.0, valid_vocab)
    return logps[sampled]


def padded(model, rollouts: list[Rollout], valid_vocab: int) -> Tensor:
    rows = [[*r.prompt_ids, *r.ids] for r in rollouts]
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    place = [(b, len(r.prompt_ids) + t) for b, r in enumerate(rollouts) for t, drawn in enumerate(r.sampled) if drawn]
    row, t = torch.tensor(place).T
    return token_logps(model(ids)[row, t - 1], model.lm_head.weight, ids[row, t], 1.0, valid_vocab)[0]


def left_and_right(rollouts: list[Rollout]) -> tuple[Tensor, Tensor, Tensor, int]:
    """Prompts padded on the left, answers on the right: ids [B, S + T], their mask, sampled [B, T], and T."""
    prompts = pad_sequence([torch.tensor(r.prompt_ids) for r in rollouts], True, -1, padding_side="left")
    answers = pad_sequence([torch.tensor(r.ids) for r in rollouts], True, -1)
    ids = torch.cat([prompts, answers], 1)
    sampled = pad_sequence([torch.tensor(r.sampled) for r in rollouts], True, False)
    return ids.clamp(min=0), (ids >= 0).long(), sampled, answers.shape[1]


def transformers(peer, rollouts: list[Rollout], valid_vocab: int) -> Tensor:
    ids, mask, sampled, T = left_and_right(rollouts)
    logits = peer(ids, attention_mask=mask, logits_to_keep=T + 1).logits[:, :-1, :valid_vocab]
    return logits.log_softmax(-1).gather(2, ids[:, -T:, None])[:, :, 0][sampled]


def trl(peer, rollouts: list[Rollout], valid_vocab: int) -> Tensor:
    """As GRPOTrainer._get_per_token_logps_and_entropies of TRL 1.16 calls it; its head is the whole vocabulary's."""
    ids, mask, sampled, T = left_and_right(rollouts)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-T] = -100
    return peer(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs[:, -T:][sampled]


def peers() -> dict[str, tuple[Callable, torch.nn.Module]]:
    """Name: the way, and a model of its own with the shipped weights."""
    found = {}
    if importlib.util.find_spec("transformers"):
        from transformers import AutoModelForCausalLM

        load = partial(AutoModelForCausalLM.from_pretrained, policy_directory("tiny"), dtype=torch.float32)
        found["transformers"] = transformers, load()
        if importlib.util.find_spec("trl"):
            from trl.trainer.utils import add_fused_lm_head

            model = load()
            add_fused_lm_head(model, temperature=1.0)
            found["trl"] = trl, model
    return found


def passage(way: Callable, model, rollouts: list[Rollout], valid_vocab: int) -> tuple[Tensor, Tensor]:
    """Forward and backward of all rows: (log-probs, the gradient of a weight of the first layer)."""
    model.zero_grad()
    logps = way(model, rollouts, valid_vocab)
    logps.sum().backward()
    layers = model.layers if hasattr(model, "layers") else model.model.layers
    return logps.detach(), layers[0].mlp.up_proj.weight.grad


def sampled_rollouts(model, tokenizer, groups: int) -> list[Rollout]:
    """Groups of eight of the shipped base; half of them call: long beside short."""
    questions, generator = tasks("test", languages("low"), groups, "bench"), torch.Generator().manual_seed(0)
    found = []
    for part, mode in ((questions[: groups // 2], "free"), (questions[groups // 2 :], "forced")):
        sampling = Options().sampling(mode)
        found += rollout(model, tokenizer, part, GROUP, LexiconTranslator(), generator, sampling)
    return found


def measure(title: str, model, tokenizer, rollouts: list[Rollout], repeats: int) -> None:
    """Print what all ways take for these rollouts."""
    ways = {"shared": (shared, model), "padded": (padded, model), **peers()}
    turns = {name: partial(passage, *way, rollouts, tokenizer.size) for name, way in ways.items()}
    seconds, found = in_turns(turns, repeats)
    for name, results in found.items():
        for mine, theirs in zip(found["shared"], results, strict=True):
            assert (mine - theirs).abs().max() < 1e-3 * (1 + theirs.abs().max()), f"{name} computes the same"
    prompts, answers = sum(len(r.prompt_ids) for r in rollouts), sum(len(r.ids) for r in rollouts)
    once = sum(map(len, {r.prompt_ids for r in rollouts}))
    print(f"{title}: {len(rollouts)} rollouts, {prompts:,} prompt tokens ({once:,} once), {answers:,} answer tokens")
    print("\n".join(table(seconds, "shared")), flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16, help="groups of eight with short prompts")
    parser.add_argument("--long", type=int, default=4, help="groups of eight with prompts of 512 ids, answers of 32")
    parser.add_argument("--repeats", type=int, default=5, help="turns; the table has the medians")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # CPU seconds of several threads cannot be compared
    model, tokenizer = load_policy("tiny")
    print(f"CPU seconds, forward and backward, one thread; median (min, max) of {args.repeats} turns")
    measure("prompts of some 40", model, tokenizer, sampled_rollouts(model, tokenizer, args.prompts), args.repeats)
    measure("prompts of 512", model, tokenizer, random_rollouts(512, args.long, random.Random(512)), args.repeats)


if __name__ == "__main__":
    main()
