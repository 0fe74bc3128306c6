"""The notebooks of the documentation run from the first cell to the last, and are kept with what their cells print."""

import nbformat
import notebooks
import pytest

from evomerge import zoo


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("_own_cache")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client|nbclient|zmq")
def test_every_cell_of_the_notebook_runs_and_the_merge_that_it_exports_is_loaded(path, tmp_path):
    zoo.find_or_build("digits", progress=lambda done, step: None)
    cells = [cell for cell in notebooks.run(path, tmp_path).cells if cell.cell_type == "code"]
    assert int(cells[-1].outputs[-1].data["text/plain"].replace("_", "")) > 10_000  # parameters
    assert (tmp_path / "merged" / "notebook" / "model.safetensors").is_file()
    assert any("image/png" in output.get("data", ()) for cell in cells for output in cell.outputs)


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_kept_with_outputs_and_without_errors(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert len(path.read_bytes()) < 300_000
