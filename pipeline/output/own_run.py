"""Prove that a process writes into the run that its command planned: to the same store or the same disk."""

import socket

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.prediction_rows import WriteSettings
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.storage.filesystem import is_local, without_credentials
from wordsworth.pipeline.storage.store_view import DISK_REMEDY, STORE_REMEDY

_seen: set[tuple[str, str]] = set()  # outputs and ids of runs whose plan this process has seen


def refuse_another_store(settings: WriteSettings) -> None:
    """Look, once in a process, whether the output holds the plan of the run that the command froze.

    A node may join a cluster after the command has looked at all nodes. Without this look, it could write to
    a store or a disk of its own, where nobody looks for the rows.

    Raises:
        UserError: there is no plan, or another one.
    """
    run_id = settings.provenance.run_id
    if (settings.output, run_id) in _seen:
        return
    folder = RunFolder(settings.output, settings.storage_options)
    plan = folder.plan()
    if plan is None or plan.run_id != run_id:
        sees = "no run" if plan is None else "another run"
        remedy = DISK_REMEDY if is_local(folder.fs) else STORE_REMEDY
        raise UserError(
            f"node {socket.gethostname()} sees {sees} in {without_credentials(settings.output)}, so it would "
            f"write elsewhere than this command: {remedy}. What is done is kept: run the same command again"
        )
    _seen.add((settings.output, run_id))
