"""Running the actions of one host's plan in a good order: slots, keys, dependents, cancel.

A ready action starts when its kind has a free slot and no other action works on the same thing. create, copy, delete
and push run one at a time per host, because servers lock nothing between them. Models are loaded after everything
that changes them, and deletions come last, but for those that something else needs. A failed action skips what
depends on it, never its neighbors. Every action gets exactly one outcome, whatever happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ollamaops.events import Failed, Interrupted, Outcome, Skipped, Succeeded
from ollamaops.http.cancel import CancelToken
from ollamaops.plan.actions import (
    Action,
    DeleteModel,
    LoadModel,
    PullModel,
    UploadBlob,
    id_of,
)
from ollamaops.plan.results import ActionResult

Do = Callable[[Action], Outcome]


def execute(
    actions: Sequence[Action], do: Do, *, parallel: int, cancel: CancelToken
) -> tuple[ActionResult, ...]:
    """Do all actions of one host; results in the order of `actions`.

    `do` runs in worker threads and turns every failure into an Outcome; `parallel` bounds pulls and uploads each.
    """
    run = _Schedule(actions, parallel)
    with ThreadPoolExecutor(max_workers=2 * parallel + 1, thread_name_prefix="action") as pool:
        running: dict[Future[Outcome], str] = {}
        while run.waiting or running:
            if cancel.is_set():
                run.stop()
            waiting_before = len(run.waiting)
            for action_id in run.startable():
                running[pool.submit(_safely, do, run.start(action_id))] = action_id
            if running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    run.finish(running.pop(future), future.result())
            elif run.waiting and len(run.waiting) == waiting_before:
                run.break_cycle()
    return tuple(ActionResult(action=action, outcome=run.outcomes[id_of(action)]) for action in actions)


def _safely(do: Do, action: Action) -> Outcome:
    """No exception but a bug crosses from a worker to the scheduler, and a bug fails one action only."""
    try:
        return do(action)
    except Exception as error:  # noqa: BLE001  a bug in one handler must not lose the other actions
        return Failed(
            error=f"internal error: {type(error).__name__}: {error}", hint="please report this", exit_code=1
        )


class _Schedule:
    """Which actions wait, run and ended. Used by the scheduling thread alone."""

    def __init__(self, actions: Sequence[Action], parallel: int) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.waiting = {id_of(action): action for action in actions}
        self._running: dict[str, Action] = {}
        self._known = frozenset(self.waiting)
        self._needed = frozenset(need for action in actions for need in action.needs)
        self._slots = {"pull": parallel, "upload": parallel, "serial": 1}

    def startable(self) -> list[str]:
        """Ids of actions that may start now; actions whose needs failed get their outcome on the way."""
        found: list[str] = []
        busy = Counter(map(_slot, self._running.values()))
        keys = set(map(_key, self._running.values()))
        stage = min(map(self._stage, (*self.waiting.values(), *self._running.values())), default=0)
        for action_id, action in list(self.waiting.items()):
            slot, key = _slot(action), _key(action)
            if not self._is_ready(action_id, action) or self._stage(action) > stage:
                continue
            if busy[slot] < self._slots[slot] and key not in keys:
                busy[slot] += 1
                keys.add(key)
                found.append(action_id)
        return found

    def _is_ready(self, action_id: str, action: Action) -> bool:
        """Whether all that the action needs has worked; when something did not, the action ends here."""
        needs = [need for need in action.needs if need in self._known]
        failed = next((need for need in needs if need in self.outcomes and not self._worked(need)), None)
        if failed is not None:
            self._end(action_id, Skipped(because=failed))
            return False
        return all(need in self.outcomes for need in needs)

    def _worked(self, action_id: str) -> bool:
        return isinstance(self.outcomes[action_id], Succeeded)

    def _stage(self, action: Action) -> int:
        """An action starts when all those of earlier stages have ended."""
        match action:
            case LoadModel():
                return 1
            case DeleteModel():
                return 0 if id_of(action) in self._needed else 2
            case _:
                return 0

    def start(self, action_id: str) -> Action:
        self._running[action_id] = action = self.waiting.pop(action_id)
        return action

    def finish(self, action_id: str, outcome: Outcome) -> None:
        del self._running[action_id]
        self.outcomes[action_id] = outcome

    def stop(self) -> None:
        """Nothing that waits will be started."""
        for action_id in list(self.waiting):
            self._end(action_id, Interrupted())

    def break_cycle(self) -> None:
        """End one action that can never start. Only a saved plan edited by hand has needs that form a cycle."""
        self._end(next(iter(self.waiting)), Skipped(because="its needs form a cycle"))

    def _end(self, action_id: str, outcome: Outcome) -> None:
        del self.waiting[action_id]
        self.outcomes[action_id] = outcome


def _slot(action: Action) -> str:
    match action:
        case PullModel():
            return "pull"
        case UploadBlob():
            return "upload"
        case _:
            return "serial"


def _key(action: Action) -> str:
    """Who works on the same thing must not work at the same time."""
    return str(action.digest) if isinstance(action, UploadBlob) else action.model.key
