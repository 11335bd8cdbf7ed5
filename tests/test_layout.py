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
READING_ORDER = """
    data model tools engines translators sampler reward logprob gspo guard options distributed runs optimize forecast
    eval train fidelity.checks fidelity.report fidelity.protect fidelity.journal translate_tasks
    paper.experiments paper.measures paper.outcomes paper.comparisons paper.tables paper.figures reproduce
""".split()
STAGES = {"data": 1, "model": 2, "tools": 3, "sampler": 4, "reward": 5, "logprob": 6, "gspo": 7, "eval": 8, "train": 9}


def files_of(package: str) -> dict[str, Path]:
    return {f"{package}.{path.stem}": path for path in (ROOT / package).glob("*.py") if path.stem != "__init__"}


FILES = {path.stem: path for path in ROOT.glob("*.py")} | files_of("paper") | files_of("fidelity")
TINY = files_of("tiny")
PRODUCT = FILES | TINY
DEPENDENCIES = {"torch", "safetensors", "tokenizers", "numpy", "triton", "tqdm"}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports; `from tiny import world` gives tiny.world."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= (
                {f"{module}.{alias.name}" for alias in node.names}
                if module in ("tiny", "paper", "fidelity")
                else {module}
            )
    return found


def test_every_file_has_a_place_in_the_reading_order():
    """Catches a new file that no rule below looks at."""
    assert set(FILES) <= set(READING_ORDER)
    assert set(STAGES) | {"options", "runs"} <= set(FILES)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_imports_only_from_files_above_it(name):
    """Catches a stage that calls back to an earlier one: a reader would have to jump."""
    ours = {module for module in imports(FILES[name]) if module in READING_ORDER}
    assert ours <= set(READING_ORDER[: READING_ORDER.index(name)])


def test_only_command_line_support_knows_of_the_embedded_world():
    """Catches a trainer that treats the embedded world as anything but a file of tasks and a translator."""
    users = {name for name in FILES if any(module.split(".")[0] == "tiny" for module in imports(FILES[name]))}
    assert "options" in users and users <= {"options", "translate_tasks", "reproduce", "paper.outcomes"}


def test_the_embedded_world_knows_nothing_of_what_is_measured_with_it():
    """Catches a world that depends on a policy, or a base model made with the algorithm under test."""
    assert {m for m in imports(TINY["tiny.world"]) if m in READING_ORDER} <= {"data", "tools"}
    assert not imports(TINY["tiny.pretrain"]) & {"gspo", "train", "reproduce"}


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
    ours = {module.split(".")[0] for module in READING_ORDER} | {"tiny"}
    foreign = {m.split(".")[0] for m in imports(path)} - ours - set(sys.stdlib_module_names)
    assert foreign <= DEPENDENCIES | {"matplotlib"}
    assert "matplotlib" not in {m.split(".")[0] for m in imports(path, top_level_only=True)}


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
    (data.encode_prompt, "task, tokenizer, system=None, think=False, tools=True"),
    (data.Tokenizer.encode_text, "self, text"),
    (data.Tokenizer.decode, "self, ids"),
    (model.load, "directory, device='cpu', dtype=torch.float32"),
    (model.save, "model, directory"),
    (model.Qwen3.forward, "self, ids, cache=None, positions=None"),
    (model.Qwen3.logits, "self, hidden"),
    (tools.parse_call, "text"),
    (tools.Translator.translate, "self, texts, source, target='en'"),
    (
        sampler.rollout,
        "model, tokenizer, tasks, group_size, translator, generator, *, mode='free', temperature=1.0, "
        "max_new_tokens, max_calls=2, max_rows=None",
    ),
    (reward.score, "rollout, tokenizer, answer='plain'"),
    (logprob.token_logps, "hidden, head_weight, targets, temperature=1.0, valid_vocab=None"),
    (gspo.confidence, "correct, used_tool, estimator, probe=None"),
    (gspo.shaped_reward, "correct, cost, gate, cost_weight, penalty='multiply'"),
    (gspo.group_advantages, "reward, scale='group'"),
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


@pytest.mark.parametrize(
    "record, fields",
    [
        (data.Task, "id language tier split domain question choices answer question_en price"),
        (sampler.Rollout, "task prompt_ids ids sampled logps calls stop"),
        (reward.Score, "correct answer format_ok cost used_tool"),
    ],
)
def test_the_three_records_have_their_fields_and_are_frozen(record, fields):
    """Catches a record that a later stage may change, or a field that was renamed."""
    assert list(record.__dataclass_fields__) == fields.split()
    assert record.__dataclass_params__.frozen
