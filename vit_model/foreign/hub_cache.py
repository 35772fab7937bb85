"""Find what the cache of Hugging Face's programs has of a repository: refs/NAME and snapshots/COMMIT."""

import re
from dataclasses import dataclass
from pathlib import Path

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.hub_folder import read_json
from wordsworth.vit_model.model_folder import write_whole_file

SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubCache:
    """Hold the place of a repository in the cache.

    Attributes:
        root: the folder of the cache.
        repository: OWNER/NAME.
    """

    root: Path
    repository: str

    @property
    def place(self) -> Path:
        """Return the folder of the repository."""
        return self.root / f"models--{self.repository.replace('/', '--')}"

    def folder(self, commit: str) -> Path:
        """Return the folder of a commit's files, which may not be there."""
        return self.place / "snapshots" / commit

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a revision was when it was fetched, or None if it never was."""
        if COMMIT.fullmatch(revision):
            return revision
        ref = self.place / "refs" / revision
        if ref.is_file():
            return ref.read_text().strip()
        if SHORT_COMMIT.fullmatch(revision) and (self.place / "snapshots").is_dir():
            commits = [path.name for path in (self.place / "snapshots").iterdir()]
            matching = [commit for commit in commits if commit.startswith(revision)]
            return matching[0] if len(matching) == 1 else None
        return None

    def keep_revision(self, revision: str, commit: str) -> None:
        """Remember the commit of a branch or a tag for times without a network."""
        shortened = SHORT_COMMIT.fullmatch(revision) and commit.startswith(revision)
        if shortened or self.commit_of(revision) == commit:
            return
        ref = self.place / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_whole_file(ref, commit.encode())

    def has(self, commit: str, names: list[str]) -> bool:
        """Return whether the files are there, and the parts of sharded weights with them."""
        folder = self.folder(commit)
        for name in names:
            if not (folder / name).is_file():
                return False
            if name.endswith(".index.json") and not self.has(commit, parts_of(folder / name)):
                return False
        return True


def parts_of(index: Path) -> list[str]:
    """Return the names of the files of sharded weights, in the folder of their index.

    Raises:
        ModelError: the index is broken, or names files outside of its folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} names no files of weights")
    names = sorted(set(map(str, weight_map.values())))
    if any(Path(name).name != name for name in names):
        raise ModelError(f"{index} names files outside of its folder")
    return names
