"""The page of a comparison as a browser shows it; without a browser, as it was written."""

import re
from pathlib import Path

import pytest

from reasonrec.evaluation.compare_runs import compare_runs
from toy_browser import BROWSER, dump_dom
from toy_runs import MIDDLE_RANK, write_toy_run

METHODS = list(MIDDLE_RANK)


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    folder = write_toy_run(tmp_path_factory.mktemp("run") / "toy")
    out = folder.parent / "compared"
    compare_runs([folder], out, reference="no-think", num_resamples=500)
    return (out / "report.html").read_text("utf-8")


def after(html: str, script: str, folder: Path) -> str:
    """Return the page after ``script`` ran in it, without its policy, which would stop it."""
    page = folder / "page.html"
    free = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", html)
    page.write_text(free.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return dump_dom(page, folder / "profile")


def shown_references(dom: str) -> set[str]:
    """Return whose marks, plots and tests are not hidden."""
    parts = re.findall(r"<(?:span|div)[^>]*data-reference=\"(\d+)\"([^>]*)>", dom)
    assert len(parts) > 100
    return {METHODS[int(place)] for place, rest in parts if "hidden" not in rest}


def test_the_page_opens_with_its_policy_and_shows_the_named_reference(html, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(html, encoding="utf-8")
    dom = dump_dom(page, tmp_path / "profile")
    assert shown_references(dom) == {"no-think"}
    if BROWSER is not None:
        assert 'data-ready="yes"' in dom


def test_another_reference_moves_marks_plot_and_tests_and_a_heading_sorts(html, tmp_path):
    choose = METHODS.index("popularity")
    script = f"""
        const select = document.getElementById("reference");
        select.value = "{choose}";
        select.dispatchEvent(new Event("change"));
        document.querySelectorAll("#results-table th button")[2].click();
    """
    dom = after(html, script, tmp_path)
    if BROWSER is None:
        assert shown_references(dom) == {"no-think"}  # every reference is there, one is shown
        return
    assert shown_references(dom) == {"popularity"}
    assert "Marks now compare with popularity." in dom
    body = re.search(r'id="results-table">.*?<tbody>(.*?)</tbody>', dom, re.DOTALL).group(1)
    order = re.findall(r"<th scope=\"row\" data-value=\"([^\"]+)\"", body)
    assert (order[0], order[-1]) == ("oracle", "popularity")  # by NDCG@10, the best first
    best = body.split("</tr>")[0]
    visible = re.findall(r"<span class=\"sign (\w+)\" data-reference=\"\d+\">", best)
    assert visible == ["better"] * 4  # the oracle against popularity in all four columns
