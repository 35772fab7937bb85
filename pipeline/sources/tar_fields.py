"""Choose the fields of a tar's sample: its image and its sidecars."""

from wordsworth.pipeline.sources.samples import EncodedSample, ReadSettings
from wordsworth.pipeline.sources.tar import Member, TarSample, WantMember


def wanted_fields(settings: ReadSettings) -> WantMember:
    """Return the test for fields whose data are read: the sidecars to keep, and images."""
    keep = set(settings.keep)
    return lambda extension: extension in keep or is_image(extension, settings.image_keys)


def is_image(extension: str, image_keys: tuple[str, ...]) -> bool:
    """Return whether a field is an image, by the last part of its extension: `img.v1.2.jpg` is one."""
    return extension.rpartition(".")[2] in image_keys


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
    kept = [_text(sample.fields.get(name)) for name in settings.keep]
    made = EncodedSample(key=sample.key, next=sample.end, sidecars=kept)
    name = image_field(sample, settings)
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


def _text(member: Member | None) -> str | None:
    if member is None or member.data is None:
        return None
    return member.data.decode("utf-8", "backslashreplace")
