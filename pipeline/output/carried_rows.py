"""Carry rows over to the page of images that takes the place of another page, so that nothing is done twice.

An update that drops images makes a new page of those that stay. Their rows are those of the old page with new
indexes, and its units end where those of the old page ended.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.output.commit import Damaged, count_errors, footer_dict, parquet_bytes, read_table
from wordsworth.pipeline.output.committed import ShardUnits, unit_file
from wordsworth.pipeline.output.records import FOOTER_KEY, UnitFooter
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.atomic import put_if_absent

UNREAD = ("too_many_bytes", "not_found", "forbidden", "archived")  # errors of images that were not read


def carry_rows(run: RunFolder, old: Shard, new: Shard, done: ShardUnits) -> None:
    """Write the units of a page whose images are some of another page's, as far as that page is labelled.

    What is not carried over is read and labelled like any unit that is missing.

    Args:
        run: the run folder.
        old: the page with all images.
        new: the page with the images that stay.
        done: units of the old page that are done.
    """
    stay = {member["key"] for member in new.members}
    stays = np.array([member["key"] in stay for member in old.members])
    num_before = np.concatenate([[0], np.cumsum(stays)])  # images of the new page before each of the old one
    number = 0
    for unit in range(done.contiguous):
        last = done.complete and unit == done.contiguous - 1
        try:
            table = read_table(run.fs, run.path("predictions", unit_file(old.name, unit, last)))
            footer = UnitFooter.from_dict(footer_dict(table.schema) or {})
        except (Damaged, FileNotFoundError, KeyError, TypeError):
            return
        place = table["index"].to_numpy() - old.first_index
        rows = table.filter(pa.array(stays[place]))
        if not rows.num_rows and not last:
            continue
        index = new.first_index + num_before[place[stays[place]]]
        rows = rows.set_column(rows.column_names.index("index"), "index", pa.array(index, pa.int32()))
        end = int(num_before[footer.next_index])
        footer = replace(
            footer,
            shard_name=new.name,
            unit=number,
            rows=rows.num_rows,
            errors=count_errors(rows),
            bytes_read=_bytes_read(rows),
            next_offset=end,
            next_index=end,
        )
        path = run.path("predictions", unit_file(new.name, number, last))
        put_if_absent(
            run.fs, path, parquet_bytes(rows.replace_schema_metadata({FOOTER_KEY: footer.to_json()}))
        )
        number += 1


def _bytes_read(rows: pa.Table) -> int:
    unread = pc.is_in(rows["error"], pa.array(UNREAD))
    return int(pc.sum(rows["size"].filter(pc.invert(unread))).as_py() or 0)
