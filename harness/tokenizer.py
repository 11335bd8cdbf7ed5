"""A `tokenizer.json` made by somebody else: read as it is meant, or refused in one line with the token's name."""

import json
from pathlib import Path


def read_tokenizer(path: Path) -> dict:
    """The content of a tokenizer.json. `truncation` and `padding` are left out: transformers writes them there after
    one call with either, and every question would be cut.

    Raises ValueError for anything unreadable, and for an added token whose id means something else as well.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))  # a byte-order mark is no part of the text
        added = [(token["content"], token["id"]) for token in raw["added_tokens"]]
        id_of = dict(raw["model"]["vocab"])
        text_of = {id: text for text, id in id_of.items()}
    except Exception as error:  # a stranger's file can be of any shape
        raise ValueError(f"{path}: not a readable tokenizer ({error!r:.80})") from None
    for text, id in added:
        other = text_of.setdefault(id, text)
        if other != text:
            raise ValueError(f"{path}: the added token {text!r:.40} has the id {id} of {other!r:.40}")
        if id_of.setdefault(text, id) != id:
            raise ValueError(f"{path}: the added token {text!r:.40} has two ids, {id_of[text]} and {id}")
    return {**raw, "truncation": None, "padding": None}


def require_its_ids(path: Path, control: dict[str, int], library) -> None:
    """ValueError if the library, a loaded tokenizer, gives an added token another id than the file: it counts on from
    the one before, so that behind a gap the model would be shown another row than the one trained for it."""
    for text, id in control.items():
        if (found := library.token_to_id(text)) != id:
            raise ValueError(f"{path}: the added token {text!r:.40} has the id {id}, but would be read as {found}")
