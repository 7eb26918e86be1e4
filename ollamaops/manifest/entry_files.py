"""What the files that a model's entry names hold: texts, a Modelfile, weights.

Decides which files are meant, as `ollama create` would, and whether they can be weights. Leaves the rules between
them to weights_check.py, hashing and sending to others. Easily missed: a FROM that exists as a file or folder is
weights, even if it is called `llama3`; only what does not exist is the name of a model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from ollamaops.errors import InvalidName, InvalidValue, ManifestError, Problem, WeightsError
from ollamaops.files.gguf import read_gguf, require_complete
from ollamaops.files.gguf_types import GgufHeader
from ollamaops.files.location import Location, RemoteRef, is_remote, parse_remote
from ollamaops.files.shards import complete_shards, parse_shard
from ollamaops.files.sniff import Kind, content_type, sniff
from ollamaops.manifest.check import Gathered, refuse_local
from ollamaops.manifest.disk import Disk, Folder, Named, is_there, reason_of
from ollamaops.manifest.document import Items, Node, Scalar, Table
from ollamaops.manifest.local_paths import select_weights
from ollamaops.manifest.modelfile import Modelfile, decode_modelfile, parse_modelfile
from ollamaops.manifest.parameters import Recipe, to_recipe
from ollamaops.manifest.problems import Findings, did_you_mean
from ollamaops.manifest.types import Place, WeightsFile
from ollamaops.manifest.weights_check import (
    WEIGHTS_ENDINGS,
    check_headers,
    check_kinds,
    check_sets,
    is_gguf,
    place_of,
    without_folders,
)
from ollamaops.names import Digest, ModelName, hide_credentials

_LISTED_ENDINGS = (*WEIGHTS_ENDINGS, ".json", ".jinja", ".model")


@dataclass(frozen=True, slots=True)
class _Source:
    """The text of a Modelfile and where it came from: a file of its own, or (`inline`) a value of a manifest."""

    text: str
    shown: str
    folder: Folder
    inline: Scalar | None = None

    def place(self, line: int, column: int) -> Place:
        return self.inline.place if self.inline else Place(self.shown, line, column)

    def reword(self, problem: Problem) -> str:
        """The message; for a text within a manifest with the line, and without what came from the environment."""
        if self.inline is None:
            return problem.message
        message = "the modelfile is not valid" if self.inline.secret_as else problem.message
        has_line = not problem.line or message.startswith("(line ")
        return message if has_line else f"{message} (line {problem.line} of the modelfile)"


@dataclass(slots=True)
class _Cooked:
    """What a Modelfile comes to."""

    recipe: Recipe | None = None
    base: ModelName | None = None
    files: list[Location] = field(default_factory=list)
    adapters: list[Location] = field(default_factory=list)
    drafts: list[Location] = field(default_factory=list)


class Gatherer:
    """Reads what entries name. Problems and warnings go where the caller collects them."""

    def __init__(self, disk: Disk, findings: Findings, warnings: Findings) -> None:
        self._disk = disk
        self._findings = findings
        self._warnings = warnings
        self._kinds: dict[Location, Kind] = {}
        self._headers: dict[Location, GgufHeader] = {}
        self._refused: set[Location] = set()

    def gather(self, entry: Table) -> Gathered:
        """Everything that one model's entry names; what cannot be used is a problem and left out."""
        before = len(self._findings.problems)
        cooked = self._modelfile(entry.get("modelfile"))
        files = self._with_shards(entry, [*cooked.files, *self._listed(entry.get("files"))])
        adapters = cooked.adapters or self._listed(entry.get("adapters"))
        drafts = cooked.drafts or self._listed(entry.get("drafts"))
        known = self._known_digests(entry, {*files, *adapters, *drafts})
        self._require_digests(entry, [*files, *adapters, *drafts], known)
        made = {
            "files": self._as_weights(files, known),
            "adapters": self._as_weights(adapters, known),
            "drafts": self._as_weights(drafts, known),
        }
        check_kinds(entry, made, self._kinds, self._findings)
        check_headers(entry, made, self._headers, self._findings)
        if len(self._findings.problems) == before:  # what is left of them would look odd too
            check_sets(entry, made, self._headers, self._findings, has_base=cooked.base is not None)
            for key in ("files", "adapters"):
                self._check_convertible(entry, key, made[key])
        texts = {key: self._text(entry.get(key)) for key in ("system", "template")}
        return Gathered(
            texts={key: text for key, text in texts.items() if text is not None},
            licenses=self._licenses(entry.get("license")),
            recipe=cooked.recipe,
            base=cooked.base,
            **made,
        )

    def _text(self, node: Node | None) -> str | None:
        """A text given as it is or as `{file: PATH}`."""
        if isinstance(node, Table):
            return self._disk.read_text(self._disk.named(cast("Scalar", node.nodes["file"])))
        return node.text if isinstance(node, Scalar) else None

    def _licenses(self, node: Node | None) -> tuple[str, ...]:
        texts = [self._text(item) for item in (node.nodes if isinstance(node, Items) else [node])]
        return tuple(text for text in texts if text)

    def _modelfile(self, node: Node | None) -> _Cooked:
        if isinstance(node, Scalar):
            named = self._disk.named(node)
            data, path = self._disk.read(named), None
            if data is not None:
                path = self._disk.locate(named)
            if data is None or path is None:
                return _Cooked()
            shown = os.path.normpath(os.path.join(os.path.dirname(node.place.path), named.shown))  # noqa: PTH118,PTH120
            return self._cook(_Source(decode_modelfile(data), shown, Folder(path.parent, named.folder.root)))
        if isinstance(node, Table):
            inline = cast("Scalar", node.nodes["text"])
            folder = self._disk.folder_of(inline.place)
            return self._cook(_Source(inline.text, inline.place.path, folder, inline))
        return _Cooked()

    def _cook(self, source: _Source) -> _Cooked:
        from ollamaops.manifest.lint import lint_modelfile

        try:
            modelfile = parse_modelfile(source.text, source.shown)
            cooked = _Cooked(recipe=to_recipe(modelfile, source.shown))
        except ManifestError as error:
            self._pass_on(error.problems, source, self._findings)
            return _Cooked()
        self._pass_on(lint_modelfile(source.text, source.shown), source, self._warnings)
        for named in _arguments(modelfile, "model", source):
            name = _model_name(named)
            if name is not None:
                hint = f"write {name.base}" if named.shown == named.text else "write another tag"
                refuse_local(named.place, named.shown, name, hint, self._findings)
            cooked.base = name or cooked.base
            cooked.files += [] if name else self._weights(named)
        for named in _arguments(modelfile, "adapter", source)[-1:]:
            cooked.adapters += self._weights(named)
        for named in _arguments(modelfile, "draft", source):
            drafts = self._weights(named)
            if set(drafts) & set(cooked.files):
                self._disk.refuse(named, "DRAFT must not reference the same local path as FROM")
            cooked.drafts += drafts
        return cooked

    def _pass_on(self, problems: Iterable[Problem], source: _Source, to: Findings) -> None:
        for problem in problems:
            to.add(source.place(problem.line, problem.column), source.reword(problem), problem.hint)

    def _listed(self, node: Node | None) -> list[Location]:
        items = node.nodes if isinstance(node, Items) else ()
        return [where for item in items for where in self._weights(self._disk.named(cast("Scalar", item)))]

    def _weights(self, named: Named) -> list[Location]:
        """The weights file, here or elsewhere, or the files of a folder as `ollama create` chooses them."""
        if is_remote(named.text):
            return self._address(named)
        if named.text.startswith("@"):
            self._disk.refuse(named, "names a blob on a server, not a file", "name the file itself")
            return []
        path = self._disk.existing(named)
        if path is None:
            return []
        try:
            return self._weights_in(path, named) if path.is_dir() else self._weights_file(path, named)
        except WeightsError as error:
            self._disk.refuse(named, str(error).removeprefix(f"{path}: "), error.hint)
        except OSError as error:
            self._disk.refuse(named, f"cannot be read: {reason_of(error)}")
        return []

    def _address(self, named: Named) -> list[Location]:
        """The file at an address, of which only the name is known here."""
        try:
            ref = parse_remote(named.text)
        except InvalidValue as error:
            self._findings.add(named.place, str(error), error.hint)
            return []
        if not ref.name.endswith(_LISTED_ENDINGS):
            self._disk.refuse(named, "not weights by its name", "name a GGUF or safetensors file")
            return []
        return [ref]

    def _with_shards(self, entry: Table, files: list[Location]) -> list[Location]:
        """`files`, in which one shard of a split GGUF stands for all of them, found beside it."""
        place = place_of(entry, "files")
        found = {name for where in files for name in _beside(where)}
        try:
            complete = complete_shards([str(where) for where in files], found)
        except WeightsError as error:
            self._findings.add(place, f"files: {without_folders(str(error), files)}", error.hint)
            return list(dict.fromkeys(files))
        declared = {str(where): where for where in files}
        return [
            where
            for name in complete
            for where in ([declared[name]] if name in declared else self._shard(name, place))
        ]

    def _shard(self, name: str, place: Place) -> list[Location]:
        """A shard that nobody named: it has to be a usable file like any other."""
        if is_remote(name):
            return [RemoteRef(name)]
        path = Path(name)
        return self._weights(
            Named(path.name, path.name, place, Folder(path.parent, self._disk.folder_of(place).root))
        )

    def _require_digests(self, entry: Table, used: list[Location], known: Mapping[Location, Digest]) -> None:
        """The web says nothing that could be believed of a file's digest."""
        for where in used:
            if isinstance(where, RemoteRef) and where.scheme in ("https", "http") and where not in known:
                place = (entry.get("files") or entry).place
                self._findings.add(
                    place, f"files: {where.name}: its digest is not known", "state it under sha256:"
                )

    def _weights_file(self, path: Path, named: Named) -> list[Location]:
        if not self._is_usable(path, named):
            return []
        if self._kinds[path] in ("zip", "binary"):
            self._disk.refuse(named, "is neither GGUF nor safetensors", "convert it, or name its folder")
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
        located = [(named, self._disk.locate(named)) for named in chosen]
        usable: list[Location] = [
            path
            for named, path in located
            if path is not None
            and self._is_file(path, named)
            and self._is_usable(path, named)
            and self._is_whole(path, named)
        ]
        return usable if len(usable) == len(chosen) else []  # what is left of them would look odd too

    def _is_file(self, path: Path, named: Named) -> bool:
        """Whether what a folder lists under the name of a file is one."""
        what = _no_file(path)
        return what is None or self._refuse(path, named, f"is {what}", "download or copy it again")

    def _is_usable(self, path: Path, named: Named) -> bool:
        """Whether a file is itself there, and not only the pointer to it or the page that says it moved."""
        kind = self._kinds[path] = sniff(path)
        if kind == "lfs-pointer":
            return self._refuse(path, named, "is a git-lfs pointer, not the file itself", "run: git lfs pull")
        if path.name.endswith(".gguf") and kind != "gguf":
            what = "is not a GGUF file, whatever its name says"
            return self._refuse(path, named, what, "download or copy it again")
        if path.name.endswith(".safetensors") and kind == "gguf":
            what = "is a GGUF file, whatever its name says"
            return self._refuse(path, named, what, "give it a name that ends in .gguf")
        return True

    def _refuse(self, path: Path, named: Named, why: str, hint: str | None) -> Literal[False]:
        """One more problem, about a file that is then used nowhere."""
        self._refused.add(path)
        self._disk.refuse(named, why, hint)
        return False

    def _is_whole(self, path: Path, named: Named) -> bool:
        """Whether the file holds all that its header promises. Headers have an upper limit, tensors are not read."""
        try:
            if self._kinds[path] == "gguf":
                header = self._headers[path] = read_gguf(path, array_limit=0)
                require_complete(header, path)
                self._warn_of_trailing(header, named)
            else:
                _require_whole(path)
        except WeightsError as error:
            return self._refuse(path, named, str(error).removeprefix(f"{path}: "), error.hint)
        return True

    def _warn_of_trailing(self, header: GgufHeader, named: Named) -> None:
        if header.trailing_bytes:
            what = f"{named.shown}: {header.trailing_bytes} bytes follow its last tensor"
            hint = "servers up to 0.5.7 refuse that: download or convert it again"
            self._warnings.add(named.place, what, hint)

    def _check_convertible(self, entry: Table, key: str, made: Sequence[WeightsFile]) -> None:
        """Weights that a server converts need all of their shards, a configuration and a tokenizer beside them."""
        if not made or any(is_gguf(file.path, self._kinds) for file in made):
            return
        from ollamaops.files import convertible

        place, names = place_of(entry, key), [file.name for file in made]
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
            self._findings.add(place, f"{key}: {without_folders(str(error), paths)}", error.hint)

    def _as_weights(self, files: list[Location], known: Mapping[Location, Digest]) -> tuple[WeightsFile, ...]:
        """The files under the names that a server is told: relative to the folder that they have in common.

        A file elsewhere goes by its own name. A GGUF is told as one, because servers go by the ending.
        """
        folders = [where.parent for where in files if isinstance(where, Path)]
        common = Path(os.path.commonpath(folders)) if folders else Path()
        weights = []
        for where in files:
            name = where.relative_to(common).as_posix() if isinstance(where, Path) else where.name
            is_unnamed_gguf = self._kinds.get(where) == "gguf" and not name.endswith(".gguf")
            weights.append(WeightsFile(where, f"{name}.gguf" if is_unnamed_gguf else name, known.get(where)))
        return tuple(weights)

    def _known_digests(self, entry: Table, used: set[Location]) -> dict[Location, Digest]:
        """The digests under `sha256:`, each of which must be of a file that is used."""
        table = entry.get("sha256")
        known: dict[Location, Digest] = {}
        for text, node in table.nodes.items() if isinstance(table, Table) else ():
            place = cast("Table", table).keys[text]
            path = self._located(text, place)
            digest = self._findings.read(cast("Scalar", node), Digest.parse)
            if path is None or digest is None:
                continue
            known[path] = digest
            if path not in used | self._refused:
                meant = did_you_mean(path.name, [other.name for other in used])
                self._findings.add(
                    place,
                    f"sha256: '{hide_credentials(text)}' is none of the files that the model is made from{meant}",
                )
        return known

    def _located(self, text: str, place: Place) -> Location | None:
        if is_remote(text):
            return RemoteRef(text)
        return self._disk.locate(Named(text, text, place, self._disk.folder_of(place)))


def _beside(where: Location) -> Iterable[str]:
    """The names of all files beside a shard. Those elsewhere cannot be listed and are taken to be there."""
    try:
        shard = parse_shard(str(where))
    except WeightsError:
        return ()  # which is complained of when its set is completed
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
    """Old GGUF files are called so; elsewhere nobody has looked into them."""
    return isinstance(where, RemoteRef) and where.name.endswith(".bin")


def _no_file(path: Path) -> str | None:
    """What is there under the name of a file; None for a regular file."""
    if path.is_file():
        return None
    if path.is_dir():
        return "a folder"
    return "no regular file" if path.exists() else "a link to nothing"


def _require_whole(path: Path) -> None:
    """WeightsError unless safetensors or PyTorch weights hold all that they promise."""
    from ollamaops.files.safetensors import require_whole, require_whole_zip

    (require_whole if path.name.endswith(".safetensors") else require_whole_zip)(path)
