"""The report: one file, nothing hidden, nothing obeyed that a model wrote."""

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from asked import EVIL, hops, index_of, keep, row, unpack
from evalsuite import compare, report, store, task
from evalsuite.errors import UserError
from evalsuite.records import Completion, Score
from evalsuite.report import charts, gold, samples, words

ALL = {1: 1.0, 2: 0.9, 4: 0.8}
LESS = {1: 1.0, 2: 0.5, 4: 0.1}
COST = {"256": {"kv": 1 << 20, "state": 0}, "512": {"kv": 2 << 20, "state": 1 << 18}}


def made(tmp_path: Path, *folders: Path) -> str:
    out = tmp_path / "report.html"
    assert list(report.write([str(folder) for folder in folders], out)) == [str(out)]
    return out.read_text(encoding="utf-8")


def two(tmp_path: Path) -> list[Path]:
    return [keep(tmp_path, "full", hops(ALL), cost=COST), keep(tmp_path, "kda", hops(LESS), cost=COST, created="2.0")]


class Tags(HTMLParser):
    """Every element with its attributes, and what stands in scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_one_file_that_can_ask_for_nothing(tmp_path: Path) -> None:
    html = made(tmp_path, *two(tmp_path))
    tags = Tags(html).found
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "connect-src" not in policy
    assert "url(" not in html
    assert not [t for t, a in tags if t in ("link", "img", "iframe", "object", "base") or a.keys() & {"src", "style"}]
    assert not [a for _, a in tags if any(name.startswith("on") for name in a)]
    assert all((a.get("href") or "#").startswith("#") for _, a in tags)


def test_every_part_is_there_with_its_numbers(tmp_path: Path) -> None:
    html = made(tmp_path, *two(tmp_path))
    titles = re.findall(r"<h2 id=\S+>(.*?)</h2>", html)
    assert titles == [
        "Scores",
        "Score by hop depth",
        "multihop: score by depth of the fact and length",
        "multihop: score by task and length",
        "Paired differences to full",
        "Quality against bytes",
        "Samples",
        "All tables",
        "Provenance",
    ]
    assert html.count("<svg ") == 1 + 2 + 2 + 1 + 1
    assert html.count('role="img" aria-label="') == html.count("<svg ")
    flat = re.sub(r"<[^>]+>", " ", html)
    assert "minus full" in flat
    assert re.search(r"multihop\.graph\s+120\s+0\.03\s+0\.90 \[0\.\d\d, 0\.\d\d\]\s+0\.53 \[", flat)
    assert re.search(r"-0\.37 \[-0\.\d\d, -0\.\d\d\]\*", flat)
    for cell in ("1.0 MiB", "2.2 MiB", "w-full", "w-kda", "≠ identity.weights", "evalsuite run -m full", "40 to 60 %"):
        assert cell in flat


def test_a_family_that_its_authors_sum_up(tmp_path: Path) -> None:
    tasks = "niah_single_1 niah_single_2 niah_single_3 niah_multikey_1 niah_multikey_2 niah_multikey_3 niah_multivalue"
    tasks += " niah_multiquery vt cwe fwe qa_1 qa_2"
    rows = [
        row(f"ruler.{name}", i, float(length == 4096 or i % 2), length=length)
        for name in tasks.split()
        for length in (4096, 8192)
        for i in range(10)
    ]
    few = [each for each in rows if "qa" not in each["task"]]
    whole, part = made(tmp_path, keep(tmp_path, "a", rows)), made(tmp_path, keep(tmp_path / "b", "a", few))
    for html, tasks_of, effective in ((whole, "mean of 13 tasks", True), (part, "mean of 11 tasks", False)):
        flat = re.sub(r"<[^>]+>", " ", html.partition("ruler: by length and in sum")[2].partition("</section>")[0])
        assert re.search(rf"4,096 tokens, {tasks_of}\s+1.00 \[", flat)
        assert bool(re.search(r"effective length \(over 85.6\)\s+4,096", flat)) == effective
        assert re.search(r"average\s+75.0", flat)


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    folders = two(tmp_path)
    assert made(tmp_path, *folders) == made(tmp_path, *folders)


def test_what_a_model_writes_is_never_obeyed(tmp_path: Path) -> None:
    texts = [EVIL, "a\x00b\x1b[31m\x7f\x85", "lone \ud800 half", "\u202eevil\u202c \u2066x\u2069", "y" * 2_000_000]
    rows = [
        row(
            f"t{EVIL}",
            i,
            0.0,
            prompt=f"{text[:500]} {i}".replace("\ud800", ""),
            text=text,
            target=(text[:500],),
            kind=EVIL,
        )
        for i, text in enumerate(texts)
    ]
    name = f"m{EVIL}"
    html = made(tmp_path, keep(tmp_path, name, rows, missing={EVIL: EVIL}))
    assert "<img" not in html
    assert "onerror=alert(1)&gt;" in html
    assert html.count("<script") == html.count("</script>") == 1 + 1 + 1  # the index, a block of texts, the browser
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", html)
    assert len(html) < 700_000
    index = index_of(html)
    assert index["tasks"] == [f"t{EVIL}"]
    assert index["cells"] == [{"kind": EVIL}]
    records = unpack(html.split('class="texts">')[1].split("</script>")[0])
    answers = {flat(record[6][0][0])[:12] for record in records}
    assert {"</script><im", "a⟨U+0000⟩b⟨U", "lone ⟨U+D800", "⟨U+202E⟩evil", "yyyyyyyyyyyy"} == answers
    (long,) = (record for record in records if isinstance(record[6][0][0], list))
    assert long[6][0][0][1] == 2_000_000 - samples.ANSWERS


def flat(text: object) -> str:
    return text if isinstance(text, str) else "".join(str(part) for part in text)  # type: ignore[attr-defined]


def test_scores_that_are_no_numbers_are_said(tmp_path: Path) -> None:
    rows = hops(LESS)
    rows[3]["score"] = float("nan")
    folder = keep(tmp_path, "full", rows, finished=False)
    from evalsuite import columnar

    (folder / "samples.parquet").write_bytes(columnar.encode(rows))
    (folder / "samples-0.jsonl").unlink()
    html = made(tmp_path, folder)
    assert "<strong>INVALID</strong> full: 1 scores are no number" in html
    index = index_of(html)
    assert index["score"][0].count(-1) == 1
    assert "<strong>UNFINISHED</strong> full: " in html
    assert "NaN" not in "".join(re.findall("<svg .*?</svg>", html, re.S))


@pytest.mark.parametrize(
    ("rows", "finished", "expected"),
    [
        ([row("knowledge", i, i % 2) for i in range(4)], True, "knowledge"),
        (
            [row("knowledge", i, 0.0, finish="error", error=EVIL) for i in range(4)],
            True,
            "<strong>ERRORS</strong> m: 4 of",
        ),
        (hops({1: 0.5}), False, "<strong>UNFINISHED</strong> m: 40 samples so far"),
        ([row("knowledge", 0, 1.0)], True, "1.00 ["),
    ],
)
def test_runs_of_every_kind(tmp_path: Path, rows: list[store.Row], finished: bool, expected: str) -> None:
    html = made(tmp_path, keep(tmp_path, "m", rows, finished=finished))
    assert expected in html
    assert "Paired differences" not in html
    assert ("Score by hop depth" in html) == (rows[0]["task"] == "multihop.graph")


def test_warnings_of_compare_stand_above_the_scores(tmp_path: Path) -> None:
    one = keep(tmp_path, "full", hops(ALL), missing={"ruler.qa_1": "no SQuAD"})
    two = keep(tmp_path, "kda", hops({1: 1.0}), created="2.0")
    html = made(tmp_path, one, two)
    before = html.partition('id="scores"')[0]
    for kind, rest in (
        ("LEFT OUT", "ruler.qa_1 (full): no SQuAD"),
        ("UNLIKE", "multihop.graph: means are over the 2 of 6"),
    ):
        assert f"<strong>{kind}</strong> {rest}" in before


def test_questions_in_other_words_are_never_one_sample(tmp_path: Path) -> None:
    one = keep(tmp_path, "a", [row("knowledge", i, 1.0) for i in range(4)])
    two = keep(tmp_path, "b", [row("knowledge", i, 0.0, prompt="other" if i == 0 else "") for i in range(4)])
    index = index_of(made(tmp_path, one, two))
    assert len(index["id"]) == 5
    assert sorted(zip(index["score"][0], index["score"][1], strict=True), key=str) == [
        (1.0, 0.0),
        (1.0, 0.0),
        (1.0, 0.0),
        (1.0, None),
        (None, 0.0),
    ]


def test_a_prompt_that_is_cut_says_how_much_is_missing() -> None:
    text = (
        "".join(f"w{i} " for i in range(5000))
        + "needle is gold here "
        + "".join(f"v{i} " for i in range(5000))
        + "ask?"
    )
    places = gold.spans(text, ["gold"])
    assert [text[a:b] for a, b, _ in places] == ["gold"]
    for limit in samples.LIMITS[3:]:
        kept = samples.pieces(text, places, limit)
        gone = sum(piece for piece in kept if isinstance(piece, int))
        assert gone + sum(len(piece[0]) for piece in kept if not isinstance(piece, int)) == len(text)
        assert len(text) - gone <= limit + 8
        assert kept[-1][0].endswith("ask?")
        marked = [p[0][a:b] for p in kept if not isinstance(p, int) for a, b, _ in p[1]]
        assert marked == (["gold"] if limit >= 160 else marked)
    assert samples.pieces(text, places, len(text))[0][0] == text


def test_the_file_stays_small_and_says_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    rng = random.Random(0)
    rows = [
        row("knowledge", i, 1.0, prompt=" ".join(f"{rng.getrandbits(32):08x}" for _ in range(300))) for i in range(300)
    ]
    runs = compare.load([keep(tmp_path, "m", rows)], prompts=True)

    packed = samples.pack(runs, compare.compare(runs), budget=150_000)
    assert len(packed.index) + sum(map(len, packed.texts)) <= 150_000
    assert (packed.cut, packed.count) == (300, 300)
    assert packed.limit in samples.LIMITS
    whole = samples.pack(runs, compare.compare(runs))
    assert (whole.cut, whole.limit) == (0, 0)


def test_highlighted_is_what_is_said_and_nothing_else() -> None:
    text = "edge aa bb noise goldy edge bb gold, edge cc gold ask aa"
    assert [text[a:b] for a, b, _ in gold.spans(text, ["gold"])] == ["gold", "gold"]
    walked = gold.spans(text, ["gold"], ["aa", "bb", "gold"])
    assert [(text[a:b], kind) for a, b, kind in walked] == [("aa bb", 1), ("bb gold", 1), ("gold", 0)]
    kept = {"walk": ["aa", "bb", "aa", "cc"], "target": ["aa"], "facets": {"hops": 2}}
    assert gold.walk(kept) == ["aa", "bb", "aa"]
    assert gold.walk({**kept, "facets": {}}) == ["aa"]
    assert gold.walk({**kept, "target": ["other"]}) == gold.walk({"target": [], "facets": {}}) == ()
    assert gold.spans("A or B", ["A"]) == []
    assert gold.spans("7 of 17", ["7"]) == [(0, 1, 0)]
    assert gold.spans("a.*b and a.*b", ["a.*b"]) == [(0, 4, 0), (9, 13, 0)]
    assert gold.spans("x", [""]) == []


@pytest.mark.parametrize("wording", ["terse", "natural"])
def test_every_hop_of_a_walk_is_highlighted(wording: str) -> None:
    """On questions as they are asked: each of the facts on the way, and nothing beyond the answer."""
    family = task.load("multihop")
    request = task.Request(subtasks=("graph", "path"), lengths=(512 if wording == "terse" else 2048,), wording=wording)
    for cell in family.cells(request):
        sample = family.sample(cell, 0, request, lambda text: len(text.split()))
        made = store.make_row(sample, Completion(sample.id, "", 1), Score(sample.id, 0.0), cell=cell.facets, chance=0.1)
        places = gold.spans(sample.prompt, sample.target, gold.walk(made))
        facts = [sample.prompt[a:b].split() for a, b, kind in places if kind == gold.STEP]
        walk = made["walk"][: int(cell.facets["hops"]) + 1]
        assert {(fact[0], fact[-1]) for fact in facts} == {*itertools.pairwise(walk)}, sample.id


def test_places_are_moved_where_characters_are_written_as_numbers() -> None:
    text = "\u202e😀 gold 😀 gold"
    ((shown, places),) = samples.pieces(text, gold.spans(text, ["gold"]), 100)
    assert shown == "⟨U+202E⟩😀 gold 😀 gold"
    units = shown.encode("utf-16-le")
    assert [units[2 * a : 2 * b].decode("utf-16-le") for a, b, _ in places] == ["gold", "gold"]


def test_names_by_one_another_never_cover_each_other() -> None:
    for values in ([1.0] * 5, [0.0] * 5, [0.9, 0.88, 0.1, 0.02], [0.5], [1.0, 0.0]):
        places = charts.spread(values)
        assert all(a - b >= charts.ROOM - 1e-9 for a, b in itertools.pairwise(places))
        assert min(places) >= 0
        assert max(places) <= max(1.0, len(values) * charts.ROOM)
    assert charts.spread([0.9, 0.1]) == [0.9, 0.1]


def test_figures_as_files(tmp_path: Path) -> None:
    folders = [str(folder) for folder in two(tmp_path)]
    files = list(report.write(folders, tmp_path / "r.html", tmp_path / "figures"))
    names = ["cost", "depth-multihop", "differences", "hops", "lengths-multihop"]
    found = sorted(Path(file).name for file in files)
    assert found == sorted([*(f"{name}.{kind}" for name in names for kind in ("png", "svg")), "r.html"])
    for file in map(Path, files):
        if file.suffix == ".png":
            assert file.read_bytes().startswith(b"\x89PNG")
        if file.suffix == ".svg":
            assert ElementTree.fromstring(file.read_text()).tag.endswith("svg")


def test_no_name_leads_out_of_the_figures_folder(tmp_path: Path) -> None:
    rows = [row("../../evil/x.y", i, 1.0, length=length, depth=0.5) for length in (256, 512) for i in range(4)]
    files = list(
        report.write([str(keep(tmp_path / "a" / "b", "m", rows))], tmp_path / "r.html", tmp_path / "a" / "figs")
    )
    assert len(files) == 5
    assert {Path(file).resolve().parent for file in files[:-1]} == {tmp_path / "a" / "figs"}


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = keep(tmp_path, "m", [row("knowledge", 0, 1.0)])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        list(report.write([str(folder)], tmp_path / "file" / "r.html"))
    with pytest.raises(UserError, match="is no run"):
        list(report.write([str(tmp_path / "none")], tmp_path / "r.html"))
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(UserError, match=r"pip install 'evalsuite\[report\]'"):
        list(report.write([str(folder)], tmp_path / "r.html"))


def test_visible() -> None:
    assert words.visible("plain\n\ttext שלום") == "plain\n\ttext שלום"
    assert words.visible("\u202e\ud800\x00") == "⟨U+202E⟩⟨U+D800⟩⟨U+0000⟩"
    assert words.clean({"a\x00": [float("inf"), 1.5, None, True, "\u200b"]}) == {
        "a⟨U+0000⟩": [None, 1.5, None, True, "⟨U+200B⟩"]
    }
