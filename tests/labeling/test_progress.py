"""Show what a command tells of the units that it counts."""

from types import SimpleNamespace

from tests.support.labelling import Watcher
from tests.support.samples import units_of, write_tar
from wordsworth.pipeline.labeling.progress import ReceiptCounter
from wordsworth.pipeline.output.commit import make_receipt
from wordsworth.pipeline.output.records import Receipt


def receipts(path):
    """Return the receipts of a tar's units, as they come from Ray."""
    for unit in units_of(path):
        made = make_receipt(unit, rows=len(unit.samples), errors={}, written=True)
        yield Receipt.from_row(made.to_arrow().to_pylist()[0])


def test_a_key_that_comes_twice_in_a_unit_is_said_once(tmp_path):
    watcher = Watcher()
    counter = ReceiptCounter(SimpleNamespace(note=watcher.note, receipt=watcher.receipt))
    members = [(f"{name}.jpg", b"bytes") for name in "abcaddeefghi"]
    for receipt in receipts(write_tar(tmp_path / "a.tar", members)):
        counter.add(receipt)
    assert [receipt.repeated_key for receipt in watcher.receipts] == ["a", "d", None]
    (note,) = watcher.notes
    assert note.startswith(f"{tmp_path}/a.tar has the key 'a' more than once")
