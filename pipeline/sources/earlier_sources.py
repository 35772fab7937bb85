"""Remember the sources of a listing, so that no later source gives the files of an earlier one again."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec
from fsspec.utils import glob_translate

from wordsworth.pipeline.sources.folder_links import FolderLinks
from wordsworth.pipeline.sources.passed_over import ListingRules, PassedOver
from wordsworth.pipeline.sources.skipped_names import NameFilter, part_below_pattern
from wordsworth.pipeline.sources.source_files import glob_pattern, root_of_glob
from wordsworth.pipeline.sources.source_names import NameSet
from wordsworth.pipeline.storage.filesystem import absolute_uri


@dataclass(slots=True)
class _Glob:
    """Hold a glob: number of its source, root and pattern as URIs, and what it matches."""

    source: int
    root: str
    pattern: str
    matches: re.Pattern[str]


class EarlierSources:
    """Say which files an earlier source gives already.

    A folder does not give the files whose names it skips, nor those behind links that it leaves out.

    Args:
        rules: what the listing takes
    """

    def __init__(self, rules: ListingRules):
        self.rules = rules
        self._first: dict[str, int] = {}  # number of the first source of each URI
        self._named = NameSet()  # URIs of sources that are called like images
        self._has_named_folders = False  # whether some of them may be folders
        self._globs: list[_Glob] = []
        self._walked: tuple[str, str, bool] = ("", "", False)  # the last answer: root, folder, verdict

    def note(self, number: int, fs: fsspec.AbstractFileSystem, path: str) -> None:
        """Remember a source."""
        self._first.setdefault(absolute_uri(fs, path).rstrip("/"), number)
        pattern = glob_pattern(fs, path)
        if pattern is None:
            return
        root = root_of_glob(fs, path) or ""
        with contextlib.suppress(ValueError):  # a pattern that matches nothing: listing it says so
            matches = re.compile(glob_translate(absolute_uri(fs, pattern)))
            self._globs.append(_Glob(number, absolute_uri(fs, root), path[len(root) :], matches))

    def note_named(self, uris: list[str], *, are_files: bool) -> list[bool]:
        """Remember sources that are called like images; return which of them came before.

        Args:
            uris: URIs of the sources.
            are_files: whether none of them can be a folder that `note` was not told of.
        """
        self._has_named_folders = self._has_named_folders or not are_files
        return self._named.add(uris)

    def give_named(self, number: int, uri: str, kinds: dict[int, str]) -> bool:
        """Return whether a folder or a glob in front of source `number` gives the image that it names."""
        return self._folders_give(number, uri, "images", kinds)

    def give(self, number: int, uri: str, kinds: dict[int, str]) -> bool:
        """Return whether a source in front of `number`, and of its kind, gives a file.

        Args:
            number: number of the source that the file is found in
            uri: URI of the file
            kinds: kind of each source, by its number
        """
        kind = kinds[number]
        if kind == "images" and uri in self._named:
            return True
        return self._folders_give(number, uri, kind, kinds)

    def _folders_give(self, number: int, uri: str, kind: str, kinds: dict[int, str]) -> bool:
        if number == 0:
            return False

        def is_earlier(source: int) -> bool:
            return source < number and kinds.get(source) == kind

        for name in _path_and_parents(uri) if self._first or self._has_named_folders else ():
            first = self._first.get(name)
            if first is None:
                is_before = kind == "images" and name != uri and self._is_named_folder(name)
            else:
                is_before = is_earlier(first)
            if is_before and self._reaches(name, uri):
                return True
        return any(
            is_earlier(glob.source) and glob.matches.match(uri) and self._matches(glob, uri)
            for glob in self._globs
        )

    def _is_named_folder(self, uri: str) -> bool:
        return self._has_named_folders and uri in self._named

    def _reaches(self, source: str, uri: str) -> bool:
        """Return whether a source that is a file's URI or a folder above takes the file."""
        if uri == source:
            return True
        below = uri[len(source.rstrip("/")) + 1 :]
        return self._takes_name(below) and self._is_walked(source, uri.rpartition("/")[0], "")

    def _matches(self, glob: _Glob, uri: str) -> bool:
        """Return whether a glob that matches a file's URI takes the file."""
        below = part_below_pattern(glob.pattern, uri[len(glob.root) :])
        return self._takes_name(below) and self._is_walked(glob.root, uri.rpartition("/")[0], glob.pattern)

    def _takes_name(self, below: str) -> bool:
        return NameFilter(Counter(), self.rules.include_hidden).takes_file(below)

    def _is_walked(self, root: str, folder: str, pattern: str) -> bool:
        """Return whether a listing looks into a folder below its root, whatever links lead there.

        Args:
            root: URI of the root
            folder: URI of the folder
            pattern: a glob's pattern below the root; empty for a folder
        """
        if "://" in root:
            return True
        asked = (root + pattern, folder)
        if self._walked[:2] != asked:  # files come in the order of their paths: many have one folder
            self._walked = (*asked, self._follow(root, folder, pattern))
        return self._walked[2]

    def _follow(self, root: str, folder: str, pattern: str) -> bool:
        links = FolderLinks(root, self.rules, PassedOver())
        parts = pattern.partition("**")[0].split("/")
        path = root.rstrip("/")
        for place, name in enumerate(folder[len(path) :].split("/")[1:], 1):
            path = f"{path}/{name}"
            is_named = place < len(parts) and parts[place] == name
            if not links.takes_folder(path, os.path.islink(path), is_named):
                return False
        return True


def _path_and_parents(uri: str) -> Iterator[str]:
    """Yield a URI and the folders above it."""
    while uri and not uri.endswith(":/"):
        yield uri
        uri = uri.rpartition("/")[0]
