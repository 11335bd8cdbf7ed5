"""How many test items differ from training items in personal names only.

    Item -> skeleton: its sentences, names replaced by their order of first appearance
    items of a part -> share whose skeleton is that of a training item, by domain

Called by reproduce.py. The splits cannot hold the same item, since the item's own text decides its split. But "Ana is
older than Ben" and "Eva is older than Kim" are two items and one task, and a policy that has seen one may know both.

Left out: other near-copies, such as another number or another thing.
"""

import numpy as np

from paper.outcomes import CLEAN, clean_items
from tiny import world
from tiny.world import DOMAINS, NAMES, Item

TRAINING_ITEMS = 50_000  # compared with; a run of the defaults trains on 280 x 64 = 17,920


def skeleton(item: Item) -> tuple:
    """What remains of an item without its names: equal for two items that differ in names only."""
    seen: dict[str, int] = {}

    def anonymous(concept: str):
        return seen.setdefault(concept, len(seen)) if concept in NAMES else concept

    return tuple(
        tuple((role, tuple(map(anonymous, sentence[role]))) for role in "QSVO" if role in sentence)
        for sentence in item.sentences
    )


def training_skeletons(count: int, prompts: int, steps: int) -> set[tuple]:
    """Those of the first `count` training items, in the order of seeds 0, 1, … and their steps, as train.py draws."""
    found, drawn = set(), 0
    while drawn < count:
        seed, step = divmod(drawn // prompts, steps)
        found |= {skeleton(item) for item in world.items("train", prompts, f"{seed} {step}")}
        drawn += prompts
    return found


def items_of(part: str, count: int) -> list[Item]:
    """The items that `item_set` renders for "test" or `CLEAN`."""
    return clean_items(count) if part == CLEAN else world.items("test", count, "evaluation")


def names_only(items: list[Item], known: set[tuple]) -> dict[str, float]:
    """The share of the items whose skeleton is known: of all, and of each domain."""
    found = {domain: [skeleton(item) in known for item in items if item.domain == domain] for domain in DOMAINS}
    everything = [hit for hits in found.values() for hit in hits]
    return {name: round(float(np.mean(hits)), 4) for name, hits in {"all": everything, **found}.items() if hits}
