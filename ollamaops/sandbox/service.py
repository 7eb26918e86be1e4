"""The pretend server without HTTP: one method per management endpoint, over one store, as one version.

Bodies come in as bytes, answers go out as plain values; the routes in `app` only carry them.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import chain

from ollamaops.sandbox.behavior import Behavior
from ollamaops.sandbox.create import Creator
from ollamaops.sandbox.create_modelfile import ModelfileCreator
from ollamaops.sandbox.gguf_file import BadGGUF
from ollamaops.sandbox.layers import CorruptManifest
from ollamaops.sandbox.loaded_models import LoadedModels
from ollamaops.sandbox.model_name import BothSuffixes, Name, Reference, parse_name, pull_target, strip_source
from ollamaops.sandbox.request_bodies import Fields, decode_body, read_create, read_model_request
from ollamaops.sandbox.responses import Line, Refusal, Work, bad_request, failure, os_failure
from ollamaops.sandbox.show import Overlay, TagsCache, list_models, show_model
from ollamaops.sandbox.store import Store
from ollamaops.sandbox.stored_models import NoSuchModel, StoredModels
from ollamaops.sandbox.transfer import Transfer

_FOREIGN_FIELDS: dict[str, object] = {"generation": 2, "runner": {"kind": "ggml", "lanes": [1, None]}}
_CLOUD_DISABLED = "ollama cloud is disabled: remote model details are unavailable"


class Service:
    """What the server does. Its methods may be called from any thread."""

    def __init__(self, store: Store, behavior: Behavior, version: str, max_loaded: int | None = None) -> None:
        self.store, self.behavior, self.version = store, behavior, version
        self.models = StoredModels(store, behavior)
        self.transfer = Transfer(self.models, version)
        self.runners = LoadedModels(limit=max_loaded, unloads_at_once=behavior.unloads_at_once)
        self._show_cache: dict[tuple[Name, bool], tuple[str, dict[str, object]]] = {}
        self._tags_cache: TagsCache = {}
        self._creator = Creator(self.models, self.transfer.pull_base)
        self._modelfiles = ModelfileCreator(self._creator)

    def start(self) -> None:
        """What a server does when it starts: prune the store, and read it into the memory that it has."""
        self.store.prune(
            self.behavior.prune_grace_s, stop_at_corrupt=self.behavior.corrupt_manifest_stops_prune
        )
        if self.behavior.show_cache:
            for name in self.store.names():
                with suppress(NoSuchModel, CorruptManifest, OSError, BadGGUF, Refusal):
                    self._shown_from_memory(name, verbose=False, is_local=False)
        if self.behavior.tags_extras:
            self.tags()

    # -- models

    def tags(self) -> list[dict[str, object]]:
        """The `models` of /api/tags."""
        rows = list_models(self.models, self._tags_cache)
        return [self.with_foreign_words(row) for row in rows]

    def loaded(self) -> list[dict[str, object]]:
        """The `models` of /api/ps."""
        rows = self.runners.listed(with_context=self.behavior.ps_context_length)
        return [self.with_foreign_words(row) for row in rows]

    def with_foreign_words(self, answer: dict[str, object]) -> dict[str, object]:
        """The answer, with fields that no client knows where the server is such a one."""
        return answer | _FOREIGN_FIELDS if self.behavior.foreign_words else answer

    def _with_foreign_lines(self, work: Work) -> Work:
        if not self.behavior.foreign_words:
            return work
        return chain(({"status": "consulting the scheduler", **_FOREIGN_FIELDS},), map(self._foreign, work))

    def _foreign(self, line: Line) -> Line:
        return line if isinstance(line, Refusal) else line | _FOREIGN_FIELDS

    def show(self, body: bytes) -> dict[str, object]:
        """The answer of /api/show. Refusal."""
        fields = Fields("ShowRequest", decode_body(body))
        given, verbose = fields.text("model", "name"), fields.flag("verbose") is True
        overlay = Overlay(fields.text("system"), fields.text("template"), fields.mapping("options") or {})
        if not given:
            raise bad_request("model is required")
        reference = self._reference(given)
        if reference.is_cloud:
            raise Refusal(403, _CLOUD_DISABLED)
        name = parse_name(reference.name)
        if not name.is_valid:
            status, text = self.behavior.invalid_show
            raise Refusal(status, text.format(given, full=name.full))
        name = self.models.spelled(name)
        try:
            if self.behavior.show_cache and overlay.is_cacheable:
                shown = self._shown_from_memory(name, verbose=verbose, is_local=reference.is_local)
            else:
                shown = self._shown(name, overlay, verbose=verbose, is_local=reference.is_local)
            return self.with_foreign_words(shown)
        except (NoSuchModel, FileNotFoundError) as error:
            missing = name.short if self.behavior.show_names_canonical else given
            raise Refusal(404, f"model '{missing}' not found") from error
        except (CorruptManifest, BadGGUF) as error:
            raise failure(str(error)) from error

    def _shown(self, name: Name, overlay: Overlay, *, verbose: bool, is_local: bool) -> dict[str, object]:
        model = self.models.load(name)
        if model.config.remote_host and is_local:
            raise NoSuchModel(name.short)
        if model.config.remote_host and self.behavior.cloud_status_endpoint:
            raise Refusal(403, _CLOUD_DISABLED)
        return show_model(model, self.behavior, verbose=verbose, overlay=overlay)

    def _shown_from_memory(self, name: Name, *, verbose: bool, is_local: bool) -> dict[str, object]:
        digest = self.models.manifest(name).digest
        known = self._show_cache.get((name, verbose))
        if known is None or known[0] != digest:
            known = digest, self._shown(name, Overlay(), verbose=verbose, is_local=is_local)
            self._show_cache[name, verbose] = known
        return known[1]

    def _reference(self, text: str) -> Reference:
        if not self.behavior.source_suffixes:
            return Reference(text)
        try:
            return strip_source(text)
        except BothSuffixes as error:
            raise bad_request(str(error)) from error

    def copy(self, body: bytes) -> None:
        """Carry out /api/copy. Refusal."""
        fields = Fields("CopyRequest", decode_body(body))
        source_text, target_text = fields.text("source"), fields.text("destination")
        source, target = parse_name(source_text), parse_name(target_text)
        if not source.is_valid:
            raise bad_request(f'source "{source_text}" is invalid')
        if not target.is_valid:
            raise bad_request(f'destination "{target_text}" is invalid')
        source, target = self.models.spelled(source), self.models.spelled(target)
        if self.models.collides(target):
            raise bad_request("a model with that name already exists")
        if source == target:
            return
        try:
            self.store.copy_model(source, target)
        except FileNotFoundError as error:
            raise Refusal(404, f'model "{source_text}" not found') from error
        except OSError as error:
            raise os_failure(error, "write") from error

    def delete(self, body: bytes) -> None:
        """Carry out /api/delete. Refusal."""
        given = read_model_request(body, "DeleteRequest").model
        if not given:
            raise bad_request(self.behavior.delete_nothing)
        name = parse_name(self._pull_target(given))
        if not name.is_valid:
            raise bad_request(f'name "{given}" is invalid')
        name = self.models.spelled(name)
        with self.store.lock:
            try:
                manifest = self.models.manifest(name)
            except NoSuchModel as error:
                raise self._nothing_to_delete(given, name) from error
            except CorruptManifest as error:
                raise failure(str(error)) from error
            self.store.remove_manifest(name)
            self._creator.remove_layers(manifest)

    def _nothing_to_delete(self, given: str, name: Name) -> Refusal:
        if self.behavior.delete_missing_status == 404:
            return Refusal(404, f"model '{given}' not found")
        return failure(f"open {self.store.manifest_path(name)}: no such file or directory")

    def _pull_target(self, text: str) -> str:
        if not self.behavior.source_suffixes:
            return text
        try:
            return pull_target(text)
        except BothSuffixes as error:
            raise bad_request(str(error)) from error

    # -- work

    def create(self, body: bytes) -> tuple[bool, Work]:
        """Whether to stream, and the work of /api/create. Refusal before any work."""
        request = read_create(body)
        if self.behavior.structured_create:
            name = self._creator.checked(request)
            return request.stream, self._with_foreign_lines(self._creator.create(request, name))
        name, commands = self._modelfiles.checked(request)
        return request.stream, self._modelfiles.create(request, name, commands)

    def pull(self, body: bytes) -> tuple[bool, Work]:
        """Whether to stream, and the work of /api/pull. Refusal before any work."""
        request = read_model_request(body, "PullRequest")
        name = parse_name(self._pull_target(request.model))
        if not name.is_valid:
            raise bad_request("invalid model name")
        name = self.models.spelled(name)
        if self.models.collides(name):
            raise bad_request("a model with that name already exists")
        return request.stream, self._with_foreign_lines(self.transfer.pull(name, insecure=request.insecure))

    def push(self, body: bytes) -> tuple[bool, Work]:
        """Whether to stream, and the work of /api/push. Refusal before any work."""
        request = read_model_request(body, "PushRequest")
        if not request.model:
            raise bad_request("model is required")
        name = self.models.spelled(parse_name(request.model))
        return request.stream, self.transfer.push(
            name, insecure=request.insecure, is_http=request.model.startswith("http://")
        )
