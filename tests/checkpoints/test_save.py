"""Saving: a folder appears complete or not at all, with the bytes of safetensors, and within little memory."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pools import TENSORS, write_checkpoint
from safetensors.torch import load_file
from safetensors.torch import save as reference_bytes

from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.header import DTYPES, TensorInfo, read_header
from evomerge.checkpoints.save import save
from evomerge.errors import CheckpointError


def wait_for(happened):
    """Wait until `happened` returns true in another thread."""
    end = time.monotonic() + 5
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_folder_is_complete_with_the_files_beside_the_weights(tmp_path):
    source = write_checkpoint(tmp_path / "source", TENSORS)
    beside = {
        "tokenizer.json": "{}",
        "vocab.txt": "a",
        "README.md": "old",
        "pytorch_model.bin": "",
        "tf_model.h5": "",
        "model.safetensors.index.json.bak": "",
    }
    for name, text in beside.items():
        (source / name).write_text(text)
    (source / "folder").mkdir()
    seen = []
    save(
        Folder(source),
        tmp_path / "new" / "out",
        like=source,
        extra={"README.md": "card"},
        progress=lambda done, total: seen.append((done, total)),
    )
    out = tmp_path / "new" / "out"
    assert {file.name for file in out.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "vocab.txt",
        "README.md",
        "model.safetensors",
        "model.safetensors.index.json.bak",
    }
    assert (out / "README.md").read_text() == "card"
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(out / "model.safetensors").items())
    assert seen[-1] == (32, 32)
    assert stat.S_IMODE((out / "model.safetensors").stat().st_mode) == 0o644
    assert stat.S_IMODE(out.stat().st_mode) == 0o755
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize("shard_bytes", [1, 64, 100, 10**9])
def test_shards_stay_within_their_size_and_read_back(tmp_path, shard_bytes):
    tensors = {f"t{i}": torch.full((8,), float(i)) for i in range(5)}  # 32 bytes each
    source = write_checkpoint(tmp_path / "source", tensors)
    save(Folder(source), tmp_path / "out", like=source, shard_bytes=shard_bytes)
    written = Folder(tmp_path / "out")
    assert len(written.files) == {1: 5, 64: 3, 100: 2, 10**9: 1}[shard_bytes]
    assert list(written.info) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(written.tensor(name), tensor)
    assert all(
        sum(entry.nbytes for entry in read_header(file).info.values()) <= max(shard_bytes, 32) for file in written.files
    )


class Held:
    """A checkpoint of tensors in memory, as they are: not contiguous, tied, of any dtype."""

    def __init__(self, tensors, info=None):
        self.tensors = tensors
        self.info = info or {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}

    def tensor(self, name):
        return self.tensors[name]

    def forget(self):
        pass


@st.composite
def held(draw):
    """Tensors of any dtype under any names, of 0 to 3 dimensions, some transposed, some the same under two names."""
    name = st.text(st.characters(exclude_categories=["Cs"])).filter(
        lambda text: text != "__metadata__"
    )  # no tensor's in this format
    names = draw(st.lists(name, min_size=1, max_size=8, unique=True))
    tensors = {}
    for i, name in enumerate(names):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        dtype = draw(st.sampled_from(list(DTYPES.values())))
        tensor = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
        tensors[name] = draw(
            st.sampled_from([tensor, tensor.mT if tensor.ndim > 1 else tensor, tensors[names[0]] if i else tensor])
        )
    return tensors


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(held())
def test_files_are_byte_for_byte_those_of_safetensors(tmp_path, tensors):
    write_checkpoint(tmp_path / "source", {})
    save(Held(tensors), tmp_path / "out", like=tmp_path / "source")
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "out")
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    assert written == reference_bytes(copies, metadata={"format": "pt"})


def test_weights_are_readable_by_others_under_any_umask(tmp_path):
    source = write_checkpoint(tmp_path / "source", TENSORS)
    before = os.umask(0o077)
    try:
        save(Folder(source), tmp_path / "out", like=source)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "model.safetensors").stat().st_mode) == 0o644


@pytest.mark.parametrize("tensor", [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.bfloat16)])
def test_tensor_that_contradicts_its_header_is_refused(tmp_path, tensor):
    source = write_checkpoint(tmp_path / "source", TENSORS)
    lying = Held({"a": tensor}, {"a": TensorInfo((2, 3), torch.float32)})
    with pytest.raises(
        CheckpointError, match=r"`a`: expected torch.float32 of shape \[2, 3\].* got .*has the file changed"
    ):
        save(lying, tmp_path / "out", like=source)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float16, 1e5), (torch.float32, float("nan")), (torch.bfloat16, -float("inf"))]
)
def test_nothing_appears_where_a_tensor_is_not_finite(dtype, value, tmp_path):
    source = write_checkpoint(tmp_path / "source", TENSORS)
    tensors = {"a": torch.ones(4, dtype=dtype), "b": torch.tensor([1.0, value, value]).to(dtype)}
    with pytest.raises(CheckpointError, match=rf"`b` .* 2 elements .* of 3;.*{str(dtype).removeprefix('torch.')}"):
        save(Held(tensors), tmp_path / "out", like=source)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_finite_numbers_whose_sum_overflows_are_written(tmp_path):
    source = write_checkpoint(tmp_path / "source", TENSORS)
    save(Held({"a": torch.full((4,), 6e4, dtype=torch.float16)}), tmp_path / "out", like=source)
    assert bool((load_file(tmp_path / "out" / "model.safetensors")["a"] == 6e4).all())


def test_full_disk_is_an_error_before_any_work(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "source", TENSORS)
    beside = (source / "config.json").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 7, 7))
    with pytest.raises(CheckpointError, match=rf"out: needs {32 + beside} bytes, its disk has 7; make room"):
        save(Held({}, Folder(source).info), tmp_path / "out", like=source)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_disk_that_fills_up_during_saving_leaves_nothing(tmp_path, monkeypatch, code):
    source = write_checkpoint(tmp_path / "source", TENSORS)

    def fail(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    expected = OSError if code == errno.EIO else CheckpointError
    with pytest.raises(expected, match=os.strerror(code)) as caught:
        save(Folder(source), tmp_path / "out", like=source)
    assert caught.type is expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_sources_are_read_ahead_of_the_merge_and_may_lack_a_tensor(tmp_path, monkeypatch):
    tensors = {f"t{i}": torch.full((8,), float(i)) for i in range(5)}
    complete = Folder(write_checkpoint(tmp_path / "whole", tensors))
    part = Folder(write_checkpoint(tmp_path / "part", {"t3": torch.zeros(2)}))
    read = []
    ahead = Folder.read_ahead
    monkeypatch.setattr(
        Folder, "read_ahead", lambda self, name: (read.append((self.path.name, name)), ahead(self, name))
    )
    save(
        complete,
        tmp_path / "out",
        like=complete.path,
        sources=[complete, part],
        progress=lambda done, total: wait_for(lambda: len(read) == 2 * min(5, done // 32 + 2)),
    )
    assert read == [(folder, name) for name in tensors for folder in ("whole", "part")]
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()


def test_existing_files_are_never_overwritten(tmp_path):
    source = write_checkpoint(tmp_path / "source", TENSORS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    for place in ("full", "file", "source"):
        with pytest.raises(CheckpointError, match=f"{place}: exists and is not empty; give another folder"):
            save(Folder(source), tmp_path / place, like=source)
    (tmp_path / "empty").mkdir()
    save(Folder(source), tmp_path / "empty", like=source)
    assert Folder(tmp_path / "empty").info.keys() == TENSORS.keys()


def test_failure_in_the_middle_leaves_nothing(tmp_path):
    source = write_checkpoint(tmp_path / "source", TENSORS)

    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(Folder(source), tmp_path / "out", like=source, progress=fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_kill_in_the_middle_leaves_no_folder(tmp_path):
    """SIGKILL while the second shard is made: no incomplete folder is left under the final name."""
    tensors = {f"t{i}": torch.zeros(1000) for i in range(20)}
    source = write_checkpoint(tmp_path / "source", tensors)
    code = """
        import sys, time
        from pathlib import Path
        from evomerge.checkpoints.folder import Folder
        from evomerge.checkpoints.save import save
        source, out = map(Path, sys.argv[1:])
        def progress(done, total):
            if done * 2 > total:
                print("half", flush=True)
                time.sleep(60)
        save(Folder(source), out, like=source, shard_bytes=4000, progress=progress)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(source), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    save(
        Folder(source), tmp_path / "out", like=source, shard_bytes=4000
    )  # the temporary folder that is left does not interfere
    assert len(Folder(tmp_path / "out").info) == 20


@pytest.mark.parametrize("cached", [False, True])
def test_links_beside_the_weights_are_copied_only_from_the_models_own_blobs(tmp_path, cached):
    snapshot = write_checkpoint(tmp_path / "model" / "snapshots" / "abc", TENSORS)
    secret = tmp_path / "model" / "blobs" / "0123" if cached else tmp_path / "id_rsa"
    secret.parent.mkdir(exist_ok=True)
    secret.write_text("secret")
    (snapshot / "vocab.txt").symlink_to(secret)
    if cached:
        save(Folder(snapshot), tmp_path / "out", like=snapshot)
        assert (tmp_path / "out" / "vocab.txt").read_text() == "secret"
        return
    with pytest.raises(CheckpointError, match=r"vocab.txt: links to .*id_rsa, outside of the checkpoint's folder"):
        save(Folder(snapshot), tmp_path / "out", like=snapshot)
    assert not (tmp_path / "out").exists()


MERGE = """
    import sys, threading
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from evomerge import build
    from evomerge.build import Builder
    from evomerge.checkpoints.save import save
    from evomerge.checkpoints.pool import Pool
    from evomerge.recipe import merge
    folder, out, method, shard = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    if method == "ties":
        build.COMPILED = 1 << 60  # one merge is compiled, the other runs as written
    pool = Pool(folder / "base", {name: folder / name for name in ("maths", "code")})
    recipe = merge(method, ["maths", "code"])
    built = Builder(pool).build(recipe)
    built.tensor("layers.0.mlp.weight")  # one-off costs of loading and compiling do not count

    def anonymous():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    start, peak, done = anonymous(), 0, threading.Event()

    def watch():
        global peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    save(built, out, like=folder / "base", shard_bytes=shard)
    done.set()
    watcher.join()
    print(max(peak, anonymous()) - start)
"""


@pytest.fixture(scope="module")
def large_pool(tmp_path_factory):
    """Three checkpoints of 96 MB in bf16, the largest tensor of 16 MB."""
    folder = tmp_path_factory.mktemp("large")
    generator = torch.Generator().manual_seed(0)
    base = {"embed.weight": torch.randn(4096, 2048, generator=generator).bfloat16()}
    base |= {f"layers.{i}.mlp.weight": torch.randn(1024, 2048, generator=generator).bfloat16() for i in range(20)}
    write_checkpoint(folder / "base", base)
    for i, name in enumerate(("maths", "code")):
        write_checkpoint(folder / name, {key: t * (1 + (i + 1) / 64) for key, t in base.items()})
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("method", "shard"), [("linear", 1 << 30), ("ties", 20 << 20)])
def test_merge_streams_to_disk(large_pool, tmp_path, method, shard):
    """Peak of anonymous memory: the bytes that wait to be written and three largest tensors, not a shard or the result."""
    waiting, largest = 32 << 20, 16 << 20
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MERGE), str(large_pool), str(tmp_path / "out"), method, str(shard)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < waiting + 3 * largest
    assert len(Folder(tmp_path / "out").files) == {20 << 20: 5, 1 << 30: 1}[shard]
    shutil.rmtree(tmp_path / "out")
