"""Examples are read from tables, arrays and folders of images as from JSONL."""

import numpy as np
import pytest
from PIL import Image
from rows import write_jsonl

from evomerge.errors import TaskError
from evomerge.tasks.data import digests, read

ROWS = [{"text": 'one, "two"', "label": "3"}, {"text": "NA", "label": "04"}]


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_a_table_has_texts_and_nothing_else(suffix, separator, tmp_path):
    file = tmp_path / f"rows.{suffix}"
    quoted = ['"one, ""two"""', "NA"]
    lines = [("text", "label"), (quoted[0], "3"), (quoted[1], "04")]
    file.write_text("".join(separator.join(line) + "\n" for line in lines))
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    columns = ("text", "label")
    assert read("t", file, columns) == read("t", tmp_path / "rows.jsonl", columns)
    with pytest.raises(TaskError, match="no column `txt`; did you mean `text`"):
        read("t", file, ["txt"])


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n1,2,3,4\n", b"a,b\n1,2,3\n4,5,6\n", b"a\n\xff\n"])
def test_a_broken_table_is_an_error(content, tmp_path):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(TaskError, match=r"rows\.csv: not a table in UTF-8"):
        read("t", tmp_path / "rows.csv", ["a"])


def test_arrays_have_one_entry_for_each_example(tmp_path):
    file, x = tmp_path / "rows.npz", np.arange(12.0).reshape(3, 1, 2, 2)
    np.savez(file, x=x, y=np.array([1, 0, 2]), words=np.array(["a", "b", "c"]), few=np.zeros(2), one=np.float32(1))
    found = read("t", file, ["x", "y", "words"])
    assert (np.array(found["x"]) == x).all()
    assert (found["y"], found["words"]) == ([1, 0, 2], ["a", "b", "c"])
    for other, shape in (("few", r"\[2\]"), ("one", r"\[\]")):
        with pytest.raises(
            TaskError, match=rf"one entry for each example, got shapes `x` \[3, 1, 2, 2\], `{other}` {shape}"
        ):
            read("t", file, ["x", other])
    np.savez(file, x=np.array([{"code": 1}], dtype=object))
    with pytest.raises(TaskError, match=r"not arrays that `numpy\.savez` wrote"):
        read("t", file, ["x"])
    np.save(tmp_path / "row.npy", x)
    (tmp_path / "row.npy").rename(file)
    with pytest.raises(TaskError, match=r"not arrays that `numpy\.savez` wrote"):
        read("t", file, ["x"])


def test_large_arrays_that_differ_in_one_element_are_different_examples():
    x = np.zeros(100_000)
    y = x.copy()
    y[5_000] = 1
    assert digests([x]) == digests([x.copy()]) != digests([y])
    assert digests([b"a"]) != digests([b"b"])


def test_a_folder_of_images_has_the_names_of_its_folders_as_labels(tmp_path):
    for place in ("dog/2.png", "cat/b.PNG", "cat/more/a.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), len(place)).save(tmp_path / place)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    found = read("t", tmp_path, ["image", "label"])
    assert found["label"] == ["cat", "cat", "dog"]
    assert found["image"] == [(tmp_path / place).read_bytes() for place in ("cat/b.PNG", "cat/more/a.jpg", "dog/2.png")]
    with pytest.raises(TaskError, match="no column `class`; known: image, label"):
        read("t", tmp_path, ["image", "class"])
    Image.new("L", (2, 2)).save(tmp_path / "lost.png")
    with pytest.raises(
        TaskError, match=r"lost\.png: expected each image in the folder of its class, such as .*/cat/lost\.png"
    ):
        read("t", tmp_path, ["image", "label"])


def test_image_columns_of_datasets_and_parquet_are_the_bytes_of_their_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    Image.new("L", (2, 3), 7).save(tmp_path / "a.png")
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")], "label": [1]})
    rows = rows.cast_column("image", datasets.Image())
    rows.save_to_disk(tmp_path / "saved")
    datasets.load_from_disk(str(tmp_path / "saved")).to_parquet(tmp_path / "rows.parquet")
    content = [(tmp_path / "a.png").read_bytes()]
    assert read("t", tmp_path / "saved", ["image", "label"]) == {"image": content, "label": [1]}
    assert read("t", tmp_path / "rows.parquet", ["image"]) == {"image": content}


def test_an_image_without_its_content_is_an_error(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"image": [{"bytes": None, "path": "a.png"}]}), tmp_path / "rows.parquet")
    with pytest.raises(TaskError, match="column `image`, example 0: an image without its content; expected its bytes"):
        read("t", tmp_path / "rows.parquet", ["image"])


def test_a_table_of_a_spreadsheet_begins_with_a_mark_that_is_no_name(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbftext\none\n")
    assert read("t", tmp_path / "rows.csv", ["text"]) == {"text": ["one"]}
