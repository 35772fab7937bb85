"""Choose the fields of a tar's sample: its image and its sidecars."""

from wordsworth.pipeline.sources.samples import EncodedSample, ReadSettings
from wordsworth.pipeline.sources.tar import Member, WantMember
from wordsworth.pipeline.sources.tar_groups import SampleRule, TarSample
from wordsworth.pipeline.sources.tar_keys import AUTO, split_last_dot


def sample_rule(settings: ReadSettings) -> SampleRule:
    """Return how members become samples."""
    return SampleRule(
        key_rule=settings.key_rule,
        image_keys=settings.image_keys,
        keep=settings.keep,
        include_hidden=settings.include_hidden,
    )


def wanted_fields(settings: ReadSettings) -> WantMember:
    """Return the test for fields whose data are read: the sidecars to keep, and images.

    By AUTO, the sidecar `01.json` of a group is the `json` of the image `01.png`.
    """
    whole = {*settings.keep, *settings.image_keys}
    last = whole if settings.key_rule == AUTO else set(settings.image_keys)
    return lambda extension: extension in whole or extension.rpartition(".")[2] in last


def is_image(extension: str, image_keys: tuple[str, ...]) -> bool:
    """Return whether a field is an image, by the last part of its extension: `img.v1.2.jpg` is one."""
    return extension in image_keys or extension.rpartition(".")[2] in image_keys


def other_images(sample: TarSample, settings: ReadSettings) -> int:
    """Return the number of a sample's images beside the one that is labelled."""
    if len(sample.fields) == 1:
        return 0
    images = [name for name in sample.fields if is_image(name, settings.image_keys)]
    return max(0, len(images) - 1)


def image_field(sample: TarSample, settings: ReadSettings) -> str | None:
    """Return the field that is labeled: the first of the image keys, else the first that ends in one."""
    for extension in settings.image_keys:
        if extension in sample.fields:
            return extension
    for extension in sample.fields:
        if is_image(extension, settings.image_keys):
            return extension
    return None


def encoded_sample(sample: TarSample, settings: ReadSettings) -> EncodedSample:
    """Return the image and the sidecars of a tar's sample, or the reason why the image is missing."""
    name = image_field(sample, settings)
    kept = [_text(sidecar(sample, wanted, name, settings.key_rule)) for wanted in settings.keep]
    made = EncodedSample(key=sample.key, next=sample.next, next_in_group=sample.next_in_group, sidecars=kept)
    if name is None:
        made.error = "missing_image"
        made.detail = f"has only {', '.join(sample.fields) or 'nothing'}"
        return made
    member = sample.fields[name]
    made.offset = member.offset
    made.size = member.size
    if member.data is None:
        made.error = member.refused
        made.detail = f"{member.size} bytes"
    else:
        made.data = member.data
    return made


def sidecar(sample: TarSample, wanted: str, image: str | None, key_rule: str) -> Member | None:
    """Return the member that is a sample's sidecar of an extension; None where there is none.

    By AUTO, the `json` of the image `22.01.png` is `22.json` or else `22.01.json`.

    Args:
        sample: the sample
        wanted: extension of the sidecar
        image: field that is labelled, or None
        key_rule: the rule
    """
    member = sample.fields.get(wanted)
    if member is not None or key_rule != AUTO or image is None or "." not in image:
        return member
    own = sample.fields.get(f"{image.rpartition('.')[0]}.{wanted}")
    if own is None or split_last_dot(own.name)[0] != split_last_dot(sample.fields[image].name)[0]:
        return None
    return own


def _text(member: Member | None) -> str | None:
    if member is None or member.data is None:
        return None
    return member.data.decode("utf-8", "backslashreplace")
