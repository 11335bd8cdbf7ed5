"""Files of tasks as people have them: tables, rows of published sets, nested fields, answers behind `####`.

    FILE.tsv, FILE.parquet -> tsv_rows, parquet_rows -> (file:line, object), as jsonl.py reads from JSON Lines
    a row of XCOPA or Belebele -> named -> the same row, with question, choices and answer by our names
    a row, "prompt.0.content" or ":es" -> lookup -> a value

Left out: compressed files, JSON arrays, quotes in TSV, which are text like any other.
"""

import re
from collections.abc import Iterator

# --- tables -----------------------------------------------------------------------------------------------------------


def tsv_rows(path) -> Iterator[tuple[str, dict]]:
    """(file:line, cells by column) of each line of a TSV file, blank ones left out.

    The first line is a header if it holds nothing but names such as `question`. Without one, columns are named by their
    numbers from 0, and two of them are `question` and `answer` as well: MGSM as published.
    """
    names = None
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            cells, place = line.rstrip("\n").split("\t"), f"{path}:{number}"
            if names is None:
                is_header = len(set(cells)) == len(cells) and all(re.fullmatch(r"[A-Za-z_][\w.]*", c) for c in cells)
                names = cells if is_header else [str(i) for i in range(len(cells))]
                if is_header:
                    continue
            if len(cells) != len(names):
                raise ValueError(f"{place}: {len(cells)} cells, where the first line has {len(names)}")
            ours = {"question": cells[0], "answer": cells[1]} if names == ["0", "1"] else {}
            yield place, dict(zip(names, cells, strict=True)) | ours


def parquet_rows(path) -> Iterator[tuple[str, dict]]:
    """(file:row, object) of each row of a parquet file. ValueError for no such file, and without pyarrow."""
    try:
        import pyarrow  # an optional package: only parquet needs it
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path}: parquet needs a package (pip install pyarrow)") from None
    number = 0
    with open(path, "rb") as file:  # FileNotFoundError as of any other file
        try:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
        except pyarrow.ArrowException as error:
            reason = str(error).partition("\n")[0][:80]
            raise ValueError(f"{path}: not a readable parquet file ({reason})") from None


# --- rows of published sets -------------------------------------------------------------------------------------------

BY_NUMBER = "Answer with the number of the right choice."
ASKS = {"cause": "What was the cause of this?", "effect": "What happened as a result of this?"}  # XCOPA has none
# Belebele's codes are those of FLORES: a language in ISO 639-3 and its script. Ours beside them.
FLORES = (
    "arg_Latn an ast_Latn ast ben_Beng bn bre_Latn br cat_Latn ca deu_Latn de eng_Latn en epo_Latn eo est_Latn et "
    "eus_Latn eu fra_Latn fr glg_Latn gl hat_Latn ht hin_Deva hi ind_Latn id ita_Latn it jpn_Jpan ja oci_Latn oc "
    "por_Latn pt quy_Latn qu rus_Cyrl ru spa_Latn es srd_Latn sc swh_Latn sw tam_Taml ta tel_Telu te tha_Thai th "
    "vie_Latn vi wol_Latn wo yor_Latn yo zho_Hans zh"
).split()
CODES = dict(zip(FLORES[::2], FLORES[1::2], strict=True))


def named(row: dict) -> dict:
    """A row of XCOPA or Belebele by our names, what it holds besides included; any other row as it is.

    Their choices are numbered and the answer is the number, which is the same in every language; the question says so,
    so that prompt and gold agree whatever the form of answers.
    """
    is_xcopa = {"premise", "choice1", "choice2", "label"} <= row.keys() and row.get("question") in ASKS
    if is_xcopa and row["label"] in (0, 1):
        texts = (row["premise"], ASKS[row["question"]])
        choices, answer = (row["choice1"], row["choice2"]), row["label"] + 1
        found = {"domain": "commonsense", "item": _joined("xcopa", row.get("idx"))}
    elif {"flores_passage", "question", "mc_answer1", "mc_answer4", "correct_answer_num"} <= row.keys():
        texts = (row["flores_passage"], row["question"])
        choices, answer = [row.get(f"mc_answer{i}") for i in range(1, 5)], row["correct_answer_num"]
        found = {"domain": "reading", "item": _joined(row.get("link"), row.get("question_number"))}
        found["language"] = CODES.get(row.get("dialect"), row.get("dialect"))
    else:
        return row
    if not all(isinstance(text, str) for text in (*texts, *choices)):
        return row  # and the check of its fields says what is wrong
    numbered = [f"{i}. {choice}" for i, choice in enumerate(choices, start=1)]
    return {**row, **found, "question": "\n".join((*texts, BY_NUMBER)), "choices": numbered, "answer": answer}


def _joined(*names) -> str | None:
    """One name of several, None if one is missing."""
    return None if None in names else "-".join(map(str, names))


# --- fields -----------------------------------------------------------------------------------------------------------


def lookup(row: dict, name: str):
    """What a row holds under a name, None for nothing: `prompt.0.content` goes down through objects and lists, and
    `:es` is the text es in every row.

    >>> lookup({"prompt": [{"content": "Q?"}]}, "prompt.0.content"), lookup({"a.b": 1}, "a.b"), lookup({}, ":es")
    ('Q?', 1, 'es')
    """
    if name.startswith(":"):
        return name[1:]
    if name in row:
        return row[name]
    value = row
    for key in name.split("."):
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            return None
    return value


def final_answer(text: str) -> str:
    """What stands behind the last `####`, where GSM8K has the answer, without the commas of thousands; any other text
    as it is.

    >>> final_answer("1000*2=<<1000*2=2000>>2000 #### 2,000"), final_answer("#### 3, 5"), final_answer("Paris, France")
    ('2000', '3, 5', 'Paris, France')
    """
    if "####" not in text:
        return text
    answer = text.rpartition("####")[2].strip()
    if re.fullmatch(r"[-+]?\$?\d{1,3}(,\d{3})+(\.\d+)?", answer):  # not the comma of a pair, or of Paris, France
        answer = answer.replace(",", "")
    return answer
