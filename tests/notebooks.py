"""The notebooks of the documentation, run as a reader runs them: in a new kernel, in a folder of their own.

`python tests/notebooks.py` runs them all and writes their outputs anew, which the pages show.
"""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs").rglob("*.ipynb"))


def run(path, folder):
    """Return the notebook after its cells have run in `folder`. Raises an error of nbclient with the cell that failed."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            notebook = run(path, folder)
        for cell in notebook.cells:
            if cell.cell_type == "code":  # without warnings of libraries, which name folders of this machine
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        notebook.metadata.language_info = {"name": "python"}  # without the version of this machine
        nbformat.write(notebook, path)
