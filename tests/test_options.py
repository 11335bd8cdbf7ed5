"""Command lines: bad input ends with one clear line, exit code 2 and nothing written."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
from helpers import REAL, ROOT, call_main, command, files_under, needs_real, random_directory, sums, write_tasks
from safetensors.torch import load_file, save_file

import eval as eval_file
import train
from data import encode_prompt, load_tasks, load_tokenizer
from harness import options
from harness.options import Amount, Options, TrainingOptions, deciding, parse
from harness.rundir import Run
from harness.tasks import check_prompts, evaluation_tasks, part_of, training_tasks, with_price, with_prices
from tiny import world


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("data") / "tasks.jsonl")


@pytest.fixture
def refused(tmp_path, capsys, data_file):
    """Run train.py with these options and return the one line that it is refused with."""

    def run(*words, out=tmp_path / "run", main=train.main, common=True):
        before = files_under(tmp_path)
        if common:
            small = "--steps 1 --prompts 2 --group-size 2 --test-items 2 --validation-items 2".split()
            words = (
                *small,
                "--model",
                random_directory(),
                "--data",
                data_file,
                "--lang-tier",
                "low",
                "--out",
                out,
                *words,
            )
        with pytest.raises(SystemExit) as stop:
            call_main(main, *words)
        printed = capsys.readouterr()
        assert stop.value.code == 2
        assert files_under(tmp_path) == before
        assert "Traceback" not in printed.err and printed.err.count("\n") == 1 and printed.err.endswith("\n")
        assert ": error: " in printed.err
        return printed.err

    return run


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, says",
    [
        (["--lang-tier", "medium"], "--lang-tier: invalid choice: 'medium'"),
        (["--no-such-option", "1"], "--no-such-option"),
        (["--step", "3"], "--step"),  # no abbreviations: a new option would change what they mean
        (["--steps", "many"], "--steps: invalid int value: 'many'"),
        (["--gate", "sometimes"], "--gate: invalid choice: 'sometimes'"),
        (["--gate", "native"], "--gate: invalid choice: 'native'"),  # an estimator, which is --confidence
        (["--confidence", "always"], "--confidence: invalid choice: 'always'"),
        (["--preset", "huge"], "--preset: invalid choice: 'huge'"),
        (["--cost-weight", "-0.1"], "--cost-weight must be at least 0, is -0.1"),
        (["--cost-weight", "nan"], "--cost-weight"),
        (["--cost-weight", "inf"], "--cost-weight"),
        (["--learning-rate", "inf"], "--learning-rate"),
        (["--learning-rate", "1e39"], "--learning-rate must be at most 1e+30, is 1e+39"),  # infinity in fp32
        (["--temperature", "1e-45"], "--temperature must be at least 1e-30, is 1e-45"),  # 0 in fp32
        (["--max-grad-norm", "1e300"], "--max-grad-norm must be at most 1e+30"),
        (["--cost-weight", "1e39"], "--cost-weight must be at most 1e+30"),
        (["--price-char", "1e200"], "--price-char must be at most 1e+30"),
        (["--seed", str(10**30)], "--seed must be at most 1e+09"),  # no generator takes it
        (["--steps", str(10**12)], "--steps must be at most 1e+09"),
        (["--max-prompt-tokens", "0"], "--max-prompt-tokens must be positive, is 0"),
        (["--threshold", "75"], "--threshold must be between 0 and 1, is 75.0"),
        (["--group-size", "0"], "--group-size must be positive, is 0"),
        (["--steps", "0"], "--steps must be positive, is 0"),
        (["--steps", "-1"], "--steps must be positive, is -1"),
        (["--minibatches", "3", "--prompts", "2"], "--prompts must be a multiple of --minibatches"),
        (["--tool-noise", "2"], "--tool-noise must be one share between 0 and 1, or three, as 0.01,0.05,0.2, is 2"),
        (["--tool-noise", "0.1,0.2"], "or three, as 0.01,0.05,0.2, is 0.1,0.2"),
        (["--tool-noise", "some"], "or three, as 0.01,0.05,0.2, is some"),
        (["--translator", "oracle"], "there is no translator 'oracle', allowed: apertium"),
        (["--translator", "recorded:nowhere.jsonl"], "nowhere.jsonl"),
        (["--max-cost", "1"], "--max-cost needs --money-per-char"),
        (["--workers", "-1"], "--workers must be at least 0, is -1"),
        (["--decay", "1.5"], "--decay must be between 0 and 1, is 1.5"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--fields", "query=q"], "query"),
        (["--evaluation-data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data", "tiny", "--evaluation-data", "nowhere.jsonl"], "--evaluation-data is for a file"),
        (["--data", "tiny-prices", "--evaluation-data", "nowhere.jsonl"], "--evaluation-data is for a file"),
        (["--lang-tier", "xlow"], "xlow"),  # the file has none
        (["--resume"], "no run to resume"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_refused(refused, words, says):
    """Catches an option that is ignored, clamped or found out about by a traceback minutes later."""
    assert says in refused(*words)


def test_a_missing_model_directory_is_named(refused, tmp_path):
    """Catches a traceback from the depths of a loader."""
    assert str(tmp_path / "nowhere") in refused("--model", tmp_path / "nowhere")


@pytest.mark.parametrize("change", ["missing", "unexpected", "mis-shaped", "garbage"])
def test_weights_that_do_not_fit_are_named(refused, tmp_path, change):
    """Catches a tensor that never arrives: the run would train random weights."""
    broken = tmp_path / "broken"
    shutil.copytree(random_directory(), broken)
    tensors, name = load_file(broken / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["model.layers.1.mlp.other"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(3, 3)
    save_file(tensors, broken / "model.safetensors")
    if change == "garbage":
        (broken / "model.safetensors").write_bytes(b"garbage")
    line = refused("--model", broken)
    expected = {
        "missing": "missing layers.1.mlp.up_proj",
        "unexpected": "unexpected layers.1.mlp.other",
        "mis-shaped": r"up_proj.weight has shape \[3, 3\]",
        "garbage": "model.safetensors",
    }
    assert re.search(expected[change], line)


@pytest.mark.parametrize(
    "line, says",
    [
        ('{"id": "x"', ":81: not JSON"),
        ("[]", ":81: expected an object"),
        ('{"id": "x", "language": "de"}', ":81: field '.*' is missing"),
        (
            '{"id": "x", "language": "low-01", "tier": "medium", "split": "trained", "question": "?", "answer": "1"}',
            ":81: field 'tier' is 'medium'",
        ),
    ],
    ids=["json", "object", "field", "tier"],
)
def test_a_malformed_line_of_data_is_named(refused, data_file, tmp_path, line, says):
    """Catches a bad line that is skipped, or reported without its number."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text(data_file.read_text() + line + "\n")
    assert re.search(re.escape(str(bad)) + says, refused("--data", bad))


def test_data_that_is_not_text_is_named(refused, tmp_path):
    """Catches a UnicodeDecodeError that does not say which file."""
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b"\xff\xfe\x00")
    assert str(bad) in refused("--data", bad)


def test_data_without_validation_tasks_is_refused_at_the_start(refused, data_file, tmp_path):
    """Catches a small file whose training dies at its first validation."""
    few = tmp_path / "few.jsonl"
    lines = [json.dumps(dataclasses.asdict(task)) for task in load_tasks(data_file) if part_of(task) == "train"]
    few.write_text("\n".join(lines) + "\n")
    assert "validation" in refused("--data", few)


def write_rows(path, rows):
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "field, text", [("question", "a"), ("question", "\u1e9b\u0323"), ("system", "x"), ("choices", "b")]
)
def test_a_prompt_beyond_the_limit_is_named_before_the_run(refused, data_file, tmp_path, field, text):
    """Catches one question of 30,000 characters that takes 8 GB in the middle of a run."""
    rows = [json.loads(line) for line in data_file.read_text().splitlines()]
    rows[41][field] = [text * 30_000] if field == "choices" else text * 30_000
    long = write_rows(tmp_path / "long.jsonl", rows)
    said = refused("--data", long)
    assert re.search(
        rf"{long}:42: the prompt of '{re.escape(rows[41]['id'])}' has [\d,]+ tokens, and --max-prompt", said
    )
    assert "long.jsonl:42: " in refused("--data", long, "--dry-run")
    words = ["--policy", random_directory(), "--data", long, "--tiers", "low"]
    assert "long.jsonl:42: " in refused(*words, main=eval_file.main, common=False)


def test_a_limit_on_prompts_is_one_of_their_ids(data_file):
    """Catches a limit of characters, and one that is off by one."""
    tokenizer, tasks = load_tokenizer(random_directory()), load_tasks(data_file)
    longest = max(len(encode_prompt(task, tokenizer, Options().chat_format)) for task in tasks)
    check_prompts(Options(data=str(data_file), max_prompt_tokens=longest), tokenizer)
    with pytest.raises(ValueError, match=rf"has {longest} tokens, and --max-prompt-tokens is {longest - 1}"):
        check_prompts(Options(data=str(data_file), max_prompt_tokens=longest - 1), tokenizer)


def test_a_number_of_5000_digits_costs_one_task_and_not_the_file(data_file, tmp_path, capsys):
    """Catches a file that is refused, each time, because of one absurd number in it."""
    lines = data_file.read_text().splitlines()
    row = json.loads(lines[0]) | {"id": "long", "answer": 0}
    odd = tmp_path / "odd.jsonl"
    bad = json.dumps(row).replace('"answer": 0', f'"answer": {"7" * 5000}')
    odd.write_text("\n".join([*lines[:3], bad, *lines[3:]]) + "\n")
    assert load_tasks(odd) == load_tasks(odd) == load_tasks(data_file)
    assert capsys.readouterr().err == f"{odd}:4: this line is left out: a number of 5,000 digits\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(refused):
    """Catches torch's own traceback."""
    assert "cuda" in refused("--device", "cuda").lower()


def test_an_existing_run_is_refused_without_resume(refused, tmp_path):
    """Catches a second run that overwrites the first."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    assert "--resume goes on with it" in refused()


def test_resuming_with_other_options_is_refused(refused, tmp_path):
    """Catches a resumed run that is another experiment, and a config.json that is overwritten by it."""
    config = parse(train.Config, "", ["--model", str(random_directory()), "--cost-weight", "0.7"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    line = refused("--resume")
    assert f"cost_weight was 0.7, is {train.Config().cost_weight}" in line and "lang_tier was 'all', is 'low'" in line


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "--policy"),
        (["--policy", "nowhere"], "nowhere"),
        (["--policy", random_directory(), "--tiers", "low,medium"], "--tiers low,medium"),
        (["--policy", random_directory(), "--items", "0"], "--items"),
        (["--policy", random_directory(), "--mode", "sometimes"], "--mode"),
        (["--show", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--policy", random_directory(), "--items", "2", "--json", "nowhere/out.json"], "nowhere"),
    ],
    ids=["no policy", "no such policy", "no such tier", "no items", "no such mode", "no such file", "no such folder"],
)
def test_evaluation_refuses_bad_input(refused, words, says):
    """Catches an evaluation that finds out about its output file after hours of sampling."""
    assert says in refused(*words, main=eval_file.main, common=False)


def test_as_a_process_a_refusal_is_exit_code_2_and_one_line(tmp_path):
    """Catches an error that is one line only within a test: here it is a real command line."""
    done = command("train.py", "--out", tmp_path / "run", "--model", tmp_path / "nowhere", "--lang-tier", "low")
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert done.stderr.startswith("train.py: error: ") and "nowhere" in done.stderr
    assert files_under(tmp_path) == set()


# --- options ----------------------------------------------------------------------------------------------------

COMMANDS = [train.Config, eval_file.EvalOptions]


@pytest.mark.parametrize("cls", COMMANDS)
def test_every_option_has_a_comment_which_is_its_help(cls, capsys):
    """Catches an option whose help is missing, or is another's."""
    with pytest.raises(SystemExit):
        parse(cls, "", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(cls):
        comment = options._comments(cls)[field.name]
        assert len(comment) > 5
        assert f"--{field.name.replace('_', '-')}" in text and " ".join(comment.split()) in text


@pytest.mark.parametrize("cls", COMMANDS)
def test_defaults_are_those_of_the_dataclass(cls):
    """Catches a parser with a default of its own."""
    assert parse(cls, "", []) == cls()


def test_options_are_typed():
    """Catches numbers that stay text, and switches that cannot be switched off."""
    found = parse(train.Config, "", "--steps 7 --cost-weight 0.5 --tool-schema --no-think".split())
    assert (found.steps, found.cost_weight, found.tool_schema, found.think) == (7, 0.5, True, False)
    assert parse(eval_file.EvalOptions, "", ["--policy", "a", "--policy", "b"]).policy == ("a", "b")


def test_a_preset_is_a_set_of_defaults_that_options_override():
    """Catches a preset that wins over what the user says, or names options that do not exist."""
    found = parse(train.Config, "", ["--preset", "qwen3-4b", "--max-new-tokens", "9"])
    assert (found.answer_format, found.tool_schema, found.max_new_tokens) == ("boxed", True, 9)
    known = {field.name for cls in COMMANDS for field in dataclasses.fields(cls)}
    assert {name for preset in options.PRESETS.values() for name in preset} <= known


@dataclasses.dataclass(frozen=True)
class Forked(train.Config):
    kl_weight: Amount = 0.25  # weight of a term that a fork adds


def test_an_option_is_one_line(capsys):
    """Catches a second place where an option must be named: its parser, its help, its bounds, or what decides."""
    assert (parse(Forked, "", []).kl_weight, parse(Forked, "", ["--kl-weight", "0"]).kl_weight) == (0.25, 0.0)
    for value in ("-1", "nan", "inf"):
        with pytest.raises(SystemExit):
            parse(Forked, "", ["--kl-weight", value])
        assert f"--kl-weight must be at least 0, is {float(value)}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(Forked, "", ["--help"])
    assert "weight of a term that a fork adds (default: 0.25)" in " ".join(capsys.readouterr().out.split())
    assert set(deciding(Forked)) - set(deciding(train.Config)) == {"kl_weight"}


NEUTRAL = (
    "preset cache money_per_char max_cost workers max_rows device evaluation_data allow_evaluation_data out resume "
    "checkpoint_activations save_every max_tool_errors test_items log_rollouts dry_run log explain "
    "replay max_prompt_tokens"
).split()


def test_what_decides_a_result_may_not_change_on_resuming_and_the_rest_may(tmp_path):
    """Catches an option that changes a run half way through, and a device or a limit that cannot be changed for it."""
    config = train.Config()
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    for name, value in vars(config).items():
        other = {bool: lambda v: not v, str: lambda v: v + "x", tuple: lambda v: (*v, "x")}.get(
            type(value), lambda v: v + 1
        )
        changed = dataclasses.replace(config, **{name: other(value)})
        if name in (*NEUTRAL, "steps", "micro_tokens", "eval_every"):
            Run(tmp_path, changed, True)
        else:
            with pytest.raises(ValueError, match=f"differ from the run's: {name} was [^;]*$"):
                Run(tmp_path, changed, True)
    assert set(vars(config)) - set(NEUTRAL) == set(deciding(train.Config))


def test_a_run_may_be_older_than_an_option(tmp_path):
    """Catches a new option, left at what it was before there was one, that ends all runs in progress."""
    before = dataclasses.asdict(config := train.Config())
    del before["lora_rank"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    Run(tmp_path, config, True)
    with pytest.raises(ValueError, match="lora_rank was 0, is 4"):
        Run(tmp_path, dataclasses.replace(config, lora_rank=4), True)


def test_output_into_a_pipe_that_was_closed_is_no_error():
    """Catches `--explain | head` that ends in a message about a broken pipe."""
    code = "from harness.options import clear_errors\nwith clear_errors():\n    print('line\\n' * 100_000)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, "")
    process.stderr.close()


@pytest.mark.parametrize(
    "now, goes_on",
    [
        ("chat+https://other:9000/v1?model=a", True),
        ("chat+http://host/v1?model=b", False),
        ("libre+http://host/v1?model=a", False),
    ],
)
def test_a_translator_may_move_and_not_become_another(tmp_path, now, goes_on):
    """Catches a run that cannot go on because its server has another address, and one that goes on with another."""
    config = train.Config(translator="chat+http://host/v1?model=a")
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    changed = dataclasses.replace(config, translator=now)
    if goes_on:
        Run(tmp_path, changed, True)
    else:
        with pytest.raises(ValueError, match="translator was 'chat.*', is '"):
            Run(tmp_path, changed, True)


def test_what_changes_on_resuming_is_said(tmp_path, capsys):
    """Catches a run whose sums are cut differently from here on, without a word in its log."""
    config = train.Config()
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    Run(tmp_path, dataclasses.replace(config, micro_tokens=4096), True)
    assert capsys.readouterr().out == "going on with --micro-tokens 4096, which was --micro-tokens 16384\n"


def test_the_readme_names_only_options_that_exist():
    """Catches a documented command that does not run."""
    readme = ROOT / "README.md"
    known = {"--" + field.name.replace("_", "-") for cls in COMMANDS for field in dataclasses.fields(cls)}
    words = re.findall(r"python (?:train|eval)\.py[^\n`]*", readme.read_text()) if readme.is_file() else []
    assert {flag for line in words for flag in re.findall(r"--[a-z-]+", line)} - {"--help"} <= known


# --- data -------------------------------------------------------------------------------------------------------


def test_training_draws_follow_from_seed_and_step(data_file):
    """Catches tasks that depend on how many were drawn before: a resumed run would see others."""
    for found in (TrainingOptions(), TrainingOptions(data=str(data_file))):
        draw, again = training_tasks(found, ["low"], 0), training_tasks(found, ["low"], 0)
        draw(0, 6), draw(1, 6)
        assert [task.id for task in draw(5, 6)] == [task.id for task in again(5, 6)]
        ids = {
            tuple(task.id for task in training_tasks(found, ["low"], seed)(step, 6))
            for seed, step in ((0, 5), (0, 6), (1, 5))
        }
        assert len(ids) == 3


def test_a_file_is_drawn_epoch_by_epoch(data_file):
    """Catches tasks that are drawn twice before others are drawn once, and a tail that is never seen."""
    pool = [task.id for task in load_tasks(data_file) if part_of(task) == "train"]
    draw = training_tasks(TrainingOptions(data=str(data_file)), ["low"], 0)
    seen = [task.id for step in range(2 * len(pool)) for task in draw(step, 3)]
    assert Counter(seen) == Counter({task: 6 for task in pool})


@pytest.mark.parametrize("tiers", [["low"], ["high", "xlow"]])
def test_training_never_sees_held_out_languages_or_items_of_other_splits(tiers):
    """Catches the leak that would make held-out figures worthless."""
    draw = training_tasks(TrainingOptions(), tiers, 0)
    found = [task for step in range(5) for task in draw(step, 40)]
    assert {task.tier for task in found} == set(tiers) and {task.split for task in found} == {"trained"}
    tests = {
        task.question_en
        for part in ("validation", "test")
        for tasks in evaluation_tasks(Options(), part, 200).values()
        for task in tasks
    }
    assert not tests & {task.question_en for task in found}


TENTHS = {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}


def unpriced(task):
    return dataclasses.replace(task, system=None, cost_weight=None)


def test_prices_are_tenths_that_follow_from_the_key():
    """Catches prices that change on resuming, that never reach the ends of the range, or that touch other fields."""
    tasks = evaluation_tasks(Options(), "test", 60)["low"]
    priced = with_prices(tasks, "0 1")
    assert {task.cost_weight for task in priced} == TENTHS
    assert priced == with_prices(tasks, "0 1") != with_prices(tasks, "0 2")
    assert [unpriced(task) for task in priced] == tasks


def test_a_price_that_is_charged_is_stated():
    """Catches a system turn that says another price than the reward charges, and signs that do not show it."""
    for task in with_prices(evaluation_tasks(Options(), "test", 60)["low"], "0 1"):
        number, _, signs = task.system.removeprefix("price ").partition(" ")
        assert (float(number), len(signs), set(signs) <= {"$"}) == (
            task.cost_weight,
            round(10 * task.cost_weight),
            True,
        )
    task = with_price(world.render(sums()[0], "low-01"), 0.3)
    assert (task.system, task.cost_weight) == ("price 0.3 $$$", 0.3)


def test_a_steps_tasks_come_with_their_prices():
    """Catches a step whose prices change when it is run again, that are every step's, or that change the tasks."""
    draw, plain = (training_tasks(TrainingOptions(data=name), ["low"], 0) for name in ("tiny-prices", "tiny"))
    prices = [[task.cost_weight for task in draw(step, 60)] for step in (0, 1, 1)]
    assert set(prices[0]) == TENTHS and prices[0] != prices[1] == prices[2]
    assert [unpriced(task) for task in draw(1, 60)] == plain(1, 60)
    groups, others = (evaluation_tasks(Options(data=name), "test", 30) for name in ("tiny-prices", "tiny"))
    assert {name: [unpriced(task) for task in tasks] for name, tasks in groups.items()} == others
    assert all({task.cost_weight for task in tasks} <= TENTHS for tasks in groups.values())
    assert all(task.cost_weight is None for task in others["low"])


def test_evaluation_groups_are_complete_and_paired():
    """Catches groups of languages that are measured on different items."""
    groups = evaluation_tasks(Options(), "test", 45)
    assert list(groups) == ["high", "low", "xlow", "held-out", "synthetic"]
    assert len({tuple(task.question_en for task in tasks) for tasks in groups.values()}) == 1
    for tier in ("high", "low", "xlow"):
        assert {(task.tier, task.split) for task in groups[tier]} == {(tier, "trained")}
    assert {(task.tier, task.split) for task in groups["held-out"]} == {
        (t, "held-out") for t in ("high", "low", "xlow")
    }


def test_of_a_file_each_group_takes_its_languages_in_turn(tmp_path):
    """Catches figures of one language in the name of a tier: files are often written language by language."""
    tasks = [world.render(item, code) for code in ("low-01", "low-02", "high-01") for item in sums()]
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(dataclasses.asdict(task)) + "\n" for task in tasks))
    groups = evaluation_tasks(Options(data=str(path)), "test", 5)
    assert [task.language for task in groups["low"]] == ["low-01", "low-02", "low-01", "low-02", "low-01"]
    assert {task.language for task in groups["high"]} == {"high-01"}


def test_translations_of_a_question_fall_into_one_part_of_a_file(data_file):
    """Catches a test question that training has seen in another language."""
    task = load_tasks(data_file)[0]
    copies = [dataclasses.replace(task, id=f"{i}", language=f"low-0{i}") for i in range(9)]
    assert len({part_of(copy) for copy in copies}) == 1


# --- evaluation data --------------------------------------------------------------------------------------------


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def translated(tmp_path):
    """(path of a file of twenty translated tasks, number of the first that is for training)."""
    path = jsonl(
        tmp_path / "translated.jsonl",
        (
            {
                "id": f"ca/own-{i}",
                "language": "ca",
                "question": f"El gat: {i}?",
                "answer": "1",
                "question_en": f"Anna’s cat ate {i}½ fish –\u00a0how many?",
            }
            for i in range(20)
        ),
    )
    return path, int(next(task.id for task in load_tasks(path) if part_of(task) == "train").split("-")[1])


@pytest.mark.parametrize(
    "row",
    [
        {"id": "ca/own-@"},
        {"id": "own-@", "question": "?"},
        {"id": "es/own-@", "language": "es"},
        {"id": "other", "provenance": {"source_id": "own-@"}},
        {"question": "Anna's cat ate @½ fish - how many?", "answer": "#### 1"},
        {"question": "¿?", "question_en": " ANNA'S cat  ate @½ fish \u2014 how many?\n"},
        {"id": "other", "question": "El gat: @?"},
    ],
    ids=["id", "id before translation", "id of another language", "provenance", "question", "question_en", "same text"],
)
def test_evaluation_data_is_refused_for_training(translated, tmp_path, row):
    """Catches a test question that is trained on because it was translated, renamed or typeset in another way."""
    path, number = translated
    row = json.loads(json.dumps(row).replace("@", str(number)))
    evaluation = jsonl(tmp_path / "test.jsonl", [{"id": "unlike"}, row])
    with pytest.raises(ValueError) as refusal:
        training_tasks(TrainingOptions(data=path, evaluation_data=(evaluation,)), ["low"], 0)
    message = str(refusal.value)
    assert f"'ca/own-{number}', which is that of {evaluation}:2" in message and "1 of " in message
    assert message.startswith(path) and "--allow-evaluation-data" in message


def test_what_is_not_trained_on_is_not_refused(translated, tmp_path):
    """Catches a guard that refuses a file for its own test items, or for a question that differs in a sign."""
    path, number = translated
    rows = [{"id": task.id} for task in load_tasks(path) if part_of(task) != "train"]
    rows += [{"question": f"Anna's cat ate -{number}½ fish - how many?"}, {"id": f"own-{number}0"}]
    found = TrainingOptions(data=path, evaluation_data=(jsonl(tmp_path / "test.jsonl", rows),))
    assert len(training_tasks(found, ["low"], 0)(0, 3)) == 3


def test_allowed_evaluation_data_is_in_the_log(translated, tmp_path, capsys):
    """Catches figures on training data that nothing says are such."""
    path, number = translated
    both = [jsonl(tmp_path / f"{name}.jsonl", [{"id": f"{name}-{number}"}]) for name in ("other", "own")]
    named = [word for file in both for word in ("--evaluation-data", file)]
    call_main(
        train.main,
        "--dry-run",
        "--model",
        random_directory(),
        "--data",
        path,
        "--lang-tier",
        "low",
        "--allow-evaluation-data",
        *named,
    )
    log = capsys.readouterr().out
    assert re.search(rf"1 of \d+ training tasks are evaluation data \({', '.join(both)}\)", log)
    assert '"allow_evaluation_data": true' in log


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "no tasks"),
        ('{"id": "a"}\n[]\n', ":2: expected an object"),
        ('{"id": "a"', ":1: not JSON"),
        ('{"prompt": "?"}', ":1: expected an id or a question"),
    ],
    ids=["empty", "list", "json", "fields"],
)
def test_an_evaluation_file_with_nothing_to_compare_is_refused(translated, tmp_path, content, says):
    """Catches a guard that lets everything pass because it read nothing."""
    (tmp_path / "test.jsonl").write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'test.jsonl'}") + ".*" + says):
        training_tasks(TrainingOptions(data=translated[0], evaluation_data=(str(tmp_path / "test.jsonl"),)), ["low"], 0)


@needs_real
def test_translations_of_a_real_test_set_are_told_from_other_tasks(tmp_path):
    """Catches a human translation of a test question that passes, and a task of another data set that does not."""
    for name, code, tier in (("mgsm", "es", "high"), ("xcopa", "et", "low")):
        rows = [json.loads(line) for line in (REAL / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line]
        path = jsonl(tmp_path / f"{name}.jsonl", (row for row in rows if row["lang"] == code))
        found = TrainingOptions(
            data=path, fields="language=lang,split=ours", evaluation_data=(str(REAL / "gsm8k_test.jsonl"),)
        )
        if name == "mgsm":
            with pytest.raises(ValueError, match=r": (\d+) of \1 training tasks"):
                training_tasks(found, [tier], 0)
        else:
            assert len(training_tasks(found, [tier], 0)(0, 3)) == 3
