"""Say what a listing is to take, and count what it passes over."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.sources.unread_formats import most_common, unread_notes, without_unread

MAX_LEFT_OUT_NAMED = 100  # links and special files that a listing names; the others are counted together
MORE = "more"  # name of the others

# Kinds of what is left out by name, and the note of each: what it is, one and several, and what to do.
LEFT_OUT = {
    "outside": (
        "link to a folder outside the source",
        "links to folders outside the source",
        "--follow-links outside takes their files",
    ),
    "inside": (
        "link to a folder inside the source",
        "links to folders inside the source",
        "their files come under the folders' own names",
    ),
    "loop": ("link to a folder above itself", "links to folders above themselves", "their files come once"),
    "matched": (
        "folder that a glob matches",
        "folders that a glob matches",
        "add /** to the glob, and their files are taken",
    ),
    "run": (
        "table of predictions that a run of Wordsworth wrote",
        "tables of predictions that a run of Wordsworth wrote",
        "they hold no images",
    ),
    "other_kind": (
        "file of another kind than the first of its source",
        "files of another kind than the first of their source",
        "name them as a further source",
    ),
    "forbidden": (
        "folder that may not be listed",
        "folders that may not be listed",
        "allow it, and --update takes their files",
    ),
    "dangling": (
        "link that leads nowhere",
        "links that lead nowhere",
        "mount what they lead to, and --update takes it",
    ),
    "name": (
        "file whose name is not UTF-8",
        "files whose names are not UTF-8",
        "rename them, and --update takes them",
    ),
    "repeated": ("name that came before", "names that came before", "each image is labelled once"),
    "special": (
        "file that is neither file nor folder, such as a pipe",
        "files that are neither files nor folders, such as pipes",
        "they cannot be read twice",
    ),
}


@dataclass(frozen=True, kw_only=True)
class ListingRules:
    """Say what a listing takes beside plain files and folders.

    Attributes:
        include_hidden: take the names too that are skipped: see skipped_names.py
        follow_links: "inside" or "outside", as `FolderLinks` has it
    """

    include_hidden: bool = False
    follow_links: str = "inside"


@dataclass(slots=True)
class PassedOver:
    """Count what a listing passed over.

    Attributes:
        ignored: files that are neither shards nor images, by extension
        skipped: files and folders that were skipped by their names, by kind
        left_out: links and folders that were not followed, and special files, by "KIND: path -> target"
    """

    ignored: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def leave_out(self, kind: str, path: str, count: int = 1) -> None:
        """Count a link or a special file, and name it if there are not too many."""
        name = f"{kind}: {path}"
        if len(self.left_out) >= MAX_LEFT_OUT_NAMED and name not in self.left_out:
            name = f"{kind}: {MORE}"
        self.left_out[name] += count

    def copy(self) -> "PassedOver":
        """Return a copy that stays as it is."""
        return PassedOver(Counter(self.ignored), Counter(self.skipped), Counter(self.left_out))

    def since(self, before: "PassedOver") -> "PassedOver":
        """Return what came after `before`, a copy made earlier."""
        return PassedOver(
            self.ignored - before.ignored, self.skipped - before.skipped, self.left_out - before.left_out
        )

    def add(self, other: "PassedOver") -> None:
        """Add the counts of another part of the listing."""
        self.ignored.update(other.ignored)
        self.skipped.update(other.skipped)
        for name, count in other.left_out.items():
            kind, _, path = name.partition(": ")
            self.leave_out(kind, path, count)

    def take(self) -> "PassedOver | None":
        """Return the counts and forget them; None if there are none."""
        if not (self.skipped or self.left_out or self.ignored):
            return None
        taken = self.copy()
        self.ignored.clear()
        self.skipped.clear()
        self.left_out.clear()
        return taken

    def notes(self) -> Iterator[str]:
        """Yield what the user should know: one line for the ignored files, one for each other reason."""
        others = without_unread(self.ignored)
        if others:
            yield f"ignored {plural(others.total(), 'file')} of other kinds: {most_common(others)}"
        yield from self.serious_notes()

    def serious_notes(self) -> Iterator[str]:
        """Yield the notes on what may hold images."""
        yield from unread_notes(self.ignored)
        if self.skipped:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.skipped.most_common())
            yield f"skipped by their names: {kinds}; --include-hidden takes them"
        for kind, (one, several, hint) in LEFT_OUT.items():
            prefix = f"{kind}: "
            names = {name: n for name, n in self.left_out.items() if name.startswith(prefix)}
            if names:
                shown = [name.removeprefix(prefix) for name in names if not name.endswith(f": {MORE}")]
                more = names.get(f"{prefix}{MORE}", 0)
                rest = f" and {more} more" if more else ""
                count = plural(sum(names.values()), one, several)
                yield f"left out {count}: {', '.join(shown)}{rest}; {hint}"
