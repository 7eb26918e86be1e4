"""From a recipe to what goes over the wire, in the form of each era."""

from __future__ import annotations

from live_host import name

from ollamaops.names import Digest
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.plan.actions import Blob, Recipe
from ollamaops.plan.create_request import build_request, render_request

DIGEST = "ab" * 32
OTHER = "cd" * 32


def test_files_are_called_by_their_base_names_where_a_server_knows_no_folders() -> None:
    recipe = Recipe(files=(Blob("sub/w.gguf", Digest(DIGEST)),), adapters=(Blob("a.gguf", Digest(OTHER)),))
    named = {
        version: dict(build_request(name("m"), recipe, features_of(ServerVersion.parse(version))).files)
        for version in ("0.12.11", "0.33.0")
    }
    assert named == {"0.12.11": {"w.gguf": Digest(DIGEST)}, "0.33.0": {"sub/w.gguf": Digest(DIGEST)}}


def test_a_recipe_becomes_the_modelfile_that_old_servers_read() -> None:
    recipe = Recipe(
        base=name("ignored"),
        adapters=(Blob("a.gguf", Digest(OTHER)),),
        template="{{ .Prompt }}",
        system='say "hi"\nalways',
        parameters={"temperature": 0.5, "use_mmap": True, "numa": False, "stop": ("a b", "c")},
        licenses=("MIT",),
        messages=(("user", "hi"), ("assistant", "yo")),
    )
    assert render_request(recipe, name("llama3.2:3b")).splitlines() == [
        "FROM llama3.2:3b",
        f"ADAPTER @sha256:{OTHER}",
        'TEMPLATE """{{ .Prompt }}"""',
        'SYSTEM """say "hi"',
        'always"""',
        "PARAMETER temperature 0.5",
        "PARAMETER use_mmap true",
        "PARAMETER numa false",
        'PARAMETER stop """a b"""',
        "PARAMETER stop c",
        "LICENSE MIT",
        "MESSAGE user hi",
        "MESSAGE assistant yo",
    ]
    files = Recipe(files=(Blob("w.gguf", Digest(DIGEST)),))
    assert render_request(files, None).splitlines() == [f"FROM @sha256:{DIGEST}"]
