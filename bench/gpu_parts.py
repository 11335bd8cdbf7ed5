"""What `bench/gpu.py` runs: each part yields the rows of a table, one as soon as it is found.

    kernel             the Triton kernel against plain torch and against float64: values and both gradients
    log-probs          time and memory of log-probs and gradients by six ways, where their packages are installed
    world              the embedded world's rollouts and their gradient, here and on the CPU: the same?
    step-0.6B, -4B     a training step on random weights: its two phases, tokens per second, memory against the forecast
    decode-0.6B, -4B   a decoding step against the bandwidth of this GPU
    generate-0.6B, -4B whole answers against `generate`

Nothing is estimated. What is no measurement, the forecast and the least number of bytes to be read, stands in a column
of its own. On the CPU the same lines run at toy shapes, and there is no memory to tell.
"""

import copy
import importlib.util
import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

import logprob
import train
from bench.memory import PROMPT, shape
from bench.turns import gpu_clock, in_turns, ratios, spread
from data import Chat, Task, Tokenizer, encode_prompt, load_tokenizer
from harness import distributed, forecast
from harness.cuda_graph import step
from harness.options import PRESETS, Options
from harness.rundir import load_policy, policy_directory
from model import Cache, Config, Qwen3
from reward import Score
from sampler import Rollout, rollout
from tiny.languages import LexiconTranslator, languages
from tiny.world import tasks as world_tasks

Row = tuple[str, list[str]]  # the table, and the row's cells

TABLES = {  # name: the page that it is for, its title, its columns
    "kernel": (
        "bench/RESULTS.md",
        "The Triton kernel: relative distances (norm of the difference over the norm)",
        ["dtype", "what", "kernel to torch", "kernel to float64", "torch to float64", "as exact as torch"],
    ),
    "log-probs": (
        "bench/RESULTS.md",
        "Log-probs and gradients; median (min, max)",
        ["dtype", "N", "way", "seconds", "times ours", "GB beyond the inputs", "distance of the head's gradient"],
    ),
    "world": (
        "bench/RESULTS.md",
        "The embedded world here and on the CPU: 64 tasks, 8 rollouts of each, and their gradient",
        ["dtype", "what", "here against the CPU"],
    ),
    "step": (
        "docs/scaling.md",
        "A training step of the preset qwen3-4b's lengths, random weights",
        ["shape", "phase", "tokens", "seconds", "tokens per second"],
    ),
    "memory": (
        "docs/scaling.md",
        "Peak memory against the forecast",
        ["shape", "phase", "measured GB", "predicted GB", "measured over predicted"],
    ),
    "decode": (
        "docs/scaling.md",
        "A decoding step: the model, its logits and the choice of a token, against one reading of weights and cache",
        ["shape", "rows", "context", "ms", "ms at this GPU's bandwidth", "share of the bandwidth", "tokens per second"],
    ),
    "generate": (
        "bench/RESULTS.md",
        "Greedy answers against `transformers`; median (min, max)",
        ["shape", "rows", "prompt + new ids", "way", "seconds", "times ours", "distance of the prompt's logits"],
    ),
}


@dataclass(frozen=True)
class Place:
    """Where the parts run: a GPU, or the CPU at toy shapes."""

    device: str
    toy: bool

    @property
    def repeats(self) -> int:
        return 1 if self.toy else 5

    def clock(self) -> float:
        return 0.0 if self.toy else gpu_clock()  # a toy's seconds would be figures of nothing

    def pick(self, real, toy):
        return toy if self.toy else real

    def shape(self, name: str) -> Config:
        """The published shape, or two layers and a vocabulary of 2,100."""
        return self.pick(shape(name), Config(2100, 32, 48, 2, 4, 2, 16, tie_word_embeddings=True))

    def held(self) -> int:
        """Bytes held on the GPU; the peak is counted from here on."""
        if self.toy:
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int | None:
        return None if self.toy else torch.cuda.max_memory_allocated()


def gigabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e9:.2f}"


def over(a: float | None, b: float, digits: int = 2) -> str:
    """a / b as a cell; - where there is nothing to divide."""
    return "-" if a is None or not b else f"{a / b:.{digits}f}"


def distance(a: Tensor, b: Tensor) -> float:
    """The norm of the difference over the norm of b."""
    return float((a.double() - b.double()).norm() / b.double().norm())


# --- log-probs --------------------------------------------------------------------------------------------------------


def head_inputs(place: Place, tokens: int, hidden: int, vocab: int, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [N, C] and head [V, C] that want gradients, targets [N]."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, hidden, generator=generator)
    head = torch.randn(vocab, hidden, generator=generator) / hidden**0.5
    targets = torch.randint(vocab, (tokens,), generator=generator).to(place.device)
    states, head = (tensor.to(place.device, getattr(torch, dtype)).requires_grad_() for tensor in (states, head))
    return states, head, targets


def without_kernel():
    return patch.object(logprob, "_use_triton", lambda logits: False)


def kernel(place: Place) -> Iterator[Row]:
    """Log-probs, entropies and both gradients: padded rows of the head, a temperature, a weight for each token."""
    N, C, V = place.pick((1024, 1024, 151_936), (12, 16, 300))
    valid, weights = V - V // 100, torch.linspace(-1, 1, N, device=place.device)

    def found(dtype: torch.dtype, tensors) -> list[Tensor]:
        states, head = (tensor.detach().to(dtype).requires_grad_() for tensor in tensors[:2])
        logps, entropy = logprob.token_logps(states, head, tensors[2] % valid, 0.7, valid)
        (logps * weights.to(logps.dtype)).sum().backward()
        return [logps.detach(), entropy, states.grad, head.grad]

    for dtype in ("float32", "bfloat16"):
        tensors = head_inputs(place, N, C, V, dtype)
        if not logprob._use_triton(tensors[0]):
            raise RuntimeError("the kernel is not used here: Triton is missing, or there is no GPU")
        kernels, exact = found(getattr(torch, dtype), tensors), found(torch.float64, tensors)
        with without_kernel():
            plain = found(getattr(torch, dtype), tensors)
        names = ("log-probs", "entropy", "gradient of hidden", "gradient of head")
        for what, a, b, c in zip(names, kernels, plain, exact, strict=True):
            off, plain_off = distance(a, c), distance(b, c)
            verdict = "yes" if off <= 2 * plain_off + 1e-6 else "**no**"  # in bf16 both are as far off as it rounds
            yield "kernel", [dtype, what, f"{distance(a, b):.1e}", f"{off:.1e}", f"{plain_off:.1e}", verdict]


def ours(states: Tensor, head: Tensor, targets: Tensor) -> None:
    logprob.token_logps(states, head, targets)[0].sum().backward()


def ours_without_kernel(states: Tensor, head: Tensor, targets: Tensor) -> None:
    with without_kernel():
        ours(states, head, targets)


def summed(states: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return (states @ head.T).float().log_softmax(-1).gather(1, targets[:, None]).sum()


def full(states: Tensor, head: Tensor, targets: Tensor) -> None:
    summed(states, head, targets).backward()


def liger(states: Tensor, head: Tensor, targets: Tensor) -> None:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    (-LigerFusedLinearCrossEntropyLoss(reduction="sum")(head, states, targets)).backward()


def cut_cross_entropy(states: Tensor, head: Tensor, targets: Tensor) -> None:
    from cut_cross_entropy import linear_cross_entropy

    (-linear_cross_entropy(states, head, targets, reduction="sum")).backward()


def ways(place: Place) -> dict[str, Callable]:
    """Each runs forward and backward of the sum of the log-probs."""
    compiled = torch.compile(summed, backend=place.pick("inductor", "eager"))
    return {
        "ours": ours,
        "ours, plain torch": ours_without_kernel,
        "log_softmax + gather": full,
        "torch.compile of that": lambda *tensors: compiled(*tensors).backward(),
        "Liger": liger,
        "cut-cross-entropy": cut_cross_entropy,
    }


def log_probs(place: Place) -> Iterator[Row]:
    """At the head of 0.6B. A way that fails, or is not installed, says so in its row."""
    C, V = place.pick((1024, 151_936), (16, 300))
    for dtype, N in itertools.product(("float32", "bfloat16"), place.pick((2048, 8192), (24,))):
        yield from log_probs_at(place, head_inputs(place, N, C, V, dtype), [dtype, str(N)])


def log_probs_at(place: Place, tensors: tuple[Tensor, Tensor, Tensor], names: list[str]) -> Iterator[Row]:
    states, head, _ = tensors
    running, apart, memory, failed, expected = {}, {}, {}, {}, None

    def passage(way: Callable) -> None:
        states.grad = head.grad = None
        way(*tensors)

    for name, way in ways(place).items():
        try:
            passage(way)  # compiles
            states.grad = head.grad = None
            before = place.held()
            passage(way)
            peak = place.peak()
        except Exception as error:  # whatever a foreign package raises
            failed[name] = "not installed" if isinstance(error, ImportError) else one_line(error)
            continue
        memory[name] = None if peak is None else peak - before
        expected = head.grad.cpu() if expected is None else expected  # not where the next way's peak is counted
        apart[name], running[name] = distance(head.grad.cpu(), expected), way
    seconds, _ = in_turns({name: partial(passage, way) for name, way in running.items()}, place.repeats, place.clock)
    for name in running:
        cells = [*timed(seconds, name, "ours"), gigabytes(memory[name]), f"{apart[name]:.1e}"]
        yield "log-probs", [*names, name, *cells]
    for name, reason in failed.items():
        yield "log-probs", [*names, name, reason, "-", "-", "-"]


def timed(seconds: dict[str, list[float]], name: str, first: str) -> list[str]:
    """The cells of a way's seconds, and of how many times as long as `first` it takes; a toy has none."""
    if first not in seconds or not any(seconds[first]):
        return ["-", "-"]
    return [spread(seconds[name], 4), spread(ratios(seconds, name, first))]


def one_line(error: Exception) -> str:
    """An error as a cell of a table."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}".replace("|", "/")


# --- random weights ---------------------------------------------------------------------------------------------------


def random_model(place: Place, config: Config, dtype: torch.dtype) -> Qwen3:
    """Weights so small that all tokens are nearly as likely: no row ends before its limit, but by chance."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Qwen3(config).to(dtype)
    model = model.to_empty(device=place.device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.02) if weight.ndim > 1 else weight.fill_(1.0)
    return model


def wide_tokenizer(vocab: int) -> Tokenizer:
    """The embedded world's, told to have as many ids as Qwen3's, so that as many can be drawn."""
    tokenizer = copy.copy(load_tokenizer(policy_directory("tiny")))
    tokenizer.size = max(tokenizer.size, vocab - 267)  # so many rows of Qwen3's head have no token
    return tokenizer


def long_task(tokenizer: Tokenizer, chat: Chat, number: int, ids: int) -> Task:
    """A task whose prompt has this many ids, or a few more."""
    words = 1
    while True:
        task = Task(f"{number}", "en", "high", "trained", "other", f"{number} {'a ' * words}?", (), "0")
        length = len(encode_prompt(task, tokenizer, chat))
        if length >= ids:
            return task
        words += max(1, (ids - length) // 2)


# --- the embedded world -----------------------------------------------------------------------------------------------


def world(place: Place) -> Iterator[Row]:
    """Do both devices draw the same ids by the same numbers, and have the same log-probs and gradient of them? In fp32
    all but the few rollouts whose number falls on a boundary are the same; in bf16 the devices round differently."""
    count, group = place.pick((64, 8), (3, 2))
    questions = world_tasks("test", languages(), count, 0)
    sampling = Options().sampling("free")

    def sampled(device: str, dtype: str) -> tuple[Qwen3, list[Rollout]]:
        model, tokenizer = load_policy("tiny/eager", device, getattr(torch, dtype))
        generator = torch.Generator().manual_seed(0)
        return model, rollout(model, tokenizer, questions, group, LexiconTranslator(), generator, sampling)

    def learned(model: Qwen3, rollouts: list[Rollout]) -> tuple[Tensor, Tensor]:
        logps, _, drawn = logprob.policy_logps(model, rollouts, 1.0, model.config.vocab_size)
        logps[drawn].sum().backward()
        return logps[drawn].detach().cpu(), torch.cat([p.grad.flatten().cpu() for p in model.parameters()])

    for dtype in ("float32", "bfloat16"):
        (model, here), (reference, there) = sampled(place.device, dtype), sampled("cpu", dtype)
        same = sum(a.ids == b.ids for a, b in zip(here, there, strict=True))
        yield "world", [dtype, "rollouts with the same ids", f"{same} of {len(there)}"]
        logps, gradient = learned(model, there)
        expected, expected_gradient = learned(reference, there)
        yield "world", [dtype, "log-probs, relative distance", f"{distance(logps, expected):.1e}"]
        yield "world", [dtype, "gradient, relative distance", f"{distance(gradient, expected_gradient):.1e}"]


# --- a training step --------------------------------------------------------------------------------------------------


def step_config(place: Place) -> train.Config:
    """The preset's lengths, micro-batches and dtypes, with as many rollouts as it decodes at a time."""
    fewer = {"tool_schema": False, "system": "", "prompts": 3, "minibatches": 3, "workers": 0, "device": place.device}
    toy = {"max_new_tokens": 6, "group_size": 2, "max_rows": 6, "micro_tokens": 64}
    return train.Config(**{**PRESETS["qwen3-4b"], **fewer, **place.pick({}, toy)})


class Phase:
    """A function of train.py, and what its last call took: seconds, peak, result."""

    def __init__(self, place: Place, function: Callable):
        self.place, self.function = place, function

    def __call__(self, *arguments):
        self.place.held()
        start = self.place.clock()
        self.result = self.function(*arguments)
        self.seconds, self.peak = self.place.clock() - start, self.place.peak()
        return self.result


def alternating() -> Callable[..., Score]:
    """Every other rollout is right: random weights never are, and equal rewards would teach nothing."""
    turns = itertools.count()

    def score(*_) -> Score:
        right = next(turns) % 2
        return Score(right, float(right), None, True, 0.0, False)

    return score


def training_step(place: Place, name: str) -> Iterator[Row]:
    """A step with short answers, which makes the moments, and then the one that is measured."""
    config, shape = step_config(place), place.shape(name)
    tokenizer = wide_tokenizer(shape.vocab_size)
    length = place.pick(PROMPT, 16)
    tasks = [long_task(tokenizer, config.chat_format, number, length) for number in range(config.prompts)]
    distributed.start(place.device, config.dtype)
    phases = {name: Phase(place, getattr(train, name)) for name in ("sample", "update")}
    with distributed.together(), ExitStack() as patches:
        for function, measured in {"score": alternating(), **phases}.items():
            patches.enter_context(patch.object(train, function, measured))
        model = random_model(place, shape, torch.float32)
        model.checkpoint_activations = config.checkpoint_activations
        model = distributed.shard(model, getattr(torch, config.dtype))
        optimizer = train.adamw(model, config)
        for new in (min(32, config.max_new_tokens), config.max_new_tokens):
            now = replace(config, max_new_tokens=new)
            start = place.clock()
            train.train_step(model, tokenizer, optimizer, tasks, LexiconTranslator(), now, 0)
            seconds = place.clock() - start
    yield from step_rows(name, shape, config, phases, seconds)


def step_rows(
    name: str, shape: Config, config: train.Config, phases: dict[str, Phase], seconds: float
) -> Iterator[Row]:
    rollouts, _ = phases["sample"].result
    prompt, new, group = len(rollouts[0].prompt_ids), config.max_new_tokens, config.group_size
    drawn = sum(len(r.ids) for r in rollouts)
    tokens = {"sample": drawn, "update": drawn + config.prompts * prompt}  # each prompt is run once
    for phase, measured in phases.items():
        rate = over(tokens[phase], measured.seconds, 0)
        yield "step", [name, phase, f"{tokens[phase]:,}", f"{measured.seconds:.2f}" if measured.seconds else "-", rate]
    yield "step", [name, "whole step", f"{tokens['update']:,}", f"{seconds:.2f}" if seconds else "-", "-"]
    batch = forecast.Batch.largest(config.micro_tokens, group, prompt, new, most=group)
    predicted = {
        "sample": forecast.rollouts(shape, len(rollouts), group, prompt, new, config.dtype, 1),
        "update": forecast.update(shape, batch, config.dtype, config.checkpoint_activations, 1),
    }
    for phase, measured in phases.items():
        told = sum(predicted[phase].values())
        yield "memory", [name, phase, gigabytes(measured.peak), gigabytes(told), over(measured.peak, told)]


# --- decoding ---------------------------------------------------------------------------------------------------------


def bandwidth(place: Place) -> float:
    """Bytes per second that this GPU reads and writes while it copies 2 GB: the best of five turns."""
    source = torch.zeros(place.pick(2 * 10**9, 1000), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    seconds, _ = in_turns({"copy": partial(target.copy_, source)}, 5, place.clock)
    return 2 * len(source) / (min(seconds["copy"]) or 1.0)


def to_be_read(model: Qwen3, rows: int, context: int) -> int:
    """Bytes of the weights, and of the keys and values of all rows: what a decoding step cannot do without."""
    c = model.config
    weights = sum(weight.numel() for weight in model.parameters())
    if not c.tie_word_embeddings:
        weights -= model.embed_tokens.weight.numel()  # of which one row per token is read; a tied one is the head
    cache = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * rows * context
    return (weights + cache) * model.embed_tokens.weight.element_size()


@torch.no_grad()
def decode_steps(place: Place, model: Qwen3, rows: int, context: int, steps: int) -> list[float]:
    """Seconds of each step, a turn's mean, behind `context` ids in each row."""
    cache = model.new_cache(rows, context + steps)
    first = torch.zeros(rows, 1, dtype=torch.long, device=place.device)

    def run() -> None:
        ids = first
        cache.lengths = torch.full_like(cache.lengths, context)
        for _ in range(steps):
            ids = model.logits(step(model, ids, cache)).argmax(-1)

    seconds, _ = in_turns({"run": run}, place.repeats, place.clock)
    return [total / steps for total in seconds["run"]]


def decode(place: Place, name: str) -> Iterator[Row]:
    """Steps at the middle of the preset's answers, for three numbers of rows."""
    model, rate = random_model(place, place.shape(name), torch.bfloat16), bandwidth(place)
    context, steps = place.pick((PROMPT + 1024, 20), (40, 2))
    for rows in place.pick((1, 24, 64), (1, 3)):
        each = statistics.median(decode_steps(place, model, rows, context, steps))
        least = to_be_read(model, rows, context) / rate
        told = [f"{1000 * each:.2f}", f"{1000 * least:.2f}", over(least, each), over(rows, each, 0)]
        yield "decode", [name, str(rows), str(context), *(told if each else ["-"] * 4)]


@torch.no_grad()
def greedy(model: Qwen3, ids: Tensor, new: int, read_token: Callable = step) -> Tensor:
    """The likeliest `new` ids behind ids [B, T]: [B, new]."""
    cache = model.new_cache(len(ids), ids.shape[1] + new)
    found = [model.logits(model(ids, cache)[:, -1:]).argmax(-1)]
    while len(found) < new:
        found.append(model.logits(read_token(model, found[-1], cache)).argmax(-1))
    return torch.cat(found, 1)


def as_written(model: Qwen3, ids: Tensor, cache: Cache) -> Tensor:
    """A step kernel by kernel, neither fused nor recorded."""
    return model(ids, cache)


def answers(place: Place, name: str) -> Iterator[Row]:
    """Prompts of random ids, answered greedily by our model and by `generate`, with a growing and a static cache. Both
    are compared by the logits of the prompts' last tokens: of random weights, rounding alone decides which token is the
    likeliest."""
    model = random_model(place, place.shape(name), torch.bfloat16)
    rows, prompt, new = place.pick((24, PROMPT, 128), (3, 9, 4))
    names = [name, str(rows), f"{prompt} + {new}"]
    if importlib.util.find_spec("transformers") is None:
        yield "generate", [*names, "generate", "not installed", "-", "-"]
        return
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, model.config.vocab_size, (rows, prompt), generator=generator).to(place.device)
    theirs = as_transformers(place, model)

    def generate(kind: str) -> Tensor:
        settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        settings |= {"cache_implementation": kind, "attention_mask": torch.ones_like(ids)}
        return theirs.generate(ids, **settings)[:, prompt:]

    with torch.no_grad():
        apart = distance(theirs(ids, logits_to_keep=1).logits[:, -1], model.logits(model(ids)[:, -1]))
    turns = {"ours": partial(greedy, model, ids, new), "ours, as written": partial(greedy, model, ids, new, as_written)}
    failed = {}
    for kind in ("dynamic", "static"):
        try:
            generate(kind)  # compiles
            turns[f"generate, {kind} cache"] = partial(generate, kind)
        except Exception as error:  # whatever a foreign package raises
            failed[f"generate, {kind} cache"] = one_line(error)
    seconds, found = in_turns(turns, min(3, place.repeats), place.clock)
    assert {tuple(ids.shape) for ids in found.values()} == {(rows, new)}, "all of them write as much"
    for way in turns:
        yield "generate", [*names, way, *timed(seconds, way, "ours"), f"{apart:.1e}" if "generate" in way else "-"]
    for way, reason in failed.items():
        yield "generate", [*names, way, reason, "-", "-"]


def as_transformers(place: Place, model: Qwen3):
    """The same weights in the class of `transformers`."""
    import transformers

    fields = asdict(model.config)
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    config = transformers.Qwen3Config(**fields, rope_parameters=rope, max_position_embeddings=40_960)
    with torch.device(place.device):
        theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=model.embed_tokens.weight.dtype).eval()
    missing, unexpected = theirs.load_state_dict(
        {k if k.startswith("lm_head.") else f"model.{k}": v for k, v in model.state_dict().items()}, strict=False
    )
    if missing or unexpected:
        raise RuntimeError(f"weights do not fit: {missing or unexpected}")
    return theirs


PARTS: dict[str, Callable[[Place], Iterator[Row]]] = {
    "kernel": kernel,
    "log-probs": log_probs,
    "world": world,
    "step-0.6B": partial(training_step, name="0.6B"),
    "step-4B": partial(training_step, name="4B"),
    "decode-0.6B": partial(decode, name="0.6B"),
    "decode-4B": partial(decode, name="4B"),
    "generate-0.6B": partial(answers, name="0.6B"),
    "generate-4B": partial(answers, name="4B"),
}
