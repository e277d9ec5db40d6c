"""What is saved is what is opened, whatever blocks are made of."""

import dataclasses
import math
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from cmr.memory.store import Kind, Part, Saved, save
from cmr.memory.store.form import DTYPES
from tests.memory.store.made import CODES, FULL, check_same, made, same_bytes

NAMES = st.from_regex(r"[a-z][a-z0-9_.]{0,8}", fullmatch=True)
PARTS = st.builds(
    Part,
    st.sampled_from([dtype for dtype in DTYPES.values() if dtype != torch.bool]),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
)
KINDS = st.lists(
    st.builds(Kind, NAMES, st.dictionaries(NAMES, PARTS, max_size=4)),
    min_size=1,
    max_size=3,
    unique_by=lambda kind: kind.name,
)
NUMBERS = st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=25)
TEXT = st.text(max_size=8)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(
    numbers=NUMBERS,
    kinds=KINDS,
    header=st.dictionaries(TEXT, PLAIN, max_size=4),
    column=PARTS,
    shard_bytes=st.sampled_from([1, 100, 1000, 1 << 20]),
)
def test_content_comes_back_to_the_bit(numbers, kinds, header, column, shard_bytes) -> None:
    given_ = torch.tensor(numbers, dtype=torch.int64)
    generator = torch.Generator().manual_seed(len(numbers))
    size = len(numbers) * column.nbytes
    raw = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
    shape = (len(numbers), *column.shape)
    tensor = raw.view(column.dtype).view(shape) if size else torch.empty(shape, dtype=column.dtype)
    content = made(
        numbers,
        kinds,
        session=given_ % 4 - 2,
        columns={"some": tensor, "flag": given_ % 2 == 0},
        header=header,
    )
    with tempfile.TemporaryDirectory() as folder:
        report = save(folder, content, shard_bytes=shard_bytes)
        saved = Saved.open(folder)
        saved.verify()
        check_same(saved, content)
    assert (saved.id, saved.format_version, len(saved)) == (report.id, 4, len(numbers))
    assert report.blocks == len(numbers)


def test_an_empty_memory_is_saved_too(tmp_path: Path) -> None:
    content = made([], kinds=())
    save(tmp_path / "new" / "folder", content)
    check_same(Saved.open(tmp_path / "new" / "folder"), content)


def test_files_are_safetensors_of_bounded_size_that_only_the_owner_reads(tmp_path: Path) -> None:
    content = made(range(60))
    limit = 10 * FULL.nbytes
    folder = tmp_path / "memory"
    report = save(folder, content, shard_bytes=limit)
    files = [path for path in folder.iterdir() if path.name.startswith("blocks-")]
    assert len(files) == report.shards_written > 3
    for path in files:
        tensors = load_file(path)
        assert set(tensors) in (set(FULL.parts), set(CODES.parts))
        assert sum(t.numel() * t.element_size() for t in tensors.values()) <= limit
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_rows_lie_by_session_and_number(tmp_path: Path) -> None:
    content = made([9, 3, 8, 0, 5, 2, 6, 1, 7, 4], kinds=(CODES,))
    save(tmp_path, content)
    (batch,) = Saved.open(tmp_path).batches()
    assert content.numbers[batch.positions].tolist() == [0, 3, 6, 9, 1, 4, 7, 2, 5, 8]


def test_a_batch_is_the_mapped_file_and_private(tmp_path: Path) -> None:
    content = made(range(8), kinds=(FULL,))
    save(tmp_path, content)
    saved = Saved.open(tmp_path)
    (batch,) = saved.batches()
    starts = sorted(t.untyped_storage().data_ptr() for t in batch.parts.values())
    file = next(tmp_path.glob("blocks-*"))
    assert starts[-1] - starts[0] < file.stat().st_size  # all in one mapping
    for rows in batch.parts.values():
        rows.zero_()
    saved.verify()
    check_same(Saved.open(tmp_path), content)


def test_only_rows_of_the_wanted_sessions_come(tmp_path: Path) -> None:
    content = made(range(40))
    save(tmp_path, content, shard_bytes=6 * FULL.nbytes)
    saved = Saved.open(tmp_path)
    for wanted in ([1], [0, 2], [7], []):
        seen = []
        for batch in saved.batches(wanted):
            seen += batch.positions.tolist()
            for name, rows in batch.parts.items():
                assert same_bytes(rows, content.rows(batch.kind, name, batch.positions))
        assert sorted(seen) == [i for i in range(40) if i % 3 in wanted]


def test_a_session_needs_no_other_file(tmp_path: Path) -> None:
    """Files without blocks of the session are not opened: damage in them does not matter."""
    content = made(range(60), kinds=(CODES,))
    save(tmp_path, content, shard_bytes=5 * CODES.nbytes)
    saved = Saved.open(tmp_path)
    own = {int(n) for n in content.numbers[content.session == 2]}
    for path in tmp_path.glob("blocks-*"):
        scales = load_file(path)["scale"]
        of_file = {
            n
            for n in range(60)
            if any(same_bytes(s, content.rows(0, "scale", torch.tensor([n]))[0]) for s in scales)
        }
        if not of_file & own:
            path.unlink()
    assert len(list(tmp_path.glob("blocks-*"))) < 12
    saved.verify([2])
    assert sum(len(batch.positions) for batch in saved.batches([2])) == len(own)
    with pytest.raises(ValueError, match=r"regular file expected"):
        saved.verify()


def test_rows_are_given_in_the_order_asked_for(tmp_path: Path) -> None:
    content = made(range(30))
    save(tmp_path, content, shard_bytes=4 * FULL.nbytes)
    saved = Saved.open(tmp_path)
    at = torch.tensor([28, 2, 0, 14, 6])
    for name in FULL.parts:
        assert same_bytes(saved.rows(0, name, at), content.rows(0, name, at))
    with pytest.raises(ValueError, match="2 blocks of kind 0 expected"):
        saved.rows(0, "index", torch.tensor([2, 3]))


def test_an_opened_memory_can_be_saved_elsewhere(tmp_path: Path) -> None:
    content = made(range(30))
    save(tmp_path / "a", content, shard_bytes=3 * FULL.nbytes)
    save(tmp_path / "b", Saved.open(tmp_path / "a"))
    check_same(Saved.open(tmp_path / "b"), content)


def _bad(**change):
    return dataclasses.replace(made(range(6)), **change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_bad(numbers=torch.tensor([0, 1, 2, 2, 3, 4])), "some twice"),
        (_bad(numbers=torch.tensor([0, 1, 2, -3, 4, 5])), "start at 0, got -3"),
        (_bad(numbers=torch.arange(6).float()), "int64 expected"),
        (_bad(kind=torch.full((6,), 2)), r"kinds 0\.\.1 expected"),
        (_bad(session=torch.zeros(5, dtype=torch.int64)), r"session: \[6\] int64 expected"),
        (_bad(columns={"x": torch.zeros(5)}), r"\[6, ...\] expected, got \[5\]"),
        (_bad(columns={"../x": torch.zeros(6)}), "name of a column"),
        (_bad(columns={"x": torch.zeros(6, dtype=torch.complex64)}), "complex64"),
        (_bad(header={"x": math.nan}), "finite numbers"),
        (_bad(header={1: 2}), "keys of a header are strings"),
        (_bad(header={"x": torch.zeros(1)}), "plain JSON"),
        (_bad(header=[]), "a header is a dict"),
        (_bad(kinds=(FULL, FULL)), "different names"),
        (_bad(kinds=(FULL, Kind("a/b", {}))), "name of a kind"),
        (_bad(kinds=(FULL, Kind("b", {"x": Part(torch.bool, ())}))), "stored as uint8"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(
    tmp_path: Path, content, message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        save(tmp_path / "memory", content)
    assert not (tmp_path / "memory").exists()
