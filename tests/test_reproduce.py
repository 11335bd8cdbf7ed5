"""paper.reproduce and its results: jobs, evaluations, keys of results, two runs from start to tables."""

import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
from helpers import ROOT, base_directory, call_main

from data import CALL, encode_prompt
from harness.options import Neutral
from harness.rundir import load_policy
from paper import experiments, figures, outcomes, overlap, policies, reproduce, runs
from paper.experiments import FREELY, ROUTED, Job
from paper.runs import ReproduceOptions
from tiny import world
from train import Config

# --- results ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, values",
    [("correct", [0, 1, 1]), ("cost", [0, 1.25, 99.999]), ("logp", [-0.0, -250.5]), ("call_p", [0.0614, 1])],
)
def test_packed_values_come_back(name, values):
    """Catches a unit that is applied once, a type too small for what it holds, a sign that is lost."""
    unit = outcomes.UNITS[name]
    assert outcomes.unpack(outcomes.pack(values, unit), unit).tolist() == values


def test_no_two_families_are_drawn_alike():
    """Catches two lines of one colour with one mark, once there are more families than colours."""
    jobs = [job for job in experiments.all_jobs(Config()) if job.experiment != "ablations"]
    names = [*figures.REFERENCES, "router", *(experiments.family_of(job.name) for job in jobs)]
    styles = figures.styles_of(list(dict.fromkeys(names)))
    assert {"joint-native", "joint-plain", "priced", "clipped"} <= styles.keys()
    assert len({tuple(sorted(style.items())) for style in styles.values()}) == len(styles)
    assert styles["joint-plain"]["color"] == styles["plain"]["color"]


def test_groups_and_languages_render_the_same_items():
    """Catches tiers that are compared on different items."""
    columns = outcomes.columns(outcomes.item_set("test", 20))
    items = columns["item"].reshape(7, 20)
    assert list(dict.fromkeys(columns["group"])) == list(policies.GROUPS)
    assert (items == items[0]).all()
    languages = outcomes.columns(outcomes.item_set("languages", 80))["item"].reshape(31, 20)
    assert (languages == items[0]).all()


def test_clean_items_are_of_the_same_groups_and_none_is_a_test_item():
    """Catches a clean test set that holds items which defaults were judged by, those of an earlier clean set among
    them, or other items for one group."""
    clean, test = (outcomes.columns(outcomes.item_set(part, 200)) for part in (outcomes.CLEAN, "test"))
    assert list(dict.fromkeys(clean["group"])) == list(policies.GROUPS)
    items = clean["item"].reshape(7, -1)
    assert (items == items[0]).all() and 100 < items.shape[1] / len(outcomes.CLEAN_KEYS) <= 200
    digests = [item.rpartition("-")[2] for item in items[0]]
    assert not set(clean["item"]) & set(test["item"])
    assert not {item.digest for item in world.items("test", 200, "clean")} & set(digests)
    assert digests == [item.digest for item in overlap.items_of(outcomes.CLEAN, 200)]
    drawn = [{item.digest for item in world.items("test", 200, key)} for key in outcomes.CLEAN_KEYS]
    assert set(digests) <= set.union(*drawn) and all(len(key & set(digests)) > 80 for key in drawn)
    assert len(digests) == len(set(digests))  # an item that two keys draw counts once


def metric(**changes):
    return {
        "accuracy": 0.5,
        "tool_rate": 0.5,
        "cost": 0.25,
        "reversed_rate": None,
        "mixed_reversed_rate": None,
    } | changes


def test_curves_leave_out_what_is_not_defined(tmp_path):
    """Catches a step without a right answer that called: counted as 0, or the end of the whole comparison."""
    rates = [None, 0.5, 1.0, None]
    rows = [{"step": i, "tier": {"low": metric(reversed_rate=r)}, "domain": {}} for i, r in enumerate(rates, start=1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = outcomes.curves(tmp_path / "metrics.jsonl", width=3)
    assert found["step"] == [3, 4]
    assert found["tier"]["low"]["reversed_rate"] == [0.75, None]
    assert found["tier"]["low"]["mixed_reversed_rate"] == [None, None]
    assert found["tier"]["low"]["cost"] == [0.25, 0.25]


@pytest.mark.parametrize("label, fault", [("test/fre", "the mode is fre"), ("test/free/0.2", "may be price, noise")])
def test_an_evaluation_that_means_nothing_is_named(label, fault):
    """Catches a misspelt label that is evaluated as something else, under its own name."""
    with pytest.raises(ValueError, match=f"evaluation {label}: .*{fault}"):
        experiments.read_label(label)


def test_an_evaluation_takes_its_words_and_its_numbers_from_its_label(tmp_path, monkeypatch):
    """Catches a shift of the translator that is not made, a price that is not told, the mode "last" in the sampler, and
    a call that shares its luck with the gain of calling."""
    seen = []

    def evaluate(model, tokenizer, tasks, translator, config, mode, seed):
        seen.append((mode, seed, tasks[0].system, translator.translate([tasks[0].question], tasks[0].language)[0]))
        return []

    monkeypatch.setattr(runs, "evaluate", evaluate)
    config = options_for(tmp_path).config(JOBS[1])
    labels = (
        "test/last",
        "languages/forced",
        "languages/forbidden",
        "test/forced",
        "test/free/price=0.2",
        "test/free/noise=1",
    )
    for label in labels:
        runs.evaluation(label, None, None, config, 40)
    modes = [("free", 0), ("forced", 1), ("forbidden", 1), ("forced", 0), ("free", 0), ("free", 0)]
    assert [entry[:2] for entry in seen] == modes
    assert [entry[2] for entry in seen] == [None] * 4 + ["price 0.2 $$", None]
    right = outcomes.item_set("test", 40)[0].question_en
    assert seen[4][3] == right != seen[5][3]


def test_the_probability_of_a_call_is_that_of_the_sampler():
    """Catches a probability at a padded position, or over rows of the head that are never drawn."""
    policy, config = load_policy(base_directory()), Config(max_new_tokens=20)
    tasks = outcomes.item_set("languages", 40)
    prompts = [encode_prompt(task, policy[1], config.chat_format) for task in tasks]
    found = runs.call_probabilities(*policy, prompts, rows=100)
    assert len(found) == len(tasks) == 310
    scored = runs.evaluate(*policy, tasks, runs.open_translator(config), config)
    begun = {i: r.logps[0] for i, (r, _) in enumerate(scored) if r.ids[0] == policy[1].id(CALL)}
    assert len(begun) > 10
    assert [found[i] for i in begun] == pytest.approx([np.exp(logp) for logp in begun.values()], abs=1e-5)
    assert sum(found) == pytest.approx(len(begun), abs=4 * len(begun) ** 0.5)


def test_what_says_the_most_is_run_first(tmp_path):
    """Catches a third seed of one policy before the first of another, and ablations before the main table."""
    options = options_for(tmp_path, quick=False, seeds=2)
    jobs = [JOBS[1], Job("small", "ablations", "--prompts 2"), Job("b", "main", "--gate always"), JOBS[0]]
    jobs.insert(1, Job("priced", "price", "--data tiny-prices"))
    order = [(entry.job.name, entry.seed) for entry in runs.pending_runs(jobs, options)]
    main = [("unconstrained", 0), ("b", 0), ("base", 0), ("unconstrained", 1), ("b", 1)]
    assert order == [*main, ("priced", 0), ("priced", 1), ("small", 0)]


def options_for(tmp_path, **changes):
    small = (
        f"--model {base_directory()} --steps 2 --prompts 4 --group-size 4 --eval-every 1 --validation-items 3 "
        "--learning-rate 1e-2 --max-new-tokens 60"
    )
    given = {
        "out": str(tmp_path / "results"),
        "runs": str(tmp_path / "runs"),
        "test_items": 40,
        "jobs": 1,
        "quick": True,
        "train": small,
    }
    return ReproduceOptions(**(given | changes))


JOBS = [Job("base", "main", "", ("test/free", *ROUTED), trains=False), Job("unconstrained", "main", "--gate never")]


def test_a_changed_option_is_another_result(tmp_path, monkeypatch):
    """Catches a key that leaves an option out: the tables would show a run under another run's name."""
    options = options_for(tmp_path)

    def key(job, seed=0, options=options):
        return outcomes.key_of(runs.configuration(job, seed, options))

    keys = {
        key(JOBS[1]),
        key(replace(JOBS[1], options="--gate always")),
        key(JOBS[1], seed=1),
        key(JOBS[1], options=replace(options, test_items=60)),
        key(replace(JOBS[1], trains=False)),
        key(JOBS[1], options=replace(options, train=options.train + " --tool-noise 0.1")),
    }
    assert len(keys) == 6
    same = replace(JOBS[1], name="other", options="--gate never --log-rollouts 3 --save-every 1")
    assert key(same) == key(JOBS[1])
    monkeypatch.setattr(runs, "DEFAULTS", runs.DEFAULTS + 1)
    assert key(JOBS[1]) not in keys


def test_the_base_model_counts_by_its_weights(tmp_path):
    """Catches a key of the model's path: a copy would be trained again, and other weights in its place would not."""
    options, copy = options_for(tmp_path, train=""), tmp_path / "copy"
    shutil.copytree(base_directory(), copy)
    keys = []
    for directory in (base_directory(), copy, "tiny"):
        job = Job("any", "main", f"--model {directory}")
        keys.append(outcomes.key_of(runs.configuration(job, 0, options)))
    assert keys[0] == keys[1] != keys[2]


@dataclass(frozen=True)
class Grown(Config):
    """A fork's options: one that decides results, one that decides none."""

    extra_term: float = 0.0
    extra_log: Neutral[int] = 3


def test_a_new_option_with_a_neutral_default_orphans_no_result():
    """Catches a key of all options: every result would have to be made again for one more of them."""
    given = {"gate": "never", "cost_weight": 0.0, "seed": 2}
    assert runs.differences(Config(**given), Config) == given
    assert runs.differences(Grown(**given), Grown) == given
    assert runs.differences(Grown(**given, extra_log=9), Grown) == given
    assert runs.differences(Grown(**given, extra_term=0.1), Grown) == given | {"extra_term": 0.1}


def test_options_of_training_do_not_decide_a_result_without_training(tmp_path):
    """Catches a base that is evaluated again because the runs beside it are trained for fewer steps."""
    short, long = (options_for(tmp_path, train=f"--steps {steps} --tool-noise 0.1") for steps in (20, 40))
    assert runs.configuration(JOBS[0], 0, short) == runs.configuration(JOBS[0], 0, long)
    assert runs.configuration(JOBS[0], 0, short)["options"] == {"tool_noise": "0.1"}
    assert runs.configuration(JOBS[1], 0, short) != runs.configuration(JOBS[1], 0, long)


VERSIONS = {  # of the defaults: those that a run of the paper would notice
    2: dict(
        data="tiny",
        translator="lexicon",
        tool_noise="0.01,0.05,0.2",
        price_call=0.5,
        price_char=0.5 / 45,
        system="",
        tool_schema=False,
        think=True,
        answer_format="plain",
        max_new_tokens=96,
        max_calls=2,
        dtype="float32",
        lang_tier="all",
        steps=140,
        prompts=64,
        group_size=8,
        confidence="native",
        probe_rollouts=4,
        gate="threshold",
        threshold=0.95,
        penalty="subtract",
        advantage="decoupled",
        cost_weight=0.5,
        advantage_scale="group",
        ratio="sequence",
        clip_low=0.2,
        clip_high=0.2,
        minibatches=2,
        micro_tokens=16384,
        learning_rate=1e-3,
        warmup_steps=5,
        decay=0.5,
        max_grad_norm=1.0,
        temperature=1.0,
        seed=0,
        eval_every=35,
        validation_items=400,
    )
}
VERSIONS[3] = VERSIONS[2] | {"steps": 280}


def test_a_changed_default_raises_the_version_of_the_defaults():
    """Catches a default that changed under its old version: the results of the old one would be taken for those of the
    new. Raise paper.runs.DEFAULTS and add the defaults of that version here."""
    known = VERSIONS[runs.DEFAULTS]
    assert {name: getattr(Config(), name) for name in known} == known


def test_the_committed_results_are_those_of_the_experiments():
    """Catches a renamed option or job, or an edited file, that would have all trained again, and tables of results
    that nobody has. Results of an older version of the defaults stay as long as tables show them."""
    options = ReproduceOptions()
    jobs = experiments.all_jobs(options.config())
    wanted = {
        outcomes.key_of(runs.configuration(job, seed, options)) for job in jobs for seed in runs.seeds_of(job, options)
    }
    stored = {path.stem.rpartition("-")[2]: path for path in (ROOT / "paper/results/runs").glob("*.json")}
    made_from = json.loads((ROOT / "paper/results/summary.json").read_text(encoding="utf-8"))["made from"]
    shown = {name.rpartition("-")[2] for name in made_from}
    assert shown <= set(stored)
    for key, path in stored.items():
        result = json.loads(path.read_text(encoding="utf-8"))
        assert outcomes.key_of(result["configuration"]) == key
        if result["configuration"]["defaults"] < runs.DEFAULTS:
            assert key in shown
            continue
        assert key in wanted
        if result["configuration"]["trains"]:  # and its command is the run that it says it is
            config = runs.parsed(result["command"].removeprefix("python train.py "))
            assert runs.differences(config, Config) == result["configuration"]["options"]


def test_two_jobs_of_one_configuration_are_one_run(tmp_path):
    """Catches an ablation that trains the main table's policy a second time."""
    twin = replace(JOBS[1], name="twin", evaluations=(*FREELY, "test/forced"))
    (entry,) = runs.pending_runs([JOBS[1], twin], options_for(tmp_path))
    assert entry.labels == (*FREELY, "test/forced")


def test_families_that_are_compared_have_the_same_cost_weights():
    """Catches a frontier that is wider, or a cheapest member that is cheaper, only because more prices were tried."""
    jobs = [job.name for job in experiments.all_jobs(Config(cost_weight=0.5)) if job.experiment == "main"]
    grids = {}
    for name in jobs:
        grids.setdefault(experiments.family_of(name), set()).add(name.rpartition("-")[2])
    assert grids["native"] == grids["plain"] == {"0.125", "0.25", "0.5", "0.7", "1", "2"}
    assert grids["joint-native"] == grids["joint-plain"] == {"0.125", "0.5", "2"}
    assert grids["group"] == grids["probe"] == grids["clipped"] == {"0.5"}
    assert grids["base"] == {"base"}
    clean = {
        job.name
        for job in experiments.all_jobs(Config(cost_weight=0.5))
        if set(experiments.ON_CLEAN) & {*job.evaluations}
    }
    assert clean == {"base", "unconstrained", "native-0.5", "plain-0.5", "native-0.25", "plain-0.25"}


def test_the_first_run_of_a_family_has_the_defaults():
    """Catches a default that is written down twice: the headline would be another policy than train.py's."""
    default = Config(cost_weight=0.3, confidence="probe", prompts=96)
    (ours,) = (job for job in experiments.all_jobs(default) if job.name == experiments.headline(default))
    assert ours.options == "--confidence probe --cost-weight 0.3"
    small = [job.options for job in experiments.all_jobs(default) if job.experiment == "ablations" and job.trains]
    assert all("--prompts 48" in options or "--prompts 24" in options for options in small)
    assert [job.name for job in experiments.all_jobs(default, quick=True)][:4] == [
        "base",
        "unconstrained",
        "probe-0.3",
        "plain-0.3",
    ]


def test_a_study_has_few_runs():
    """Catches a grid that grows by one option and takes another day."""
    options = ReproduceOptions()
    jobs = [job for job in experiments.all_jobs(options.config()) if job.experiment == "ablations" and job.trains]
    assert len({outcomes.key_of(runs.configuration(job, 0, options)) for job in jobs}) <= 16


def test_only_names_experiments_and_runs():
    """Catches a misspelt name that silently runs nothing."""
    with pytest.raises(SystemExit) as stopped:
        call_main(reproduce.main, "--only", "mian")
    assert stopped.value.code == 2


def test_a_chosen_run_brings_the_base_that_its_tables_need(tmp_path, monkeypatch):
    """Catches hours of training that end in an error, because nothing is there to compare with."""
    seen = []
    monkeypatch.setattr(reproduce, "run_all", lambda pending, options: seen.extend(pending) or 0)
    monkeypatch.setattr(reproduce, "write_tables", lambda jobs, options: None)
    call_main(reproduce.main, "--only", "forbidden", "--seeds", 1, "--out", tmp_path, "--test-items", 40)
    assert [entry.job.name for entry in seen] == ["base", "forbidden"]


def test_commands_are_such_as_a_reader_can_type(tmp_path):
    """Catches an option of train.py in a command of eval.py, and a base model under another one's name."""
    options = options_for(tmp_path, train="", quick=False)
    other = Job("other", "ablations", "--tool-noise 0.1 --model elsewhere", trains=False)
    assert runs.command(JOBS[0], 0, options) == "python eval.py --policy tiny --items 40"
    expected = "python eval.py --policy elsewhere --items 40 --tool-noise 0.1"
    assert runs.command(other, 0, options) == expected
    assert runs.command(JOBS[1], 2, options) == "python train.py --gate never --seed 2"


@pytest.fixture(autouse=True)
def few_training_items(monkeypatch):
    """Tables compare the test items with fewer training items than 50,000, which take seconds."""
    monkeypatch.setattr(overlap, "TRAINING_ITEMS", 400)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A base model and a trained policy, run from start to end, and a list of what was trained."""
    options = options_for(tmp_path_factory.mktemp("reproduce"))
    pending = runs.pending_runs(JOBS, options)
    assert runs.run_all(pending, options) == 0
    return options


def test_a_second_call_has_nothing_to_do_and_a_third_seed_is_the_only_new_run(finished):
    """Catches a result that is not found again, and a new one that makes the others be run again."""
    assert runs.pending_runs(JOBS, finished) == []
    more = replace(finished, quick=False, seeds=2, train=finished.train.replace("--steps 2", "--steps 1"))
    assert [(entry.job.name, entry.seed) for entry in runs.pending_runs(JOBS, more)] == [("unconstrained", 1)]


def test_tables_come_from_the_result_files_alone(finished, tmp_path):
    """Catches tables that need a run directory, and a table without one of its policies."""
    shutil.copytree(finished.out, tmp_path / "results")
    copied = replace(finished, out=str(tmp_path / "results"), runs=str(tmp_path / "none"))
    reproduce.write_tables(JOBS, copied)
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    page = (tmp_path / "results" / "tables.md").read_text()
    expected = {"base", "never translate", "always translate", "oracle", "unconstrained", "unconstrained, last"}
    assert expected < set(summary["policies"])
    assert all(f"| {name} |" in page for name in expected)
    assert summary["policies"]["always translate"]["groups"]["low"]["tool_rate"] == [1.0, 0.0]
    assert summary["policies"]["never translate"]["groups"]["low"]["cost"] == [0.0, 0.0]
    assert not (tmp_path / "none").exists()


def test_tables_of_more_results_are_not_overwritten(finished, tmp_path):
    """Catches a table of one policy in the place of one of many, because a file was lost or an option differs."""
    out = tmp_path / "results"
    shutil.copytree(finished.out, out)
    copied = replace(finished, out=str(out))
    reproduce.write_tables(JOBS, copied)
    before = (out / "summary.json").read_text()
    (lost,) = (out / "runs").glob("unconstrained-*.json")
    lost.rename(tmp_path / lost.name)
    with pytest.raises(ValueError, match=f"2 results; these options do not find 1 .*{lost.stem}.* another --out"):
        reproduce.write_tables(JOBS, copied)
    assert (out / "summary.json").read_text() == before
    (tmp_path / lost.name).rename(lost)
    reproduce.write_tables(JOBS, copied)


def test_a_run_whose_tables_would_be_refused_is_not_started(finished, tmp_path, monkeypatch, capsys):
    """Catches an hour of --quick in the directory of the whole comparison, whose tables are refused at its end."""
    out = tmp_path / "results"
    shutil.copytree(finished.out, out)
    reproduce.write_tables(JOBS, replace(finished, out=str(out)))
    monkeypatch.setattr(reproduce, "run_all", None)
    with pytest.raises(SystemExit) as stopped:
        call_main(reproduce.main, "--quick", "--out", out, "--test-items", 40)
    assert stopped.value.code == 2
    assert "name another --out" in capsys.readouterr().err


def test_a_damaged_summary_is_named(tmp_path):
    """Catches a summary that cannot be read and is taken for none."""
    (tmp_path / "summary.json").write_text('{"policies": {}')
    with pytest.raises(ValueError, match="summary.json: not a summary"):
        reproduce.refuse_fewer(tmp_path, [])


def test_a_result_file_has_a_line_per_field(finished):
    """Catches files that grow to thousands of lines, or whose fields change places from one run to the next."""
    for path in (finished.results).glob("*.json"):
        first, *lines, last = path.read_text().splitlines()
        assert (first, last) == ("{", "}")
        names = [line.partition(":")[0].strip('"') for line in lines]
        assert names == [name for name in outcomes.FIELDS if name in names] and {"seed", "outcomes"} < set(names)


def test_a_missing_evaluation_is_added_without_training(finished, tmp_path, monkeypatch):
    """Catches a run that is made again because another mode of its policy is asked for."""
    shutil.copytree(finished.out, tmp_path / "results")
    options = replace(finished, out=str(tmp_path / "results"))
    jobs = [replace(JOBS[1], evaluations=("test/free", "validation/forced"))]
    (entry,) = runs.pending_runs(jobs, options)
    assert entry.labels == ("validation/forced",)
    monkeypatch.setattr(runs, "train", None)
    runs.run(entry, options)
    assert runs.pending_runs(jobs, options) == []


def test_the_last_checkpoint_is_another_row(finished, tmp_path, monkeypatch):
    """Catches a row of the last checkpoint that is evaluated from best/, one whose checkpoint was deleted, and one
    that is evaluated a second time though it is the best one too."""
    loaded, load = [], runs.load_policy
    monkeypatch.setattr(runs, "load_policy", lambda path: loaded.append(path) or load(path))
    monkeypatch.setattr(runs, "train", None)
    shutil.copytree(finished.runs, tmp_path / "runs")
    options = replace(finished, out=str(tmp_path / "results"), runs=str(tmp_path / "runs"))
    (entry,) = runs.pending_runs(JOBS[1:], options)
    runs.run(entry, options)
    (directory,) = (tmp_path / "runs").glob("unconstrained-*[0-9a-f]")
    (path,) = options.results.glob("unconstrained-*.json")
    found = json.loads(path.read_text())["outcomes"]
    assert loaded == [directory] and found["test/last"] == found["test/free"]  # half of the two steps: --quick
    path.unlink()
    state = json.loads((directory / "best/state.json").read_text())
    (directory / "best/state.json").write_text(json.dumps(state | {"step": 0}))
    (directory / "best/checksums.json").unlink()  # it is another best/ now
    runs.run(entry, options)
    assert loaded[1:] == [directory, directory / "step-000001"]
    shutil.rmtree(directory / "step-000001")
    with pytest.raises(RuntimeError, match="step-000001 is missing; delete .* to have the run made again"):
        runs.run(entry, options)


@pytest.mark.parametrize("damage", ["cut", "option", "items"])
def test_a_damaged_result_is_named(finished, tmp_path, damage):
    """Catches tables that are made from a half-written file, or from one that was edited by hand."""
    shutil.copytree(finished.out, tmp_path / "results")
    (path,) = (tmp_path / "results/runs").glob("unconstrained-*.json")
    result = json.loads(path.read_text())
    if damage == "option":
        result["configuration"]["options"]["gate"] = "always"  # was "never"
    elif damage == "items":
        result["outcomes"]["test/free"]["correct"] = outcomes.pack([1, 0], 1)
    path.write_text(path.read_text()[:100] if damage == "cut" else json.dumps(result))
    with pytest.raises(ValueError, match=f"{path.name}: not a result"):
        runs.pending_runs(JOBS, replace(finished, out=str(tmp_path / "results")))


def test_a_failed_run_is_counted_and_says_where_its_log_is(tmp_path, capsys):
    """Catches a failure of one run that stops the others, or that looks like a success."""
    options = options_for(tmp_path, train="--model /nowhere")
    pending = [runs.Pending(JOBS[1], 0, "0" * 10, ("test/free",))]
    assert runs.run_all(pending, options) == 1
    assert "unconstrained-0-0000000000.log" in capsys.readouterr().out
