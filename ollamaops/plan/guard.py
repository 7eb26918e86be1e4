"""Safety rules over a plan: values in, refusals out. A refused plan changes nothing on any host.

Each rule has a name, which is what `--force RULE` lifts. Percentages count only from ten models up, so that a host
with three models can change one. Maintenance windows follow the wall clock in their own time zone, and the hours
after midnight belong to the day on which the window opens: `sat 22:00-06:00` is open on Sunday at five.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime, time, timedelta

from msgspec.structs import replace

from ollamaops.errors import InvalidValue, cut_text, did_you_mean
from ollamaops.lockfile.build import needs_lock
from ollamaops.manifest.types import Limit, Window
from ollamaops.names import ModelName
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    DeleteModel,
    HostPlan,
    PullModel,
    PushModel,
    Refusal,
    UploadBlob,
)
from ollamaops.plan.desired import DesiredHost
from ollamaops.plan.disk import refuse_disk
from ollamaops.plan.licenses import refused_licenses
from ollamaops.plan.observed import Clocks, ObservedHost
from ollamaops.plan.one_server import RULE, refusal_of
from ollamaops.plan.residency import kept_loaded
from ollamaops.plan.vram import refuse_vram

PERCENT_FROM_MODELS = 10
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LOOK_AHEAD_DAYS = 8
PENDING = "pending"  # the rule of prune: it judges what prune would leave of a plan

Rule = Callable[[HostPlan, DesiredHost, ObservedHost], Iterator[Refusal]]


def guard(
    plan: HostPlan, desired: DesiredHost, observed: ObservedHost, *, force: Iterable[str] = ()
) -> HostPlan:
    """`plan` with the refusals of every rule that says no and is not named in `force`."""
    return replace(plan, refusals=_refusals(RULES.keys() - set(force), plan, desired, observed))


def guard_again(
    plan: HostPlan, desired: DesiredHost, observed: ObservedHost, *, force: Iterable[str] = ()
) -> HostPlan:
    """A saved plan, judged anew by every rule, whatever it says of itself; what else was refused stays so."""
    judged = _refusals(RULES.keys() - set(force), plan, desired, observed)
    again = {*OF_THE_MOMENT, *(refusal.rule for refusal in judged)}
    kept = tuple(refusal for refusal in plan.refusals if refusal.rule not in again)
    return replace(plan, refusals=(*kept, *judged))


def lifted_by(name: str) -> frozenset[str]:
    """The rules that `--force name` lifts: one, or all that begin with `name.`. InvalidValue if there is none."""
    known = (*RULES, PENDING)
    rules = frozenset(rule for rule in known if rule == name or rule.startswith(f"{name}."))
    if not rules:
        families = (rule.rpartition(".")[0] for rule in known)
        names = dict.fromkeys(filter(None, (*known, *families)))
        raise InvalidValue(
            f"no safety rule '{cut_text(name, 80)}'{did_you_mean(name, names)}",
            hint=f"rules: {', '.join(names)}",
        )
    return rules


def _refusals(
    rules: Collection[str], plan: HostPlan, desired: DesiredHost, observed: ObservedHost
) -> tuple[Refusal, ...]:
    asked = [rule for name, rule in RULES.items() if name in rules]
    return tuple(refusal for rule in asked for refusal in rule(plan, desired, observed))


def _one_server(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    """What was seen of one server says nothing of the one that is changed next."""
    if observed.several_servers and changes_of(plan):
        yield refusal_of(plan.host, observed.several_servers)


def _protect(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    for name in disturbed(plan, observed):
        if desired.protects(name):
            yield Refusal(
                rule="protect",
                host=plan.host,
                model=name,
                message=f"'{name}' is protected, and this plan would delete or replace it",
                hint="take it out of protect, or use --force protect for this run",
            )


def _deleted(plan: HostPlan) -> list[ModelName]:
    return [action.model for action in plan.actions if isinstance(action, DeleteModel)]


def _replaced(plan: HostPlan, observed: ObservedHost) -> list[ModelName]:
    """Each model once: making it aside and switching to it is one change."""
    names = (
        action.model for action in plan.actions if isinstance(action, PullModel | CreateModel | CopyModel)
    )
    return [name for name in dict.fromkeys(names) if name in observed.models]


def _max_delete(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    yield from _over(plan, desired.policy.max_delete, "delete", _deleted(plan), observed)


def _max_replace(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    yield from _over(plan, desired.policy.max_replace, "replace", _replaced(plan, observed), observed)


def _over(
    plan: HostPlan, limit: Limit | None, what: str, names: list[ModelName], observed: ObservedHost
) -> Iterator[Refusal]:
    total = len(observed.models)
    allowed, of_total = _allowed(limit, total) if limit else (None, "")
    if allowed is not None and len(names) > allowed:
        yield Refusal(
            rule=f"max_change.{what}",
            host=plan.host,
            message=f"{len(names)} models to {what}, {allowed} allowed{of_total}",
            hint=f"raise policy.max_change.{what}, or use --force max_change.{what} for this run",
        )


def _allowed(limit: Limit, total: int) -> tuple[int | None, str]:
    """How many changes are allowed (None: any number), and how that comes about."""
    if limit.percent is None or total < PERCENT_FROM_MODELS:
        return limit.count, ""
    return int(total * limit.percent / 100), f" ({limit.percent:g} % of {total})"


def _empty_manifest(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    """A wrong -f, -e or where: must not empty a host."""
    pruned = [action for action in plan.actions if is_prune(action)]
    if pruned and not desired.models:
        yield Refusal(
            rule="empty-manifest",
            host=plan.host,
            message=f"the manifest declares no model for this host, and prune would delete {len(pruned)}",
            hint="check -f, -e and where:, or use --force empty-manifest if that is meant",
        )


def is_prune(action: Action) -> bool:
    return isinstance(action, DeleteModel) and any(reason.kind == "undeclared" for reason in action.because)


def _registries(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    allowed = desired.policy.registries
    if allowed is None:
        return
    folded = {entry.lower() for entry in allowed}
    for action in plan.actions:
        if isinstance(action, PullModel) and action.model.registry_host.lower() not in folded:
            registry = action.model.registry_host
            yield Refusal(
                rule="registries",
                host=plan.host,
                model=action.model,
                message=f"'{action.model}' comes from {registry}, which policy.allow.registries does not name",
                hint="add the registry there, or use --force registries for this run",
            )


def _cloud(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    if desired.policy.cloud:
        return
    for action in plan.actions:
        if _sends_prompts_away(action):
            yield Refusal(
                rule="cloud",
                host=plan.host,
                model=action.model,
                message=f"'{action.model}' runs on ollama.com, not on this host",
                hint="set policy.allow.cloud: true if prompts may leave the host, "
                "or use --force cloud for this run",
            )


def _sends_prompts_away(action: Action) -> bool:
    """Whether the result is a stub of a model that runs elsewhere: pulled, or made or copied from one."""
    match action:
        case PullModel(model=source) | CopyModel(source=source):
            return source.source_suffix == "cloud"
        case CreateModel(recipe=recipe):
            return recipe.base is not None and recipe.base.source_suffix == "cloud"
        case _:
            return False


def _locked(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    """--locked: everything that may ever be pulled has to be in the lock, even if it is there already."""
    for model in desired.models if desired.policy.require_lock else ():
        if needs_lock(model.spec):
            yield Refusal(
                rule="locked",
                host=plan.host,
                model=model.name,
                message=f"'{model.name}' is not in the lock file, and this run is --locked",
                hint="write its entry with: ollamaops lock",
            )


def _min_version(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    """A server that does not know its version is not known to be too old."""
    wanted = desired.policy.min_version
    if changes_of(plan) and wanted and observed.features.version.is_older_than(wanted):
        yield Refusal(
            rule="min-version",
            host=plan.host,
            message=f"the server is {observed.version}, and policy.min_version is {wanted}",
            hint="upgrade the server, or use --force min-version for this run",
        )


def _licenses(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    """Only what is known is refused: declared texts, those of a base that was looked into, and of pulls."""
    allowed = desired.policy.licenses
    for action in plan.actions if allowed is not None else ():
        for name in refused_licenses(_license_texts(action, observed), allowed or ()):
            yield Refusal(
                rule="licenses",
                host=plan.host,
                model=action.model,
                message=f"'{action.model}' has the license '{cut_text(name, 80)}', "
                "which policy.allow.licenses does not name",
                hint="add the license there, or use --force licenses for this run",
            )


def _license_texts(action: Action, observed: ObservedHost) -> tuple[str, ...]:
    match action:
        case PullModel(model=name):
            return observed.licenses.get(name, ())
        case CreateModel(recipe=recipe):
            base = observed.shown.get(recipe.base) if recipe.base else None
            return (*recipe.licenses, *((base.license_text,) if base else ()))
        case _:
            return ()


def _windows(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    windows, clocks, changes = desired.policy.windows, observed.clocks, changes_of(plan)
    opening = next_opening(windows, clocks) if clocks is not None else None
    if not changes or clocks is None or opening is None or is_open(windows, clocks):
        return
    yield Refusal(
        rule="windows",
        host=plan.host,
        message=f"no maintenance window is open: it is {describe_moment(clocks[windows[0].timezone])}, "
        f"the next one opens {describe_moment(opening)}; changes that wait: {len(changes)}",
        hint="run again then, or use --force windows for this run",
    )


def _busy(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    """What is declared resident is always loaded, by us: so being loaded does not mean being used.

    Else it could never be changed. Servers (up to 0.33) do not say whether a request is running; those that are go
    on with the old content, whose runner stays until they have ended.
    """
    in_use = observed.in_use - kept_loaded(model.spec for model in desired.declared)
    for name in disturbed(plan, observed) if desired.policy.busy == "refuse" else ():
        if name in in_use:
            yield Refusal(
                rule="busy",
                host=plan.host,
                model=name,
                message=f"'{name}' is loaded right now, and this plan would delete or replace it",
                hint="run again when it is idle (policy.busy: wait does), or use --force busy for this run",
            )


def changes_of(plan: HostPlan) -> tuple[Action, ...]:
    """The actions that change what is stored somewhere; loading and proving models is not among them."""
    return tuple(action for action in plan.actions if isinstance(action, CHANGING))


def disturbed(plan: HostPlan, observed: ObservedHost) -> tuple[ModelName, ...]:
    """Every model that is there and that the plan would delete or replace."""
    return tuple(dict.fromkeys([*_deleted(plan), *_replaced(plan, observed)]))


# maintenance windows


def is_open(windows: Iterable[Window], clocks: Clocks) -> bool:
    """Whether changes may begin now. `clocks` has the wall clock of each window's time zone."""
    return any(_is_open(window, clocks[window.timezone]) for window in windows)


def next_opening(windows: Iterable[Window], clocks: Clocks) -> datetime | None:
    """When the next window opens, in its own time zone; None when there are no windows."""
    openings = (opening for window in windows for opening in _openings(window, clocks[window.timezone]))
    return min(openings, default=None, key=lambda opening: opening.astimezone(UTC))


def describe_moment(moment: datetime) -> str:
    """`sat 22:00 (Europe/Paris)`."""
    return f"{DAYS[moment.weekday()]} {moment:%H:%M} ({moment.tzinfo})"


def _is_open(window: Window, here: datetime) -> bool:
    minute = here.hour * 60 + here.minute
    if window.begins_minute < window.ends_minute:
        return window.begins_minute <= minute < window.ends_minute and _opens_on(window, here)
    if minute >= window.begins_minute and _opens_on(window, here):
        return True
    return minute < window.ends_minute and _opens_on(window, here - timedelta(days=1))


def _opens_on(window: Window, day: datetime) -> bool:
    return not window.days or DAYS[day.weekday()] in window.days


def _openings(window: Window, here: datetime) -> Iterator[datetime]:
    begins = time(window.begins_minute // 60, window.begins_minute % 60)
    for number in range(_LOOK_AHEAD_DAYS):
        day = here + timedelta(days=number)
        opening = datetime.combine(day.date(), begins, tzinfo=here.tzinfo)
        # compared in UTC: of two moments in one zone, Python compares only what the clocks show
        if _opens_on(window, day) and opening.astimezone(UTC) > here.astimezone(UTC):
            yield opening


CHANGING: tuple[type[Action], ...] = (PullModel, UploadBlob, CreateModel, CopyModel, DeleteModel, PushModel)
RULES: dict[str, Rule] = {
    "protect": _protect,
    "max_change.delete": _max_delete,
    "max_change.replace": _max_replace,
    "empty-manifest": _empty_manifest,
    "registries": _registries,
    "cloud": _cloud,
    "locked": _locked,
    "min-version": _min_version,
    "licenses": _licenses,
    "windows": _windows,
    "busy": _busy,
    "vram": refuse_vram,
    "disk": refuse_disk,
    RULE: _one_server,
}
OF_THE_MOMENT = frozenset({RULE, "windows", "busy"})
