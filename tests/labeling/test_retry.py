"""Show what --retry-errors fetches again, without a model."""

from pathlib import Path

from tests.support.runs import build, read_rows
from wordsworth.pipeline.labeling.retry import fetch_failed
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.samples import ReadSettings


def test_lost_images_that_came_back_are_fetched_and_the_others_keep_their_code(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(bytes(10 + number))
    for name in ("link.jpg", "lost.jpg"):
        (folder / name).symlink_to(tmp_path / name)

    def with_one_away(shard):
        (folder / "1.jpg").rename(tmp_path / "away")
        rows = read_rows(shard)
        (tmp_path / "away").rename(folder / "1.jpg")
        return rows

    out = build(tmp_path / "out", folder, reader=with_one_away)
    (tmp_path / "link.jpg").write_bytes(b"mended")
    (shard,) = find_shards([str(folder)]).shards
    (file,) = (Path(out) / "predictions").iterdir()
    unit = fetch_failed(RunFolder(str(out)), shard, file.name, ReadSettings(unit_rows=4))
    assert unit.fault is None and unit.payload.tobytes() == bytes(11) + b"mended"
    assert [(row["key"], row["size"], row["error"]) for row in unit.samples.to_pylist()] == [
        ("1.jpg", 11, None),
        ("link.jpg", 6, None),
        ("lost.jpg", 0, "not_found"),
    ]
