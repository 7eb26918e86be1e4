"""The files that a model's entry names: texts, a Modelfile, weights. They are found as `ollama create` finds them.

A FROM that exists as a file or folder is weights, even if it is called `llama3`; only what does not exist is the name
of a model. The rules between several weights files are in weights.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar, cast

from msgspec import Struct
from msgspec.structs import replace

from ollamaops.errors import InvalidName, InvalidValue, ManifestError, Problem, WeightsError, did_you_mean
from ollamaops.files import convertible
from ollamaops.files.gguf import read_gguf, require_complete
from ollamaops.files.gguf_types import GgufHeader
from ollamaops.files.location import Location, RemoteRef, is_remote, parse_remote
from ollamaops.files.safetensors import require_whole, require_whole_zip
from ollamaops.files.shards import complete_shards, parse_shard
from ollamaops.files.sniff import Kind, content_type, sniff
from ollamaops.manifest.check import EntryFiles, refuse_local, refuse_secret
from ollamaops.manifest.disk import Disk, Folder, Named, about, is_there, reason_of
from ollamaops.manifest.document import Items, Node, Scalar, Table
from ollamaops.manifest.lint import lint_modelfile
from ollamaops.manifest.modelfile import Modelfile, build_from_modelfile, decode_modelfile, parse_modelfile
from ollamaops.manifest.problems import parse_scalar, problem_at
from ollamaops.manifest.types import Build, Place, WeightsFile
from ollamaops.manifest.weights import (
    WEIGHTS_ENDINGS,
    check_headers,
    check_kinds,
    check_sets,
    is_gguf,
    place_of,
    select_weights,
    without_folders,
)
from ollamaops.names import Digest, ModelName, hide_credentials

_LISTED_ENDINGS = (*WEIGHTS_ENDINGS, ".json", ".jinja", ".model")
_NO_MODELFILE = Modelfile(()), Build()

T = TypeVar("T")


class _Source(Struct, frozen=True):
    """The text of a Modelfile and where it came from: a file of its own, or (`inline`) a value of a manifest."""

    text: str
    shown: str
    folder: Folder
    inline: Scalar | None = None

    def place(self, line: int, column: int) -> Place:
        return self.inline.place if self.inline else Place(self.shown, line, column)

    def problem(self, found: Problem) -> Problem:
        """A problem of the text; of a text in a manifest at its place there, with nothing from the environment."""
        if self.inline is None:
            return found
        message = "the Modelfile is not valid" if self.inline.secret_as else found.message
        if found.line and not message.startswith("(line "):
            message = f"{message} (line {found.line} of the Modelfile)"
        return problem_at(self.inline, message, found.hint)


def collect_files(entry: Table, disk: Disk) -> tuple[EntryFiles, list[Problem], list[Problem]]:
    """Everything that one model's entry names, and the problems and warnings about it.

    What cannot be used is a problem and left out.
    """
    collector = FileCollector(entry, disk)
    return collector.collect(), collector.problems, collector.warnings


class FileCollector:
    """Finds and checks the files of one entry."""

    def __init__(self, entry: Table, disk: Disk) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._entry = entry
        self._disk = disk
        self._files: list[Location] = []
        self._adapters: list[Location] = []
        self._drafts: list[Location] = []
        self._kinds: dict[Location, Kind] = {}
        self._headers: dict[Location, GgufHeader] = {}
        self._refused: set[Location] = set()

    def collect(self) -> EntryFiles:
        entry = self._entry
        modelfile, asked = self._read_modelfile(entry.get("modelfile"))
        files = self._with_shards([*self._files, *self._listed(entry.get("files"))])
        adapters = self._adapters or self._listed(entry.get("adapters"))
        drafts = self._drafts or self._listed(entry.get("drafts"))
        used = [*files, *adapters, *drafts]
        known = self._known_digests(used)
        self._require_digests(used, known)
        made = {
            "files": self._as_weights(files, known),
            "adapters": self._as_weights(adapters, known),
            "drafts": self._as_weights(drafts, known),
        }
        self.problems += check_kinds(entry, made, self._kinds)
        self.problems += check_headers(entry, made, self._headers)
        if not self.problems:  # an incomplete set would get odd problems
            self.problems += check_sets(entry, made, self._headers, has_base=asked.base is not None)
            for key in ("files", "adapters"):
                self._check_convertible(key, made[key])
        texts = {key: self._text(entry.get(key)) for key in ("system", "template")}
        license_node = entry.get("license")
        license_nodes = license_node.nodes if isinstance(license_node, Items) else [license_node]
        return EntryFiles(
            texts={key: text for key, text in texts.items() if text is not None},
            licenses=tuple(text for text in map(self._text, license_nodes) if text),
            modelfile=modelfile,
            asked=asked,
            **made,
        )

    def _value(self, found: T | Problem) -> T | None:
        """The value; None when it is a problem, which is kept."""
        if isinstance(found, Problem):
            self.problems.append(found)
            return None
        return found

    def _refuse(self, named: Named, why: str, hint: str | None = None) -> None:
        self.problems.append(about(named, why, hint))

    def _text(self, node: Node | None) -> str | None:
        """A text given as it is or as `{file: PATH}`."""
        if isinstance(node, Table):
            return self._value(self._disk.read_text(self._disk.named(cast("Scalar", node.nodes["file"]))))
        return node.text if isinstance(node, Scalar) else None

    def _read_modelfile(self, node: Node | None) -> tuple[Modelfile, Build]:
        """The commands and what they ask for; none, and problems, if there is a Modelfile that cannot be used."""
        if isinstance(node, Scalar):
            named = self._disk.named(node)
            data, path = self._value(self._disk.read(named)), self._disk.locate(named)
            if data is not None and isinstance(path, Path):
                beside = os.path.dirname(node.place.path)  # noqa: PTH120
                shown = os.path.normpath(os.path.join(beside, named.shown))  # noqa: PTH118
                folder = Folder(path.parent, named.folder.root)
                return self._expand_modelfile(_Source(decode_modelfile(data), shown, folder))
        if isinstance(node, Table):
            inline = cast("Scalar", node.nodes["text"])
            folder = self._disk.folder_of(inline.place)
            return self._expand_modelfile(_Source(inline.text, inline.place.path, folder, inline))
        return _NO_MODELFILE

    def _expand_modelfile(self, source: _Source) -> tuple[Modelfile, Build]:
        try:
            modelfile = parse_modelfile(source.text, source.shown)
        except ManifestError as error:
            self.problems += map(source.problem, error.problems)
            return _NO_MODELFILE
        asked, refused = build_from_modelfile(modelfile, source.shown)
        if refused:
            self.problems += map(source.problem, refused)
            return _NO_MODELFILE
        self.warnings += map(source.problem, lint_modelfile(source.text, source.shown))
        base: ModelName | None = None
        for named in _arguments(modelfile, "model", source):
            name = _model_name(named)
            if name is None:
                self._files += self._weights(named)
            else:
                hint = f"write {name.base}" if named.shown == named.text else "write another tag"
                self.problems += refuse_local(named.place, named.shown, name, hint)
                if (
                    named.shown != named.text
                    and source.inline
                    and named.text not in str(source.inline.reference)
                ):
                    self.problems += refuse_secret(named.place, named.shown)
                base = name
        for named in _arguments(modelfile, "adapter", source)[-1:]:
            self._adapters += self._weights(named)
        for named in _arguments(modelfile, "draft", source):
            drafts = self._weights(named)
            if set(drafts) & set(self._files):
                self._refuse(named, "DRAFT must not reference the same local path as FROM")
            self._drafts += drafts
        return modelfile, replace(asked, base=base)

    def _listed(self, node: Node | None) -> list[Location]:
        items = node.nodes if isinstance(node, Items) else ()
        return [where for item in items for where in self._weights(self._disk.named(cast("Scalar", item)))]

    def _weights(self, named: Named) -> list[Location]:
        """The weights file, local or remote, or the files of a folder as `ollama create` chooses them."""
        if is_remote(named.text):
            return self._address(named)
        if named.text.startswith("@"):
            self._refuse(named, "names a blob on a server, not a file", "name the file itself")
            return []
        path = self._value(self._disk.existing(named))
        if path is None:
            return []
        try:
            return self._weights_in(path, named) if path.is_dir() else self._weights_file(path, named)
        except WeightsError as error:
            self._refuse(named, str(error).removeprefix(f"{path}: "), error.hint)
        except OSError as error:
            self._refuse(named, f"cannot be read: {reason_of(error)}")
        return []

    def _address(self, named: Named) -> list[Location]:
        """The file at an address; only its name is known here."""
        try:
            ref = parse_remote(named.text)
        except InvalidValue as error:
            self.problems.append(problem_at(named.place, str(error), error.hint))
            return []
        if not ref.name.endswith(_LISTED_ENDINGS):
            self._refuse(named, "its name is not that of a weights file", "name a GGUF or safetensors file")
            return []
        return [ref]

    def _with_shards(self, files: list[Location]) -> list[Location]:
        """`files`, in which one shard of a split GGUF stands for all of them, found beside it."""
        place = place_of(self._entry, "files")
        found = {name for where in files for name in _beside(where)}
        try:
            complete = complete_shards([str(where) for where in files], found)
        except WeightsError as error:
            message = f"files: {without_folders(str(error), files)}"
            self.problems.append(problem_at(place, message, error.hint))
            return list(dict.fromkeys(files))
        declared = {str(where): where for where in files}
        return [
            where
            for name in complete
            for where in ([declared[name]] if name in declared else self._shard(name, place))
        ]

    def _shard(self, name: str, place: Place) -> list[Location]:
        """A shard that is not named in the manifest: it has to be a usable file like any other."""
        if is_remote(name):
            return [RemoteRef(name)]
        path = Path(name)
        return self._weights(
            Named(path.name, path.name, place, Folder(path.parent, self._disk.folder_of(place).root))
        )

    def _require_digests(self, used: list[Location], known: Mapping[Location, Digest]) -> None:
        """A plain web server states no digest that can be trusted."""
        for where in used:
            if isinstance(where, RemoteRef) and where.scheme in ("https", "http") and where not in known:
                place = (self._entry.get("files") or self._entry).place
                message = f"files: {where.name}: its digest is not known"
                self.problems.append(problem_at(place, message, "state it under sha256:"))

    def _weights_file(self, path: Path, named: Named) -> list[Location]:
        if not self._is_usable(path, named):
            return []
        if self._kinds[path] in ("zip", "binary"):
            self._refuse(named, "is neither GGUF nor safetensors", "convert it, or name its folder")
            return []
        return [path] if self._is_whole(path, named) else []

    def _weights_in(self, folder: Path, named: Named) -> list[Location]:
        candidates = sorted(path for glob in ("*", "*/*") for path in folder.glob(glob))
        listing = {
            path.relative_to(folder).as_posix(): _no_file(path) or content_type(path)
            for path in candidates
            if path.suffix in _LISTED_ENDINGS
        }
        here = Folder(folder, named.folder.root)
        chosen = [
            Named(name, f"{named.shown}/{name}", named.place, here)
            for name in select_weights(list(listing.items()))
        ]
        located = [(named, self._value(self._disk.locate(named))) for named in chosen]
        usable: list[Location] = [
            path
            for named, path in located
            if path is not None
            and self._is_file(path, named)
            and self._is_usable(path, named)
            and self._is_whole(path, named)
        ]
        return usable if len(usable) == len(chosen) else []  # an incomplete set would get odd problems

    def _is_file(self, path: Path, named: Named) -> bool:
        """Whether what a folder lists under the name of a file is one."""
        what = _no_file(path)
        return what is None or self._refuse_file(path, named, f"is {what}", "download or copy it again")

    def _is_usable(self, path: Path, named: Named) -> bool:
        """Whether a file is itself there, and not only the pointer to it or the page that says it moved."""
        kind = self._kinds[path] = sniff(path)
        if kind == "lfs-pointer":
            return self._refuse_file(
                path, named, "is a git-lfs pointer, not the file itself", "run: git lfs pull"
            )
        if path.name.endswith(".gguf") and kind != "gguf":
            what = "is not a GGUF file, despite its name"
            return self._refuse_file(path, named, what, "download or copy it again")
        if path.name.endswith(".safetensors") and kind == "gguf":
            what = "is a GGUF file, despite its name"
            return self._refuse_file(path, named, what, "give it a name that ends in .gguf")
        return True

    def _refuse_file(self, path: Path, named: Named, why: str, hint: str | None) -> Literal[False]:
        """A problem about a file that is then not used."""
        self._refused.add(path)
        self._refuse(named, why, hint)
        return False

    def _is_whole(self, path: Path, named: Named) -> bool:
        """Whether the file is complete, told by its header, of which a limited size is read, or by its end."""
        try:
            if self._kinds[path] == "gguf":
                header = self._headers[path] = read_gguf(path, array_limit=0)
                require_complete(header, path)
                self._warn_of_trailing(header, named)
            elif path.name.endswith(".safetensors"):
                require_whole(path)
            else:
                require_whole_zip(path)
        except WeightsError as error:
            return self._refuse_file(path, named, str(error).removeprefix(f"{path}: "), error.hint)
        return True

    def _warn_of_trailing(self, header: GgufHeader, named: Named) -> None:
        if header.trailing_bytes:
            what = f"{named.shown}: {header.trailing_bytes} bytes follow its last tensor"
            hint = "servers up to 0.5.7 refuse that: download or convert it again"
            self.warnings.append(problem_at(named.place, what, hint))

    def _check_convertible(self, key: str, made: Sequence[WeightsFile]) -> None:
        """Weights that a server converts need all of their shards, a configuration and a tokenizer beside them."""
        if not made or any(is_gguf(file.path, self._kinds) for file in made):
            return
        place, names = place_of(self._entry, key), [file.name for file in made]
        try:
            convertible.require_all_shards(names)
            if not any(_may_be_gguf(file.path) for file in made):
                convertible.require_companions(names, is_adapter=key == "adapters")
            for file in made:
                if isinstance(file.path, Path) and file.name.endswith(convertible.INDEX):
                    convertible.require_indexed(file.name, convertible.read_index(file.path), names)
                elif isinstance(file.path, Path) and file.name in convertible.DOCUMENTS:
                    convertible.require_object(file.path)
        except WeightsError as error:
            paths = [file.path for file in made]
            message = f"{key}: {without_folders(str(error), paths)}"
            self.problems.append(problem_at(place, message, error.hint))

    def _as_weights(self, files: list[Location], known: Mapping[Location, Digest]) -> tuple[WeightsFile, ...]:
        """The files under the names that a server is told: relative to the folder that they have in common.

        A remote file goes by its own name. A GGUF gets that ending, because servers go by it.
        """
        folders = [where.parent for where in files if isinstance(where, Path)]
        common = Path(os.path.commonpath(folders)) if folders else Path()
        weights = []
        for where in files:
            name = where.relative_to(common).as_posix() if isinstance(where, Path) else where.name
            is_unnamed_gguf = self._kinds.get(where) == "gguf" and not name.endswith(".gguf")
            weights.append(WeightsFile(where, f"{name}.gguf" if is_unnamed_gguf else name, known.get(where)))
        return tuple(weights)

    def _known_digests(self, used: Sequence[Location]) -> dict[Location, Digest]:
        """The digests under `sha256:`, each of which must belong to a file that is used."""
        table = self._entry.get("sha256")
        known: dict[Location, Digest] = {}
        for text, node in table.nodes.items() if isinstance(table, Table) else ():
            place = cast("Table", table).keys[text]
            path = self._located(text, place)
            digest = self._value(parse_scalar(cast("Scalar", node), Digest.parse))
            if path is None or digest is None:
                continue
            known[path] = digest
            if path not in used and path not in self._refused:
                meant = did_you_mean(path.name, [other.name for other in used])
                shown = hide_credentials(text)
                message = f"sha256: '{shown}' is not among the files that the model is made from{meant}"
                self.problems.append(problem_at(place, message))
        return known

    def _located(self, text: str, place: Place) -> Location | None:
        if is_remote(text):
            return RemoteRef(text)
        return self._value(self._disk.locate(Named(text, text, place, self._disk.folder_of(place))))


def _beside(where: Location) -> Iterable[str]:
    """The names of all files beside a shard. Remote ones cannot be listed and are taken to be there."""
    try:
        shard = parse_shard(str(where))
    except WeightsError:
        return ()  # reported when its set is completed
    if shard is None:
        return ()
    if isinstance(where, RemoteRef):
        return shard.names_of_all
    with suppress(OSError):  # a folder that may be entered but not listed
        return [str(path) for path in where.parent.iterdir()]
    return [name for name in shard.names_of_all if is_there(Path(name))]


def _arguments(modelfile: Modelfile, command: str, source: _Source) -> list[Named]:
    """The paths or names that commands give."""
    is_secret = source.inline is not None and source.inline.secret_as is not None
    return [
        Named(
            one.args,
            f"what {command} names" if is_secret else one.args,
            source.place(one.line, 1),
            source.folder,
        )
        for one in modelfile.commands
        if one.name == command
    ]


def _model_name(named: Named) -> ModelName | None:
    """The model that FROM names; None if it is a path, which it is too if something of that name exists."""
    if named.text.startswith(("/", "~", ".", "\\", "@")) or named.text.lower().endswith(WEIGHTS_ENDINGS):
        return None
    try:
        name = ModelName.parse(named.text)
    except InvalidName:
        return None
    return None if is_there(named.folder.path / named.text) else name


def _may_be_gguf(where: Location) -> bool:
    """Old GGUF files have that ending, and the content of a remote file is not known."""
    return isinstance(where, RemoteRef) and where.name.endswith(".bin")


def _no_file(path: Path) -> str | None:
    """What is there under the name of a file; None for a regular file."""
    if path.is_file():
        return None
    if path.is_dir():
        return "a folder"
    return "not a regular file" if path.exists() else "a link to nothing"
