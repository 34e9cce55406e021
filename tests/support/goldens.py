"""Files that must only change on purpose. `make goldens` writes them; the tests only compare.

python -m tests.support.goldens
"""

import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from indextts_job import troubleshooting
from indextts_job.checkpoint.manifest import FORMAT_VERSION, file_name
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.cli import main
from indextts_job.storage.remote_storage import open_storage
from tests.support.documented import DOCS, TABLES, with_entries, with_table
from tests.support.stores import save

FOLDER = Path(__file__).resolve().parents[1] / "golden"
CONFIG = FOLDER / "help-config.yaml"
MANIFEST = FOLDER / f"manifest-v{FORMAT_VERSION}.json"


def help_config() -> str:
    """Every configuration key with its default."""
    stream = io.StringIO()
    with redirect_stdout(stream):
        main(["train", "--help-config"])
    return stream.getvalue()


def manifest() -> bytes:
    """A checkpoint manifest of the current format."""
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(open_storage(folder))
        name = save(store, 1200, attempt=3, start=1000, tags=("best", "final"))
        return store.storage.read(f"checkpoints/{file_name(name)}")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    CONFIG.write_text(help_config(), encoding="utf-8")
    if not MANIFEST.exists():  # a released format never changes, it gets a successor
        MANIFEST.write_bytes(manifest())
    for document, marker in TABLES.items():
        path = DOCS / document
        path.write_text(with_table(path.read_text(encoding="utf-8"), marker), encoding="utf-8")
    source = Path(troubleshooting.__file__)
    source.write_text(with_entries(source.read_text(encoding="utf-8")), encoding="utf-8")
