"""The shape of the code base: its order, its public names, and what it is allowed to depend on."""

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest

import data
import gspo
import logprob
import model
import reward
import sampler
import tools

ROOT = Path(__file__).resolve().parent.parent
STAGES = {"data": 1, "model": 2, "tools": 3, "sampler": 4, "reward": 5, "logprob": 6, "gspo": 7, "eval": 8, "train": 9}
ROOMS = ("harness", "translation", "tiny", "paper", "bench")
DEPENDENCIES = {"torch", "safetensors", "tokenizers", "numpy", "triton", "tqdm"}
OPTIONAL = {"matplotlib", "math_verify", "pyarrow", "jinja2", "tensorboard", "wandb"}  # imported where they are needed


def files_of(folder: str) -> dict[str, Path]:
    """Module name -> file: data, harness.options, …"""
    prefix = f"{folder}." if folder else ""
    return {prefix + path.stem: path for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"}


FILES = {name: path for folder in ("", *ROOMS) for name, path in files_of(folder).items()}
PRODUCT = {name: path for name, path in FILES.items() if not name.startswith("bench.")}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports; `from tiny import world` gives tiny.world."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module in ROOMS else {node.module}
    return found


def ours(name: str) -> set[str]:
    """The files of this repository that a file imports, at its top or inside a function."""
    return imports(FILES[name]) & set(FILES)


def room(name: str) -> str:
    """The folder of a module, or the module itself if it stands on the top level."""
    return name.partition(".")[0]


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """A chain of arrows that ends where it began, or nothing."""

    def search(chain: list[str]) -> list[str]:
        for there in sorted(arrows.get(chain[-1], ())):
            if there in chain:
                return [*chain[chain.index(there) :], there]
            if there not in done and (found := search([*chain, there])):
                return found
        done.add(chain[-1])
        return []

    done = set()
    return next((found for name in sorted(arrows) if name not in done and (found := search([name]))), [])


def test_the_top_level_is_the_reading_path_and_nothing_else():
    """Catches a tenth file where nine stages are meant, and a room that no rule below looks at."""
    assert set(files_of("")) == set(STAGES)
    folders = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py")}
    assert folders - {"runs", ".venv"} == {*ROOMS, "tests"}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_imports_only_from_stages_above_it_and_from_the_harness(name):
    """Catches a stage that calls back to an earlier one: a reader would have to jump."""
    above = {stage for stage, number in STAGES.items() if number < STAGES[name]}
    assert {room(module) for module in ours(name)} <= above | {"harness", "translation"}


@pytest.mark.parametrize("name", sorted(name for name in FILES if room(name) in ("harness", "translation")))
def test_the_harness_and_the_translation_serve_the_trainer_and_know_nothing_of_it(name):
    """Catches plumbing that reaches up to the loop which it serves. What explains the algorithm has to call it."""
    explained = {"gspo"} if name == "harness.explain" else set()
    assert not {room(module) for module in ours(name)} & {"gspo", "eval", "train", "paper", "bench"} - explained


@pytest.mark.parametrize("name", sorted(files_of("tiny")))
def test_the_embedded_world_knows_nothing_of_what_is_measured_with_it(name):
    """Catches a world that depends on a policy."""
    assert {room(module) for module in ours(name)} <= {"data", "tools", "tiny"}


def test_only_command_line_support_knows_of_the_embedded_world():
    """Catches a trainer that treats the embedded world as anything but tasks and a translator."""
    users = {name for name in FILES if room(name) not in ("tiny", "bench", "paper") and "tiny" in map(room, ours(name))}
    assert users == {"harness.tasks", "translation.service", "translation.pipeline"}


@pytest.mark.parametrize("name", sorted(PRODUCT))
def test_nothing_imports_the_paper_or_the_bench(name):
    """Catches a product that needs its own experiments."""
    assert "bench" not in map(room, ours(name))
    assert room(name) == "paper" or "paper" not in map(room, ours(name))


def test_no_files_and_no_rooms_import_each_other_in_a_circle():
    """Catches an arrow back up, at the top of a file or hidden in a function."""
    assert circle({name: ours(name) for name in FILES}) == []
    inside = {name: {room(module) for module in ours(name)} & set(ROOMS) - {room(name)} for name in FILES}
    assert circle({r: set().union(*(inside[name] for name in FILES if room(name) == r)) for r in ROOMS}) == []


def test_a_circle_would_be_found():
    """Catches a search that finds nothing, whatever the arrows."""
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_the_base_model_is_made_without_the_algorithm_under_test():
    """Catches a pretraining that has seen the method."""
    assert not ours("paper.pretrain") & {"gspo", "train", "paper.reproduce"}


@pytest.mark.parametrize("name, stage", STAGES.items())
def test_a_stages_first_line_says_its_number(name, stage):
    """Catches a stage that `grep '\\[4\\]'` does not find."""
    assert FILES[name].read_text(encoding="utf-8").startswith(f'"""[{stage}] ')


@pytest.mark.parametrize("stage", [1, 2, 3, 4, 5, 6, 7, 8])
def test_training_names_the_stages_that_it_goes_through(stage):
    """Catches a step of the loop whose stage is no longer marked."""
    assert f"[{stage}]" in re.sub(r"\[3, 4\]|\[6, 7\]", "[3][4][6][7]", FILES["train"].read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["gspo", "reward"])
def test_the_algorithm_does_no_io(name):
    """Catches a formula that reads a file, a model or the clock."""
    text = FILES[name].read_text(encoding="utf-8")
    forbidden = {"os", "pathlib", "model", "io", "sys", "json", "time", "random", "logging", "torch.optim", "torch.nn"}
    assert not imports(FILES[name]) & forbidden
    called = {
        node.func.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"open", "print", "input"}


def test_the_loss_knows_no_other_file():
    """Catches gspo.py growing an import: it must stay usable in any other trainer by copying one file."""
    assert {module.split(".")[0] for module in imports(FILES["gspo"])} == {"torch"}


@pytest.mark.parametrize("name", sorted(PRODUCT))
def test_only_the_listed_packages_are_needed(name):
    """Catches a dependency that requirements.txt does not install, such as transformers."""
    path = PRODUCT[name]
    foreign = {m.split(".")[0] for m in imports(path)} - {*STAGES, *ROOMS} - set(sys.stdlib_module_names)
    assert foreign <= DEPENDENCIES | OPTIONAL
    assert not OPTIONAL & {m.split(".")[0] for m in imports(path, top_level_only=True)}


def test_requirements_list_what_is_imported():
    """Catches a package that is pinned for nothing, or needed and not pinned."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = {re.match(r"[\w-]+", line)[0] for line in lines if line and not line.startswith("#")}
    used = {m.split(".")[0] for path in PRODUCT.values() for m in imports(path)} & DEPENDENCIES
    assert listed == used


@pytest.mark.parametrize("name", sorted(PRODUCT))
def test_no_file_outgrows_an_evening(name):
    """Catches a file with a second concern inside."""
    assert len(PRODUCT[name].read_text(encoding="utf-8").splitlines()) <= 400


PUBLIC = [
    (data.load_tokenizer, "directory"),
    (data.load_tasks, "path, fields=None"),
    (data.encode_prompt, "task, tokenizer, chat"),
    (data.Tokenizer.encode_text, "self, text"),
    (data.Tokenizer.decode, "self, ids"),
    (model.load, "directory, device='cpu', dtype=torch.float32"),
    (model.save, "model, directory, like=None"),
    (model.Qwen3.forward, "self, ids, cache=None, positions=None"),
    (model.Qwen3.logits, "self, hidden"),
    (tools.parse_call, "text"),
    (tools.Translator.translate, "self, texts, source, target='en'"),
    (sampler.rollout, "model, tokenizer, tasks, group_size, translator, generator, sampling"),
    (reward.score, "rollout, tokenizer, answer_format='plain'"),
    (logprob.token_logps, "hidden, head_weight, targets, temperature=1.0, valid_vocab=None"),
    (logprob.policy_logps, "model, rollouts, temperature, valid_vocab"),
    (gspo.confidence, "correct, used_tool, estimator, probe=None"),
    (gspo.gate, "kappa, rule, threshold"),
    (gspo.charge, "cost, gates, cost_weight"),
    (gspo.group_advantages, "reward, scale='group'"),
    (gspo.shaped_advantages, "reward, shaped, form, scale='group'"),
    (gspo.gspo_loss, "logps, old_logps, sampled, advantages, clip_low, clip_high, ratio='sequence'"),
]


@pytest.mark.parametrize("function, promised", PUBLIC, ids=[function.__qualname__ for function, _ in PUBLIC])
def test_public_signatures_begin_as_promised(function, promised):
    """Catches a renamed or reordered parameter that forks pass by name; further ones must have defaults."""
    found = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
    ]
    names = [re.split("=", part)[0] for part in promised.split(", ")]
    further = found[len([name for name in names if name != "*"]) :]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in further)
    kept = inspect.Signature(found[: len(found) - len(further)])
    assert str(kept) == f"({promised})"


@pytest.mark.parametrize("function", [function for function, _ in PUBLIC], ids=lambda function: function.__qualname__)
def test_public_names_say_what_they_take_and_return(function):
    """Catches a type that a fork has to guess. That all of them are right is for mypy (pyproject.toml) to say."""
    signature = inspect.signature(function)
    parameters = [parameter for name, parameter in signature.parameters.items() if name != "self"]
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)


def test_no_parameter_of_the_algorithm_shadows_a_function():
    """Catches `charge(cost, gate, ...)`: a reader would not know which of the two `gate` is meant."""
    functions = [
        node for node in ast.parse(FILES["gspo"].read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)
    ]
    named = {function.name for function in functions}
    assert not named & {argument.arg for function in functions for argument in function.args.args}


@pytest.mark.parametrize(
    "record, fields",
    [
        (data.Task, "id language tier split domain question choices answer question_en system cost_weight"),
        (sampler.Rollout, "task prompt_ids ids sampled logps calls stop"),
        (reward.Score, "correct reward answer format_ok cost used_tool"),
    ],
)
def test_the_three_records_have_their_fields_and_are_frozen(record, fields):
    """Catches a record that a later stage may change, or a field that was renamed."""
    assert list(record.__dataclass_fields__) == fields.split()
    assert record.__dataclass_params__.frozen
