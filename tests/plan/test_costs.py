"""What a plan says that its pulls move: each layer once, whoever needs it, and nothing that is there."""

from __future__ import annotations

from ollamaops.manifest.types import Copy, ModelSpec, Pull
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.ollama.listing import Listing
from ollamaops.plan.actions import Cost, PullModel
from ollamaops.plan.desired import build_desired
from ollamaops.plan.observed import ObservedHost, RegistryAnswer
from ollamaops.plan.planner import plan_host

FEATURES = features_of(ServerVersion.parse("0.33.0"))


def a_pull(name: str, ref: str | None = None) -> ModelSpec:
    return ModelSpec(name=ModelName.parse(name), source=Pull(ref=ModelName.parse(ref or name)))


def an_upstream(**layers: int) -> RegistryAnswer:
    return RegistryAnswer(layers=tuple((Digest.of(name.encode()), size) for name, size in layers.items()))


def costs(*specs: ModelSpec, present: tuple[str, ...] = (), **upstream: RegistryAnswer) -> dict[str, Cost]:
    """Model → what its pull costs."""
    observed = ObservedHost(
        host="h",
        features=FEATURES,
        models=Listing(),
        upstream={ModelName.parse(name): value for name, value in upstream.items()},
        present_blobs=frozenset(Digest.of(name.encode()) for name in present),
    )
    plan = plan_host(build_desired("h", specs), observed)
    return {str(action.model): action.cost for action in plan.actions if isinstance(action, PullModel)}


def test_a_layer_that_two_pulls_share_is_counted_with_the_first() -> None:
    found = costs(a_pull("a"), a_pull("b"), a=an_upstream(shared=100, a=1), b=an_upstream(shared=100, b=2))
    assert found == {"a:latest": Cost(download_bytes=101), "b:latest": Cost(download_bytes=2)}


def test_a_layer_that_is_there_is_told_of_by_every_pull_that_needs_it() -> None:
    upstream = {"a": an_upstream(shared=100, a=1), "b": an_upstream(shared=100, b=2)}
    found = costs(a_pull("a"), a_pull("b"), present=("shared",), **upstream)
    assert found == {
        "a:latest": Cost(download_bytes=1, present_bytes=100),
        "b:latest": Cost(download_bytes=2, present_bytes=100),
    }


def test_one_pull_for_two_entries_is_not_shared_with_itself() -> None:
    alias = ModelSpec(name=ModelName.parse("alias"), source=Copy(source=ModelName.parse("a")))
    found = costs(a_pull("a"), a_pull("mirror", "a"), alias, a=an_upstream(a=5))
    assert found == {"a:latest": Cost(download_bytes=5)}


def test_a_pull_whose_size_nobody_tells_costs_an_unknown_amount() -> None:
    found = costs(a_pull("a"), a_pull("b"), b=an_upstream(b=2))
    assert found == {"a:latest": Cost(download_bytes=None), "b:latest": Cost(download_bytes=2)}
