"""Leave short texts in the cluster's own store: why an actor was started again."""

from wordsworth.pipeline.cluster.ray_internals.gate import ray_is_known


def leave_note(key: bytes, text: str) -> None:
    """Leave a short text in the cluster's own store, for other processes of the job.

    Gives the reason why an actor was started again to its next process and to the driver. Fails with
    AttributeError where Ray has renamed what is called. Stock Ray has no such store: nobody finds the note.
    """
    if ray_is_known():
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(key, text.encode())


def find_notes(prefix: bytes, timeout_s: float | None = None) -> dict[bytes, str]:
    """Return the texts that `leave_note` left under keys with a prefix. Stock Ray has none.

    Args:
        prefix: of the keys.
        timeout_s: seconds that each of two requests may take; None for Ray's own limit.
    """
    if not ray_is_known():
        return {}
    from ray.experimental import internal_kv

    store = internal_kv.internal_kv_get_gcs_client()
    keys = store.internal_kv_keys(prefix, None, timeout_s)
    notes = store.internal_kv_multi_get(keys, None, timeout_s) if keys else {}
    return {key: notes[key].decode() for key in keys if key in notes}


def remove_notes(prefix: bytes, timeout_s: float | None = None) -> None:
    """Remove all that `leave_note` left under keys with a prefix. Stock Ray has nothing to remove."""
    if ray_is_known():
        from ray.experimental import internal_kv

        internal_kv.internal_kv_get_gcs_client().internal_kv_del(prefix, True, None, timeout_s)
