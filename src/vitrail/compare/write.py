"""Write the results of a suite into its folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitrail import __version__
from vitrail.compare.execute import Failure
from vitrail.compare.findings import about_pretraining, markdown, method, metric_name, sentences, unit_of
from vitrail.compare.plan import Run
from vitrail.compare.results import Tables
from vitrail.compare.suite import Suite
from vitrail.evaluate.image_scores import ALL_SCORES
from vitrail.files import write_text
from vitrail.models.modality import reword
from vitrail.runs.folder import RunFolder
from vitrail.runs.suite import SuiteFolder

# Column of metrics.csv with the validation curve of a measure.
_CURVES = {
    "accuracy": "val_accuracy", "balanced_accuracy": "val_balanced_accuracy", "f1_macro": "val_f1_macro",
    "miou": "val_miou", "miou_clouds": "val_miou",
}  # fmt: skip


def write_suite(suite: Suite, runs: Sequence[Run], tables: Tables, failures: Sequence[Failure]) -> SuiteFolder:
    """Write the tables, their Markdown version, and suite.json for the report.

    Args:
        suite: The suite.
        runs: Plan of the suite.
        tables: Tables of the suite.
        failures: Failed runs.

    Returns:
        Folder of the suite.
    """
    folder = SuiteFolder(suite.dir)
    failed = [
        {"run": failure.run.label, "error": failure.error, "log": str(failure.log) if failure.log else ""}
        for failure in failures
    ]
    done = [RunFolder(path) for path in tables.results["run"]] if len(tables.results) else []
    inputs = {run.modality for run in done}
    names = frozenset(
        [
            suite.title,
            suite.about.strip(),
            *(v.name for v in suite.variants),
            *(n for run in done for n in run.own_names),
        ]
    )

    def name_inputs(text: str) -> str:
        return reword(text, *inputs, names=names)

    pairs = tables.pairs
    if "why" in pairs:
        pairs = pairs.assign(why=[name_inputs(str(why)) for why in pairs["why"]])
    for file, table in (
        (folder.results, tables.results),
        (folder.summary, tables.summary),
        (folder.pairs, pairs),
    ):
        folder.write_table(file, table)
    write_text(folder.text, name_inputs(markdown(suite, tables, failed)))
    curve = _CURVES.get(suite.metric, "val_accuracy")
    facts: dict[str, Any] = {
        "title": suite.title,
        "about": suite.about.strip(),
        "name": suite.name,
        "file": str(suite.file),
        "size": suite.size,
        "recipe": suite.recipe,
        "metric": suite.metric,
        "metric_name": metric_name(suite.metric),
        "higher_is_better": ALL_SCORES[suite.metric],
        "unit": unit_of(suite.metric),
        "curve": curve,
        "curve_name": metric_name(curve.removeprefix("val_")),
        "against": suite.against,
        "alpha": suite.alpha,
        "margin": suite.margin,
        "guess": tables.guess,
        "near_guess": tables.near_guess,
        "seeds": list(suite.seeds),
        "folds": suite.folds,
        "images": tables.images,
        "groups": tables.groups,
        "runs_planned": sum(not run.is_pretraining for run in runs),
        "runs_done": len(tables.results),
        "sentences": list(map(name_inputs, sentences(suite, tables))),
        "method": name_inputs(
            " ".join([*([method(suite, tables)] if len(tables.pairs) else []), *about_pretraining(suite)])
        ),
        "variants": [{"name": v.name, "changes": v.changes} for v in suite.variants],
        "failures": failed,
        "vitrail": __version__,
    }
    folder.write_facts(facts)
    return folder
