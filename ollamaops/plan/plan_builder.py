"""A HostPlan in the making: what has been decided so far, and what later decisions have to know about it.

`changing` and `replaced` differ: asking a server to pull may turn out to change nothing, and then nothing that is
made from the model has to be made again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ollamaops.names import Digest, ModelName
from ollamaops.ollama.features import Features
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    Difference,
    EffectiveTemplate,
    Fact,
    HostPlan,
    Kind,
    LoadModel,
    Note,
    PullModel,
    PushModel,
    UnloadModel,
    UploadBlob,
    VerifyModel,
    id_of,
)
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.expectations import read_expectations
from ollamaops.plan.flaws import Flaw, find_flaw
from ollamaops.plan.lookups import (
    Because,
    PlanOptions,
    awaits_verifying,
    is_left_alone,
    is_unwanted_stub,
)
from ollamaops.plan.observed import ObservedHost, ObservedModel
from ollamaops.plan.versions import left_behind, needs_verifying, sweep, versions_to_keep
from ollamaops.state.records import ModelRecord


@dataclass(slots=True)
class PlanBuilder:
    """The plan so far.

    `changing` maps a model to the action that changes it, `replaced` are those that are there, or were when we made
    something of them, and surely become something else; `unusable` those from which nothing can be made, `waiting`
    those that are judged after something else was changed.
    """

    desired: DesiredHost
    observed: ObservedHost
    options: PlanOptions
    actions: dict[str, Action] = field(default_factory=dict)
    changing: dict[ModelName, str] = field(default_factory=dict)
    replaced: set[ModelName] = field(default_factory=set)
    unusable: set[ModelName] = field(default_factory=set)
    waiting: set[ModelName] = field(default_factory=set)
    unchanged: list[ModelName] = field(default_factory=list)
    rolled_back: list[ModelName] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    @property
    def host(self) -> str:
        """The host's name."""
        return self.desired.host

    @property
    def features(self) -> Features:
        """What the host's server can do."""
        return self.observed.features

    def find(self, name: ModelName | None) -> ObservedModel | None:
        """The model as the host lists it."""
        return self.observed.models.get(name) if name else None

    def flaw_of(self, name: ModelName | None) -> Flaw | None:
        """What is known to be broken in the model."""
        return find_flaw(self.find(name), self.observed)

    def damage(self, name: ModelName | None) -> Because:
        """What is known to be broken in the model, as a reason; none without it."""
        flaw = self.flaw_of(name)
        return self.why(name, "damaged", observed=flaw.words) if name and flaw else ()

    def is_pending(self, name: ModelName | None) -> bool:
        """Whether the model will be another one after this plan, or may be."""
        return name in self.changing or name in self.waiting

    def recall(self, name: ModelName) -> ModelRecord | None:
        """What we remember of the model."""
        return self.observed.memory.get(name)

    def implicit(self, name: ModelName) -> DesiredModel | None:
        """The undeclared base of that name."""
        model = self.desired.find(name)
        return model if model and model.implicit else None

    def leaves_alone(self, name: ModelName) -> bool:
        """Whether the name is never looked at."""
        return is_left_alone(self.desired, name)

    def stub_at(self, name: ModelName | None, model: DesiredModel) -> ObservedModel | None:
        """The stub that is there where `model` needs something else."""
        there = self.find(name)
        return there if there and is_unwanted_stub(model, there) else None

    def expect(self, *names: ModelName | None) -> tuple[Fact, ...]:
        """What is seen now of these models, as facts that an action relies on."""
        seen = ((name, self.find(name)) for name in names if name)
        return tuple(Fact(name, model.digest if model else None) for name, model in seen)

    def needs(self, *names: ModelName | None) -> tuple[str, ...]:
        """The actions that change these models."""
        return tuple(self.changing[name] for name in dict.fromkeys(names) if name and name in self.changing)

    def add(self, action: Action) -> str:
        """Plan the action, in the place of one with the same id; returns the id."""
        action_id = id_of(action)
        is_new = action_id not in self.actions
        self.actions[action_id] = action
        if isinstance(action, VerifyModel):
            self.changing[action.model] = action_id
            return action_id
        if not isinstance(action, UploadBlob | PushModel | LoadModel | UnloadModel):
            if is_new:  # or else what has been planned since then comes after it
                self.changing[action.model] = action_id
            is_known = self.find(action.model) is not None or self._had_other_content(action)
            if is_known and not any(why.kind in ("unknown", "damaged") for why in action.because):
                self.replaced.add(action.model)
        return action_id

    def _had_other_content(self, action: Action) -> bool:
        """Whether a model that is not there had another content when we made it last, or has one under its former
        name. Of a rename that is not known, nor of a pull unless a registry or a lock has said what it brings."""
        memory = self.recall(action.model)
        if isinstance(action, CopyModel):
            return action.source in self.replaced
        if isinstance(action, PullModel):
            coming = action.pin or action.current
            return bool(coming) and memory is not None and memory.digest not in coming
        declared = self.desired.find(action.model)
        return isinstance(action, CreateModel) and (
            action.recipe.base in self.replaced
            or (declared is not None and self.find(declared.spec.moved_from) is not None)
            or (memory is not None and memory.is_ours and not memory.is_applied_for(action.fingerprint))
        )

    def add_verify(self, model: DesiredModel, at: ModelName, because: Because = ()) -> None:
        """Plan to verify what is at `at` by then, if the model has to be verified."""
        if needs_verifying(model.spec):
            self.add(
                VerifyModel(
                    host=self.host,
                    model=model.name,
                    at=at,
                    expectations=read_expectations(model.spec.expect),
                    because=because,
                    needs=self.needs(model.name, at),
                    keep=versions_to_keep(model.spec),
                    retries=model.spec.retries,
                )
            )

    def why(
        self, name: ModelName, kind: Kind, path: str = "", *, desired: str = "", observed: str = ""
    ) -> Because:
        """One reason for an action."""
        found = Difference(
            host=self.host, model=name, kind=kind, path=path, desired=desired, observed=observed
        )
        return (found,)

    def record_unchanged(self, model: DesiredModel) -> None:
        """The content is as declared, as far as a look can tell; what it does is verified, unless that is known."""
        own = self.find(model.name)
        if own is not None and not (own.is_able or own.is_cloud):
            self.doubt(
                model.name,
                "the server lists nothing that it can do, as when its weights cannot be read",
                f"ollamaops verify {model.name} loads it",
            )
            return
        if awaits_verifying(model, self.observed):
            self.add_verify(model, model.name, self.why(model.name, "unverified"))
        else:
            self.unchanged.append(model.name)

    def record_rolled_back(self, model: DesiredModel) -> None:
        """The model was rolled back, and stays so."""
        self.rolled_back.append(model.name)
        self.note(
            model.name,
            "stays at its previous version since it was rolled back",
            f"change its entry, or release it: ollamaops rollback {model.name} --release",
        )

    def note(
        self, name: ModelName, message: str, hint: str | None = None, *, unverified: bool = False
    ) -> None:
        """Say something that changes nothing."""
        self.notes.append(Note(host=self.host, model=name, message=message, hint=hint, unverified=unverified))

    def wait(self, name: ModelName, base: ModelName, flaw: Flaw | None = None) -> None:
        """Say that `name` cannot be judged before `base` is there, which this plan sees to, and what is wrong now."""
        self.waiting.add(name)
        message = f"compared with '{base}' as soon as that is there"
        if flaw is not None:
            message = f"{flaw.words}; they may come back with '{base}', so it is looked at again after that"
        self.notes.append(Note(host=self.host, model=name, message=message, waits=True))

    def wait_for_pull(self, name: ModelName) -> None:
        """Say that only the host can find out whether `name` is the latest, which this plan sees to."""
        message = "not known to be the latest: no registry is asked from here"
        hint = "ollamaops apply --no-registry has the host pull it, which tells"
        self.notes.append(Note(host=self.host, model=name, message=message, hint=hint, waits=True))

    def doubt(self, name: ModelName, message: str, hint: str | None = None) -> None:
        """Say that `name` is not known to be as declared, or may not be made so; the run is then partial."""
        self.notes.append(Note(host=self.host, model=name, message=message, hint=hint, unresolved=True))

    def cannot_mend(self, name: ModelName, lasting: Because, message: str, hint: str | None) -> None:
        """Say that `name` is not as declared, and that nothing planned here changes that."""
        self.notes.append(Note(host=self.host, model=name, message=message, hint=hint, lasting=lasting))

    def give_up(
        self, name: ModelName, message: str, hint: str | None = None, *, because: Because = ()
    ) -> None:
        """Plan nothing for `name`, nor for what is made from it. `because` is how it is known to differ; if nothing
        is known, it is in doubt."""
        self.unusable.add(name)
        known = tuple(why for why in because if why.kind != "unknown")
        if known:
            self.cannot_mend(name, known, message, hint)
        else:
            self.doubt(name, message, hint)

    def _leftovers(self) -> tuple[ModelName, ...]:
        """The names of ours that can go; a run that looks at some models only (--target) leaves them alone."""
        if not self.desired.complete or not self.observed.set_aside:
            return ()
        steps = sweep(
            self.observed.digests,
            [model.spec for model in self.desired.declared],
            stands={*self.unchanged, *self.rolled_back},
            ours=[name for name, memory in self.observed.memory.items() if memory.is_ours],
            ignored=self.desired.policy.ignore,
        )
        return left_behind(steps)

    def _templates(self) -> dict[str, EffectiveTemplate]:
        """Which template makes the prompts of each declared model, as far as it was seen."""
        found: dict[str, EffectiveTemplate] = {}
        for model in self.desired.models:
            own = self.observed.shown.get(model.name)
            if own is not None and own.effective_template:
                digest = Digest.of(own.effective_template.encode())
                is_own = own.effective_template == own.template
                found[str(model.name)] = EffectiveTemplate(digest, "model" if is_own else "weights")
        return found

    def build(self, unmanaged: tuple[ModelName, ...]) -> HostPlan:
        """The plan as a value."""
        return HostPlan(
            host=self.host,
            actions=tuple(self.actions.values()),
            unchanged=tuple(self.unchanged),
            unmanaged=unmanaged,
            rolled_back=tuple(self.rolled_back),
            leftovers=self._leftovers(),
            notes=tuple(self.notes),
            templates=self._templates(),
            server_version=self.observed.version,
        )
