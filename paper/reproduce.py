"""The paper's experiments in miniature, one command: make the results that are missing, then tables and figures.

    python -m paper.reproduce --quick --out runs/quick   the main table with one seed; says what it leaves out
    python -m paper.reproduce                            everything, three seeds; goes on where it was stopped
    python -m paper.reproduce --tables                   trains nothing: tables and figures from the results there are

    experiments -> jobs -> runs -> paper/results/runs/*.json
    results -> policies -> comparisons -> paper/results/summary.json, tables.md, *.png

A result file holds what happened to each item, so every table can be made again without training. Policies are chosen
on validation items, by train.py, and reported on test items, all on the same items with the same uniform numbers.

Tables that were made from more results than there are now are not overwritten.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from harness.options import clear_errors, parse, require
from harness.rundir import write_json
from paper import comparisons, experiments, figures, tables
from paper.comparisons import Policy
from paper.experiments import ROUTED, Job
from paper.outcomes import columns, item_set, key_of, load_result, outcomes, without_nan
from paper.runs import ReproduceOptions, command, configuration, pending_runs, run_all, seeds_of

Found = dict[Job, list[dict]]  # the results of each job, by seed


def found_results(jobs: list[Job], options: ReproduceOptions) -> Found:
    """The results that are there, by job and seed; only those that have all evaluations of their job."""
    found = {}
    for job in jobs:
        keys = [key_of(configuration(job, seed, options)) for seed in seeds_of(job, options)]
        results = [load_result(key, options.results) for key in keys]
        found[job] = [result for result in results if result and set(job.evaluations) <= set(result["outcomes"])]
    return found


# --- tables that say less than those there are are not written --------------------------------------------------


def names_of(found: Found) -> list[str]:
    """The names of the result files, NAME-SEED-KEY, each once."""
    return sorted({result["path"].stem for results in found.values() for result in results})


def refuse_fewer(out: Path, names: Iterable[str]) -> None:
    """ValueError if the tables in `out` were made from a result that is not among `names` (NAME-SEED-KEY, or the key
    alone): with other options, or without some of the files, a table of less would take the place of one of more."""
    path = out / "summary.json"
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["made from"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a summary of paper.reproduce ({error!r}); delete it to have it made") from None
    keys = {name.rpartition("-")[2] for name in names}
    missing = [name for name in before if name.rpartition("-")[2] not in keys]
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    require(
        not missing,
        f"{path} was made from {len(before)} results; these options do not find {len(missing)} of them in {out}/runs: "
        f"{shown}. Put them back, name another --out, or delete {path} to begin anew",
    )


# --- from results to tables -------------------------------------------------------------------------------------


def policy_pool(found: Found, options: ReproduceOptions) -> dict[str, Policy]:
    """The policies of the main table and of the cost-conditioned run, as far as their results are there."""
    pool = {}

    def add(name, family, job, label, mode=""):
        results = found[job]
        seeds = [outcomes(result, label) for result in results]
        tiers = [tier for result in results for tier in result.get("best", {}).get("tier", {}).values()]
        validation = tuple(float(np.mean([tier[x] for tier in tiers])) for x in ("accuracy", "cost")) if tiers else None
        pool[name] = Policy(name, family, command(job, "N", options) + mode, seeds, validation)

    def add_routers(job, suffix):
        parts = [{label: outcomes(result, label) for label in ROUTED} for result in found[job]]
        prices = experiments.weights(options.config(), options.quick)
        pool.update({policy.name: policy for policy in comparisons.routers(parts, prices, suffix)})

    for job, results in found.items():
        if not results or job.experiment == "ablations":
            continue
        if job.name == "base":
            modes = (
                ("base", "free", ""),
                ("never translate", "forbidden", " --mode forbidden"),
                ("always translate", "forced", " --mode forced"),
            )
            for name, mode, words in modes:
                add(name, name, job, f"test/{mode}", words)
            add_routers(job, "")
        elif job.experiment == "price":
            for label in job.evaluations:
                add(f"priced {experiments.read_label(label)[2]['price']}", "priced", job, label)
        else:
            add(job.name, experiments.family_of(job.name), job, job.evaluations[0])
            if set(ROUTED) <= set(job.evaluations):
                add_routers(job, f" on {job.name}")
    return pool


def settings(found: Found, options: ReproduceOptions) -> str:
    """What all rows of the tables have in common, in words."""
    results = {result["path"]: result for of_job in found.values() for result in of_job}
    hours = sum(result["seconds"] for result in results.values()) / 3600
    most, machine = max(map(len, found.values())), next(iter(results.values()))["machine"]
    quick = f"Quick: one seed, {options.config().steps} steps, one cost weight, the main table only."
    return (
        f"{options.items} test items rendered in each group of languages, temperature 1, common random numbers; "
        f"{most} seeds; {machine}; {hours:.1f} core hours. "
    ) + (quick if options.quick else "")


def write_tables(jobs: list[Job], options: ReproduceOptions) -> None:
    """summary.json, tables.md and the figures in --out, from the result files alone."""
    out, ours, found = Path(options.out), experiments.headline(options.config()), found_results(jobs, options)
    refuse_fewer(out, names_of(found))
    columns_of = {part: columns(item_set(part, options.items)) for part in ("test", "languages")}
    pool = policy_pool(found, options)
    require("base" in pool, f"{out}: no result of the base model for these options; run without --tables first")
    summary = {"made from": names_of(found), "settings": settings(found, options)}
    summary |= comparisons.summarise(pool, ours, columns_of["test"])
    results, languages = [result for job in jobs if job.name == ours for result in found[job]], {}
    if results:
        for mode in ("free", "forbidden"):
            languages[mode] = [outcomes(result, f"languages/{mode}") for result in results]
        summary["introspection"] = comparisons.introspection(**languages, columns=columns_of["languages"])
        summary["languages"] = comparisons.language_table(**languages, columns=columns_of["languages"])
    summary["ablations"] = {}
    for job in jobs:
        if job.study and found[job]:
            policy = Policy(job.name, job.study, command(job, 0, options), [outcomes(found[job][0], "test/free")])
            row = comparisons.policy_summary(policy, pool, columns_of["test"])
            summary["ablations"].setdefault(job.study, {})[job.name] = row
    summary["goals"] = tables.goals(summary)
    write_json(out / "summary.json", without_nan(summary))
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
        planned = [*names_of(found_results(jobs, options)), *(entry.key for entry in pending)]
        refuse_fewer(Path(options.out), planned)  # before hours of training, not after
    print(f"{len(pending)} runs to do, {options.jobs} at a time, {options.items} test items per group of languages")
    failures = run_all(pending, options) if pending else 0
    with clear_errors():
        write_tables(jobs, options)
        require(not failures, f"{failures} runs failed; the same command tries them again")


if __name__ == "__main__":
    main()
