"""What all command lines share: options from one dataclass, presets, and errors of one line.

An option is a field with a one-line comment, which becomes its help; `lang_tier` is spelled `--lang-tier`. Unknown
options and values are errors of one line with exit code 2.
"""

import argparse
import contextlib
import inspect
import math
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from data import Chat
from harness.escape import in_line
from tools import SCHEMA, Prices

BOXED = (
    "Answer the question. Put the final answer, in English or as a number, into \\boxed{}. The question may be in a "
    "language that you do not know well; the tool translates it into English, at a price."
)

# Named sets of defaults. tiny: those of the fields (docs/log.md says how they were chosen). qwen3-4b: with sources.
PRESETS = {
    "tiny": {},
    "qwen3-4b": {
        "model": "Qwen3-4B",
        "data": "tasks.jsonl",
        "device": "cuda",
        "dtype": "bfloat16",  # with fp32 weights: a step of Adam at 1e-6 is far below the spacing of bf16
        "checkpoint_activations": True,  # the activations of 16k tokens are 113 GB, the inputs of the layers 3 GB
        # the published chat format, and thinking off: the paper's question is what a call buys, not a longer thought
        "system": BOXED,
        "tool_schema": True,
        "think": False,
        "answer_format": "boxed",
        "workers": 64,
        "price_char": 0.5 / 235,  # a mean GSM8K question has 235 characters; with price_call 0.5 it costs 1
        # GSPO, arXiv 2507.18071, section 5.1: both clip ranges, and four minibatches per rollout batch
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "minibatches": 4,
        # GRPO, arXiv 2402.03300, section 4.2: 1,024 rollouts per step and a learning rate of 1e-6; its groups have 64.
        # DAPO, arXiv 2503.14476, section 4.1: the same rate in AdamW, groups of 16, 20 steps of warm-up.
        "prompts": 128,
        "group_size": 8,  # the smallest in use, and ours in the tiny world: the gate needs prompts more than rollouts
        "learning_rate": 1e-6,
        "warmup_steps": 20,
        "decay": 0.0,  # a constant rate, as in both
        "steps": 200,  # 25,600 prompts; GSM8K's training set in 22 languages is six times as many
        "max_new_tokens": 2048,  # ours: a worked GSM8K answer has some 300, two tool turns as many again
        "max_rows": 24,  # on each rank: 9 GB of cache, which fits beside the moments on one 80 GB GPU; raise it on more
        "micro_tokens": 16384,  # at least six full rows: large enough for the matmuls, and the head's chunks
        "eval_every": 10,  # a validation samples 600 rollouts, more than half a step's
        "validation_items": 200,  # a standard error of 0.035 at most, in each tier
        "save_every": 5,  # 48 GB each; what a lost rank costs at most, besides the step
        "test_items": 250,  # MGSM has as many in each language
    },
}


# --- what an option may be -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """What a number may be, both ends included; stands in the field's own type."""

    low: float
    high: float = math.inf
    words: str = ""  # as in "--steps must be positive"


MOST = 10**9  # of anything counted, and a seed: what is computed from it still fits into 64 bits
LEAST, LARGEST = 1e-30, 1e30  # of other numbers: beyond them fp32, in which they are used, has only 0 and infinity
Count = Annotated[int, Bounds(1, MOST, words="positive")]
Whole = Annotated[int, Bounds(0, MOST, words="at least 0")]
Positive = Annotated[float, Bounds(LEAST, LARGEST, words="positive")]
Amount = Annotated[float, Bounds(0, LARGEST, words="at least 0")]
Share = Annotated[float, Bounds(0, 1, words="between 0 and 1")]

T = TypeVar("T")
NEUTRAL = "decides no result"  # so it may differ from one start to the next, and is no part of a result's key
Neutral = Annotated[T, NEUTRAL]
ALONE = "may stand without a value"  # which then means "first"
Alone = Annotated[T, ALONE]


@dataclass(frozen=True)
class Options:
    """Options of every command that samples from a policy."""

    preset: Neutral[Literal["tiny", "qwen3-4b"]] = "tiny"  # named set of defaults
    data: str = "tiny"  # JSONL, TSV, parquet; "tiny": the embedded world; "tiny-prices": its tasks state a lambda each
    fields: str = ""  # the file's fields, as ours=theirs,ours=theirs; theirs: a name, a path a.0.b, a constant :es
    translator: str = "lexicon"  # engine: lexicon, apertium, recorded:FILE, {libre,apy,chat}+http(s)://…
    cache: Neutral[str] = ""  # SQLite file that keeps translations, for this run and others (not the lexicon's)
    money_per_char: Neutral[Amount] = 0.0  # what the engine charges per character
    max_cost: Neutral[Amount] = 0.0  # what may be spent on translations before the run stops; 0: no limit
    workers: Neutral[Whole] = 0  # tool calls that run at a time, beside the decoding; 0: in line, one after the other
    tool_noise: str = "0.01,0.05,0.2"  # share of words that the lexicon gets wrong: HIGH,LOW,XLOW or one number for all
    price_call: Amount = 0.5  # what every attempted call costs
    price_char: Amount = 0.5 / 45  # what each character sent costs; a mean question has 45
    system: str = ""  # instructions in the system turn
    tool_schema: bool = False  # describe the tool in the system turn
    think: bool = True  # --no-think opens assistant turns with an empty think block
    answer_format: Literal["plain", "boxed", "math"] = "plain"  # the last turn; its last \boxed{}; that, as mathematics
    max_new_tokens: Count = 96  # ids after the prompt, tool results included
    max_prompt_tokens: Neutral[Count] = 4096  # a longer prompt in the file of tasks is refused before the run starts
    max_calls: Whole = 2  # tool calls per rollout
    max_rows: Neutral[Count] = 512  # rollouts decoded at a time
    device: Neutral[str] = "cpu"  # where the model runs: cpu, cuda
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights in training are float32 in both

    def check(self) -> None:
        """Raise ValueError naming the first option whose value makes no sense."""
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            for bounds in (mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Bounds)):
                value, flag = getattr(self, name), "--" + name.replace("_", "-")
                if bounds.words and bounds.high < value < math.inf:
                    bounds = replace(bounds, words=f"at most {bounds.high:g}" if bounds.high > 1 else bounds.words)
                elif 0 < value < bounds.low:
                    bounds = replace(bounds, words=f"at least {bounds.low:g}")
                fits = bounds.low <= value <= bounds.high and value < math.inf
                require(fits, f"{flag} must be {bounds.words}, is {value}")
        _ = self.noise
        require(not self.max_cost or self.money_per_char > 0, "--max-cost needs --money-per-char")
        ready = self.answer_format != "math" or find_spec("math_verify") is not None
        require(ready, "--answer-format math needs a package: pip install math-verify")

    @property
    def chat_format(self) -> Chat:
        return Chat(self.system or None, (SCHEMA,) if self.tool_schema else (), self.think)

    @property
    def field_names(self) -> dict[str, str]:
        """`--fields`: our names of a file's fields -> the file's. ValueError for what is no pair."""
        pairs = [pair for pair in self.fields.split(",") if pair]
        for pair in pairs:
            require("=" in pair, f"--fields {self.fields}: ours=theirs was expected, found {pair!r}")
        return {ours.strip(): theirs.strip() for ours, _, theirs in (pair.partition("=") for pair in pairs)}

    @property
    def noise(self) -> dict[str, float]:
        """`--tool-noise`: tier -> share of wrong words; the synthetic languages have that of XLow."""
        words = self.tool_noise.split(",")
        try:
            shares = [float(word) for word in words]
        except ValueError:
            shares = []
        fits = len(shares) in (1, 3) and all(0 <= share <= 1 for share in shares)
        require(
            fits, f"--tool-noise must be one share between 0 and 1, or three, as 0.01,0.05,0.2, is {self.tool_noise}"
        )
        high, low, xlow = shares * (3 // len(shares))
        return {"high": high, "low": low, "xlow": xlow, "synthetic": xlow}

    def sampling(self, mode: str = "free", temperature: float = 1.0):
        """How rollouts are sampled under these options: a `sampler.Sampling`."""
        from sampler import Sampling  # torch takes a second to import, and not every command needs it

        return Sampling(
            mode=mode,
            temperature=temperature,
            max_new_tokens=self.max_new_tokens,
            max_calls=self.max_calls,
            max_rows=self.max_rows,
            workers=self.workers,
            chat=self.chat_format,
            prices=Prices(self.price_call, self.price_char),
        )


@dataclass(frozen=True)
class TrainingOptions(Options):
    """And of a command that trains: what it must not be given, where it shows its metrics, and what it trains."""

    evaluation_data: Neutral[tuple[str, ...]] = ()  # JSONL file whose tasks may not be trained on; may be repeated
    allow_evaluation_data: Neutral[bool] = False  # train on them all the same, and say so
    log: Neutral[Literal["none", "tensorboard", "wandb"]] = "none"  # show metrics there too; each needs its package
    lora_rank: Whole = 0  # train adapters of this rank on all projections, and nothing else; 0: train all weights
    lora_alpha: Positive = 32.0  # adapters are added times lora_alpha / lora_rank

    def check(self) -> None:
        super().check()
        ready = self.log == "none" or find_spec(self.log) is not None
        require(ready, f"--log {self.log} needs a package: pip install {self.log}")


def differing(options: Options) -> list[str]:
    """The options that differ from their preset's, as they are typed."""
    preset = {field.name: field.default for field in fields(options)} | PRESETS[options.preset]
    return [typed(name, value) for name, value in vars(options).items() if value != preset[name] and name != "preset"]


def typed(name: str, value) -> str:
    """An option as it is typed: --price-call 0.5, --no-think."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return flag if value else flag.replace("--", "--no-", 1)
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(f"{flag} {shlex.quote(str(one))}" for one in values)


def deciding(cls) -> list[str]:
    """The names of the options that decide a result."""
    kinds = get_type_hints(cls, include_extras=True)
    return [field.name for field in fields(cls) if NEUTRAL not in getattr(kinds[field.name], "__metadata__", ())]


# --- command lines -------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, in_line(f"{self.prog}: error: {message}") + "\n")


def parse(cls, description: str, argv: list[str] | None = None, inherited: Callable[[dict], dict] | None = None):
    """An instance of the options dataclass `cls` from the command line.

    What is not given there comes from `inherited` (what is given -> more of it), then from the preset, then from the
    fields' defaults.
    """
    kinds, marked, comments = get_type_hints(cls), get_type_hints(cls, include_extras=True), _comments(cls)
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for field in fields(cls):
        flag, kind = "--" + field.name.replace("_", "-"), kinds[field.name]
        extra: dict[str, Any] = {"help": f"{comments[field.name]} (default: {field.default!r})".replace("%", "%%")}
        if kind is bool:
            extra["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            extra["choices"] = get_args(kind)
        elif get_origin(kind) is tuple:
            extra |= {"action": "append", "type": get_args(kind)[0]}
        else:
            extra["type"] = kind
        if ALONE in getattr(marked[field.name], "__metadata__", ()):
            extra |= {"nargs": "?", "const": "first"}
        parser.add_argument(flag, default=None, **extra)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    known = {field.name for field in fields(cls)}
    preset = {name: value for name, value in PRESETS[given.get("preset", "tiny")].items() if name in known}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    try:
        options = cls(**{**preset, **(inherited(given) if inherited else {}), **given})
        options.check()
    except ValueError as error:
        parser.error(str(error))
    return options


def _comments(cls) -> dict[str, str]:
    """The comment behind each field, in the dataclass and those it inherits from."""
    found = {}
    for base in reversed(cls.__mro__[:-1]):
        found |= dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(base), flags=re.MULTILINE))
    return found


@contextlib.contextmanager
def clear_errors():
    """Around a command's set-up: what is wrong with the user's input ends it with one line and exit code 2."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output, head or a pager, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        sys.exit(0)
    except (ValueError, OSError) as error:
        print(in_line(f"{sys.argv[0]}: error: {error}"), file=sys.stderr)  # it may quote a file from a stranger
        sys.exit(2)


def require(condition: bool, message: str) -> None:
    """Raise ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)
