"""Decide which links to folders a listing follows on a disk."""

import os

from wordsworth.pipeline.sources.passed_over import ListingRules, PassedOver
from wordsworth.pipeline.sources.skipped_names import skipped_folder


class FolderLinks:
    """Decide for each link to a folder whether its files belong to the source, and name those left out.

    A file of the source comes once. So a link to a folder of the source itself is left out: that folder has
    its files already, unless its own name is skipped. A link to a folder outside the source is left out too,
    unless `follow_links` is "outside". A link to a folder above it would never end, and is always left out.

    A decision follows from the path alone, so a listing that goes on elsewhere decides the same.

    Args:
        root: path of the source's folder
        rules: what the listing takes
        passed_over: gets the links that are left out
    """

    def __init__(self, root: str, rules: ListingRules, passed_over: PassedOver):
        self.root = root.rstrip("/") or "/"
        self.rules = rules
        self.passed_over = passed_over
        self._followed: list[str] = []  # links that were followed last, with a slash at their end

    def takes_folder(self, path: str, is_link: bool, is_named: bool = False) -> bool:
        """Return whether to look into a folder; name it if not.

        Args:
            path: path of the folder, below the root
            is_link: whether it is a link
            is_named: whether the user wrote its name
        """
        if not is_link and not self._followed:
            return True
        self._followed = [link for link in self._followed if path.startswith(link)]
        if not is_link and not self._followed:
            return True
        kind = self._reason_against(path, is_link, is_named)
        if kind:
            target = f" -> {os.path.realpath(path)}" if is_link else ""
            self.passed_over.leave_out(kind, f"{path}{target}")
            return False
        if is_link:
            self._followed.append(f"{path}/")
        return True

    def _reason_against(self, path: str, is_link: bool, is_named: bool) -> str | None:
        """Return a key of LEFT_OUT, or None to take the folder."""
        above = self._folders_above(path)
        if any(os.path.samefile(folder, path) for folder in above):
            return "loop"
        if not is_link or is_named:
            return None
        target = os.path.realpath(path)
        for folder in above:
            if folder != self.root and not os.path.islink(folder):
                continue
            tree = os.path.realpath(folder).rstrip("/") + "/"
            if target.startswith(tree):
                below = target.removeprefix(tree)
                is_listed = self.rules.include_hidden or skipped_folder(below) is None
                return "inside" if is_listed else None
        return None if self.rules.follow_links == "outside" else "outside"

    def _folders_above(self, path: str) -> list[str]:
        """Return the folders between the root and a path below it, the root first."""
        folders = [self.root]
        for part in path[len(self.root) :].strip("/").split("/")[:-1]:
            folders.append(f"{folders[-1].rstrip('/')}/{part}")
        return folders
