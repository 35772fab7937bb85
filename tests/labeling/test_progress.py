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


def test_a_tar_with_several_images_of_a_sample_is_named_once_and_of_many_tars_the_first(tmp_path):
    watcher = Watcher()
    counter = ReceiptCounter(SimpleNamespace(note=watcher.note, receipt=watcher.receipt))
    members = [(f"{number}.{view}.jpg", b"bytes") for number in range(9) for view in ("left", "right")]
    paths = [write_tar(tmp_path / f"{number}.tar", members) for number in range(8)]
    masks = write_tar(tmp_path / "masks.tar", [("a.jpg", b"bytes"), ("a.seg.png", b"bytes")])
    for path in (*paths, masks):
        for receipt in receipts(path):
            counter.add(receipt)
    assert len(watcher.receipts) > 3 * len(paths)
    *named, more, one_of_each = watcher.notes
    told = "has images that only their dots tell apart: each is a row"
    assert [note.partition(told)[0] for note in named] == [f"{path} " for path in paths[:5]]
    assert more == "more shards do so: skipped_members of summary.json counts dotted_key"
    assert one_of_each.startswith(f"{masks} has samples with several images: one of each is labelled")
