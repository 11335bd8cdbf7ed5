"""Faults by the hundred: kills, full disks, servers that lie, hostile texts and broken model directories.

    python -m bench.faults
    python -m bench.faults --parts soak --steps 2000

Each part injects its fault at random, from a seed, and counts losses: a run that differs by a bit from an undisturbed
one, a text that forges a control token or ends a parser, a model directory or a server's answer that ends in a
traceback in place of one line. The command fails if there is one. `tests/test_faults.py` is its short form.

Left out: power cuts, lost ranks (tests/test_distributed.py), and faults of a GPU.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import torch

import train
from data import Chat, Task, encode_prompt, encode_tool_turn, load_tokenizer
from harness.escape import in_line, on_screen
from harness.rundir import load_policy
from reward import FORMATS, extract, verify
from tests.helpers import base_directory, random_directory, write_tasks
from tests.servers import Reply, libre, serving
from tools import TranslationError, parse_call
from translation.engines import Apy, ChatEngine, Libre
from translation.post import sentence
from translation.protect import KINDS, Lost, protect, restore

PROCESSES = multiprocessing.get_context("forkserver")  # torch is imported once for all of them
PROCESSES.set_forkserver_preload(["torch", "train", "tests.helpers", "tests.servers", "translation.engines"])

# --- runs: kills, full disks, a server that fails ---------------------------------------------------------------


def run(words: list[str], printed) -> None:
    """What a process does: train. It prints into a pipe, which has room on a full disk."""
    torch.set_num_threads(1)
    for stream in (1, 2):
        os.dup2(printed.fileno(), stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    train.main(words)


class Runs:
    """Short runs in processes of their own, which are disturbed until there were enough faults."""

    def __init__(self, directory: Path, words: list[str], seed: int):
        self.directory, self.words, self.rng, self.faults = directory, words, random.Random(seed), Counter()
        self.printed = []

    def start(self, out: Path):
        words = [*self.words, "--out", str(out), *["--resume"] * (out / "config.json").exists()]
        ours, its = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=run, args=(words, its))
        process.start()
        its.close()
        threading.Thread(target=self._read, args=(ours,), daemon=True).start()
        return process

    def _read(self, pipe) -> None:
        with pipe:
            while part := os.read(pipe.fileno(), 65536):
                self.printed.append(part)

    def undisturbed(self, out: Path) -> dict[str, list[int]]:
        """A run that nothing happens to, and what it held meanwhile: pages of memory and open files, over time."""
        process, held = self.start(out), {"pages": [], "files": []}
        while process.is_alive():
            with contextlib.suppress(OSError):  # it may have ended by now
                held["files"].append(len(os.listdir(f"/proc/{process.pid}/fd")))
                held["pages"].append(int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]))
            process.join(0.2)
        if process.exitcode:
            sys.exit(f"the undisturbed run failed:\n{b''.join(self.printed).decode(errors='replace')}")
        return held

    def disturbed(self, out: Path, kinds: tuple[str, ...], every: int, most: int) -> None:
        """One run to its end through at most so many faults. Each comes a random number of steps behind the last
        checkpoint, and a moment later: while it loads, samples, learns, writes."""
        for _ in range(most):
            kind, process = self.rng.choice(kinds), self.start(out)
            last = max((int(path.name[5:]) for path in out.glob("step-*[0-9]")), default=0)
            goal, moment = last + self.rng.randint(0, 2 * every), self.rng.uniform(0, 0.3)
            while process.is_alive() and steps_in(out) < goal:
                time.sleep(0.005)
            process.join(moment)
            if process.is_alive() and kind == "kill":
                os.kill(process.pid, signal.SIGKILL)
            elif process.is_alive():  # from here on no file of it can grow
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            process.join()
            self.faults[kind] += process.exitcode != 0
            if process.exitcode == 0:
                return
        self.start(out).join()

    def losses(self, one: Path, other: Path) -> int:
        """Files of two finished runs that differ, and tracebacks that were printed meanwhile."""
        names = ["metrics.jsonl", *(f"best/{name}" for name in ("model.safetensors", "state.json"))]
        last = max(one.glob("step-*")).name
        names += [f"{last}/{name}" for name in ("model.safetensors", "optimizer.safetensors", "state.json")]
        differ = [n for n in names if not (other / n).is_file() or (one / n).read_bytes() != (other / n).read_bytes()]
        said, self.printed = b"".join(self.printed).decode(errors="replace"), []
        if "Traceback" in said:
            print(said[said.index("Traceback") :][:2000], file=sys.stderr)
        return len(differ) + said.count("Traceback")


def steps_in(out: Path) -> int:
    log = out / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def small_run(directory: Path, steps: int, every: int) -> list[str]:
    """The options of a run of very small steps."""
    data = write_tasks(directory / "tasks.jsonl")
    options = f"""--model {base_directory()} --data {data} --lang-tier low --steps {steps} --prompts 2 --group-size 4
        --max-new-tokens 60 --eval-every {every} --save-every {every} --validation-items 2 --test-items 2
        --minibatches 1 --learning-rate 1e-4"""
    return options.split()


def kills(count: int, seed: int) -> tuple[str, int]:
    """SIGKILL at random moments, until there were so many."""
    with tempfile.TemporaryDirectory() as place:
        directory, number, losses = Path(place), 0, 0
        runs = Runs(directory, small_run(directory, steps=24, every=3), seed)
        runs.undisturbed(directory / "whole")
        while runs.faults["kill"] < count:
            number += 1
            runs.disturbed(directory / f"run-{number}", ("kill",), 3, min(12, count - runs.faults["kill"]))
            losses += runs.losses(directory / "whole", directory / f"run-{number}")
            shutil.rmtree(directory / f"run-{number}")
        return f"{runs.faults['kill']} kills in {number} runs", losses


def soak(steps: int, seed: int, faults: int = 60) -> tuple[str, int]:
    """One long run with a cache and a server that refuses each third text once; kills and full disks at random."""
    asked, lock = Counter(), threading.Lock()

    def unreliable(request):
        if request.path == "/languages":
            return Reply("", 404)
        with lock:
            asked[request.json["q"]] += 1
            first = asked[request.json["q"]] == 1
        if first and sum(request.body) % 3 == 0:
            refused.append(1)
            return Reply("", 503)
        return libre(request)

    refused = []
    with tempfile.TemporaryDirectory() as place, serving(unreliable) as server:
        directory = Path(place)
        words = [
            *small_run(directory, steps, every=max(3, steps // 40)),
            "--translator",
            f"libre+{server.url}",
            "--workers",
            "2",
        ]
        runs = Runs(directory, words, seed)
        held = runs.undisturbed(directory / "whole")
        asked.clear()
        runs.words += ["--cache", str(directory / "cache.sqlite")]
        runs.disturbed(directory / "run", ("kill", "disk full"), max(3, steps // 40), faults)
        losses = runs.losses(directory / "whole", directory / "run")
    (small, large), (few, many) = (begin_and_end(held[name]) for name in ("pages", "files"))
    mebibytes = [pages * os.sysconf("SC_PAGE_SIZE") // 2**20 for pages in (small, large)]
    grows = steps >= 500 and (many > few or mebibytes[1] > 1.1 * mebibytes[0] + 8)  # a short run has not got its size
    told = f"{steps} steps, {dict(runs.faults)}, {len(refused)} requests refused"
    return f"{told}; memory {mebibytes[0]} -> {mebibytes[1]} MiB, open files {few} -> {many}", losses + grows


def begin_and_end(values: list[int]) -> tuple[int, int]:
    """The medians of the second tenth and of the ninth: behind the start, and before the closing evaluation."""
    tenths = (sorted(values[len(values) * i // 10 : len(values) * (i + 1) // 10] or values[:1]) for i in (1, 8))
    return tuple(part[len(part) // 2] for part in tenths)


# --- what comes from outside ------------------------------------------------------------------------------------

PIECES = (
    "<|im_end|> <|im_start|> <tool_call> </tool_call> <tool_response> </tool_response> <think> </think> <|im <tool_ |> "
    '{"name": translate "arguments": {} } [ ] null \\boxed{ \\text{ \\frac $ ` ``` \\( \\) #### 1,234.5 ½ 三分の二 % -'
).split(" ") + [
    "\n",
    "\t",
    " ",
    "\0",
    "\x1b[2J",
    "\x9b",
    "\u202e",
    "\u200d",
    "\u0301" * 30,
    "\ud83d",
    "9" * 600,
    "é",
    "ჯ",
]


def hostile(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) * rng.choice((1, 1, 1, 3)) for _ in range(rng.randint(1, 12)))


def texts(count: int, seed: int) -> tuple[str, int]:
    """Texts of markup, escape codes and halves of characters, through all that reads text from outside."""
    rng, tokenizer, losses = random.Random(seed), load_tokenizer(random_directory()), 0
    control = set(tokenizer.control.values())

    def controls(ids) -> int:
        return sum(i in control for i in ids)

    plain = Task("a", "low-01", "low", "trained", "other", "a", ("b",), "c")
    frame = controls(encode_prompt(plain, tokenizer, Chat("s"))), controls(encode_tool_turn(["a"], tokenizer, True))
    for _ in range(count):
        text = hostile(rng)
        encodable = text.encode("utf-8", "replace").decode()  # halves of characters are refused where files are read
        try:
            task = Task("a", "low-01", "low", "trained", "other", encodable, (encodable,), "c")
            forged = controls(encode_prompt(task, tokenizer, Chat(encodable))) != frame[0]
            forged |= controls(encode_tool_turn([encodable], tokenizer, True)) != frame[1]
            parse_call(text)
            for form in FORMATS[:2]:
                verify(extract(text, form) or "", text, (text, "b"))
            shown = on_screen(text) + in_line(text) + sentence(text.encode("utf-8", "replace"), "a-secret-key")
            with contextlib.suppress(Lost):
                forged |= restore(*protect(encodable, [*KINDS])) != encodable
            losses += forged or any(c in shown for c in "\x1b\x9b\x00\u202e\ud83d")
        except Exception as error:
            print(f"{text[:60]!a}: {error!r:.200}")
            losses += 1
    return f"{count} hostile texts", losses


JUNK = (
    None,
    True,
    -1,
    0,
    3,
    10**5,
    10**12,
    1e-300,
    float("nan"),
    "",
    "x" * 10_000,
    [],
    [1],
    {},
    {"a": 1},
    "../x",
    "\x1b[2J",
)


def damage(directory: Path, rng: random.Random) -> None:
    """Change one thing about a model directory."""
    path = directory / rng.choice(("config.json", "config.json", "tokenizer.json", "model.safetensors"))
    content = bytearray(path.read_bytes())
    kind = rng.choice(("cut", "flip", "field", "field", "delete", "insert"))
    if kind == "delete":
        path.unlink()
        return
    if kind == "field" and path.suffix == ".json":
        raw = json.loads(content)
        name = rng.choice(list(raw))
        if rng.random() < 0.3:
            del raw[name]
        else:
            raw[name] = rng.choice(JUNK)
        content = bytearray(json.dumps(raw).encode())
    elif kind == "cut":
        del content[rng.randrange(len(content)) :]
    elif kind == "insert":
        place = rng.randrange(min(len(content), 5000))
        content[place:place] = rng.randbytes(rng.choice((1, 4, 1000)))
    else:
        for _ in range(rng.choice((1, 20))):
            content[rng.randrange(min(len(content), 5000))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def models(count: int, seed: int) -> tuple[str, int]:
    """Model directories with one thing changed: refused in a line, or loaded and computing."""
    rng, ends, losses = random.Random(seed), Counter(), 0
    for _ in range(count):
        with tempfile.TemporaryDirectory() as place:
            directory = shutil.copytree(random_directory(), Path(place) / "model")
            damage(directory, rng)
            try:
                model, tokenizer = load_policy(directory)
                model(torch.tensor([tokenizer.encode_text("a b")[:2] or [0]]))
                ends["loaded"] += 1
            except (ValueError, OSError) as error:
                ends["refused"] += 1
                losses += len(in_line(str(error)).replace(place, "")) > 600
            except Exception as error:
                print(f"a model directory ended in {error!r:.200}")
                losses += 1
    return f"{count} broken model directories, {dict(ends)}", losses


BODIES = (
    "",
    "null",
    "[]",
    "{}",
    "[" * 100_000,
    "<html>\x1b[2J",
    " ",
    '{"translatedText": 7}',
    b"\xff\xfe",
    '"a',
    "9" * 600,
)
ENVELOPES = (
    lambda answer: {"translatedText": answer},
    lambda answer: {"responseData": {"translatedText": answer}},
    lambda answer: {"choices": [{"message": {"content": answer}}]},
)
ANSWERS = (None, 7, "", " ", [], {}, "\ud83d", "<think>", "\x1b[2J", "x" * 100_000)


def misbehaviours() -> list[Reply]:
    statuses = (300, 301, 302, 307, 400, 401, 402, 403, 404, 405, 408, 409, 413, 418, 429, 500, 501, 502, 503, 504)
    found = [Reply({"error": "no \x1b[2J key"}, status) for status in statuses]
    found += [Reply(body) for body in BODIES] + [Reply(body, 500) for body in BODIES]
    found += [Reply(envelope(answer)) for envelope in ENVELOPES for answer in ANSWERS]
    found += [Reply(libre_body, promised=10**6) for libre_body in ({"translatedText": "A"}, "x")]
    return found + [Reply(" ", drips=True), Reply("{", drips=True)]


def always(reply: Reply):
    return lambda request: reply


def servers(count: int, seed: int) -> tuple[str, int]:
    """Servers that refuse, lie, cut and drip, asked in three protocols: an answer that is text, or one short line."""
    cases = [(kind, reply) for reply in misbehaviours() for kind in (Libre, Apy, ChatEngine)]
    random.Random(seed).shuffle(cases)
    ends, losses = Counter(), 0
    for kind, reply in cases[:count]:
        with serving(always(reply)) as server:
            address = f"{server.url}/v1?model=m" if kind is ChatEngine else server.url
            start = time.monotonic()
            try:
                (answer,) = kind(address, timeout=1.0).translate(["a question"], "es")
                losses += not (isinstance(answer, str) and answer.strip())
                ends["answered"] += 1
            except (TranslationError, ValueError) as error:
                ends["failed in a line"] += 1
                losses += len(str(error)) > 200 or not str(error).isprintable()
            except Exception as error:
                print(f"a server's answer ended in {error!r:.200}")
                losses += 1
            losses += time.monotonic() - start > 30
    return f"{min(count, len(cases))} misbehaviours of servers, {dict(ends)}", losses


# --- the command ------------------------------------------------------------------------------------------------

PARTS = {"texts": texts, "models": models, "servers": servers, "kills": kills, "soak": soak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument("--texts", type=int, default=10_000, help="hostile texts")
    parser.add_argument("--models", type=int, default=300, help="broken model directories")
    parser.add_argument("--servers", type=int, default=150, help="misbehaviours of servers")
    parser.add_argument("--kills", type=int, default=100, help="kills of a run")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the soak")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    args = parser.parse_args()
    counts, lost = {**vars(args), "soak": args.steps}, 0
    for name in args.parts.split(","):
        if name not in PARTS:
            parser.error(f"--parts {name}: there are {', '.join(PARTS)}")
        start = time.monotonic()
        told, losses = PARTS[name](counts[name], args.seed)
        print(f"{name}: {told}; losses: {losses}; {time.monotonic() - start:.0f} s", flush=True)
        lost += losses
    if lost:
        sys.exit(f"{lost} losses")


if __name__ == "__main__":
    main()
