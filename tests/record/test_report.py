"""The report and the interactive page: whole, harmless, and drawn by a real browser."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from autoq.core.policy import Policy
from autoq.core.result import DroppedPoint, Failure, Front, Trial
from autoq.core.scheme import FLOAT32
from autoq.record.interactive import front_html
from autoq.record.report import report_html

ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
EXTRAS = {"Versions": {"autoq": "0.1.0", "onnxruntime": "1.31.1"}, "Machine": {"CPU": "x86-64, 2 cores"}}


class Page(html.parser.HTMLParser):
    """The elements of a page, and the text outside its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._skip = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._skip += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._skip -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.text += data


@pytest.fixture(scope="module")
def hostile(front: Front, trials: list[Trial]) -> tuple[Front, list[Trial]]:
    """The front with every text from outside replaced by an attack."""
    policy = Policy.of({ATTACK: FLOAT32})
    points = [replace(point, policy=policy, origin=ATTACK) for point in front.points]
    bad = replace(
        front,
        name=ATTACK,
        metric_name=ATTACK,
        points=tuple(points),
        dropped=(DroppedPoint(point=points[0], why=ATTACK),),
        stop_reason=ATTACK,
        notes=(ATTACK,),
    )
    failed = Trial(number=1, policy=policy, origin=ATTACK, failure=Failure(reason="load", message=ATTACK))
    return bad, [failed, *(replace(trial, policy=policy, origin=ATTACK) for trial in trials)]


def test_the_report_says_what_was_found_and_how(front: Front, trials: list[Trial]) -> None:
    page = Page(report_html(front, trials, EXTRAS))
    text = " ".join(page.text.split())
    assert "Knee and fastest (1ef38d6aedf5): 2.06x as fast and 0.30 of the size of float32" in text
    assert "57 trials complete, 3 failed, 212 s; ended by: 60 trials." in text
    for point in front.points:
        assert point.id in text
    assert "on the final split another point is better in every objective" in text
    knee = next(point for point in front.points if point.id == "1ef38d6aedf5")
    assert "<th>zipped, KB</th><th>peak memory, MB</th><th>load, ms</th>" in report_html(front, trials, EXTRAS)
    assert f"{knee.load_ms:,.1f}" in text and f"{knee.zip_bytes / 1e3:,.0f}" in text  # type: ignore[operator]
    assert "load: 2" in text and "2 of: the runtime has no kernel for <DequantizeLinear>" in text
    assert "worker_lost: 1" in text
    assert "/layer3/2/conv2/Conv" in text and "measured alone in warm blocks" in text
    assert "onnxruntime 1.31.1" in re.sub(r"(onnxruntime)", r"\1 ", text)
    assert page.tags.count("h1") == 1 and page.tags.count("table") == 7


def test_the_report_needs_nothing_from_outside(front: Front, trials: list[Trial]) -> None:
    for text in (report_html(front, trials, EXTRAS), front_html(front, trials)):
        page = Page(text)
        assert not [value for name, value in page.attributes if name in ("src", "href", "action")]
        assert not {"link", "iframe", "img", "object"} & set(page.tags)


def test_a_running_front_says_so(front: Front, trials: list[Trial]) -> None:
    assert "This front is a running one" in report_html(replace(front, final=False), trials, {})


def test_an_empty_front_has_a_report(front: Front) -> None:
    text = report_html(replace(front, points=(), dropped=()), [], {})
    assert "Nothing was gained" in text and "No point is on the front." in text


def test_every_text_from_outside_is_escaped(hostile: tuple[Front, list[Trial]]) -> None:
    front, trials = hostile
    for text in (report_html(front, trials, {ATTACK: {ATTACK: ATTACK}}), front_html(front, trials)):
        page = Page(text)
        assert "img" not in page.tags and not [name for name, _ in page.attributes if name.startswith("on")]
        assert "document.title='owned'</script>" not in text


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on this machine")
    return found


def rendered(page: Path, tmp_path: Path) -> str:
    """The page's elements after its scripts ran, in a browser without a network."""
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,900", "--virtual-time-budget=4000",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_browser_draws_the_plots_and_runs_no_attack(
    front: Front, trials: list[Trial], hostile: tuple[Front, list[Trial]], tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.html", tmp_path / "bad.html"
    good.write_text(report_html(front, trials, EXTRAS))
    dom = rendered(good, tmp_path)
    drawn = dom[dom.rindex("</style>") :]
    assert "<title>resnet20-cifar10: report</title>" in dom
    # One path for each mark: 57 trials, 14 points, float32, in two panels.
    assert len(re.findall(r'<path class="point"', drawn)) == 2 * (57 + len(front.points) + 1)
    assert "file size, KB" in drawn and 'data-title="Zoom"' in drawn
    # No button that would upload the numbers.
    assert 'data-title="Share' not in drawn
    bad.write_text(report_html(*hostile, {ATTACK: {ATTACK: ATTACK}}))
    title = re.search(r"<title>(.*?)</title>", rendered(bad, tmp_path))
    assert title is not None and title[1] != "owned"
