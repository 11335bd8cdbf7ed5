"""The paper's experiments in miniature: a list of runs, cached by configuration, and the tables and figures from them.

    python -m paper.reproduce --quick      the main table with one seed; says what it leaves out
    python -m paper.reproduce              everything, three seeds; goes on where it was stopped
    python -m paper.reproduce --tables     trains nothing: tables and figures from the results there are

    Job -> train.py -> best/ on test items -> results/NAME-SEED-KEY.json -> results/tables.md, summary.json, *.png

A result file holds what happened to each item, packed, so every table can be made again without training. Its key is
the hash of everything that decides the result: options, base model, items. (Not of the code: after a change of the
algorithm, name another --out and --runs.) Policies are chosen on validation items, by train.py, and reported on
test items, all on the same items with the same uniform numbers. Every run has one thread, so --jobs changes no result.

Left out: a scheduler. Runs go --jobs at a time on this machine.
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
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from eval import evaluate
from harness.options import Options, clear_errors, parse, require
from harness.rundir import load_policy, policy_directory, write_json
from paper import comparisons, experiments, figures, tables
from paper.comparisons import Policy
from paper.experiments import ROUTED, Job
from paper.outcomes import UNITS, columns, curves, item_set, items_digest, key_of, load_result, outcomes, pack
from train import Config
from translation.service import open_translator

# Options that decide no result. A new option of train.py that decides none belongs here, or everything is run again.
NEUTRAL = {
    "preset",
    "model",
    "out",
    "resume",
    "device",
    "max_rows",
    "workers",
    "cache",
    "money_per_char",
    "max_cost",
    "max_tool_errors",
    "save_every",
    "test_items",
    "log_rollouts",
    "checkpoint_activations",
    "dry_run",
    "evaluation_data",
    "allow_evaluation_data",
}


@dataclass(frozen=True)
class ReproduceOptions:
    """Options of reproduce.py."""

    seeds: int = 3  # seeds of the main table and of the cost-conditioned policy; the ablations have one
    quick: bool = False  # one seed, one cost weight, half of the steps, 400 test items; no ablations, no prices
    only: tuple[str, ...] = ()  # beside the base: main, ablations, price, or the name of a run; may be repeated
    jobs: int = 2  # runs at a time
    tables: bool = False  # run nothing, make tables and figures from the results there are
    test_items: int = 2000  # test items in each group of languages
    train: str = ""  # options of train.py for every run, as one string: "--steps 60 --model DIR"
    base: tuple[str, ...] = ()  # another base model to compare on, for the ablation of its tool rate; may be repeated
    out: str = "paper/results"  # results, tables and figures
    runs: str = "runs/reproduce"  # run directories

    def check(self) -> None:
        """Raise ValueError naming the first option whose value makes no sense."""
        for name in ("seeds", "jobs", "test_items"):
            require(getattr(self, name) > 0, f"--{name.replace('_', '-')} must be positive, is {getattr(self, name)}")
        require(self.test_items >= 40, "--test-items must be at least 40, for two items a language and domain")

    @property
    def items(self) -> int:
        return min(self.test_items, 400) if self.quick else self.test_items

    def config(self, job: Job | None = None, seed: int = 0) -> Config:
        """The full configuration of a run; without a job that of the defaults. Exits with an error for bad options."""
        config = parsed(f"{self.train} {job.options if job else ''} --seed {seed}")
        return replace(config, steps=max(1, config.steps // 2)) if self.quick else config


@functools.cache
def parsed(words: str) -> Config:
    """train.py's configuration for these options; they are asked for many times."""
    return parse(Config, "", shlex.split(words))


@functools.cache
def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def configuration(job: Job, seed: int, options: ReproduceOptions) -> dict:
    """All that decides a result: every option, the base model's weights, and the items."""
    config = options.config(job, seed)
    names = {field.name for field in fields(Config if job.trains else Options)} - NEUTRAL
    model = digest(policy_directory(config.model) / "model.safetensors")
    return {
        "trains": job.trains,
        "options": {name: value for name, value in asdict(config).items() if name in names},
        "model": model,
        "items": [options.items, items_digest(options.items)],
    }


# --- runs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pending:
    """What is missing of one result."""

    job: Job
    seed: int
    key: str
    labels: tuple[str, ...]  # evaluations that it lacks


def pending_runs(jobs: list[Job], options: ReproduceOptions) -> list[Pending]:
    """What to run, each configuration once, whatever the number of jobs that need it."""
    missing = {}
    for job in jobs:
        for seed in seeds_of(job, options):
            key = key_of(configuration(job, seed, options))
            found = load_result(key, Path(options.out))
            lacking = [label for label in job.evaluations if label not in (found["outcomes"] if found else {})]
            if lacking:
                before = missing.get(key, Pending(job, seed, key, ()))
                missing[key] = replace(before, labels=tuple(dict.fromkeys((*before.labels, *lacking))))
    return list(missing.values())


def seeds_of(job: Job, options: ReproduceOptions) -> range:
    return range(options.seeds if job.trains and job.experiment != "ablations" and not options.quick else 1)


def command(job: Job, seed: int | str, options: ReproduceOptions) -> str:
    """The command line of a run, as a reader would type it."""
    if not job.trains:
        words = re.sub(r"--model \S+", "", job.options).split()
        return " ".join(["python eval.py --policy", options.config(job).model, f"--items {options.items}", *words])
    steps = f"--steps {options.config(job).steps}" if options.quick else ""
    return " ".join(filter(None, ("python train.py", options.train, job.options, steps, f"--seed {seed}")))


def run(pending: Pending, options: ReproduceOptions) -> str:
    """Train unless that is done, evaluate what is missing, write the result file. Returns a line to print.

    A run that was stopped goes on from its last checkpoint. RuntimeError if train.py fails.
    """
    job, seed, key = pending.job, pending.seed, pending.key
    config, started = options.config(job, seed), time.perf_counter()
    directory = next(iter(sorted(Path(options.runs).glob(f"*-{key}"))), Path(options.runs) / f"{job.name}-{seed}-{key}")
    if job.trains and not (directory / "report.json").exists():
        train(job, seed, directory, options)
    model, tokenizer = load_policy(directory if job.trains else config.model)
    translator = open_translator(config)
    found = load_result(key, Path(options.out)) or {"outcomes": {}}
    path, seconds = found.pop("path", Path(options.out) / f"{directory.name}.json"), found.get("seconds", 0.0)
    for label in pending.labels:
        part, mode, *price = label.split("/")
        tasks = item_set(part, options.items)
        tasks = [replace(task, price=float(price[0])) for task in tasks] if price else tasks
        scored = evaluate(model, tokenizer, tasks, translator, config, mode)
        measures = {name: [getattr(s, name) for _, s in scored] for name in ("correct", "used_tool", "cost")}
        if mode == "forbidden":  # every token is sampled: this is the log-prob of the whole answer
            measures["logp"] = [sum(r.logps) for r, _ in scored]
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
        found["best"] = json.loads((policy_directory(directory) / "state.json").read_text())
        found["curves"] = curves(directory / "metrics.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    for checkpoint in directory.glob("step-*[0-9]"):  # best/ stays
        shutil.rmtree(checkpoint)
    score = np.mean(outcomes(found, pending.labels[0])["correct"])
    return f"{path.name}: {pending.labels[0]} {100 * score:.1f}, {seconds / 60:.1f} minutes"


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


# --- from results to tables -------------------------------------------------------------------------------------


def found_results(job: Job, options: ReproduceOptions) -> list[dict]:
    """The results of a job that are there, by seed; only those that have all of its evaluations."""
    keys = [key_of(configuration(job, seed, options)) for seed in seeds_of(job, options)]
    results = [load_result(key, Path(options.out)) for key in keys]
    return [result for result in results if result and set(job.evaluations) <= set(result["outcomes"])]


def policy_pool(jobs: list[Job], options: ReproduceOptions) -> dict[str, Policy]:
    """The policies of the main table and of the cost-conditioned run, as far as their results are there."""
    pool = {}

    def add(name, family, job, results, label, mode=""):
        seeds = [outcomes(result, label) for result in results]
        tiers = [tier for result in results for tier in result.get("best", {}).get("tier", {}).values()]
        validation = tuple(float(np.mean([tier[x] for tier in tiers])) for x in ("accuracy", "cost")) if tiers else None
        pool[name] = Policy(name, family, command(job, "N", options) + mode, seeds, validation)

    def add_routers(results, suffix):
        parts = [{label: outcomes(result, label) for label in ROUTED} for result in results]
        prices = experiments.weights(options.config(), options.quick)
        pool.update({policy.name: policy for policy in comparisons.routers(parts, prices, suffix)})

    for job in jobs:
        results = found_results(job, options)
        if not results or job.experiment == "ablations":
            continue
        if job.name == "base":
            modes = (
                ("base", "free", ""),
                ("never translate", "forbidden", " --mode forbidden"),
                ("always translate", "forced", " --mode forced"),
            )
            for name, mode, words in modes:
                add(name, name, job, results, f"test/{mode}", words)
            add_routers(results, "")
        elif job.experiment == "price":
            for label in job.evaluations:
                add(f"priced {label.rpartition('/')[2]}", "priced", job, results, label)
        else:
            add(job.name, job.name.partition("-")[0], job, results, job.evaluations[0])
            if set(ROUTED) <= set(job.evaluations):
                add_routers(results, f" on {job.name}")
    return pool


def write_tables(jobs: list[Job], options: ReproduceOptions) -> None:
    """results/tables.md, summary.json and the figures, from the result files alone."""
    out, ours = Path(options.out), experiments.headline(options.config())
    columns_of = {part: columns(item_set(part, options.items)) for part in ("test", "languages")}
    pool = policy_pool(jobs, options)
    require("base" in pool, f"{out}: no result of the base model for these options; run without --tables first")
    summary = comparisons.summarise(pool, ours, columns_of["test"])
    every = [result for job in jobs for result in found_results(job, options)]
    hours = sum({result["path"]: result["seconds"] for result in every}.values()) / 3600
    quick = f"Quick: one seed, {options.config().steps} steps, one cost weight, the main table only."
    summary["settings"] = (
        f"{options.items} test items rendered in each group of languages, temperature 1, common random numbers; "
        f"{max(len(policy.seeds) for policy in pool.values())} seeds; {every[0]['machine']}; {hours:.1f} core hours. "
        + (quick if options.quick else "")
    )
    results, languages = [result for job in jobs if job.name == ours for result in found_results(job, options)], {}
    if results:
        for mode in ("free", "forbidden"):
            languages[mode] = [outcomes(result, f"languages/{mode}") for result in results]
        summary["introspection"] = comparisons.introspection(**languages, columns=columns_of["languages"])
        summary["languages"] = comparisons.language_table(**languages, columns=columns_of["languages"])
    summary["ablations"] = {}
    for job in jobs:
        if job.study and (found := found_results(job, options)):
            policy = Policy(job.name, job.study, command(job, 0, options), [outcomes(found[0], "test/free")])
            row = comparisons.policy_summary(policy, pool, columns_of["test"])
            summary["ablations"].setdefault(job.study, {})[job.name] = row
    summary["goals"] = tables.goals(summary)
    write_json(out / "summary.json", summary)
    (out / "tables.md").write_text(tables.markdown(summary), encoding="utf-8")
    print(f"written to {out / 'tables.md'} and summary.json")
    figures.draw(out, pool, ours, columns_of, languages, [result["curves"] for result in results])


def main(argv: list[str] | None = None) -> None:
    options = parse(ReproduceOptions, __doc__, argv)
    with clear_errors():
        jobs = experiments.all_jobs(options.config(), options.quick, options.base)
        known = {job.experiment for job in jobs} | {job.name for job in jobs}
        require(set(options.only) <= known, f"--only {' '.join(options.only)}: there are {', '.join(sorted(known))}")
        chosen = [job for job in jobs if not options.only or {job.experiment, job.name} & {*options.only, "base"}]
        pending = [] if options.tables else pending_runs(chosen, options)
    print(f"{len(pending)} runs to do, {options.jobs} at a time, {options.items} test items a group of languages")
    failures = run_all(pending, options) if pending else 0
    with clear_errors():
        write_tables(jobs, options)
        require(not failures, f"{failures} runs failed; the same command tries them again")


if __name__ == "__main__":
    main()
