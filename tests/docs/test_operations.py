"""The pages of operations name every metric, every field of the log, and every event that the sources say."""

import ast
import re

from docs.generate import ROOT, SOURCES, tree_of
from modelkeep_platform.core.errors import ModelkeepError
from modelkeep_platform.http.watch import LIMITS
from modelkeep_platform.telemetry.logs import FIELDS
from services.house import House

METRICS = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
OPERATE = (ROOT / "docs/how-to/operate.md").read_text(encoding="utf-8")


def documented() -> dict[str, str]:
    """Return each metric of the page with its type."""
    return dict(re.findall(r"^\| `(modelkeep_\w+)` \| (\w+) \|", METRICS, re.MULTILINE))


def test_every_metric_is_on_its_page_and_no_other(house: House) -> None:
    served = {}
    for family in house.server.platform.edge.metrics.registry.collect():
        served[f"{family.name}_total" if family.type == "counter" else family.name] = family.type
    assert documented() == served


def test_labels_are_those_of_the_page(house: House) -> None:
    rows = re.findall(r"^\| `(modelkeep_\w+)` \| \w+ \|([^|]*)\|", METRICS, re.MULTILINE)
    said = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    for family in house.server.platform.edge.metrics.registry.collect():
        for sample in family.samples:
            base = f"{family.name}_total" if family.type == "counter" else family.name
            assert set(sample.labels) - {"le"} == said[base], base


def test_every_field_of_the_log_is_explained() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", OPERATE, re.MULTILINE))
    plain = re.compile(r"\[([^\]]+)\]\([^)]+\)")
    for name, meaning in FIELDS.items():
        wanted = meaning.replace("(docs/reference/errors.md)", "(errors)")
        assert plain.sub(r"\1", rows[name]) == wanted, name


def said() -> dict[str, str]:
    """Return the texts that our own sources log as errors and warnings, with where."""
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(tree_of(path)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            if node.func.attr in {"error", "exception", "warning"} and isinstance(node.args[0], ast.Constant):
                found[str(node.args[0].value)] = path.name
    return found


def test_alerts_name_metrics_that_are_there() -> None:
    for name in set(re.findall(r"modelkeep_\w+", OPERATE)) - {"modelkeep_platform"}:
        assert re.sub(r"_(count|bucket|sum)$", "", name) in documented(), name


def test_codes_of_limits_exist() -> None:
    def below(kind: type[ModelkeepError]) -> set[str]:
        return {kind.code}.union(*(below(one) for one in kind.__subclasses__()))

    sources = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES.rglob("*.py") if path.name != "watch.py")
    for code in LIMITS:
        assert f'"{code}"' in sources or code in below(ModelkeepError), code


def test_what_is_an_error_or_a_warning_is_explained() -> None:
    for text, where in said().items():
        shown = re.sub(r"%\w", "…", text)
        assert f"`{shown}`" in OPERATE, f"{where} says `{shown}`, which docs/how-to/operate.md does not explain"
