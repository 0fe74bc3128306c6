"""The search of a study and its report, on a terminal."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from evomerge import files, pareto
from evomerge.cli.console import say
from evomerge.costs import TERMINATED
from evomerge.errors import StudyError, StudyInUseError
from evomerge.evaluate import CachingEvaluator
from evomerge.interrupts import GRACE
from evomerge.progress import Progress, Throttled
from evomerge.report import drawn, measure, tables, wording
from evomerge.report.results import Results
from evomerge.report.wording import covered
from evomerge.search import Population
from evomerge.study import Study
from evomerge.trial import Evaluation, Proposal
from evomerge.view import frozen
from evomerge.view.front_table import front_csv
from evomerge.view.source import Source


def search_and_report(
    study: Study, console: Console, *, grace: float = GRACE, retry_failed: bool = False, quiet: bool = False
) -> Results | None:
    """Search and report, which is not printed if `quiet`. Return None if another process makes the report.

    Exits with `EX_TEMPFAIL` where SIGTERM stopped the search, without a report, or a budget of time, after the report.
    """
    total = study.settings.evaluations
    history = study.history()
    if history.completed:
        say(console, f"replaying {len(history.completed)} evaluations")
    searched = study.parts.searched
    means = [evaluation.means(searched) for _, evaluation in history.population if evaluation.error is None]
    evaluated = 0
    standing = Throttled(lambda: _standing(searched, means) + _coverage(study))
    with Progress("search", total, console) as progress, study.evaluator(say=progress.remind) as evaluator:

        def watch(proposal: Proposal, evaluation: Evaluation) -> None:
            nonlocal evaluated
            evaluated += 1
            if (complete := evaluator.lookup(proposal.recipe.id, proposal.split)) is not None:
                means.append(complete.means(searched))
            now = standing(now=study.spent >= total)
            progress(
                min(int(study.spent), total), note=f"failed: {evaluation.error}; {now}" if evaluation.error else now
            )

        study.run(evaluator, watch, grace=grace, say=progress.say)
        if study.stopped == TERMINATED:
            say(console, f"stopped by SIGTERM at {_spent(study)}: `evomerge resume {study.folder}` goes on")
            sys.exit(os.EX_TEMPFAIL)
        try:
            if retry_failed:
                _retry(study, evaluator, console)
            results = write_report(study, console, evaluator)
        except StudyInUseError as error:
            say(console, f"search done; {error}, then type `evomerge show {study.folder}`")
            return None
    if not quiet:
        print_results(results, study.folder, console)
    if study.stopped is not None:
        option = f"--{study.stopped.replace('_', '-')}"
        used = f"the budget of {getattr(study.settings, study.stopped):g} {study.stopped.replace('_', '-')} is used"
        if not evaluated:  # by a script that resumes for ever
            raise StudyError(f"{study.folder}: {used}; type `evomerge resume {study.folder} {option} MORE` to go on")
        say(console, f"{used} at {_spent(study)}: `evomerge resume {study.folder} {option} MORE` goes on")
        sys.exit(os.EX_TEMPFAIL)
    return results


def _spent(study: Study) -> str:
    return f"{study.spent:g} of {study.settings.evaluations} evaluations"


def _retry(study: Study, evaluator: CachingEvaluator, console: Console) -> None:
    failed = study.retry_failed(evaluator)
    left = sum(evaluation.error is not None for _, evaluation in study.population())
    say(
        console,
        f"{failed} failed candidates were evaluated again; {left} still fail. The search itself stays as it was.",
    )


def _standing(searched: Sequence[str], means: list[NDArray[np.float64]]) -> str:
    """Return the best mean over objectives so far, or the size of the front where a mean of different metrics says nothing."""
    if not means:
        return ""
    if wording.common_metric(searched) is not None:
        return f"best mean {max(float(row.mean()) for row in means):.4g}"
    different = np.unique(np.array(means), axis=0)
    means[:] = different[pareto.nondominated(different)]
    return f"{len(means)} on the front"


def _coverage(study: Study) -> str:
    """Return a population's coverage of the examples so far, after a comma; empty for other searches."""
    diagnostics = study.driver.diagnostics() if isinstance(study.driver, Population) else {}
    return f", {covered(diagnostics['coverage'], diagnostics.get('entropy'))}" if diagnostics else ""


def write_report(
    study: Study,
    console: Console,
    evaluator: CachingEvaluator | None = None,
    pairs: Sequence[Sequence[str]] = (),
) -> Results:
    """Report on a study, write the report's files, and return its results; `pairs` are the panels of the picture.

    Figures and page take longer than the rest of a report, and are drawn only where the folder does not hold them already.
    """
    with Progress("report", 1, console) as progress:
        results = measure.measure(study, evaluator, progress)
    measure.write(results, study.folder)
    marked = frozen.mark(results, study.folder, pairs)
    if not frozen.is_written(study.folder, marked):
        source, pictures = Source(study.folder, study), drawn.draw(results, pairs)
        drawn.write(pictures, study.folder)
        files.write(study.folder / "front.csv", front_csv(source, results))
        files.write(study.folder / "report.html", frozen.text(source, pictures, marked))
    return results


def print_results(results: Results, folder: Path, console: Console) -> None:
    """Print a report's tables, and what they say in sentences."""
    for part in tables.summary(results):
        console.print(part)
    warn(tables.warning(results), console)
    for sentence in (tables.choice(results), *tables.sentences(results)):
        console.print(sentence, markup=False)
    say(console, f"digest {results.digest}")
    say(console, f"more: {folder / 'report.html'}, `evomerge pick {folder} --weights … -o OUT`")


def warn(warning: str | None, console: Console) -> None:
    """Print a warning, if there is one."""
    if warning is not None:
        console.print(warning, markup=False, style="bold red")
