"""Plans and runs as they happen, for the tests of report/ to print."""

from __future__ import annotations

from ollamaops.events import Failed, Interrupted, Outcome, Refused, Skipped, Succeeded
from ollamaops.names import Digest, ModelName
from ollamaops.plan.actions import (
    Blob,
    CopyModel,
    Cost,
    CreateModel,
    DeleteModel,
    Difference,
    Fact,
    HostPlan,
    Kind,
    Note,
    Plan,
    PullModel,
    PushModel,
    Recipe,
    Refusal,
    UnreachedHost,
    UploadBlob,
)
from ollamaops.plan.results import ActionResult, HostReport, RunReport

NOW = "9f2c" * 16
OLD = "3f2a" * 16
PROMPT = "You are the support bot of Example Corp.\nAnswer in French.\nBe brief.\nNever guess a price.\n"
NEW_PROMPT = PROMPT.replace("French", "German").replace("Be brief.\n", "Be brief and kind.\nSay your name.\n")


def a_name(text: str) -> ModelName:
    return ModelName.parse(text)


def why(
    model: str, kind: Kind, path: str = "", desired: str = "", observed: str = "", host: str = "gpu-1"
) -> tuple[Difference, ...]:
    return (
        Difference(host=host, model=a_name(model), kind=kind, path=path, desired=desired, observed=observed),
    )


def a_pull(
    model: str,
    host: str = "gpu-1",
    kind: Kind = "missing",
    size: int | None = 2_000_000_000,
    present: int = 0,
) -> PullModel:
    return PullModel(
        host=host,
        model=a_name(model),
        because=why(model, kind, host=host, desired=NOW, observed="" if kind == "missing" else OLD),
        cost=Cost(download_bytes=size, present_bytes=present),
        expects=(Fact(a_name(model), None if kind == "missing" else OLD),),
    )


def a_create(
    model: str = "support-bot:latest", host: str = "gpu-1", because: tuple[Difference, ...] = ()
) -> CreateModel:
    return CreateModel(
        host=host,
        model=a_name(model),
        recipe=Recipe(base=a_name("qwen3:32b"), system=NEW_PROMPT, parameters={"temperature": 0.2}),
        because=because or why(model, "missing", host=host),
        expects=(Fact(a_name(model), None),),
    )


def an_upload(host: str = "gpu-1", size: int = 4_100_000_000, present: int = 0) -> UploadBlob:
    return UploadBlob(
        host=host,
        model=a_name("legal-7b:v3"),
        digest=Digest(NOW),
        path="weights/legal-7b-f16.gguf",
        size_bytes=size + present,
        cost=Cost(upload_bytes=size, present_bytes=present),
    )


def a_weights_create(host: str = "gpu-1", quantize: str | None = "q4_K_M") -> CreateModel:
    return CreateModel(
        host=host,
        model=a_name("legal-7b:v3"),
        recipe=Recipe(files=(Blob("legal-7b-f16.gguf", Digest(NOW)),), quantize=quantize),
        because=why("legal-7b:v3", "missing", host=host),
        needs=(f"{host}/upload/sha256:{NOW[:12]}",),
    )


def a_copy(
    model: str = "chat:latest", source: str = "qwen3:32b", because: tuple[Difference, ...] = ()
) -> CopyModel:
    return CopyModel(
        host="gpu-1",
        model=a_name(model),
        source=a_name(source),
        because=because or why(model, "missing"),
        needs=("gpu-1/pull/qwen3:32b",),
    )


def a_delete(model: str = "old:latest", host: str = "gpu-1", kind: Kind = "unwanted") -> DeleteModel:
    because = why(model, kind, host=host, desired="embed:latest" if kind == "moved" else "")
    return DeleteModel(host=host, model=a_name(model), because=because, expects=(Fact(a_name(model), OLD),))


def names(*texts: str) -> tuple[ModelName, ...]:
    return tuple(a_name(text) for text in texts)


DRIFT = (
    *why("support-bot", "field", "parameters.temperature", "0.2", "0.7"),
    *why("support-bot", "field", "system", NEW_PROMPT, PROMPT),
)


def small_plan() -> Plan:
    """One host, the first apply of a two-line manifest."""
    return Plan(hosts=(HostPlan(host="local", actions=(a_pull("llama3.2:3b", host="local", size=None),)),))


def in_sync_plan() -> Plan:
    """Two hosts with nothing to do."""
    models = names("llama3.2:3b", "qwen3:32b", "support-bot", "chat", "nomic-embed-text", "legal-7b:v3")
    return Plan(hosts=tuple(HostPlan(host=host, unchanged=models) for host in ("gpu-1", "gpu-2")))


def mixed_plan() -> Plan:
    """Every kind of action, on hosts of which one has not answered."""
    gpu_1 = HostPlan(
        host="gpu-1",
        server_version="0.33.0",
        actions=(
            a_pull("qwen3:32b", size=20_200_000_000, present=1_100_000_000),
            a_pull("llama3.2:3b", kind="content"),
            an_upload(),
            a_weights_create(),
            a_create(because=DRIFT),
            a_copy(),
            a_copy(
                "fast", "llama3.2:3b", why("fast", "alias", "digest", f"llama3.2:3b ({NOW[:12]})", OLD[:12])
            ),
            a_copy("embed", "nomic", why("embed", "moved", desired="embed:latest", observed="nomic:latest")),
            PushModel(
                host="gpu-1",
                model=a_name("registry.corp.example:5000/corp/support-bot:2026.11"),
                source=a_name("support-bot"),
                because=why("support-bot", "unpushed", desired="support-bot:latest"),
            ),
            a_delete("nomic", kind="moved"),
            a_delete("scratch-3", kind="undeclared"),
        ),
        unchanged=names("mario", "nomic-embed-text"),
        unmanaged=names("scratch/try-1"),
        notes=(
            Note(
                host="gpu-1",
                model=a_name("mario"),
                message="weights not verified: this server stores them rewritten, "
                "and only their header could be compared",
                hint="--verify-weights builds the model again from the declared file",
            ),
        ),
    )
    gpu_2 = HostPlan(
        host="gpu-2",
        server_version="0.12.11",
        actions=(
            a_pull("qwen3:32b", host="gpu-2", size=20_200_000_000, present=1_100_000_000),
            a_pull("llama3.2:3b", host="gpu-2", kind="unknown", size=None),
            a_create(host="gpu-2", because=DRIFT),
            a_delete(host="gpu-2"),
        ),
        unchanged=names("mario", "nomic-embed-text"),
        notes=(
            Note(
                host="gpu-2",
                model=a_name("legal-7b:v3"),
                message="cannot be made by Ollama 0.12.11: split GGUF files need 0.30.0",
                hint="merge the shards with llama-gguf-split --merge",
                unresolved=True,
            ),
        ),
    )
    unreached = UnreachedHost(
        host="gpu-3", error="gpu-3: connection refused", hint="is `ollama serve` running there?"
    )
    return Plan(
        hosts=(gpu_1, gpu_2),
        unreached=(unreached,),
        made_from={"manifest": "ab" * 32, "environment": "staging"},
    )


def refused_plan() -> Plan:
    """Deletes more than is allowed."""
    host = HostPlan(
        host="gpu-1",
        actions=tuple(a_delete(f"bot:v{number}", kind="undeclared") for number in range(5)),
        unchanged=names(*(f"model-{number}" for number in range(7))),
        refusals=(
            Refusal(
                rule="max_change.delete",
                host="gpu-1",
                message="5 models to delete, 3 allowed (30 % of 12)",
                hint="raise policy.max_change.delete, or use --force max_change.delete for this run",
            ),
        ),
    )
    return Plan(hosts=(host,))


def fleet_plan() -> Plan:
    """Twenty equal hosts, one of them ahead, two of them away."""
    hosts = [f"lab-{number:02}" for number in range(1, 21)]
    return Plan(
        hosts=tuple(
            HostPlan(
                host=host,
                actions=() if host == "lab-07" else (a_pull("llama3.2:3b", host=host), a_create(host=host)),
                unchanged=names(
                    "nomic-embed-text", *(("llama3.2:3b", "support-bot") if host == "lab-07" else ())
                ),
            )
            for host in hosts
        ),
        unreached=tuple(
            UnreachedHost(host=host, error=f"{host}: no answer within 30s") for host in ("lab-21", "lab-22")
        ),
    )


def a_run() -> RunReport:
    """The mixed plan applied, with a failure and what follows from it."""
    plan = mixed_plan()
    gpu_1, gpu_2 = plan.hosts
    outcomes: dict[str, Outcome] = {
        "qwen3:32b": Failed(
            error="gpu-1: the disk is full: write sha256-9f2c-partial: no space left on device",
            hint="free space on gpu-1, then run again: the pull resumes",
            seconds=73.4,
        ),
        "chat:latest": Skipped(because="gpu-1/pull/qwen3:32b failed"),
        "scratch-3:latest": Refused(
            because="its digest was 3f2a3f2a3f2a when the plan was made, and is 77aa77aa77aa now",
            hint="plan again",
        ),
        "nomic:latest": Interrupted(),
    }
    first = tuple(
        ActionResult(action=action, outcome=outcomes.get(str(action.model), Succeeded(seconds=12.5)))
        for action in gpu_1.actions
    )
    second = tuple(
        ActionResult(
            action=action, outcome=Succeeded(seconds=41.0, changed=not isinstance(action, PullModel))
        )
        for action in gpu_2.actions
    )
    return RunReport(
        run_id="20261122-185235-ab12",
        plan=plan,
        hosts=(
            HostReport(
                host="gpu-1",
                plan=gpu_1,
                results=first,
                rounds=3,
                verified=True,
                seconds=90.0,
                remaining=(
                    *why("qwen3:32b", "missing"),
                    *why("support-bot", "field", "parameters.stop", '["<|im_end|>"]', ""),
                ),
                notes=gpu_1.notes,
            ),
            HostReport(host="gpu-2", plan=gpu_2, results=second, rounds=1, verified=True, seconds=164.0),
            HostReport(
                host="gpu-3",
                plan=HostPlan(host="gpu-3"),
                unreached=plan.unreached[0],
            ),
        ),
        seconds=164.2,
    )


def a_clean_run() -> RunReport:
    """The fleet's plan with two hosts, applied without trouble."""
    plan = Plan(hosts=fleet_plan().hosts[:2])
    reports = tuple(
        HostReport(
            host=host.host,
            plan=host,
            results=tuple(
                ActionResult(action=action, outcome=Succeeded(seconds=12.5)) for action in host.actions
            ),
            rounds=1,
            verified=True,
        )
        for host in plan.hosts
    )
    return RunReport(run_id="r", plan=plan, hosts=reports, seconds=25.4)
