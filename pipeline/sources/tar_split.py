"""Divide a group of a tar into samples, by the rule AUTO: see tar_groups.py.

* The group has an image without dots, as `jpg`: one sample.
* Its images have dots and one last-dot key, as `a.seg.png` alone: one sample.
* Its images have dots and several last-dot keys, as `22.01.png` and `22.02.png`: a sample for each of these
  keys, with the members of that key. All other members of the group are sidecars of every sample.
* The group is long: a sample for each last-dot key with an image, with the members of that key alone.
"""

from collections.abc import Iterator

from wordsworth.pipeline.sources.tar import Member, OnNote, Readable, WantMember
from wordsworth.pipeline.sources.tar_groups import SampleRule, TarSample, read_samples
from wordsworth.pipeline.sources.tar_headers import BLOCK
from wordsworth.pipeline.sources.tar_keys import AUTO, split_last_dot


def read_by_rule(
    stream: Readable,
    start: int,
    max_member_bytes: int,
    want_field: WantMember | None,
    on_note: OnNote,
    rule: SampleRule,
) -> Iterator[TarSample]:
    """Yield the samples of a tar by a rule; the arguments are those of `read_samples`, which says more.

    A place in the tar is a byte and a number of samples: reading can begin again at byte `TarSample.next`,
    and the first `TarSample.next_in_group` samples from there were given before.
    """
    groups = read_samples(stream, start, max_member_bytes, want_field, on_note, rule)
    return split_groups(groups, rule.image_keys) if rule.key_rule == AUTO else groups


def split_groups(groups: Iterator[TarSample], image_keys: tuple[str, ...]) -> Iterator[TarSample]:
    """Yield the samples of the groups that `read_samples` yields by AUTO.

    The first samples of a group are the same whether or not the tar breaks behind them, but for a group that
    is held when the tar breaks: its samples are marked `cut`.
    """
    group_start = 0
    num_given = 0  # samples of the long group that were given
    for group in groups:
        if group.part:
            if group.part == 1:
                group_start = group.start
                num_given = 0
            for sample in _samples_of_part(group, image_keys):
                num_given += 1
                sample.group_start = group_start
                sample.next_in_group = num_given
                yield sample
        elif group.dotted is None:  # the usual case
            yield group
        else:
            yield from _samples_of_group(group, image_keys)


def shared_keys(group: TarSample, image_keys: tuple[str, ...]) -> list[str]:
    """Return the last-dot keys of the images of a group that only their dots tell apart; else none."""
    if any(extension in image_keys for extension in group.fields):
        return []
    keys = list(_first_images(group, image_keys))
    return keys if len(keys) > 1 else []


def _first_images(group: TarSample, image_keys: tuple[str, ...]) -> dict[str, Member]:
    """Return the first image of each last-dot key, in the order of the tar."""
    images: dict[str, Member] = {}
    for extension, member in group.fields.items():
        if extension.rpartition(".")[2] in image_keys:
            images.setdefault(split_last_dot(member.name)[0], member)
    return images


def _samples_of_group(group: TarSample, image_keys: tuple[str, ...]) -> Iterator[TarSample]:
    keys = shared_keys(group, image_keys)
    if not keys:
        yield group
        return
    own: dict[str, dict[str, Member]] = {key: {} for key in keys}
    shared: dict[str, Member] = {}
    for extension, member in group.fields.items():
        key, last = split_last_dot(member.name)
        if key in own:
            own[key][last] = member
        else:
            shared[extension] = member
    for number, image in enumerate(_first_images(group, image_keys).values(), 1):
        key = keys[number - 1]
        is_last = number == len(keys)
        fields = own[key] | {name: member for name, member in shared.items() if name not in own[key]}
        sample = _sample(key, fields, image, group)
        sample.group_start = group.start
        sample.next_in_group = 0 if is_last else number
        if is_last:
            sample.end = group.end
        yield sample


def _samples_of_part(part: TarSample, image_keys: tuple[str, ...]) -> Iterator[TarSample]:
    """Yield the samples of a part of a long group: consecutive members with one last-dot key and an image."""
    key = ""
    fields: dict[str, Member] = {}
    for member in part.fields.values():
        own_key, last = split_last_dot(member.name)
        if own_key != key or last in fields:
            yield from _sample_with_image(key, fields, part, image_keys)
            fields = {}
        key = own_key
        fields[last] = member
    yield from _sample_with_image(key, fields, part, image_keys)


def _sample_with_image(
    key: str, fields: dict[str, Member], part: TarSample, image_keys: tuple[str, ...]
) -> Iterator[TarSample]:
    for extension, member in fields.items():
        if extension in image_keys:
            yield _sample(key, fields, member, part)
            return


def _sample(key: str, fields: dict[str, Member], image: Member, group: TarSample) -> TarSample:
    """Return a sample that begins and ends with its first image, so that these places grow in the tar."""
    end = image.offset + image.size + -image.size % BLOCK
    return TarSample(key, fields, image.start, end=end, cut=group.cut)
