"""Make one result: the options, the key and the command line of a run, and the run itself.

    Job, seed -> configuration -> key
    Job, seed -> train.py -> best/ and the last checkpoint on test items -> paper/results/runs/NAME-SEED-KEY.json

Called by reproduce.py. A key is the hash of what differs from train.py's defaults, of their version, of the base
model's weights and of the items. An option that is added with a neutral default therefore leaves every key as it is.
The code is no part of a key: after a change of the algorithm, name another --out and --runs.

Left out: a scheduler. Runs go --jobs at a time on this machine, each with one thread, so --jobs changes no result.
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from data import Tokenizer, encode_prompt
from eval import evaluate
from harness.chat import call_probabilities
from harness.options import Options, deciding, parse, require
from harness.rundir import load_policy, policy_directory
from harness.tasks import with_price
from model import Qwen3
from paper.experiments import ROUTED, Job, read_label
from paper.outcomes import UNITS, curves, item_set, items_digest, key_of, load_result, outcomes, pack, save_result
from train import Config
from translation.service import open_translator

# The version of the defaults that keys refer to. Raise it by one when a default of train.py changes, or what an option
# or a value of it means: the same differences are then another run. A new option whose default changes no number does
# not raise it. Results of an older version stay as files and are no longer found.
DEFAULTS = 3


@dataclass(frozen=True)
class ReproduceOptions:
    """Options of python -m paper.reproduce."""

    seeds: int = 3  # seeds of the main table and of the cost-conditioned policy; ablations have one
    quick: bool = False  # one seed, one cost weight, half of the steps, 400 test items; no ablations, no prices
    only: tuple[str, ...] = ()  # beside the base: main, ablations, price, or the name of a run; may be repeated
    jobs: int = 2  # runs at a time
    tables: bool = False  # run nothing, make tables and figures from the results there are
    test_items: int = 2000  # test items in each group of languages
    train: str = ""  # options of train.py for every run, as one string: "--steps 60 --model DIR"
    base: tuple[str, ...] = ()  # another base model to compare on, for the ablation of its tool rate; may be repeated
    out: str = "paper/results"  # tables and figures, and in runs/ the results that they are made from
    runs: str = "runs/reproduce"  # run directories of train.py

    def check(self) -> None:
        """Raise ValueError naming the first option whose value makes no sense."""
        for name in ("seeds", "jobs", "test_items"):
            require(getattr(self, name) > 0, f"--{name.replace('_', '-')} must be positive, is {getattr(self, name)}")
        require(self.test_items >= 40, "--test-items must be at least 40, for two items per language and domain")

    @property
    def items(self) -> int:
        return min(self.test_items, 400) if self.quick else self.test_items

    @property
    def results(self) -> Path:
        """Where the result files are."""
        return Path(self.out) / "runs"

    def config(self, job: Job | None = None, seed: int = 0) -> Config:
        """The full configuration of a run; without a job that of the defaults. Exits with an error for bad options."""
        config = parsed(f"{self.train} {job.options if job else ''} --seed {seed}")
        return replace(config, steps=max(1, config.steps // 2)) if self.quick else config


@functools.cache
def parsed(words: str) -> Config:
    """train.py's configuration for these options; they are asked for many times."""
    return parse(Config, "", shlex.split(words))


# --- what decides a result --------------------------------------------------------------------------------------


def differences(config, kind: type) -> dict:
    """Name -> value of the options of the dataclass `kind` that decide a result and are not at their defaults. The base
    model is left to its weights: another directory with the same ones is the same."""
    default = kind()
    names = [name for name in deciding(kind) if name != "model"]
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(default, name)}


@functools.cache
def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def configuration(job: Job, seed: int, options: ReproduceOptions) -> dict:
    """All that decides a result. A base model that is not trained is decided by the options of sampling alone."""
    config = options.config(job, seed)
    return {
        "defaults": DEFAULTS,
        "trains": job.trains,
        "options": differences(config, Config if job.trains else Options),
        "model": digest(policy_directory(config.model) / "model.safetensors"),
        "items": [options.items, items_digest(options.items)],
    }


def seeds_of(job: Job, options: ReproduceOptions) -> range:
    return range(options.seeds if job.trains and job.experiment != "ablations" and not options.quick else 1)


def command(job: Job, seed: int | str, options: ReproduceOptions) -> str:
    """The command line of a run, as a reader would type it."""
    if not job.trains:
        words = re.sub(r"--model \S+", "", job.options).split()
        return " ".join(["python eval.py --policy", options.config(job).model, f"--items {options.items}", *words])
    steps = f"--steps {options.config(job).steps}" if options.quick else ""
    return " ".join(filter(None, ("python train.py", options.train, job.options, steps, f"--seed {seed}")))


# --- runs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pending:
    """What is missing of one result."""

    job: Job
    seed: int
    key: str
    labels: tuple[str, ...]  # evaluations that it lacks


def pending_runs(jobs: list[Job], options: ReproduceOptions) -> list[Pending]:
    """What to run, each configuration once, whatever the number of jobs that need it: experiment after experiment, and
    in each of them all jobs with one seed before any with the next."""
    missing, experiments = {}, list(dict.fromkeys(job.experiment for job in jobs))
    wanted = [(job, seed) for job in jobs for seed in seeds_of(job, options)]
    for job, seed in sorted(wanted, key=lambda pair: (experiments.index(pair[0].experiment), pair[1])):
        key = key_of(configuration(job, seed, options))
        found = load_result(key, options.results)
        lacking = [label for label in job.evaluations if label not in (found["outcomes"] if found else {})]
        if lacking:
            before = missing.get(key, Pending(job, seed, key, ()))
            missing[key] = replace(before, labels=tuple(dict.fromkeys((*before.labels, *lacking))))
    return list(missing.values())


def run(pending: Pending, options: ReproduceOptions) -> str:
    """Train unless that is done, evaluate what is missing, write the result file. Returns a line to print.

    A run that was stopped goes on from its last checkpoint. RuntimeError if train.py fails.
    """
    job, seed, key = pending.job, pending.seed, pending.key
    config, started = options.config(job, seed), time.perf_counter()
    directory = next(iter(sorted(Path(options.runs).glob(f"*-{key}"))), Path(options.runs) / f"{job.name}-{seed}-{key}")
    if job.trains and not (directory / "report.json").exists():
        train(job, seed, directory, options)
    policy = last = load_policy(directory if job.trains else config.model)
    best = json.loads((policy_directory(directory) / "state.json").read_text()) if job.trains else {}
    if best.get("step") != config.steps and any(read_label(label)[1] == "last" for label in pending.labels):
        last = load_policy(last_checkpoint(directory, config))
    found = load_result(key, options.results) or {"outcomes": {}}
    path, seconds = found.pop("path", options.results / f"{directory.name}.json"), found.get("seconds", 0.0)
    for label in pending.labels:
        part, mode, _ = read_label(label)
        if mode == "last" and last is policy and (same := found["outcomes"].get(f"{part}/free")):
            found["outcomes"][label] = same  # the last checkpoint is the best one
            continue
        measures = evaluation(label, *(last if mode == "last" else policy), config, options.items)
        found["outcomes"][label] = {name: pack(values, UNITS[name]) for name, values in measures.items()}
    seconds += time.perf_counter() - started
    found |= {
        "name": job.name,
        "seed": seed,
        "command": command(job, seed, options),
        "seconds": round(seconds),
        "machine": f"{platform.machine()}, torch {torch.__version__}, one thread",
        "configuration": configuration(job, seed, options),
    }
    if job.trains:
        found["best"] = best
        found["curves"] = curves(directory / "metrics.jsonl")
    save_result(path, found)
    for checkpoint in sorted(directory.glob("step-*[0-9]"))[:-1]:  # best/ and the last one stay
        shutil.rmtree(checkpoint)
    score = np.mean(outcomes(found, pending.labels[0])["correct"])
    return f"{path.name}: {pending.labels[0]} {100 * score:.1f}, {seconds / 60:.1f} minutes"


def evaluation(label: str, model: Qwen3, tokenizer: Tokenizer, config: Config, items: int) -> dict[str, list[float]]:
    """measure -> one value for each task of what `label` names; see `read_label`."""
    part, mode, words = read_label(label)
    tasks = item_set(part, items)
    if "price" in words:
        tasks = [with_price(task, float(words["price"])) for task in tasks]
    translator = open_translator(replace(config, tool_noise=words.get("noise", config.tool_noise)))
    # What a call would bring is measured with other uniform numbers than whether there was one: the two share no luck.
    seed = int(part == "languages" and mode in ("forbidden", "forced"))
    scored = evaluate(model, tokenizer, tasks, translator, config, "free" if mode == "last" else mode, seed=seed)
    measures = {name: [getattr(s, name) for _, s in scored] for name in ("correct", "used_tool", "cost")}
    if label in ROUTED and mode == "forbidden":  # every token is sampled: this is the log-prob of the whole answer
        measures["logp"] = [sum(r.logps) for r, _ in scored]
    if label == "languages/free":
        prompts = [encode_prompt(task, tokenizer, config.chat_format) for task in tasks]
        measures["call_p"] = call_probabilities(model, tokenizer, prompts)
    return measures


def last_checkpoint(directory: Path, config: Config) -> Path:
    """That of the last step. RuntimeError if it is not there: runs of an older version did not keep it."""
    path = directory / f"step-{config.steps:06d}"
    if not path.is_dir():
        raise RuntimeError(f"{path} is missing; delete {directory} to have the run made again")
    return path


def train(job: Job, seed: int, directory: Path, options: ReproduceOptions) -> None:
    """Run train.py in a process of its own, its output in a log beside the run directory."""
    config = options.config(job, seed)
    words = [*shlex.split(options.train), *shlex.split(job.options), "--steps", config.steps, "--seed", seed]
    words += ["--test-items", 50, "--out", directory]
    words += ["--resume"] if (directory / "config.json").exists() else []
    log = directory.with_name(f"{directory.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).parent.parent / "train.py"
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, script, *map(str, words)], stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{job.name}, seed {seed}: train.py failed with {done.returncode}, see {log}")


def run_all(pending: list[Pending], options: ReproduceOptions) -> int:
    """Run what is missing, --jobs at a time, each with one thread and, where that exists, on a core of its own.
    Returns how many failed: one failure does not stop the others."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of train.py and of the workers
    started, failures = time.perf_counter(), 0
    with contextlib.ExitStack() as stack:
        if options.jobs == 1:
            torch.set_num_threads(1)
            calls = (functools.partial(run, entry, options) for entry in pending)
        else:
            context = get_context("spawn")
            cores = context.Queue()
            available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
            for i in range(options.jobs):
                cores.put(available[i % len(available)])
            pool = stack.enter_context(ProcessPoolExecutor(options.jobs, context, pin, (cores,)))
            calls = (future.result for future in as_completed([pool.submit(run, p, options) for p in pending]))
        for done, call in enumerate(calls, start=1):
            try:
                line = call()
            except RuntimeError as error:
                line, failures = f"failed: {error}", failures + 1
            minutes = (time.perf_counter() - started) / 60
            print(f"[{done}/{len(pending)}, {minutes:.0f} minutes] {line}", flush=True)
    return failures


def pin(cores) -> None:
    """Give this worker, and the training that it starts, one core and one thread."""
    torch.set_num_threads(1)
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
