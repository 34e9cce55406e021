"""Inputs from a web server, by signed links: read as what they are, and no message tells the signature."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from indextts_job.data.dataset import Limits
from indextts_job.data.sources import load_dataset
from indextts_job.demo.world import World
from indextts_job.errors import DataError
from indextts_job.model.config import gpt_config
from indextts_job.storage.files import read_yaml
from indextts_job.tokenizer.loading import load_tokenizer

SIGNATURE = "X-Amz-Expires=60&X-Amz-Signature=0123456789abcdef&sp=rl"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        return


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    handler = partial(Quiet, directory=str(world.folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def below(address: str, path: Path, world: World) -> str:
    return f"{address}/{path.relative_to(world.folder)}?{SIGNATURE}"


def test_a_signed_manifest_is_the_dataset_that_it_names(world: World, address: str) -> None:
    model = gpt_config(read_yaml(below(address, world.model_config, world), "", ""), "")
    assert load_tokenizer(below(address, world.tokenizer, world)).pieces == 217
    manifest = f"{below(address, world.train_manifest, world)}::am"
    remote = load_dataset([manifest], Limits(model, 217), skip_bad_samples=False)
    local = load_dataset([f"{world.train_manifest}::am"], Limits(model, 217), skip_bad_samples=False)
    assert remote.fingerprint == local.fingerprint
    assert remote.languages == {"am": 40}
    assert "X-Amz" not in remote.origin_of(0)


def test_a_signed_link_that_leads_nowhere_does_not_tell_its_signature(world: World, address: str) -> None:
    model = gpt_config(read_yaml(str(world.model_config), "", ""), "")
    for path in ("none.jsonl", "none", "none.json"):
        with pytest.raises(DataError) as caught:
            load_dataset([f"{address}/{path}?{SIGNATURE}"], Limits(model, 217), skip_bad_samples=False)
        assert "none" in str(caught.value)
        assert "0123456789abcdef" not in str(caught.value)
