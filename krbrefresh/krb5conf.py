"""What krb5.conf says, as MIT's libkrb5 reads it (krb5.conf(5), `STRUCTURE`), without libkrb5.

For looking, not for deciding: libkrb5 has the last word. What is not read: `module` lines (a plugin has the settings
then), the mark `*` of final sections, which changes nothing where the first value counts, and `%{...}` in values.
"""

from __future__ import annotations

import os
import re
import stat

DEFAULT_PATH = "/etc/krb5.conf"

_MAX_SIZE = 1 << 20
_MAX_DEPTH = 10  # of files that include files
_YES = ("y", "yes", "true", "t", "1", "on")  # libkrb5's words, in prof_get.c
_NO = ("n", "no", "false", "nil", "0", "off")
_INCLUDED_NAME = re.compile(r"(?!\.)(?:[A-Za-z0-9_-]+|.*\.conf)\Z")
_INCLUDE = re.compile(r"(include|includedir)\s+(.*\S)")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)')
_ESCAPES = {"n": "\n", "t": "\t", "b": "\b"}


class Krb5Conf:
    """All values of some files. `read` are the files that were read, `absent` says of the others why not, `problems`
    of lines what is wrong with them, as `path:line: words`."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.absent: list[str] = []
        self.problems: list[str] = []
        self._values: dict[tuple[str, ...], list[str]] = {}

    def values(self, *path: str) -> list[str]:
        """All values at a path: the section, the names of groups, the tag."""
        return self._values.get(path, [])

    def first(self, *path: str) -> str | None:
        """The value that counts where one is wanted: the first one of the first file."""
        return next(iter(self.values(*path)), None)

    def truth(self, *path: str, default: bool) -> bool | str:
        """A truth value; the text itself where it is none."""
        text = self.first(*path)
        if text is None:
            return default
        word = text.lower()
        return True if word in _YES else False if word in _NO else text

    def add_file(self, path: str, depth: int = 0) -> None:
        """Reads one more file, or all files of a directory."""
        try:
            if os.path.isdir(path):
                for name in sorted(os.listdir(path)):
                    if _INCLUDED_NAME.match(name):
                        self.add_file(os.path.join(path, name), depth)
                return
            text = _text(path)
        except OSError as error:
            self.absent.append(f"{path}: {error.strerror}")
            return
        self.read.append(path)
        self._parse(path, text, depth)

    def _parse(self, path: str, text: str, depth: int) -> None:
        section: list[str] = []  # the section and the groups that are open
        wants_brace = False
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.strip()
            problem = ""
            if found := _INCLUDE.match(line):
                if depth < _MAX_DEPTH:
                    before = len(self.absent)
                    self.add_file(found[2], depth + 1)
                    if len(self.absent) > before:
                        problem = f"it includes {self.absent.pop()}"
                else:
                    problem = "files include each other"
            elif not line or line[0] in "#;" or (not section and line[0] != "["):
                continue  # libkrb5 passes over whatever stands before the first section, too
            elif wants_brace:
                wants_brace = False
                if line[0] != "{":
                    problem = "a { is missing"
            elif line[0] == "[":
                name, bracket, rest = line[1:].partition("]")
                if len(section) > 1:
                    problem = f"a section begins before the }} of {section[-1]}"
                elif not bracket or rest not in ("", "*"):
                    problem = "a section's line is [name] and nothing else"
                section = [name]
            elif line[0] == "}":
                if len(section) < 2:
                    problem = "there is a } too many"
                else:
                    section.pop()
            else:
                tag, equals, value = (part.strip() for part in line.partition("="))
                tag = tag.removesuffix("*")
                if not equals or not tag or len(tag.split()) > 1:
                    problem = "it is not `name = value`"
                elif value in ("", "{"):
                    section.append(tag)
                    wants_brace = not value
                else:
                    self._values.setdefault((*section, tag), []).append(_unquoted(value))
            if problem:
                self.problems.append(f"{path}:{number}: {problem}")


def paths() -> list[str]:
    """The files that libkrb5 reads its configuration from."""
    return [path for path in (os.environ.get("KRB5_CONFIG") or DEFAULT_PATH).split(":") if path]


def read() -> Krb5Conf:
    """What libkrb5 goes by in this process. Raises nothing: what cannot be read is in the answer."""
    conf = Krb5Conf()
    for path in paths():
        conf.add_file(path)
    return conf


def _text(path: str) -> str:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)  # a FIFO would hold us
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(0, "it is not a regular file")
        return os.read(file, _MAX_SIZE).decode("utf-8", "surrogateescape")
    finally:
        os.close(file)


def _unquoted(value: str) -> str:
    quoted = _QUOTED.match(value)
    if not quoted:
        return value
    return re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), quoted[1])
