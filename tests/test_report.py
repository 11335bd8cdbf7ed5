"""report.html: one file that opens anywhere, holds what the run has written, and trusts no text from outside."""

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
from helpers import hand_made, random_directory

import train
from data import Task, load_tokenizer
from eval import compare
from harness import svg
from harness.metrics import rollout_row
from harness.report import colours, page, write_page
from reward import Score

TOKENIZER = load_tokenizer(random_directory())
CONFIG = train.Config(lang_tier="low", steps=4, cost_weight=0.4, system="be <brief>")
MEASURES = {"accuracy": 0.5, "tool_rate": 0.25, "cost": 0.3, "gate_rate": 0.1}
EVIL = "<script>alert('x')</script> & \"quoted\" </section>"


def rollout(step, right=1, called=False, question="a b?", answer="5", name="t"):
    task = Task(name, "low-01", "low", "trained", "math", question, ("<b>1</b>",), answer, "how many?")
    score = Score(right, float(right), "5", True, float(called), called)
    made = hand_made(TOKENIZER, task, "5", called)
    return rollout_row(made, score, step, 0.5 if right else -0.5) | {"gate": 1.0, "confidence": 0.75}


def make_run(run, rows=None, steps=4, closing=True):
    """A run directory as training leaves it."""
    run.mkdir(exist_ok=True)
    rows = [rollout(step, right=i % 2, called=i > 2) for step in (1, 2) for i in range(4)] if rows is None else rows
    metrics = [{"step": i + 1, "tier": {"low": MEASURES}, "domain": {"math": MEASURES}} for i in range(steps)]
    for row in metrics[1::2]:
        row["validation"] = {"accuracy": 0.2 * row["step"], "tier": {"low": MEASURES}}
    for name, lines in (("metrics", metrics), ("rollouts", rows)):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if closing:
        one = [(hand_made(TOKENIZER, Task("t", "low-01", "low", "trained", "math", "?", (), "5"), "5"), None)]
        before = {"low": [(r, Score(0, 0.0, "5", True, 0.0, False)) for r, _ in one]}
        after = {"low": [(r, Score(1, 1.0, "5", True, 0.5, True)) for r, _ in one]}
        report = {"groups": compare(before, after), "result": {"step": 4}, "seconds": 90.0}
        (run / "report.json").write_text(json.dumps(report))
    return run


class Reader(HTMLParser):
    """Tags that are open, and all text: raises for a tag that is closed and was not open."""

    VOID = {"meta", "br", "link", "img"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)


def read(html):
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def test_a_page_holds_every_section_and_needs_no_network(tmp_path):
    """Catches a page that loads a font or a library, and a section that is left out."""
    reader = read(page(make_run(tmp_path / "run"), CONFIG, TOKENIZER))
    sections = [attributes["id"] for tag, attributes in reader.tags if tag == "section"]
    assert sections == ["settings", "table", "plane", "curves", "rollouts", "groups"]
    assert not {"link", "img", "iframe"} & {tag for tag, _ in reader.tags}
    assert not any({"src", "href"} & set(attributes) for tag, attributes in reader.tags if tag != "a")
    assert all(a["href"].startswith("#") for tag, a in reader.tags if tag == "a")
    assert not re.search(r"@import|url\(|fetch\(|https?://(?!www\.w3\.org/2000/svg)", "".join(reader.words))


def test_text_from_outside_stays_text(tmp_path):
    """Catches a question, an answer, a task's name or an option that is run as a script when the page is opened."""
    rows = [rollout(1, right, question=EVIL, answer=EVIL, name=EVIL) for right in (0, 1)]
    run = make_run(tmp_path / "run", rows)
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    (run / "metrics.jsonl").write_text(json.dumps(metrics | {"domain": {EVIL: MEASURES}}) + "\n")
    html = page(run, replace(CONFIG, system=EVIL), TOKENIZER)
    reader = read(html)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert EVIL not in html and "<b>1</b>" not in html
    assert sum(EVIL in text for text in reader.words) >= 4  # and yet it can be read


def test_each_rollout_carries_the_words_that_the_menus_offer(tmp_path):
    """Catches a menu with a word that no rollout has, or a rollout that no menu finds."""
    reader = read(page(make_run(tmp_path / "run"), CONFIG, TOKENIZER))
    cards = [a for tag, a in reader.tags if tag == "article"][:8]
    menus, name = {}, None
    for tag, attributes in reader.tags:
        if tag == "select":
            name = attributes["name"]
        elif tag == "option" and attributes["value"]:
            menus.setdefault(name, set()).add(attributes["value"])
    assert set(menus) == {"tier", "domain", "verdict", "call", "gate"}
    assert {name: {card[f"data-{name}"] for card in cards} for name in menus} == menus
    assert menus["verdict"] == {"right", "wrong"} and menus["call"] == {"call", "no-call"} and menus["gate"] == {"open"}


@pytest.mark.parametrize("count, shown", [(0, 0), (1, 1), (30, 30), (31, 30), (200, 30)])
def test_thirty_rollouts_are_spread_over_the_run_the_newest_first(tmp_path, count, shown):
    """Catches a page that grows with the run, and one that shows its first steps only."""
    rows = [rollout(step + 1, name=f"t{step}") for step in range(count)]
    html = page(make_run(tmp_path / "run", rows), CONFIG, TOKENIZER)
    steps = [int(step) for step in re.findall(r"<span>step (\d+)</span>", html)]
    assert len(set(steps)) == len(steps) == shown and steps == sorted(steps, reverse=True)
    assert not count or steps[0] == count


def test_of_a_long_log_no_more_is_parsed_than_shown(tmp_path):
    """Catches a page that takes as much memory as the run has rollouts, at each validation. Lines that are none stand
    for those that nobody reads."""
    rows = [rollout(step + 1, name=f"t{step}") for step in range(3000)]
    run = make_run(tmp_path / "run", rows)
    lines = (run / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    lines[5:2595] = ["{" if (number + 1) % 100 else line for number, line in enumerate(lines[5:2595], start=5)]
    (run / "rollouts.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    html = page(run, CONFIG, TOKENIZER)
    assert re.findall(r"<span>step (\d+)</span>", html) == [str(step) for step in range(3000, 0, -100)]


def test_a_groups_rollouts_stand_together_with_their_advantages(tmp_path):
    """Catches rollouts of two groups in one, a bar on the wrong side, and a group that taught nothing."""
    rows = [rollout(1, i % 2) for i in range(4)] + [rollout(2, 1) | {"advantage": 0.0} for _ in range(4)]
    html = page(make_run(tmp_path / "run", rows), CONFIG, TOKENIZER)
    groups = html.split('<section id="groups">')[1].split("</section>")[0]
    assert groups.count("<details") == 1 and groups.count("<article") == 4 and "step 1, t, answer 5" in groups
    bars = re.findall(r'class="(up|down)" style="left:([\d.]+)%;width:([\d.]+)%"', groups)
    assert bars == [("down", "0.0", "50.0"), ("up", "50.0", "50.0")] * 2
    assert "confidence 0.75, gate open" in groups


def test_the_table_is_that_of_the_report(tmp_path):
    """Catches columns that stand under another's head."""
    html = page(make_run(tmp_path / "run"), CONFIG, TOKENIZER)
    cells = re.findall(r"<td>(.*?)</td>", html)
    assert cells[:5] == ["low", "1", "0.0", "<b>100.0</b>", "+100.0 [+100.0, +100.0]"]
    assert cells[6:] == ["0.00 → 1.00", "0.00 → 0.50"]


def test_what_eval_has_measured_is_in_the_plane(tmp_path):
    """Catches a forced policy that is drawn as a free one, and a file of somebody else that breaks the page."""
    run = make_run(tmp_path / "run")
    part = {"low": {"accuracy": 0.8, "cost": 1.1}}
    for mode in ("forced", "forbidden", "free"):
        (run / f"{mode}.json").write_text(json.dumps({"options": {"mode": mode}, "group": {"tiny": part}}))
    (run / "other.json").write_text("[1")
    html = page(run, CONFIG, TOKENIZER)
    for name in ("base", "result", "always translate (tiny)", "never translate (tiny)", "tiny"):
        assert f"<title>{name}, low: reward" in html
    assert "always translate (tiny), low: reward 80.0, cost 1.10" in html


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    """Catches a page that needs the closing table, a validation or a rollout."""
    run = tmp_path / "run"
    run.mkdir()
    assert [a["id"] for tag, a in read(page(run, CONFIG, TOKENIZER)).tags if tag == "section"] == ["settings"]
    html = page(make_run(run, rows=[], steps=1, closing=False), CONFIG, TOKENIZER)
    assert "1 of 4 steps" in html and '<section id="curves">' in html


def test_only_what_differs_from_the_preset_is_listed(tmp_path):
    """Catches a list of fifty defaults, and a preset's own value that is called a difference."""
    items = re.findall(r"<li><code>(.*?)</code></li>", page(make_run(tmp_path / "run"), CONFIG, TOKENIZER))
    assert items == ["--system &#x27;be &lt;brief&gt;&#x27;", "--lang-tier low", "--steps 4", "--cost-weight 0.4"]


def test_the_page_replaces_the_one_before_as_a_whole(tmp_path):
    """Catches a page that a browser finds half-written."""
    run = make_run(tmp_path / "run")
    (run / "report.html").write_text("old")
    assert write_page(run, CONFIG, TOKENIZER) == run / "report.html"
    assert (run / "report.html").read_text(encoding="utf-8").endswith("</html>\n")
    assert not list(run.glob(".*"))


@pytest.mark.parametrize("values, last", [([0.3], 0.3), ([1.03], 1.25), ([0.0], 0.2), ([7.0], 8.0), ([100.0], 100.0)])
def test_an_axis_has_round_numbers_and_holds_its_values(values, last):
    """Catches a curve that leaves its drawing, and an axis that is twice as high as its curve."""
    found = svg.ticks(values, 0.2)
    assert found[0] == 0 and found[-1] == pytest.approx(last) and 3 <= len(found) <= 6
    assert all(b - a == pytest.approx(found[1]) for a, b in zip(found, found[1:], strict=False))


def test_a_curve_is_drawn_where_its_values_are():
    """Catches an axis that points down, and a mean that moves the curve."""
    drawn = svg.curves("t", {"a": [(1, 0.0), (2, 0.5), (3, 1.0)]}, {}, {"a": 2}, [0, 1])
    (raw,) = re.findall(r'class="raw s2" points="(.*?)"', drawn)
    points = [tuple(map(float, point.split(","))) for point in raw.split()]
    bottom, top = svg.HEIGHT - svg.BOTTOM, svg.TOP
    assert points == [(svg.LEFT, bottom), (pytest.approx(163), (bottom + top) / 2), (svg.WIDTH - svg.RIGHT, top)]
    assert svg.smooth([(i, 2.0 * i) for i in range(100)])[50] == (50, 100.0)


def test_both_rates_of_reversals_have_a_curve(tmp_path):
    """Catches a page that shows the rate over all groups alone, where most may hold no wrong answer."""
    run = make_run(tmp_path / "run")
    for name in ("reversed_rate", "mixed_reversed_rate"):
        assert page(run, CONFIG, TOKENIZER).count("reversed rate") == 0
        rows = [{"step": 1, "tier": {"low": MEASURES | {name: 0.5}}, "domain": {}}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert page(run, CONFIG, TOKENIZER).count("<figcaption>reversed rate") == 1
        make_run(run)


def test_a_tier_has_one_colour_on_all_drawings():
    """Catches "low" that is blue in a run of one tier and orange in the plane."""
    assert colours({"low"}) == {"low": 2} and colours({"xlow", "high", "synthetic"}) == {
        "high": 1,
        "xlow": 3,
        "synthetic": 5,
    }
    assert list(colours(set("hgfedcba")).items()) == [(name, i + 1) for i, name in enumerate("abcdef")]


def test_the_saved_options_are_those_that_the_page_reads():
    """Catches a page that only a run in progress can write."""
    saved = json.loads(json.dumps(asdict(CONFIG)))
    assert train.Config(**saved | {"evaluation_data": tuple(saved["evaluation_data"])}) == CONFIG
