"""Functions that tests run in child processes, which import them by name."""

from evomerge.study import Study


def run_study(folder, settings):
    """Run a study to its end, unless this process is killed before."""
    study = Study.create(folder, settings)
    with study.evaluator() as evaluator:
        study.run(evaluator)
