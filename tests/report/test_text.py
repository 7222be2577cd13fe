"""Markdown, HTML and terminal: what must be said, and that the page stands alone."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from unroll.errors import InputError
from unroll.report import console_table, html_report, markdown_report, metric_definitions, summarize
from unroll.report.document import build_document, find_setting
from unroll.report.tables import build_tables, over_forgetting

VOID_TAGS = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects what would be loaded, and checks that tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loaded = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.loaded += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def table(text, title):
    """Rows of a Markdown table as {method: cells}."""
    body = text.split(f"### {title}\n")[1].split("\n### ")[0]
    lines = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("|")]
    return lines[0], {cells[0].strip("`"): cells[1:] for cells in lines[2:]}


def test_main_table_of_the_markdown(digits):
    header, rows = table(markdown_report(digits, "Digits"), "Scoreboard")
    assert header == [
        "Method",
        "Relative verification error",
        "Verification error",
        "Cost (gradients)",
        "Cost (seconds)",
        "Accuracy, forget",
        "Accuracy, retain",
        "Accuracy, test",
        "ToW, twin",
        "MIA AUC, forget",
    ]
    assert list(rows)[:3] == ["original", "retrain", "retrain_vs_retrain"]
    assert rows["original"][0] == "1"
    assert rows["replay"][:3] == ["0", "0", "0.62"]
    assert re.fullmatch(r"0\.06\d ± 0\.00\d", rows["taylor(order=1)"][0])


def test_missing_values_have_a_footnote(digits):
    text = markdown_report(digits, "Digits")
    _, rows = table(text, "Scoreboard")
    assert rows["retrain_vs_retrain"][:2] == ["n/a [1]", "n/a [1]"]
    assert "- [1] an independent retrain shares no coordinates with the original" in text
    assert not re.search(r"\b(nan|None)\b", text, re.IGNORECASE)


def test_each_column_is_defined_with_target_and_null_row(digits):
    for built in build_tables(summarize(digits)):
        titles = {title for title, _ in built.legend}
        assert titles == {header.split(",")[0] for header in built.headers}
        for title, entry in built.legend:
            assert "Target: " in entry
            assert "Null row: " in entry or title.startswith("Cost")


def test_gaps_are_signed_and_each_oracle_has_its_table(digits):
    text = markdown_report(digits, "Digits")
    header, rows = table(text, "Gaps to the oracle: twin")
    assert header[1:4] == [f"Accuracy gap, {split}" for split in ("forget", "retain", "test")]
    assert rows["gradient_ascent"][0].startswith("-0.3")
    assert rows["original"][0].startswith("+0.06")
    assert "ToW" in table(text, "Gaps to the oracle: independent")[0]


def test_an_unknown_metric_is_still_listed(digits):
    template = next(r for r in digits if r.method == "retrain" and r.metric == "mia")
    extra = dataclasses.replace(template, metric="klom", split="retain", value=0.34)
    text = markdown_report([*digits, extra], "Digits")
    header, rows = table(text, "Other metrics")
    assert rows["retrain"][header.index("Klom, retain") - 1] == "0.34 (1 seed)"
    assert "Metrics without a registered definition: klom." in text


def test_what_every_method_shares_is_in_the_header_only(digits):
    text = markdown_report(digits, "Digits")
    assert "- No-unlearning distance: 0.65 ± 0.04" in text
    assert not any("No-unlearning" in line for line in text.splitlines() if line[0:1] == "|")


def test_over_forgetting_is_flagged_against_the_null_row(digits):
    sentences = over_forgetting(summarize(digits))
    assert {re.search(r"`(.*?)`", sentence)[1] for sentence in sentences} == {"gradient_ascent"}
    assert "forget accuracy 0.3" in sentences[0] and "forget loss 0.3" in sentences[0]
    without = [record for record in digits if record.method != "retrain_vs_retrain"]
    assert "not judged" in over_forgetting(summarize(without))[0]


@pytest.mark.parametrize("write", [markdown_report, html_report])
def test_header_says_what_was_run(digits, write):
    config = {"training": {"denominator": "batch_size"}, "seeds": 5}
    text = write(digits, "A & B", config, ["Read with care."])
    for words in (
        "digits(1437)",
        "14 examples",
        "0 to 4 (5)",
        "Denominator rule",
        "Read with care.",
    ):
        assert words in text
    assert "batch_size" in text


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"denominator_rule": "B"}, "B"),
        ({"a": {"b": {"denominator": "renormalise"}}}, "renormalise"),
        ({"a": 1}, None),
    ],
)
def test_setting_is_found_at_any_depth(config, found):
    assert find_setting(config, "denominator") == found


def test_html_stands_alone(digits, tmp_path):
    image = tmp_path / "scoreboard.png"
    image.write_bytes(b"\x89PNG")
    text = html_report(digits, "Digits", {"url": "x"}, figures={"scoreboard": image})
    page = Page(text)
    assert page.loaded == ["data:image/png;base64,iVBORw=="]
    assert "http://" not in text and "https://" not in text
    assert "url(" not in text and "@import" not in text and "<script" not in text


def test_html_escapes_what_records_say(digits):
    records = [dataclasses.replace(record, model="<b>mlp</b>") for record in digits]
    text = html_report(records, "<i>title</i>")
    Page(text)
    assert "<b>mlp" not in text and "<i>title" not in text


def test_sections_have_their_own_tables_and_figures(make_records):
    records = make_records(curves=False) + make_records(curves=False, forget="class(3)")
    figures = {
        "1_scoreboard": "figures/1_scoreboard.png",
        "2_scoreboard": "figures/2_scoreboard.png",
    }
    first, second = markdown_report(records, "Two", figures=figures).split("\n## ")[1:]
    assert "figures/1_scoreboard.png" in first and "figures/2_scoreboard.png" in second
    assert "class(3)" in second and "class(3)" not in first


def test_one_seed_is_said(make_records):
    text = markdown_report(make_records(seeds=[3], curves=False), "One")
    assert table(text, "Scoreboard")[1]["finetune"][0].endswith("(1 seed)")
    assert "There is one training seed: no interval can be given." in text


def test_console_table_fits_a_terminal(digits):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(console_table(digits))
    lines = capture.get().splitlines()
    assert any("taylor(order=2)" in line and "±" in line for line in lines)
    assert any("retrain_vs_retrain" in line and "n/a" in line for line in lines)
    assert "…" not in capture.get()


def test_no_records_is_an_error():
    with pytest.raises(InputError, match="no records"):
        build_document([], "Empty")


def test_definitions_are_complete():
    for name, definition in metric_definitions.items():
        assert definition.sentence.endswith("."), name
        assert definition.direction in ("lower", "higher", "two-sided"), name
        assert definition.ideal and definition.title, name
