"""What tests run in processes of their own, which import it by name."""

from evomerge.study import Study


def run_study(folder, settings):
    """Run a study until somebody kills this process, or to its end."""
    study = Study.create(folder, settings)
    with study.evaluator() as evaluator:
        study.run(evaluator)
