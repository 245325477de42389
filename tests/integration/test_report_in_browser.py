"""The report as a browser shows it; without a browser the same facts are read off the file."""

import re
import subprocess
from pathlib import Path

import pytest

from reasonrec.evaluation.report import load_run, write_report
from toy_browser import BROWSER, FLAGS, dump_dom
from toy_runs import MIDDLE_RANK, write_toy_run

PRESS = """<script>
document.querySelectorAll("table.sortable th button")[2].click();
</script></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = write_toy_run(tmp_path_factory.mktemp("run") / "toy")
    return write_report(load_run(folder), folder / "report.html")


def methods_in_order(dom: str) -> list[str]:
    body = re.findall(r"<table class=\"sortable\">.*?<tbody>(.*?)</tbody>", dom, re.DOTALL)[0]
    return re.findall(r"<th scope=\"row\" data-value=\"([^\"]+)\"", body)


def test_the_report_shows_every_section_and_runs_its_script(page, tmp_path):
    dom = dump_dom(page, tmp_path)
    for section in ("results", "cost", "thinking", "training", "explained", "thoughts", "data"):
        assert f'<section id="{section}">' in dom
    assert dom.count("<polyline") == 8  # 3 losses, 3 validations, 2 of RecPO
    assert dom.count('class="chains scroll"') == 3
    assert methods_in_order(dom) == list(MIDDLE_RANK)
    assert "alert('title')" not in re.sub(r"&lt;script&gt;alert\('title'\)", "", dom)
    if BROWSER is not None:
        assert 'data-ready="yes"' in dom


def test_pressing_a_heading_sorts_the_table(page, tmp_path):
    pressed = tmp_path / "pressed.html"
    html = page.read_text("utf-8")
    # the page lets no foreign script run, so the copy that is pressed goes without its policy
    html = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", html)
    pressed.write_text(html.replace("</body>", PRESS), encoding="utf-8")
    dom = dump_dom(pressed, tmp_path / "profile")
    by_rank = sorted(MIDDLE_RANK, key=lambda method: MIDDLE_RANK[method])
    values = re.findall(r"<tbody>(.*?)</tbody>", dom, re.DOTALL)[0]
    assert set(methods_in_order(dom)) == set(MIDDLE_RANK)
    assert values.count("data-value") == 8 * len(MIDDLE_RANK)  # every cell can be sorted by
    if BROWSER is not None:
        found = methods_in_order(dom)
        assert found[:2] == ["oracle", "think-recpo"]  # by NDCG@10, the best first
        assert found[-1] == by_rank[-1] == "popularity"


def test_the_policy_of_the_page_stops_a_foreign_script(page, tmp_path):
    foreign = tmp_path / "foreign.html"
    html = page.read_text("utf-8")
    mark = "<script>document.documentElement.dataset.stolen = 'yes'</script></body>"
    foreign.write_text(html.replace("</body>", mark), encoding="utf-8")
    assert "script-src 'sha256-" in html
    if BROWSER is not None:
        done = subprocess.run(
            [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
             foreign.as_uri()],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert 'data-ready="yes"' in done.stdout
        assert "data-stolen" not in done.stdout
