"""The examples of docs/structures.md, run in their order, show what they say."""

import doctest
import re
from pathlib import Path

DOC = Path(__file__).resolve().parent.parent / "docs" / "structures.md"


def run_examples(text):
    """doctest's (failed, attempted) and report of a page's python blocks, in one namespace."""
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, DOC.name, str(DOC), 0)
    report = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(examples, out=report.append)
    return runner.summarize(verbose=False), "".join(report)


def test_the_examples_show_what_they_say():
    text = DOC.read_text(encoding="utf-8")
    (failed, attempted), report = run_examples(text)
    assert not failed, report
    assert attempted == len(re.findall(r"^>>> ", text, re.MULTILINE)) > 40
    for name in ("BoxList", "to_image_list", "Masks", "ImageRecord"):
        assert re.search(rf"^>>> .*\b{name}\(", text, re.MULTILINE), name


def test_a_wrong_result_is_found():
    (failed, attempted), report = run_examples("```python\n>>> 1 + 1\n3\n\n```\n")
    assert (failed, attempted) == (1, 1) and "Expected:\n    3\nGot:\n    2" in report
