"""Group the members of a tar into samples: consecutive members with one key.

A rule says what a key is. docs/sources.md shows what each makes of the same names.

    first-dot   a key ends at the first dot of the base name, as in webdataset
    last-dot    a key ends at the last dot
    auto        first-dot; but several images of a group that only their dots tell apart are a sample each

By auto, the members of one first-dot key are a group, which tar_split.py divides. A group is held until its
end, where it is known what the group has. A group of too many images is long: it is given in parts, as it is
read, each with the members of one last-dot key.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from wordsworth.pipeline.sources.tar import (
    MAX_MEMBER_BYTES,
    Member,
    OnNote,
    Readable,
    TarNote,
    WantMember,
    walk_members,
)
from wordsworth.pipeline.sources.tar_headers import BLOCK, TarCut
from wordsworth.pipeline.sources.tar_keys import (
    AUTO,
    FIRST_DOT,
    LAST_DOT,
    skip_reason,
    split_key,
    split_last_dot,
)

# A group is long if it has more than this beside the first image, and no image without dots before.
MAX_GROUP_IMAGES = 1024  # images
MAX_GROUP_BYTES = 64 << 20  # bytes of these images
MAX_SIDECAR_BYTES = 64 << 20  # bytes of the sidecars with dots that a group holds; later ones are not held


@dataclass(frozen=True, kw_only=True)
class SampleRule:
    """Say how members become samples.

    Attributes:
        key_rule: FIRST_DOT, LAST_DOT or AUTO
        image_keys: extensions of images; AUTO needs them
        keep: fields that are kept; AUTO needs them
        include_hidden: take the names too that are skipped: see skipped_names.py
    """

    key_rule: str = FIRST_DOT
    image_keys: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    include_hidden: bool = False


WEBDATASET = SampleRule()


@dataclass(slots=True)
class DottedFields:
    """Count the fields of a group whose extensions have dots.

    Attributes:
        first_key: last-dot key of the first image
        num_images: images with another last-dot key
        image_bytes: bytes of these images
        sidecar_bytes: bytes of the other fields, as far as they were read
    """

    first_key: str | None = None
    num_images: int = 0
    image_bytes: int = 0
    sidecar_bytes: int = 0

    def is_long_with(self, image: Member) -> bool:
        """Count an image; return whether the group is a long one now."""
        key = split_last_dot(image.name)[0]
        if self.first_key is None:
            self.first_key = key
        if key != self.first_key:
            self.num_images += 1
            self.image_bytes += image.size
        return self.num_images > MAX_GROUP_IMAGES or self.image_bytes > MAX_GROUP_BYTES

    def has_room_for(self, sidecar: Member) -> bool:
        """Count a sidecar; return whether it can be held."""
        if sidecar.data is not None:
            self.sidecar_bytes += sidecar.size
        return self.sidecar_bytes <= MAX_SIDECAR_BYTES


@dataclass(slots=True)
class TarSample:
    """Hold consecutive members of one key. `start` and `end` are byte offsets in the tar.

    Attributes:
        key: key of all members, by the rule
        fields: members by extension; one that was not asked for has neither data nor a refusal. A part may
            have an extension again, so its names are longer
        start: the first member begins here
        end: behind the last member
        cut: whether the tar broke before the end of this sample was seen: fields may be missing
        dotted: counts of the fields with dots; None where there are none, or by another rule than AUTO
        part: number of this part of a long group, from 1 on; 0 for a group that is whole
        part_key: last-dot key of the newest members of a part
        group_start: byte where the group begins that this sample is one of several of; else None
        next_in_group: samples of the group up to this one, if more of them may follow; else 0
    """

    key: str
    fields: dict[str, Member]
    start: int
    end: int = 0
    cut: bool = False
    dotted: DottedFields | None = None
    part: int = 0
    part_key: str = ""
    group_start: int | None = None
    next_in_group: int = 0

    @property
    def next(self) -> int:
        """Return the byte where reading can begin again: behind `next_in_group` samples follows the rest."""
        return self.group_start if self.group_start is not None and self.next_in_group else self.end


def read_samples(
    stream: Readable,
    start: int = 0,
    max_member_bytes: int = MAX_MEMBER_BYTES,
    want_field: WantMember | None = None,
    on_note: OnNote | None = None,
    rule: SampleRule = WEBDATASET,
) -> Iterator[TarSample]:
    """Yield the samples of a tar: consecutive members with one key, without the members of `is_skipped`.

    A repeated extension begins a new sample with the same key, so nothing is dropped. By AUTO these are
    groups, or parts of long groups.

    Args:
        stream: the tar, uncompressed, at byte `start`, where a member begins
        start: byte of the tar
        max_member_bytes: bytes of a member; a larger one comes without data and with `refused` set
        want_field: says by its extension whether a field's data are read; a sample of unwanted fields comes
            all the same
        on_note: hears of what no sample shows
        rule: what a key is

    Raises:
        TarCut: the tar ends or breaks. What was collected of the broken sample is yielded first and marked
            `cut`. The caller decides whether to keep that sample, since its last field may have been whole.
    """
    asked = _AskedMember(want_field, rule)
    has_groups = rule.key_rule == AUTO
    sample: TarSample | None = None
    try:
        for member in walk_members(stream, start, max_member_bytes, asked.want, on_note):
            if asked.skipped is not None:
                if on_note:
                    on_note(TarNote("skipped", member.start, member.name, asked.skipped))
                continue
            extension = asked.extension
            if sample is None or asked.key != sample.key or _ends(sample, extension, member):
                if sample is not None:
                    yield sample
                sample = _begin(asked.key, member, sample)
            if has_groups and (sample.dotted is not None or "." in extension):
                _add_to_group(member, extension, sample, rule)
            else:
                sample.fields[extension] = member
            sample.end = member.offset + member.size + -member.size % BLOCK
    except TarCut:
        if sample is not None:
            sample.cut = True
            yield sample
        raise
    if sample is not None:
        yield sample


class _AskedMember:
    """Hold the key and extension of the member that `walk_members` asked about last, and then yields."""

    def __init__(self, want_field: WantMember | None, rule: SampleRule):
        self._want_field = want_field
        self._split = split_last_dot if rule.key_rule == LAST_DOT else split_key
        self._include_hidden = rule.include_hidden
        self.skipped: str | None = None
        self.key = ""
        self.extension = ""

    def want(self, name: str) -> bool:
        self.skipped = skip_reason(name, self._include_hidden)
        self.key, self.extension = self._split(name)
        if self.skipped is not None:
            return False
        return self._want_field is None or self._want_field(self.extension)


# ---- groups -----------------------------------------------------------------------------------------------


def _ends(sample: TarSample, extension: str, member: Member) -> bool:
    """Return whether a sample ends before a member that has its key."""
    if not sample.part:
        return extension in sample.fields
    key, last = split_last_dot(member.name)
    if key != sample.part_key:
        return True
    for other in reversed(sample.fields.values()):
        other_key, other_last = split_last_dot(other.name)
        if other_key != key:
            return False
        if other_last == last:
            return True
    return False


def _begin(key: str, member: Member, before: TarSample | None) -> TarSample:
    """Return the sample that begins with a member: a new one, or the next part of a long group."""
    sample = TarSample(key, {}, member.start)
    if before is not None and before.part and before.key == key:
        sample.part = before.part + 1
        sample.part_key = split_last_dot(member.name)[0]
    return sample


def _add_to_group(member: Member, extension: str, group: TarSample, rule: SampleRule) -> None:
    """Add a member to a group that has fields with dots, without data that the group cannot need.

    Once a group has an image without dots, that one is labelled, and the others need no data.
    """
    if group.dotted is None:
        group.dotted = DottedFields()
    is_dotted = "." in extension and extension not in rule.image_keys
    is_settled = any(name in group.fields for name in rule.image_keys)
    if is_dotted and not is_settled and not group.part:
        if extension.rpartition(".")[2] in rule.image_keys:
            if group.dotted.is_long_with(member):
                group.part = 1
                group.part_key = split_last_dot(member.name)[0]
        elif extension not in rule.keep and not group.dotted.has_room_for(member):
            member = replace(member, data=None)
    if group.part:
        extension = f"{extension} {member.start}"
    elif extension in rule.image_keys:
        for name, other in group.fields.items():
            group.fields[name] = _without_data(other, name, rule)
    elif is_settled:
        member = _without_data(member, extension, rule)
    group.fields[extension] = member


def _without_data(member: Member, extension: str, rule: SampleRule) -> Member:
    """Return a field of a group that has an image without dots, without data that nothing asks for."""
    if "." not in extension or extension in rule.keep or extension in rule.image_keys:
        return member
    return replace(member, data=None)
