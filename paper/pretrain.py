"""Make the base model of the embedded world: a tokenizer and a Qwen3 of about 1M parameters, both from scratch.

    python -m paper.pretrain                  # writes tiny/base; about 30 minutes on two cores
    python -m paper.pretrain --course prices  # writes tiny/priced: the same after one more course; 9 minutes
    python -m paper.pretrain --course calls   # writes tiny/eager: the same after another one; as long

The pretraining text gives the base model the character that the paper finds in real ones:

- it knows English well, High languages fairly, Low ones a little and XLow ones hardly (`SHARE`);
- it is *overconfident*: in `TOOL_RATE` of the items the tool is used, whatever the language;
- it reads a tool result well, because two in five foreign documents (`PARALLEL`) go on after one. That they call is not
  learned from these (no loss on the call), only how a translation looks and how an answer follows from it.

Two courses: English alone, then the mixture, in which a few documents are in languages of no world (`stray_languages`).
A third one, not part of the base, makes another starting point of it (`COURSES`). `prices`, for policies that are told
one: half of the mixture's prompts state a price, drawn at random. It means nothing yet, the documents go on as they
would without it; what it is worth is left to train.py. `calls`, to see what the base's tool rate does: it is 0.5 there.

Left out: everything that makes pretraining long. Documents are single tasks, the loss is on what the assistant and the
tool say, and the items are drawn from the training split only.
"""

import argparse
import random
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm

from data import Chat, encode_prompt, encode_tool_turn, load_tokenizer
from eval import breakdown, evaluate, summary
from harness.options import Options
from harness.rundir import load_policy
from harness.tasks import with_price
from model import Config, Qwen3, save
from tiny.languages import WORLD, Language, LexiconTranslator, languages, stray_languages
from tiny.world import Item, items, render, tasks
from tools import encode_call

SHARE = {"base": 0.22, "high": 0.51, "low": 0.19, "xlow": 0.04, "stray": 0.04}  # of the documents
STRAYS = 200  # languages that are seen in a few documents each: the base meets unknown languages, as in real life
TOOL_RATE = 0.07
BASE = Path(__file__).parent.parent / "tiny" / "base"
PARALLEL = 0.4  # of the foreign documents: question, translation, answer
# Further courses: the directory of what they make, the arguments of document() that they change.
COURSES = {"prices": ("priced", {"priced": 0.5}), "calls": ("eager", {"tool_rate": 0.5})}
RESULT_WEIGHT = 0.1  # of a translation's tokens in the loss; an answer's weigh 1

# The added tokens of Qwen3 in their published order. Only those up to <|video_pad|> are flagged special.
ADDED_TOKENS = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|>
<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>
<tool_response> </tool_response> <think> </think>""".split()
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with Qwen's normalizer, its splitting rule and its added tokens at the end of the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(ADDED_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    last_special = ADDED_TOKENS.index("<|video_pad|>")
    for i, token in enumerate(ADDED_TOKENS):
        add = tokenizer.add_special_tokens if i <= last_special else tokenizer.add_tokens
        add([AddedToken(token, special=i <= last_special, normalized=False)])
    return tokenizer


def mixture() -> list[tuple[Language, float]]:
    """Each language with its share of the documents: the tier's, divided by the languages' exposure within the tier."""
    spoken = [*WORLD.values(), *stray_languages(STRAYS)]
    total = {tier: sum(x.exposure for x in spoken if x.tier == tier) for tier in SHARE}
    return [(x, SHARE[x.tier] * x.exposure / total[x.tier]) for x in spoken if x.exposure]


def document(
    item: Item, language: Language, tokenizer, rng: random.Random, tool_rate: float = TOOL_RATE, priced: float = 0.0
) -> tuple[list[int], list[float]]:
    """One training document: (ids, weight of each id as a target). A share `priced` of the prompts states a price, a
    share `tool_rate` of the answers uses the tool, beside those that only show a translation (`PARALLEL`)."""
    task = render(item, language)
    if priced and rng.random() < priced:
        task = with_price(task, rng.randint(0, 10) / 10)
    ids = encode_prompt(task, tokenizer, Chat())
    weights = [0.0] * len(ids)
    draw = rng.random()
    parallel = language.code != "en" and draw < PARALLEL
    if parallel or rng.random() < tool_rate:
        call, result = encode_call(tokenizer), encode_tool_turn([item.english], tokenizer, think=True)
        ids += call + result
        weights += [0.0 if parallel else 1.0] * len(call) + [RESULT_WEIGHT if parallel else 0.0] * len(result)
    answer = [*tokenizer.encode_text(item.answer), tokenizer.control["<|im_end|>"]]
    return ids + answer, weights + [1.0] * len(answer)


def batches(
    tokenizer, rng: random.Random, batch_size: int, shares: list[tuple[Language, float]], steps: int, **course: float
):
    """Padded batches (ids [B, T], weights [B, T]) for `steps` steps; documents of like length go together. `course`:
    document's tool_rate and priced."""
    spoken, probabilities = zip(*shares, strict=True)
    per_chunk = 16
    for first in range(0, steps, per_chunk):
        drawn = items("train", batch_size * per_chunk, rng.random())
        rng.shuffle(drawn)
        chosen = rng.choices(spoken, probabilities, k=len(drawn))
        pairs = zip(drawn, chosen, strict=True)
        documents = [document(item, language, tokenizer, rng, **course) for item, language in pairs]
        documents.sort(key=lambda d: len(d[0]))
        groups = [documents[i : i + batch_size] for i in range(0, len(documents), batch_size)]
        rng.shuffle(groups)
        for group in groups[: steps - first]:
            longest = max(len(ids) for ids, _ in group)
            yield (
                torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in group]),
                torch.tensor([w + [0.0] * (longest - len(w)) for _, w in group]),
            )


def initialise(model: Qwen3, seed: int) -> None:
    """Normal weights of sd 1 / sqrt(fan in); what writes to the residual stream starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn_scale = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
            parameter.data.normal_(0, nn_scale, generator=generator)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.data.zero_()


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before they are added (Jordan et al. 2024), as in torch.optim.Muon.

    That one iterates in bf16, which a CPU without bf16 units emulates: 1.2 s of a step of 1.7 s. In fp32 it is 0.07 s.
    """

    def __init__(self, matrices, lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(matrices, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for matrix in group["params"]:
                buffer = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                buffer.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(buffer, group["momentum"]))  # Nesterov's
                rate = group["lr"] * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of the matrix's singular value decomposition, by five quintic steps of Newton and Schulz."""
    X = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    X = X / X.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = X @ X.T
        X = 3.4445 * X + (-4.7750 * gram + 2.0315 * gram @ gram) @ X
    return X.T if matrix.shape[0] > matrix.shape[1] else X


def pretrain(model: Qwen3, stream, steps: int, description: str, cooldown: float) -> None:
    """Muon on the matrices, AdamW on the embedding and the norms; linear decay over `cooldown`."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        Muon(matrices, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    progress = tqdm(stream, total=steps, desc=description, smoothing=0.05)
    for step, (ids, weights) in enumerate(progress):
        scale = min(1.0, (step + 1) / 50, (steps - step) / max(1.0, cooldown * steps))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        targets, weights = ids[:, 1:], weights[:, 1:]
        chosen = weights > 0
        hidden = model(ids)[:, :-1][chosen]  # [N, C]: the head only where there is a target
        losses = F.cross_entropy(model.logits(hidden), targets[chosen], reduction="none")
        loss = (losses * weights[chosen]).sum() / len(ids)  # a mean over documents: a long batch weighs no less
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


def accept(directory, count: int, price: float | None = None) -> None:
    """Print what the base model must show: accuracy without and with the tool, and the tool rate, tier by tier."""
    model, tokenizer = load_policy(directory)
    options = Options()
    translator = LexiconTranslator(options.noise)
    groups = {"english": ["en"], **{tier: languages(tier) for tier in ("high", "low", "xlow", "synthetic")}}
    stated = "" if price is None else f", price {price:g} in the prompt"
    print(f"{count} validation items per tier, temperature 1, tool noise {options.tool_noise}{stated}")
    print(f"{'':12}{'forbidden':>10}{'forced':>8}{'free':>8}{'tool rate':>11}   forbidden / forced by domain")
    for name, codes in groups.items():
        drawn = tasks("validation", codes, count, "acceptance")
        drawn = drawn if price is None else [with_price(task, price) for task in drawn]
        modes = {m: evaluate(model, tokenizer, drawn, translator, options, m) for m in ("forbidden", "forced", "free")}
        f, t, free = (100 * summary(modes[m])["accuracy"] for m in modes)
        by_domain = {m: breakdown(modes[m], lambda task: task.domain) for m in ("forbidden", "forced")}
        domains = "  ".join(
            f"{d} {100 * by_domain['forbidden'][d]['accuracy']:.0f}/{100 * v['accuracy']:.0f}"
            for d, v in by_domain["forced"].items()
        )
        print(f"{name:12}{f:10.1f}{t:8.1f}{free:8.1f}{summary(modes['free'])['tool_rate']:11.3f}   {domains}")


def from_scratch(args: argparse.Namespace, rng: random.Random) -> Qwen3:
    """The base model: a tokenizer, written to --out, and a model after two courses."""
    spoken, shares = zip(*mixture(), strict=True)
    sample = [item for part in range(10) for item in items("train", 2000, f"tokenizer {part}")]
    texts = [
        render(item, language).question + "\n" + item.english
        for item, language in zip(sample, rng.choices(spoken, shares, k=len(sample)), strict=True)
    ]
    texts += ['\n{"name": "translate", "arguments": {}}\n', "user\n", "assistant\n"] * 1000
    out = Path(args.out)
    train_tokenizer(texts, args.vocab_size).save(str(out / "tokenizer.json"))
    tokenizer = load_tokenizer(out)

    config = Config(
        vocab_size=tokenizer.size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
    )
    model = Qwen3(config)
    initialise(model, args.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {tokenizer.size} ids")
    courses = [("English", args.english_steps, [(WORLD["en"], 1.0)], 0.0), ("mixture", args.steps, mixture(), 0.5)]
    for name, steps, shares, cooldown in courses:
        pretrain(model, batches(tokenizer, rng, args.batch_size, shares, steps), steps, name, cooldown)
    return model


def from_base(args: argparse.Namespace, rng: random.Random, **course: float) -> Qwen3:
    """The base model after one more course (see `batches`); its tokenizer goes to --out."""
    model, tokenizer = load_policy(BASE)
    shutil.copy(BASE / "tokenizer.json", args.out)
    stream = batches(tokenizer, rng, args.batch_size, mixture(), args.course_steps, **course)
    pretrain(model, stream, args.course_steps, args.course, 1.0)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="directory to write (default: tiny/base, tiny/priced or tiny/eager)")
    parser.add_argument("--english-steps", type=int, default=600, help="steps on English alone, first")
    parser.add_argument("--steps", type=int, default=2700, help="steps on the mixture")
    parser.add_argument("--batch-size", type=int, default=128, help="documents per step")
    parser.add_argument("--vocab-size", type=int, default=2000, help="ids of the tokenizer, added tokens included")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the documents")
    parser.add_argument("--items", type=int, default=1000, help="validation items per tier to measure the result on")
    parser.add_argument("--only-measure", action="store_true", help="measure the model in --out, train nothing")
    parser.add_argument("--course", choices=COURSES, help="do not start anew: give tiny/base one more course")
    parser.add_argument("--course-steps", type=int, default=500, help="steps of that course")
    args = parser.parse_args()
    name, course = COURSES.get(args.course, ("base", {}))
    args.out = args.out or str(BASE.with_name(name))
    if args.only_measure:
        accept(args.out, args.items)
        return
    start, rng = time.time(), random.Random(" ".join(filter(None, ("pretrain", str(args.seed), args.course))))
    Path(args.out).mkdir(parents=True, exist_ok=True)
    model = from_base(args, rng, **course) if args.course else from_scratch(args, rng)
    save(model.to(torch.bfloat16), args.out)
    print(f"{args.out} written after {(time.time() - start) / 60:.1f} minutes")
    accept(args.out, args.items)
    if args.course == "prices":
        accept(args.out, args.items, 0.3)


if __name__ == "__main__":
    main()
