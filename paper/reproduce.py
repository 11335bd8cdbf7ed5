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
from paper import comparisons, experiments, figures, goals, introspection, overlap, tables
from paper.experiments import ROUTED, Job
from paper.outcomes import CLEAN, columns, item_set, key_of, load_result, outcomes, without_nan
from paper.policies import Policy, routers
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


def evaluated(found: Found, name: str, label: str) -> list[dict]:
    """The outcomes of one evaluation of the policy `name`, by seed; empty if it is not there."""
    results = [result for job, of_job in found.items() if job.name == name and not job.study for result in of_job]
    return [outcomes(result, label) for result in results if label in result["outcomes"]]


def policy_pool(found: Found, options: ReproduceOptions, part: str = "test", mode: str = "free") -> dict[str, Policy]:
    """The policies of the main table, on the items of this part, in this mode ("last": the last checkpoint); those that
    were evaluated so. Routers and the policy for every price are on "test" alone."""
    pool = {}

    def add(name: str, family: str, job: Job, label: str, words: str = "") -> None:
        results = [result for result in found[job] if label in result["outcomes"]]
        if not results:
            return
        tiers = [tier for result in results for tier in result.get("best", {}).get("tier", {}).values()]
        validation = tuple(float(np.mean([tier[x] for tier in tiers])) for x in ("accuracy", "cost")) if tiers else None
        curves = [result["curves"] for result in results if "curves" in result]
        seeds = [outcomes(result, label) for result in results]
        shown = command(job, "N", options) + words
        if part != "test" and not job.trains:  # eval.py draws items of other keys
            shown = f"python -m paper.reproduce --only {job.name}"
        pool[name] = Policy(name, family, shown, seeds, validation, curves)

    def add_routers(job: Job, suffix: str) -> None:
        parts = [{label: outcomes(result, label) for label in ROUTED} for result in found[job]]
        pool.update({policy.name: policy for policy in routers(parts, experiments.ROUTED_FOR, suffix)})

    is_whole = (part, mode) == ("test", "free")
    for job, results in found.items():
        if not results or job.experiment == "ablations":
            continue
        if job.name == "base":
            add("base", "base", job, f"{part}/free")
            add("never translate", "never translate", job, f"{part}/forbidden", " --mode forbidden")
            add("always translate", "always translate", job, f"{part}/forced", " --mode forced")
        elif job.experiment == "main":
            label = job.evaluations[0] if is_whole else f"{part}/{mode}"
            add(job.name, experiments.family_of(job.name), job, label)
        for label in job.evaluations if is_whole and job.experiment == "price" else ():
            add(f"priced {experiments.read_label(label)[2]['price']}", "priced", job, label)
        if is_whole and set(ROUTED) <= set(job.evaluations):
            add_routers(job, "" if job.name == "base" else f" on {job.name}")
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


def policy_rows(pool: dict[str, Policy], found: Found, options: ReproduceOptions) -> dict[str, dict]:
    """Name -> row of the tables: of the policies of `pool`, then those of the last checkpoints and on clean items,
    whose names say so. Where a part has no base there is nothing to compare with."""
    columns_of = {part: columns(item_set(part, options.items)) for part in ("test", CLEAN)}
    rows = {name: comparisons.policy_summary(policy, pool, columns_of["test"]) for name, policy in pool.items()}
    for part, mode, suffix in (
        ("test", "last", ", last"),
        (CLEAN, "free", ", clean"),
        (CLEAN, "last", ", clean, last"),
    ):
        there = policy_pool(found, options, part, mode)
        if part == "test" and "oracle" in pool:
            there["oracle"] = pool["oracle"]  # the headroom is the same
        for name, policy in there.items() if "base" in there else ():
            if policy.curves or mode == "free":  # the base has no last checkpoint
                rows[name + suffix] = comparisons.policy_summary(policy, there, columns_of[part])
    return rows


def shifts(found: Found, ours: str, options: ReproduceOptions) -> dict[str, dict]:
    """What happens to trained policies under another translator: the words of `--tool-noise` -> policy -> ..."""
    names = ("unconstrained", f"plain-{ours.rpartition('-')[2]}", ours)
    of_test, shown = columns(item_set("test", options.items)), {"as in training": "test/free"}
    shown |= {experiments.read_label(label)[2]["noise"]: label for label in experiments.SHIFTED}
    tables = {}
    for words, label in shown.items():
        policies = {name: Policy(name, "", "", evaluated(found, name, label)) for name in names}
        tables[words] = comparisons.shifted({n: policy for n, policy in policies.items() if policy.seeds}, of_test)
    return {words: table for words, table in tables.items() if table}


def in_all_modes(found: Found, name: str, part: str) -> dict[str, list[dict]]:
    """The outcomes of a policy left to itself, without the tool and with a call on every item; empty without them."""
    modes = {mode: evaluated(found, name, f"{part}/{mode}") for mode in ("free", "forbidden", "forced")}
    return modes if all(modes.values()) else {}


def language_sections(found: Found, ours: str, options: ReproduceOptions) -> dict:
    """What the headline's outcomes in every language say, and the lift of the base beside it; empty without them."""
    of_languages, languages = columns(item_set("languages", options.items)), in_all_modes(found, ours, "languages")
    if not languages:
        return {}
    lifted = {name: in_all_modes(found, name, "languages") for name in ("base", ours)}
    return {
        "lift": {name: introspection.lift(**modes, columns=of_languages) for name, modes in lifted.items() if modes},
        "calibration": introspection.calibrated(**languages),
        "follows": introspection.follows(**languages, columns=of_languages),
        "introspection": introspection.rank_correlations(languages["free"], languages["forbidden"], of_languages),
        "languages": introspection.language_table(**languages, columns=of_languages),
    }


def names_only(options: ReproduceOptions) -> dict[str, dict[str, float]]:
    """The share of the test items and of the clean ones that differ from training items in names only, by domain."""
    config = options.config()
    known = overlap.training_skeletons(overlap.TRAINING_ITEMS, config.prompts, config.steps)
    parts = {"test": "test", "clean": CLEAN}
    return {name: overlap.names_only(overlap.items_of(part, options.items), known) for name, part in parts.items()}


def ablation_rows(found: Found, pool: dict[str, Policy], options: ReproduceOptions) -> dict[str, dict]:
    """Study -> name -> row."""
    of_test, rows = columns(item_set("test", options.items)), {}
    for job, results in found.items():
        if job.study and results:
            curves = [results[0]["curves"]] if job.trains else []
            seeds = [outcomes(results[0], "test/free")]
            policy = Policy(job.name, job.study, command(job, 0, options), seeds, curves=curves)
            rows.setdefault(job.study, {})[job.name] = comparisons.policy_summary(policy, pool, of_test)
    return rows


def write_tables(jobs: list[Job], options: ReproduceOptions) -> None:
    """summary.json, tables.md and the figures in --out, from the result files alone."""
    out, ours, found = Path(options.out), experiments.headline(options.config()), found_results(jobs, options)
    refuse_fewer(out, names_of(found))
    pool = policy_pool(found, options)
    require("base" in pool, f"{out}: no result of the base model for these options; run without --tables first")
    own = in_all_modes(found, ours, "test")
    summary = {"made from": names_of(found), "settings": settings(found, options), "headline": ours}
    summary["policies"] = policy_rows(pool, found, options)
    last = policy_pool(found, options, mode="last")
    summary |= comparisons.summarise(pool, last, ours, columns(item_set("test", options.items)), own)
    of_clean = (policy_pool(found, options, CLEAN, mode) for mode in ("free", "last"))
    summary["clean"] = comparisons.on_clean(*of_clean, ours, columns(item_set(CLEAN, options.items)))
    summary["shift"] = shifts(found, ours, options)
    summary |= language_sections(found, ours, options)
    summary["names only"] = names_only(options)
    summary["ablations"] = ablation_rows(found, pool, options)
    summary["goals"] = goals.rows(summary)
    write_json(out / "summary.json", without_nan(summary))
    (out / "tables.md").write_text(tables.markdown(summary), encoding="utf-8")
    print(f"written to {out / 'tables.md'} and summary.json")
    columns_of = {part: columns(item_set(part, options.items)) for part in ("test", "languages")}
    figures.draw(out, pool, ours, columns_of, in_all_modes(found, ours, "languages"), summary)


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
