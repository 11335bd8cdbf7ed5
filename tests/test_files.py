"""Files of tasks as people have them: published sets, tables, nested fields, and parts that no item falls between."""

import doctest
import json
import sys
from pathlib import Path

import pytest
from helpers import REAL, needs_real

import data
from harness import formats, jsonl
from harness.jsonl import item_of, task_rows
from harness.options import Options, TrainingOptions
from harness.tasks import evaluation_tasks, part_of, training_tasks
from reward import verify
from translation import pipeline

SOLUTION = "He has 1000 * 2 = <<1000*2=2000>>2000.\n#### 2,000"
XCOPA = {"premise": "L'oggetto era avvolto nella plastica.", "choice1": "Era fragile.", "choice2": "Era piccolo."}
XCOPA |= {"question": "cause", "label": 0, "idx": 3, "changed": False}
BELEBELE = {"link": "https://en.wikibooks.org/x", "question_number": 2, "flores_passage": "Ana va al mar.", "ds": "x"}
BELEBELE |= {"question": "¿Adónde va Ana?", "correct_answer_num": "4", "dialect": "spa_Latn"}
BELEBELE |= {f"mc_answer{i}": text for i, text in enumerate(("A casa", "Al bosque", "Al río", "Al mar"), start=1)}


def write(directory: Path, *rows, name="tasks.jsonl") -> Path:
    path = directory / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def with_text(directory: Path, text: str, name: str) -> Path:
    (directory / name).write_bytes(text.encode())
    return directory / name


def fields_of(text: str) -> dict[str, str]:
    """What a command line makes of --fields."""
    return Options(fields=text).field_names


# --- published sets -----------------------------------------------------------------------------------------------


def test_gsm8k_is_read_alike_everywhere(tmp_path):
    """Catches a worked solution that is the gold in training and the number in the pipeline: reward 0 for ever."""
    path = write(tmp_path, {"question": "How many?", "answer": SOLUTION})
    (trained,) = data.load_tasks(path, fields_of("language=:de"))
    (translated,) = pipeline.english_tasks(str(path), {}, 10)
    assert (trained.answer, trained.domain) == (translated.answer, translated.domain) == ("2000", "math")
    assert trained.id == translated.id
    assert verify("2,000", SOLUTION) and verify(SOLUTION, "2000") and not verify("1000", SOLUTION)
    assert not verify("2000 ####", "2000") and not verify("", SOLUTION)


def test_mgsm_is_read_as_it_is_published(tmp_path):
    """Catches a table that must be converted first, a first task that is taken for a header, and a quote or a comma of
    thousands that changes a cell."""
    text = 'Ana dice "hola" 2 veces. ¿Cuántas?\t2\n¿Cuántos patos tiene Janet?\t1,018\r\n\n'
    tasks = data.load_tasks(with_text(tmp_path, text, "mgsm_es.tsv"), fields_of("language=:es"))
    assert [(t.question, t.answer) for t in tasks] == [
        ('Ana dice "hola" 2 veces. ¿Cuántas?', "2"),
        ("¿Cuántos patos tiene Janet?", "1,018"),
    ]
    assert verify("1018", tasks[1].answer)


def test_a_table_may_have_a_header_and_names_of_its_own(tmp_path):
    """Catches a header that becomes a task, and columns that only their order tells apart."""
    headed = with_text(tmp_path, "\ufefflang\ttext\tgold\tlambda\nde\tWas ist 2 + 2?\t4\t0.3\n", "a.tsv")
    (task,) = data.load_tasks(headed, fields_of("language=lang,question=text,answer=gold,cost_weight=lambda"))
    assert (task.language, task.question, task.answer, task.cost_weight) == ("de", "Was ist 2 + 2?", "4", 0.3)
    bare = with_text(tmp_path, "7\tWas ist 2 + 2?\t4\n", "b.tsv")
    (task,) = data.load_tasks(bare, fields_of("id=0,question=1,answer=2,language=:de"))
    assert (task.id, task.question, task.answer) == ("7", "Was ist 2 + 2?", "4")


def test_a_ragged_table_is_refused_with_its_line(tmp_path):
    """Catches a tab within a question that moves the answer by a column."""
    path = with_text(tmp_path, "Q one?\t1\nQ\ttwo?\t2\n", "a.tsv")
    with pytest.raises(ValueError, match=r"a\.tsv:2: 3 cells, where the first line has 2"):
        data.load_tasks(path, {"language": ":de"})


def test_xcopa_is_read_as_it_is_published(tmp_path):
    """Catches a label that counts from 0 taken for one that counts from 1, and a gold that no prompt asks for."""
    (task,) = data.load_tasks(write(tmp_path, XCOPA), fields_of("language=:it"))
    assert task.question.startswith("L'oggetto era avvolto nella plastica.\nWhat was the cause of this?\n")
    assert "number" in task.question.splitlines()[-1]
    assert (task.choices, task.answer, task.domain) == (("1. Era fragile.", "2. Era piccolo."), "1", "commonsense")
    assert verify("1", task.answer, task.choices) and not verify("2", task.answer, task.choices)
    (other,) = data.load_tasks(write(tmp_path, {**XCOPA, "label": 1, "question": "effect"}), {"language": ":it"})
    assert other.answer == "2" and "result" in other.question


def test_belebele_is_read_as_it_is_published(tmp_path):
    """Catches a question without its passage, and a code of FLORES that no engine knows."""
    (task,) = data.load_tasks(write(tmp_path, BELEBELE))
    assert task.question.startswith("Ana va al mar.\n¿Adónde va Ana?\n")
    assert (task.language, task.tier, task.answer, task.domain) == ("es", "high", "4", "reading")
    assert task.choices == ("1. A casa", "2. Al bosque", "3. Al río", "4. Al mar")
    assert verify("Al mar", task.answer, task.choices) and not verify("3", task.answer, task.choices)


@pytest.mark.parametrize("change", [{"label": 2}, {"label": -1}, {"label": "a"}, {"question": "why"}])
def test_a_row_that_is_not_quite_xcopa_is_not_guessed_at(change, tmp_path):
    """Catches a hidden label (-1 in test sets) that becomes choice 0."""
    with pytest.raises(ValueError, match=r"tasks\.jsonl:1: field 'answer' is missing"):
        data.load_tasks(write(tmp_path, XCOPA | change), {"language": ":it"})


@pytest.mark.parametrize("module", [formats, jsonl])
def test_the_examples_are_true(module):
    """Catches a docstring that tells what the function did last year."""
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


# --- fields -------------------------------------------------------------------------------------------------------

NESTED = {"prompt": [{"role": "user", "content": "Was ist 2 + 2?"}], "reward_model": {"ground_truth": 4}}


def test_fields_reach_nested_values_and_constants(tmp_path):
    """Catches files of other trainers that must be rewritten first."""
    fields = fields_of("question=prompt.0.content,answer=reward_model.ground_truth,language=:de,cost_weight=:0.5")
    (task,) = data.load_tasks(write(tmp_path, NESTED), fields)
    found = (task.question, task.answer, task.language, task.tier, task.cost_weight)
    assert found == ("Was ist 2 + 2?", "4", "de", "high", 0.5)


@pytest.mark.parametrize("name", ["prompt.1.content", "prompt.0.text", "prompt.-1.content", "prompt.0.content.x", "."])
def test_a_path_that_leads_nowhere_is_named(name, tmp_path):
    """Catches an IndexError, or a field that is left at its default."""
    with pytest.raises(ValueError) as error:
        data.load_tasks(write(tmp_path, NESTED), {"language": ":de", "question": name, "answer": ":4"})
    assert f"tasks.jsonl:1: field '{name}' is missing" in str(error.value)


def test_a_name_with_a_point_in_it_is_a_name(tmp_path):
    """Catches a column `meta.question` that is looked for inside of another."""
    row = {"meta.question": "Q?", "answer": "4", "language": "de"}
    assert data.load_tasks(write(tmp_path, row), {"question": "meta.question"})[0].question == "Q?"


@pytest.mark.parametrize("code", ["en", "ar", "zh-Hans", "spa_Latn"])
def test_a_language_that_is_not_in_the_list_says_what_to_do(code, tmp_path):
    """Catches "field 'tier' is missing", of which nobody knows what to make."""
    path = write(tmp_path, {"question": "Q?", "answer": "4", "language": code})
    with pytest.raises(ValueError) as error:
        data.load_tasks(path)
    message = str(error.value)
    assert f"'language' is '{code}'" in message and "harness/jsonl.py" in message and "\n" not in message
    (advice,) = [word for word in message.split() if word.startswith("tier=")]
    assert data.load_tasks(path, fields_of(advice))[0].tier == "high"  # what it says to type is what works


def test_the_pipeline_takes_the_same_fields(tmp_path):
    """Catches --fields that mean one thing to training and another to the translation."""
    row = {**NESTED, "split": "test", "tier": 3}  # what other sets mean by these words is no error here
    fields = fields_of("question=prompt.0.content,answer=reward_model.ground_truth")
    (task,) = pipeline.english_tasks(str(write(tmp_path, row)), fields, 10)
    assert (task.question, task.answer, task.language) == ("Was ist 2 + 2?", "4", "en")
    with pytest.raises(ValueError, match="no field"):
        pipeline.english_tasks(str(write(tmp_path, row)), {"quesiton": "q"}, 10)


def test_evaluation_data_may_have_the_fields_of_the_training_data(tmp_path):
    """Catches a guard that can read no nested file, and one that then finds nothing in it."""
    rows = [{"prompt": [{"content": f"Was ist {i} + 2?"}], "answer": str(i + 2)} for i in range(20)]
    path, fields = str(write(tmp_path, *rows)), "question=prompt.0.content,language=:de"
    with pytest.raises(ValueError, match="training tasks are evaluation data"):
        training_tasks(TrainingOptions(data=path, fields=fields, evaluation_data=(path,)), ["high"], 0)


# --- ids, marks and line breaks -------------------------------------------------------------------------------------


def test_whole_numbers_are_ids_and_answers(tmp_path):
    """Catches an id 0 that is taken for none, and 7 and "7" taken for two."""
    rows = [{"id": i, "question": "Q?", "answer": i, "language": "de"} for i in (0, 7)]
    assert [(t.id, t.answer) for t in data.load_tasks(write(tmp_path, *rows))] == [("0", "0"), ("7", "7")]
    with pytest.raises(ValueError, match="id '7' stands already in line 2"):
        data.load_tasks(write(tmp_path, *rows, {**rows[1], "id": "7"}))


def test_an_id_is_made_of_the_content(tmp_path):
    """Catches ids that change with the file's name or with a line above: a journal, a log and a part would be lost."""
    rows = [{"question": f"Q {i}?", "answer": "4", "language": "de"} for i in range(3)]
    ids = [task.id for task in data.load_tasks(write(tmp_path, *rows))]
    assert len(set(ids)) == 3
    assert [task.id for task in data.load_tasks(write(tmp_path, *rows[::-1], name="other.jsonl"))] == ids[::-1]
    choices = [{**rows[0], "choices": ["a", letter]} for letter in "bc"]
    assert len({task.id for task in data.load_tasks(write(tmp_path, *choices))}) == 2


def test_a_task_that_stands_in_a_file_twice_is_two_tasks_of_one_part(tmp_path):
    """Catches a repeated row that is dropped in silence, refused, or both trained on and tested with."""
    row = {"question": "Q?", "answer": "4", "language": "de"}
    path = write(tmp_path, row, row, row)
    first, second, third = (task.id for task in data.load_tasks(path))
    assert (second, third) == (f"{first}-2", f"{first}-3")
    assert len({item for _, _, item in task_rows(path, tuple(data.Task.__dataclass_fields__), {})}) == 1


def test_marks_and_line_breaks_of_windows_are_read(tmp_path):
    """Catches "not JSON" for a file that Notepad saved, and control characters within a question."""
    row = {"question": "Q?\r\nR?", "answer": "4", "language": "de", "choices": ["a\r\nb"], "system": "S\r\nT"}
    path = with_text(tmp_path, "\ufeff" + json.dumps(row) + "\r\n\r\n", "tasks.jsonl")
    (task,) = data.load_tasks(path)
    assert (task.question, task.choices, task.system) == ("Q?\nR?", ("a\nb",), "S\nT")


# --- parquet --------------------------------------------------------------------------------------------------------


def test_parquet_is_read_with_its_nested_fields(tmp_path):
    """Catches columns that come as arrays or as numpy's numbers, which no check takes for a list or a number."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{**NESTED, "id": i, "extra_info": {"index": i}} for i in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet", row_group_size=2)
    fields = fields_of("question=prompt.0.content,answer=reward_model.ground_truth,language=:de,item=extra_info.index")
    tasks = data.load_tasks(tmp_path / "train.parquet", fields)
    assert [(t.id, t.question, t.answer) for t in tasks] == [(str(i), "Was ist 2 + 2?", "4") for i in range(3)]
    with pytest.raises(ValueError, match=r"train\.parquet:1: field 'q' is missing"):
        data.load_tasks(tmp_path / "train.parquet", {**fields, "question": "q"})
    (tmp_path / "no.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"no\.parquet: not a readable parquet file"):
        data.load_tasks(tmp_path / "no.parquet", fields)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.load_tasks(tmp_path / "nowhere.parquet", fields)


def test_parquet_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    """Catches "not JSON", or an ImportError in the middle of a start."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet: parquet needs a package \(pip install pyarrow\)"):
        data.load_tasks(tmp_path / "a.parquet")


# --- parts ----------------------------------------------------------------------------------------------------------

CODES = ("de", "es", "fr", "sw", "te")


def parallel(**more) -> list[dict]:
    """Forty items in five languages, as `more` makes them: from the item's number and the language's code."""
    rows = [{"language": code, "question": f"{code} {i}?", "answer": "4"} for code in CODES for i in range(40)]
    for row in rows:
        code, number = row["language"], row["question"].split()[1][:-1]
        row |= {name: text.format(code=code, number=number) for name, text in more.items()}
    return rows


def parts_of_items(path: Path, fields: str = "") -> dict[str, set[str]]:
    """Number of the item -> the parts that its translations are in, by what training and evaluation are given."""
    options = TrainingOptions(data=str(path), fields=fields)
    found = {}
    pool = training_tasks(options, ["high", "low", "xlow"], 0)(0, 200)
    for part, tasks in [("train", pool)] + [
        (part, [t for group in evaluation_tasks(options, part, 10**6).values() for t in group])
        for part in ("validation", "test")
    ]:
        for task in tasks:
            found.setdefault(task.question.split()[1], set()).add(part)
    return found


@pytest.mark.parametrize(
    "more, fields",
    [
        ({"id": "mgsm-{code}-{number}"}, ""),
        ({"id": "{code}/{number}"}, ""),
        ({"id": "{number}-{code}"}, ""),
        ({"id": "x{number}.{code}", "question_en": "How many are {number}?"}, ""),
        ({"pid": "{number}"}, "item=pid"),
        ({"meta": "row {number}", "question_en": "Q {code}?"}, "item=meta"),
    ],
    ids=["id with language", "prefix", "suffix", "question_en", "no id", "item before question_en"],
)
def test_an_item_is_in_one_part_in_all_its_languages(more, fields, tmp_path):
    """Catches translations of a test question that are trained on: 164 of MGSM's 250 items, by their ids."""
    found = parts_of_items(write(tmp_path, *parallel(**more)), fields)
    assert len(found) == 40 and all(len(parts) == 1 for parts in found.values())
    assert {"train", "validation", "test"} == set().union(*found.values())


def test_an_english_row_is_in_the_part_of_its_translations(tmp_path):
    """Catches English questions in training whose translations are the test, with or without their English text."""
    english = {"id": "e", "language": "en", "question": "How many?", "question_en": None}
    translated = {"id": "x", "language": "de", "question": "Wie viele?", "question_en": "How many?"}
    assert item_of(english) == item_of(translated) == "How many?"
    rows = [{"id": f"mgsm-{code}-7", "language": code, "question": "?", "question_en": None} for code in ("en", "de")]
    assert item_of(rows[0]) == item_of(rows[1])


def test_only_the_languages_own_code_is_taken_out_of_an_id():
    """Catches two items that become one because a code is part of a word."""
    ids = ["test-de", "de-12", "model-12", "12_de_b", "de", "made.12"]
    found = [item_of({"language": "de", "id": id, "question_en": None}) for id in ids]
    assert found == ["test", "12", "model-12", "12_b", "de", "made.12"]


@needs_real
def test_every_item_of_mgsm_and_xcopa_is_in_one_part():
    """Catches the same on the real files, by their ids alone."""
    for name in ("mgsm.jsonl", "xcopa.jsonl"):
        fields = {"language": "lang", "tier": ":high", "split": ":trained", "question_en": "none"}
        rows = list(task_rows(REAL / name, tuple(data.Task.__dataclass_fields__), fields))
        parts = {}
        for _, row, item in rows:
            key = row["id"].replace(f"-{row['language']}", "")
            parts.setdefault(key, set()).add(part_of(data.Task(**row), item))
        assert len(rows) > 2000 and len(parts) in (250, 600)
        assert all(len(found) == 1 for found in parts.values())
